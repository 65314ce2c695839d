/* A batch of forgets and releases. */
#include "operations.h"

/*
 * `forgets` are pairs of node and count; the first `taken_count` of the `handles` are such whose opening the guest has taken
 * note of.  Numbers of nodes and handles that were wrong (forgotten more often than looked
 * up, not known) go to `wrong`, which has room for all; returns how many those are.  Never stops in the middle.
 *
 * Where a process died in the middle, the next one goes on: a handle is released once, whoever does it, and a forget that
 * was begun is not done again.
 */
int tree_cleanup(struct tables *t, const uint64_t *forgets, size_t forget_count, const uint64_t *handles,
                 size_t handle_count, size_t taken_count, uint64_t *wrong)
{
    const bool again = slot_deaths(t);
    int count = 0;

    for (size_t i = 0; i < handle_count; i++)
        if (handle_release(t, handles[i], i < taken_count) && !again)
            wrong[count++] = handles[i];
    for (size_t i = slot_progress(t); i < forget_count; i++) {
        slot_progressed(t, (uint32_t)i + 1);
        if (inode_forget(t, forgets[2 * i], forgets[2 * i + 1]))
            wrong[count++] = forgets[2 * i];
    }
    return count;
}
