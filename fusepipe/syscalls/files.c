/* Open files.  Only regular ones: fifos, sockets and devices are opened by the guest's kernel itself. */
#include "identity.h"

#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#define FROM_CACHE 1u                /* write flags: FUSE_WRITE_CACHE, FUSE_WRITE_KILL_SUIDGID */
#define KILL_SUIDGID 4u
#define DIRECT_ALIGNMENT 4096u
#ifndef RWF_NOAPPEND
#define RWF_NOAPPEND 0x20            /* Linux 6.9 */
#endif

/*
 * What the reply says of a file that was just opened, beside its handle; and all that it holds, where it is short and the
 * guest is to read it anew.  With `quick` only what the host's page cache has: -EAGAIN where that is not all, else 0.  An
 * opening does not wait for the data of a filesystem that is not this machine's own: who opens files there may mean to
 * read them later, or not all.  What cannot be read is READ's to report.
 */
static int say_opened(struct tables *t, const struct used *used, int fd, uint32_t flags, uint32_t keep, uint64_t handle,
                      bool quick, uint32_t *reply_flags, struct contents *contents)
{
    const bool reads = contents && contents->room && (flags & O_ACCMODE) != O_WRONLY && !(flags & (O_TRUNC | O_DIRECT));
    const bool waits = !quick && t->filesystems[used->filesystem].quiet_close;
    struct stat st;
    const bool known = (keep || reads) && !fstat(fd, &st);
    struct iovec vector;
    ssize_t got;

    *reply_flags = keep_flag_of(t, used, known ? &st : NULL, flags, keep, handle) | flush_flag(t, used->filesystem, flags);
    if (!reads || !known || *reply_flags & REPLY_KEEP || !st.st_size || st.st_size > contents->room)
        return 0;
    vector = (struct iovec){ .iov_base = contents->data, .iov_len = (size_t)st.st_size };
    got = preadv2(fd, &vector, 1, 0, waits ? 0 : RWF_NOWAIT);
    if (got == st.st_size)
        contents->size = (uint32_t)got;
    return quick && got < st.st_size ? -EAGAIN : 0;
}

int tree_open(struct tables *t, uint64_t node, uint32_t flags, bool kill, uint32_t keep, uint64_t *handle,
              uint32_t *reply_flags, struct contents *contents)
{
    struct killing killing = { 0 };
    struct used used;
    int fd = -1, error;

    flags = open_flags(flags);
    if (t->read_only && ((flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC))
        return -EROFS;
    error = fds_reserve(t, 1);   /* before the inode's own, which may then be for this call only */
    if (error)
        return error;
    error = inode_use(t, node, &used);
    if (error) {
        fds_release(t, 1);
        return error;
    }
    if (used.type != S_IFREG >> 12)
        error = used.type == S_IFDIR >> 12 ? -EISDIR : used.type == S_IFLNK >> 12 ? -ELOOP : -ENXIO;
    else
        error = may_open(t, used.fd, flags);
    if (!error && flags & O_TRUNC && (kill || t->policy.no_setuid))
        error = begin_killing(t, used.fd, &killing);
    if (!error)
        error = fd = reopen(t, used.fd, (int)flags);
    end_killing(t, &killing);
    if (fd >= 0)
        error = handle_new(t, &used, fd, flags, handle);
    if (error < 0) {
        close_fd(fd);
        fds_release(t, 1);
    } else {
        say_opened(t, &used, fd, flags, keep, *handle, false, reply_flags, contents);
    }
    inode_done(t, &used);
    return error;
}

/*
 * On filesystems of this machine's own, with O_NONBLOCK: what a host program's lease would make wait fails instead.  The
 * flag is taken away again, so that nothing else depends on it.
 */
int tree_open_quick(struct tables *t, uint64_t node, uint32_t flags, bool kill, uint32_t keep, uint64_t *handle,
                    uint32_t *reply_flags, struct contents *contents)
{
    struct used used;
    int fd, error = -EAGAIN;

    flags = open_flags(flags);
    if (kill || flags & O_TRUNC || (t->read_only && (flags & O_ACCMODE) != O_RDONLY) || fds_reserve(t, 1))
        return -EAGAIN;
    if (!inode_use_quick(t, node, &used)) {
        fds_release(t, 1);
        return -EAGAIN;
    }
    fd = used.type == S_IFREG >> 12 && !may_open(t, used.fd, flags) ? reopen(t, used.fd, (int)(flags | O_NONBLOCK)) : -1;
    if (fd >= 0 && (flags & O_NONBLOCK || !fcntl(fd, F_SETFL, flags & (O_APPEND | O_DIRECT | O_NOATIME))))
        error = handle_new(t, &used, fd, flags, handle);
    if (error < 0) {
        close_fd(fd);
        fds_release(t, 1);
    } else if (say_opened(t, &used, fd, flags, keep, *handle, true, reply_flags, contents)) {
        handle_release(t, *handle, false);
        error = -EAGAIN;
    }
    inode_done(t, &used);
    return error < 0 ? -EAGAIN : 0;
}

/* O_DIRECT wants aligned memory, which the bytes of a message are not. */
static char *aligned(uint32_t flags, const char *data, size_t size)
{
    if (!(flags & O_DIRECT) || !((uintptr_t)data % DIRECT_ALIGNMENT))
        return NULL;
    return aligned_alloc(DIRECT_ALIGNMENT, (size + DIRECT_ALIGNMENT) / DIRECT_ALIGNMENT * DIRECT_ALIGNMENT);
}

/*
 * Reads until `size` bytes or the end of the file: the guest takes fewer bytes for the end.  So an error in the middle
 * is an error of the whole, but the one that O_DIRECT reports for going on behind an end that is not aligned.
 */
int tree_read(struct tables *t, uint64_t handle, uint64_t offset, char *data, size_t size)
{
    struct used_handle used;
    size_t got = 0;
    char *copy, *to;
    int error;

    if (size > INT32_MAX || offset > (uint64_t)INT64_MAX - size)
        return -EINVAL;
    error = handle_use(t, handle, false, &used);
    if (error)
        return error;
    copy = aligned(used.flags, data, size);
    to = copy ? copy : data;
    while (got < size) {
        ssize_t n = pread(used.fd, to + got, size - got, (off_t)(offset + got));

        if (n < 0 && !(got && errno == EINVAL && used.flags & O_DIRECT))
            error = -errno;
        if (n <= 0)
            break;
        got += (size_t)n;
    }
    if (copy)
        memcpy(data, copy, got);
    free(copy);
    handle_done(t, &used);
    return error ? error : (int)got;
}

/* What the host's page cache holds (RWF_NOWAIT, preadv2(2)); a short count may be the cache's end, or the file's. */
int tree_read_quick(struct tables *t, uint64_t handle, uint64_t offset, char *data, size_t size)
{
    struct used_handle used;
    size_t got = 0;
    ssize_t n = 1;

    if (size > INT32_MAX || offset > (uint64_t)INT64_MAX - size || !handle_use_quick(t, handle, &used))
        return -EAGAIN;
    if (used.flags & O_DIRECT)
        n = -1;
    while (n > 0 && got < size) {
        struct iovec vector = { .iov_base = data + got, .iov_len = size - got };

        n = preadv2(used.fd, &vector, 1, (off_t)(offset + got), RWF_NOWAIT);
        if (n > 0)
            got += (size_t)n;
    }
    handle_done(t, &used);
    return n < 0 ? -EAGAIN : (int)got;
}

/*
 * Pages from the guest's cache have their place, also where the handle that carries them appends.  The kernel can do
 * that since Linux 6.9; before, a second opening that does not append can.
 */
static ssize_t write_in_place(struct tables *t, int fd, const char *data, size_t size, off_t offset)
{
    struct iovec vector = { .iov_base = (char *)(uintptr_t)data, .iov_len = size };
    ssize_t written = pwritev2(fd, &vector, 1, offset, RWF_NOAPPEND);
    int own;

    if (written >= 0 || (errno != EOPNOTSUPP && errno != EINVAL))
        return written;
    own = reopen(t, fd, O_WRONLY);
    if (own < 0) {
        errno = -own;
        return -1;
    }
    written = pwrite(own, data, size, offset);
    close_fd(own);
    return written;
}

/* One write(2): a short count is handed on.  A handle that appends appends, whatever the offset (open(2)). */
int tree_write(struct tables *t, uint64_t handle, uint64_t offset, uint32_t flags, const char *data, size_t size)
{
    struct killing killing = { 0 };
    struct used_handle used;
    ssize_t written = -1;
    char *copy;
    int error;

    if (t->read_only)
        return -EROFS;
    if (size > INT32_MAX || offset > (uint64_t)INT64_MAX - size)
        return -EFBIG;
    error = handle_use(t, handle, false, &used);
    if (error)
        return error;
    copy = aligned(used.flags, data, size);
    if (copy)
        data = memcpy(copy, data, size);
    if (flags & KILL_SUIDGID || t->policy.no_setuid)
        error = begin_killing(t, used.fd, &killing);
    if (!error) {
        if (flags & FROM_CACHE && used.flags & O_APPEND)
            written = write_in_place(t, used.fd, data, size, (off_t)offset);
        else
            written = pwrite(used.fd, data, size, (off_t)offset);
        if (written < 0)
            error = -errno;
    }
    end_killing(t, &killing);
    free(copy);
    handle_done(t, &used);
    return error ? error : (int)written;
}

/* Closing a duplicate reports what closing would (close(2): late write errors, quota). */
int tree_flush(struct tables *t, uint64_t handle)
{
    struct used_handle used;
    int fd, error = handle_use(t, handle, false, &used);

    if (error)
        return error;
    fd = fcntl(used.fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0 || close(fd))
        error = -errno;
    handle_done(t, &used);
    return error;
}

int tree_fsync(struct tables *t, uint64_t handle, bool directory, bool datasync)
{
    struct used_handle used;
    int error = handle_use(t, handle, directory, &used);

    if (error)
        return error;
    if (datasync ? fdatasync(used.fd) : fsync(used.fd))
        error = -errno;
    handle_done(t, &used);
    return error;
}
