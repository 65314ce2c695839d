/*
 * Locks of the guest, held on the host where its other programs see them.
 *
 * Locks of fcntl(2) belong to an owner, which may use any handle of the file, so each owner has an open file of its own for
 * each inode, with open-file-description locks on it: those of one owner never meet each other, and all end with one
 * close.  Locks of flock(2) belong to an open file, in the guest as here, and are set on the handle itself.
 */
#include "operations.h"

#include <sys/file.h>

/* The node of an open file's handle.  Returns 0 or -EBADF. */
int tree_handle_node(struct tables *t, uint64_t handle, uint64_t *node)
{
    struct used_handle used;
    int error = handle_use(t, handle, false, &used);

    if (error)
        return error;
    *node = used.node;
    handle_done(t, &used);
    return 0;
}

/*
 * An open file for the locks of one owner on the file that `handle` is open for, which the caller gives back with
 * tree_lock_close.  It is open for reading and writing where the file can be, for read locks need the one and write locks
 * the other (fcntl(2)), and which the owner sets later is not known.  Returns the descriptor, or -errno: -ENOLCK where
 * the budget of descriptors is used up.
 */
int tree_lock_open(struct tables *t, uint64_t handle)
{
    struct used_handle used;
    int fd, error = handle_use(t, handle, false, &used);

    if (error)
        return error;
    if (fds_reserve(t, 1)) {
        handle_done(t, &used);
        return -ENOLCK;
    }
    fd = t->read_only ? -EROFS : reopen(t, used.fd, O_RDWR);
    if (fd < 0 && fd != -EINTR)
        fd = reopen(t, used.fd, (int)(used.flags & O_ACCMODE));
    if (fd < 0)
        fds_release(t, 1);
    handle_done(t, &used);
    return fd;
}

void tree_lock_close(struct tables *t, int fd)
{
    close_fd(fd);
    fds_release(t, 1);
}

/* `type` has the numbers of F_RDLCK, F_WRLCK and F_UNLCK; a range that ends at INT64_MAX has no end. */
static int range(struct flock *lock, uint32_t type, uint64_t start, uint64_t end)
{
    if (type > F_UNLCK || start > end || end > INT64_MAX)
        return -EINVAL;
    *lock = (struct flock){
        .l_type = (short)type,
        .l_whence = SEEK_SET,
        .l_start = (off_t)start,
        .l_len = end == INT64_MAX ? 0 : (off_t)(end - start + 1),
    };
    return 0;
}

/*
 * Sets or removes a lock on a descriptor of tree_lock_open; with `wait` once it can be set, or -EINTR.  Returns 0 or
 * -errno: -EAGAIN where somebody else's is in the way, -ENOLCK where the file could not be opened for this type.
 */
int lock_set(int fd, uint32_t type, uint64_t start, uint64_t end, bool wait)
{
    struct flock lock;
    int error = range(&lock, type, start, end);

    if (error)
        return error;
    if (!fcntl(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &lock))
        return 0;
    return errno == EACCES ? -EAGAIN : errno == EBADF ? -ENOLCK : -errno;
}

/* Puts type, start and end of a lock that is in the way of this one into `found`; the type is F_UNLCK where none is. */
int lock_get(int fd, uint32_t type, uint64_t start, uint64_t end, uint64_t *found)
{
    struct flock lock;
    int error = type == F_UNLCK ? -EINVAL : range(&lock, type, start, end);

    if (error)
        return error;
    if (fcntl(fd, F_OFD_GETLK, &lock))
        return -errno;
    found[0] = (uint64_t)lock.l_type;
    found[1] = (uint64_t)lock.l_start;
    found[2] = lock.l_len ? (uint64_t)(lock.l_start + lock.l_len - 1) : INT64_MAX;
    return 0;
}

/* flock(2) on a handle; F_RDLCK stands for LOCK_SH, F_WRLCK for LOCK_EX, F_UNLCK for LOCK_UN. */
int tree_flock(struct tables *t, uint64_t handle, uint32_t type, bool wait)
{
    static const int operations[] = { [F_RDLCK] = LOCK_SH, [F_WRLCK] = LOCK_EX, [F_UNLCK] = LOCK_UN };
    struct used_handle used;
    int error;

    if (type > F_UNLCK)
        return -EINVAL;
    error = handle_use(t, handle, false, &used);
    if (error)
        return error;
    if (type == F_UNLCK)             /* before, so that another thread's new lock is not taken for none */
        handle_note_lock(t, handle, HANDLE_FLOCKED, false);
    if (flock(used.fd, operations[type] | (wait ? 0 : LOCK_NB)))
        error = -errno;
    else if (type != F_UNLCK)
        handle_note_lock(t, handle, HANDLE_FLOCKED, true);
    handle_done(t, &used);
    return error;
}
