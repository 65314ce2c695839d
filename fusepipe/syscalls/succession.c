/*
 * A process that makes room for the next one while all is well: what it has beside the memfd and the next one cannot make
 * again.  Whoever keeps the memfd has that meanwhile.  Nothing runs in the tables, and in the next process nothing yet.
 */
#include "operations.h"

/* How many inodes, the root aside, have no file handle: they end with their descriptors. */
uint64_t succession_without_handle(struct tables *t)
{
    uint64_t count = 0;

    pthread_mutex_lock(&t->inodes_lock);
    for (uint32_t i = ROOT_ROW + 1; i < t->header->inodes; i++)
        count += t->inode_rows[i].word & 1 && !t->inode_rows[i].handle_size;
    pthread_mutex_unlock(&t->inodes_lock);
    return count;
}

static void sign_rows(struct tables *t, const uint32_t *rows, const int *fds, uint32_t count)
{
    struct signature signatures[SIGN_TOGETHER];

    if (!count || broker_sign(t, fds, count, signatures))
        return;
    tag_signed(t, rows, signatures, count);
}

/* Has the broker sign for all that is open: the next process need not prove where it lies, which names may not tell. */
void succession_sign(struct tables *t)
{
    uint32_t rows[SIGN_TOGETHER], count = 0;
    int fds[SIGN_TOGETHER];

    if (t->broker_fd < 0)
        return;
    for (uint32_t i = ROOT_ROW + 1; i < t->header->inodes; i++) {
        const struct inode_row *r = &t->inode_rows[i];

        if (!(r->word & 1) || t->inodes[i].fd < 0 || !r->handle_size || r->tagged)
            continue;
        fds[count] = t->inodes[i].fd;
        rows[count++] = i;
        if (count == SIGN_TOGETHER) {
            sign_rows(t, rows, fds, count);
            count = 0;
        }
    }
    sign_rows(t, rows, fds, count);
}

static void pin_if_nameless(struct tables *t, uint32_t row, int fd)
{
    struct stat st;

    if (fd >= 0 && !fstat(fd, &st) && !st.st_nlink)
        pin_keep(t, row, fd);
}

/* Has descriptors kept of what lost its last name by somebody else, as long as one is there. */
void succession_pins(struct tables *t)
{
    if (t->keep_fd < 0)
        return;
    for (uint32_t i = ROOT_ROW + 1; i < t->header->inodes; i++)
        if (t->inode_rows[i].word & 1)
            pin_if_nameless(t, i, t->inodes[i].fd);
    for (uint32_t i = 1; i < t->header->handles; i++)
        if (t->handle_rows[i].word & 1)
            pin_if_nameless(t, row_of(t->handle_rows[i].node), t->handles[i].fd);
    pins_flush(t);
}

/* Notes that no handle has locks of fcntl(2): who has some is noted again. */
void succession_no_locks(struct tables *t)
{
    for (uint32_t i = 1; i < t->header->handles; i++)
        if (t->handle_rows[i].word & 1)
            t->handle_rows[i].flags &= ~HANDLE_LOCKED;
}

/*
 * The handles after `after` that have locks of flock(2), with their descriptors, which stay the table's: how many they
 * are, at most `room`.
 */
uint32_t succession_flocked(struct tables *t, uint64_t after, uint64_t *handles, int *fds, uint32_t room)
{
    uint32_t count = 0;

    for (uint32_t i = row_of(after) + 1; i < t->header->handles && count < room; i++) {
        const struct handle_row *r = &t->handle_rows[i];

        if (!(r->word & 1) || !(r->flags & HANDLE_FLOCKED) || t->handles[i].fd < 0)
            continue;
        handles[count] = (uint64_t)(r->word >> 1) << 32 | i;
        fds[count++] = t->handles[i].fd;
    }
    return count;
}

/* The row of a handle of the file that is open as `fd`, for which a descriptor is reserved; 0 where it is of none. */
static uint32_t arrived(struct tables *t, uint64_t handle, int fd)
{
    const struct inode_row *inode;
    struct stat st;
    uint32_t row;

    pthread_mutex_lock(&t->handles_lock);
    row = handle_row_locked(t, handle);
    pthread_mutex_unlock(&t->handles_lock);
    if (!row || t->handle_rows[row].flags & HANDLE_OF_DIRECTORY || fstat(fd, &st))
        return 0;
    inode = &t->inode_rows[row_of(t->handle_rows[row].node)];
    return inode->dev == st.st_dev && inode->ino == st.st_ino && !fds_reserve(t, 1) ? row : 0;
}

/* A lock of this kind by way of the handle is there again. */
static void not_lost(struct tables *t, uint32_t row, uint32_t lock)
{
    if (!(t->handle_rows[row].flags & HANDLE_LOCKS) && t->counters.lost_locks)
        t->counters.lost_locks--;
    t->handle_rows[row].flags |= lock;
}

/* A descriptor of tree_lock_open that the process before had for this handle's file; takes `fd`.  0 or -ESTALE. */
int succession_restore_lock(struct tables *t, uint64_t handle, int fd)
{
    const uint32_t row = arrived(t, handle, fd);

    if (!row) {
        close(fd);
        return -ESTALE;
    }
    not_lost(t, row, HANDLE_LOCKED);
    return 0;
}

/* The descriptor of the handle itself, with its lock of flock(2); takes `fd`.  0 or -ESTALE. */
int succession_restore_flock(struct tables *t, uint64_t handle, int fd)
{
    const uint32_t row = arrived(t, handle, fd);

    if (!row || t->handles[row].fd >= 0) {
        if (row)
            fds_release(t, 1);
        close(fd);
        return -ESTALE;
    }
    t->handles[row].fd = fd;
    not_lost(t, row, HANDLE_FLOCKED);
    return 0;
}
