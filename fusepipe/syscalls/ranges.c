/* Ranges of open files: allocated, freed, copied, and where they hold data. */
#include "identity.h"

/*
 * One call copies at most so much: it holds a worker and, in the guest, the file's lock until it ends, and its program
 * can be ended between two calls.  A multiple of every block size, so that sharing of blocks goes on in the next one.
 */
#define COPIED_AT_MOST ((uint64_t)64 << 20)

int tree_fallocate(struct tables *t, uint64_t handle, uint32_t mode, uint64_t offset, uint64_t length, bool kill)
{
    struct killing killing = { 0 };
    struct used_handle used;
    int error;

    if (t->read_only)
        return -EROFS;
    if (offset > INT64_MAX || length > INT64_MAX)
        return -EINVAL;
    error = handle_use(t, handle, false, &used);
    if (error)
        return error;
    if (kill || t->policy.no_setuid)
        error = begin_killing(t, used.fd, &killing);
    if (!error && fallocate(used.fd, (int)mode, (off_t)offset, (off_t)length))
        error = -errno;
    end_killing(t, &killing);
    handle_done(t, &used);
    return error;
}

static int copy(struct tables *t, int fd, uint64_t offset, int to_fd, uint64_t to_offset, uint64_t length, bool kill,
                uint64_t *copied)
{
    loff_t from = (loff_t)offset, to = (loff_t)to_offset;
    struct killing killing = { 0 };
    int error = kill || t->policy.no_setuid ? begin_killing(t, to_fd, &killing) : 0;
    ssize_t done = 0;

    if (!error) {
        done = copy_file_range(fd, &from, to_fd, &to, length < COPIED_AT_MOST ? length : COPIED_AT_MOST, 0);
        if (done < 0)
            error = -errno;
    }
    end_killing(t, &killing);
    *copied = (uint64_t)done;
    return error;
}

int tree_copy_range(struct tables *t, uint64_t handle, uint64_t offset, uint64_t to_handle, uint64_t to_offset,
                    uint64_t length, bool kill, uint64_t *copied)
{
    struct used_handle from, to;
    int error;

    if (t->read_only)
        return -EROFS;
    if (offset > INT64_MAX || to_offset > INT64_MAX)
        return -EINVAL;
    error = handle_use(t, handle, false, &from);
    if (error)
        return error;
    error = handle_use(t, to_handle, false, &to);
    if (!error) {
        error = copy(t, from.fd, offset, to.fd, to_offset, length, kill, copied);
        handle_done(t, &to);
    }
    handle_done(t, &from);
    return error;
}

/* SEEK_DATA and SEEK_HOLE of lseek(2).  The position that it moves means nothing here: reads and writes say where. */
int tree_lseek(struct tables *t, uint64_t handle, uint64_t offset, uint32_t whence, uint64_t *found)
{
    struct used_handle used;
    off_t at;
    int error;

    if (whence != SEEK_DATA && whence != SEEK_HOLE)
        return -EINVAL;
    if (offset > INT64_MAX)
        return -ENXIO;
    error = handle_use(t, handle, false, &used);
    if (error)
        return error;
    at = lseek(used.fd, (off_t)offset, (int)whence);
    if (at < 0)
        error = -errno;
    else
        *found = (uint64_t)at;
    handle_done(t, &used);
    return error;
}
