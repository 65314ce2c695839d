/*
 * What the reply to OPEN says beside the handle: whether the guest may keep the pages that it has cached of the file,
 * and whether its close needs to be asked about.
 *
 * An opening whose reply does not say "keep" makes the guest drop the file's pages, so what it caches afterwards is at
 * least as young as that opening.  The inode's row notes when it was and what the file was like then; a later one says
 * "keep" while that is recent, nothing has changed since, and the guest is known to have dropped them: it has used the
 * handle, or the guest's kernel has released it, which it does only after it has taken the reply.
 *
 * Equal timestamps alone would not do: a host program's mapping changes them once, not at every store, and they are
 * coarse.  So what was changed just before the opening is not kept by it, and nothing is kept for longer than the guest
 * asks for.
 */
#include "operations.h"

#include <time.h>

#define KEEP_ALWAYS UINT32_MAX
#define SECOND 1000000000
#define COARSE (SECOND / 50)         /* timestamps move with the timer's tick, of which there are 100 a second or more */

static int64_t clock_now(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return now.tv_sec * (int64_t)SECOND + now.tv_nsec;
}

static int64_t nanoseconds(struct timespec time)
{
    return time.tv_sec * (int64_t)SECOND + time.tv_nsec;
}

uint32_t flush_flag(const struct tables *t, uint32_t filesystem, uint32_t flags)
{
    return (flags & O_ACCMODE) == O_RDONLY || t->filesystems[filesystem].quiet_close ? REPLY_NOFLUSH : 0;
}

/* Whether this opening, of which `st` was taken afterwards, lets the guest keep its pages for `milliseconds`. */
static bool keeps(struct tables *t, const struct used *inode, const struct stat *st, uint32_t flags,
                  uint32_t milliseconds, uint64_t handle)
{
    const int64_t now = clock_now(CLOCK_BOOTTIME), ctime = nanoseconds(st->st_ctim);
    struct dropped dropped, *noted = &t->inodes[inode->row].dropped;

    pthread_mutex_lock(&t->inodes_lock);
    dropped = *noted;
    pthread_mutex_unlock(&t->inodes_lock);
    if (dropped.by && !(flags & O_TRUNC) && dropped.size == st->st_size && dropped.mtime == nanoseconds(st->st_mtim) &&
        dropped.ctime == ctime && now - dropped.at < (int64_t)milliseconds * (SECOND / 1000) &&
        (dropped.done || handle_was_used(t, dropped.by)))
        return true;

    dropped = (struct dropped){ .at = now, .size = st->st_size, .mtime = nanoseconds(st->st_mtim), .ctime = ctime };
    if (clock_now(CLOCK_REALTIME) - ctime >= COARSE)
        dropped.by = handle;
    pthread_mutex_lock(&t->inodes_lock);
    *noted = dropped;
    pthread_mutex_unlock(&t->inodes_lock);
    return false;
}

/* `st` is of the file after the opening; NULL: it is not known. */
uint32_t keep_flag_of(struct tables *t, const struct used *inode, const struct stat *st, uint32_t flags, uint32_t keep,
                      uint64_t handle)
{
    if (keep == KEEP_ALWAYS)
        return REPLY_KEEP;
    return keep && st && keeps(t, inode, st, flags, keep, handle) ? REPLY_KEEP : 0;
}

uint32_t keep_flag(struct tables *t, const struct used *inode, int fd, uint32_t flags, uint32_t keep, uint64_t handle)
{
    struct stat st;
    const bool matters = keep && keep != KEEP_ALWAYS;

    return keep_flag_of(t, inode, matters && !fstat(fd, &st) ? &st : NULL, flags, keep, handle);
}

/* `used`: the guest has taken the reply; of one that nobody took it has dropped nothing. */
void keep_released(struct tables *t, uint64_t node, uint64_t handle, bool used)
{
    struct dropped *noted = &t->inodes[row_of(node)].dropped;

    pthread_mutex_lock(&t->inodes_lock);
    if (noted->by == handle) {
        noted->done = used;
        if (!used)
            noted->by = 0;
    }
    pthread_mutex_unlock(&t->inodes_lock);
}
