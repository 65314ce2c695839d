/* A batch of forgets and releases. */
#include "operations.h"

/*
 * `forgets` are pairs of node and count.  Numbers of nodes and handles that were wrong (forgotten more often than looked
 * up, not known) go to `wrong`, which has room for all; returns how many those are.  Never stops in the middle.
 */
int tree_cleanup(struct tables *t, const uint64_t *forgets, size_t forget_count, const uint64_t *handles,
                 size_t handle_count, uint64_t *wrong)
{
    int count = 0;

    for (size_t i = 0; i < handle_count; i++)
        if (handle_release(t, handles[i]))
            wrong[count++] = handles[i];
    for (size_t i = 0; i < forget_count; i++)
        if (inode_forget(t, forgets[2 * i], forgets[2 * i + 1]))
            wrong[count++] = forgets[2 * i];
    return count;
}
