/* Attributes: read and changed through a handle where there is one, so that mode and names do not matter then. */
#include "identity.h"

#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#ifndef STATX__RESERVED
#define STATX__RESERVED 0x80000000u
#endif

enum { MODE = 1, UID = 2, GID = 4, SIZE = 8, ATIME = 16, MTIME = 32, ATIME_NOW = 128, MTIME_NOW = 256, KILL = 2048 };

/* What an operation works on: the inode, and the open file where a handle was given. */
struct subject { struct used inode; struct used_handle file; bool by_handle; };

static int subject_use(struct tables *t, uint64_t node, uint64_t handle, struct subject *subject)
{
    int error = inode_use(t, node, &subject->inode);

    subject->by_handle = handle != 0;
    if (error || !handle)
        return error;
    error = handle_use(t, handle, subject->inode.type == S_IFDIR >> 12, &subject->file);
    if (!error && subject->file.node != node) {
        handle_done(t, &subject->file);
        error = -EBADF;
    }
    if (error)
        inode_done(t, &subject->inode);
    return error;
}

static void subject_done(struct tables *t, struct subject *subject)
{
    if (subject->by_handle)
        handle_done(t, &subject->file);
    inode_done(t, &subject->inode);
}

static int read_attributes(struct tables *t, const struct subject *subject, uint64_t *attr)
{
    struct stat st;

    if (fstat(subject->by_handle ? subject->file.fd : subject->inode.fd, &st))
        return -errno;
    put_attributes(t, subject->inode.filesystem, &st, attr);
    return 0;
}

int tree_getattr(struct tables *t, uint64_t node, uint64_t handle, uint64_t *attr)
{
    struct subject subject;
    int error = subject_use(t, node, handle, &subject);

    if (error)
        return error;
    error = read_attributes(t, &subject, attr);
    subject_done(t, &subject);
    return error;
}

int tree_statx(struct tables *t, uint64_t node, uint64_t handle, uint32_t flags, uint32_t mask, uint64_t *numbers)
{
    struct subject subject;
    struct statx st;
    int error = subject_use(t, node, handle, &subject);

    if (error)
        return error;
    if (statx(subject.by_handle ? subject.file.fd : subject.inode.fd, "",
              AT_EMPTY_PATH | (int)(flags & AT_STATX_SYNC_TYPE), STATX_BASIC_STATS | (mask & ~STATX__RESERVED), &st)) {
        error = -errno;
    } else {
        uint32_t uid, gid;

        id_out(&t->policy.uids, st.stx_uid, &uid);
        id_out(&t->policy.gids, st.stx_gid, &gid);

        const uint64_t attr[STATX_NUMBERS] = {
            shown_ino(t, subject.inode.filesystem, st.stx_ino), st.stx_mode, st.stx_nlink, uid, gid,
            makedev(st.stx_rdev_major, st.stx_rdev_minor), st.stx_size, st.stx_blksize, st.stx_blocks,
            (uint64_t)st.stx_atime.tv_sec, st.stx_atime.tv_nsec, (uint64_t)st.stx_mtime.tv_sec, st.stx_mtime.tv_nsec,
            (uint64_t)st.stx_ctime.tv_sec, st.stx_ctime.tv_nsec,
            st.stx_mask, (uint64_t)st.stx_btime.tv_sec, st.stx_btime.tv_nsec, st.stx_attributes,
            st.stx_attributes_mask,
        };

        memcpy(numbers, attr, sizeof attr);
    }
    subject_done(t, &subject);
    return error;
}

int tree_getattr_quick(struct tables *t, uint64_t node, uint64_t handle, uint64_t *attr)
{
    struct used_handle file;
    struct used inode;
    struct stat st;
    int error;

    if (!inode_use_quick(t, node, &inode))
        return -EAGAIN;
    error = fstat(inode.fd, &st) ? -EAGAIN : 0;
    if (!error)
        put_attributes(t, inode.filesystem, &st, attr);
    inode_done(t, &inode);
    if (handle && !error) {
        /* The attributes are the inode's in any case; the handle only has to be one of it. */
        if (!handle_use_quick(t, handle, &file))
            return -EAGAIN;
        error = file.node == node ? 0 : -EAGAIN;
        handle_done(t, &file);
    }
    return error;
}

static int change_size(struct tables *t, const struct subject *subject, const struct attribute_changes *changes)
{
    struct killing killing = { 0 };
    int error = 0, fd, own = -1;

    if (changes->size > INT64_MAX)
        return -EFBIG;
    if (subject->inode.type != S_IFREG >> 12)
        return subject->inode.type == S_IFDIR >> 12 ? -EISDIR : -EINVAL;
    if (subject->by_handle && (subject->file.flags & O_ACCMODE) != O_RDONLY) {
        fd = subject->file.fd;
    } else {
        own = fd = reopen(t, subject->inode.fd, O_WRONLY);
        if (fd < 0)
            return fd;
    }
    if (changes->valid & KILL || t->policy.no_setuid)
        error = begin_killing(t, fd, &killing);
    if (!error && ftruncate(fd, (off_t)changes->size))
        error = -errno;
    end_killing(t, &killing);
    close_fd(own);
    return error;
}

static int change_mode(struct tables *t, const struct subject *subject, uint32_t mode)
{
    struct proc_name name = proc_name(subject->inode.fd);
    int failed;

    if (subject->inode.type == S_IFLNK >> 12)
        return -EOPNOTSUPP;
    failed = may_make(t, (subject->inode.type == S_IFDIR >> 12 ? S_IFDIR : S_IFREG) | (mode & 07777), 0);
    if (failed)
        return failed;
    if (subject->by_handle)
        failed = fchmod(subject->file.fd, mode & 07777);
    else
        failed = fchmodat(t->proc_fd, name.text, mode & 07777, 0);
    return failed ? -errno : 0;
}

/* The link in /proc/self/fd leads to the inode itself, also where that is a symlink. */
static int change_times(struct tables *t, const struct subject *subject, const struct attribute_changes *changes)
{
    struct proc_name name = proc_name(subject->inode.fd);
    struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, { .tv_nsec = UTIME_OMIT } };

    if (changes->valid & ATIME_NOW)
        times[0].tv_nsec = UTIME_NOW;
    else if (changes->valid & ATIME)
        times[0] = (struct timespec){ changes->atime, changes->atime_ns };
    if (changes->valid & MTIME_NOW)
        times[1].tv_nsec = UTIME_NOW;
    else if (changes->valid & MTIME)
        times[1] = (struct timespec){ changes->mtime, changes->mtime_ns };
    return utimensat(t->proc_fd, name.text, times, 0) ? -errno : 0;
}

/* An id that the guest has none for is refused, not taken for "as it is". */
static int change_owner(struct tables *t, const struct subject *subject, const struct attribute_changes *changes)
{
    uint32_t uid = changes->valid & UID ? id_in(&t->policy.uids, changes->uid) : NO_ID;
    uint32_t gid = changes->valid & GID ? id_in(&t->policy.gids, changes->gid) : NO_ID;

    if ((changes->valid & UID && uid == NO_ID && changes->uid != NO_ID) ||
        (changes->valid & GID && gid == NO_ID && changes->gid != NO_ID))
        return -EOVERFLOW;
    return fchownat(subject->inode.fd, "", uid, gid, AT_EMPTY_PATH) ? -errno : 0;
}

/* Owner before mode: chown(2) takes set-uid and set-gid away, which a mode that comes along may set. */
int tree_setattr(struct tables *t, uint64_t node, uint64_t handle, const struct attribute_changes *changes,
                 uint64_t *attr)
{
    uint32_t valid = changes->valid;
    struct subject subject;
    int error;

    if (t->read_only && valid & (MODE | UID | GID | SIZE | ATIME | MTIME | ATIME_NOW | MTIME_NOW))
        return -EROFS;
    if (changes->atime_ns > 999999999 || changes->mtime_ns > 999999999)
        return -EINVAL;
    error = subject_use(t, node, handle, &subject);
    if (error)
        return error;
    error = may(t, subject.inode.fd, MAY_OWN);
    if (!error && valid & (UID | GID))
        error = change_owner(t, &subject, changes);
    if (!error && valid & SIZE)
        error = change_size(t, &subject, changes);
    if (!error && valid & MODE)
        error = change_mode(t, &subject, changes->mode);
    if (!error && valid & (ATIME | MTIME | ATIME_NOW | MTIME_NOW))
        error = change_times(t, &subject, changes);
    if (!error)
        error = read_attributes(t, &subject, attr);
    subject_done(t, &subject);
    return error;
}

/* faccessat2(2) with the caller's effective ids. */
int tree_access(struct tables *t, uint64_t node, uint32_t mask, const struct identity *identity)
{
    struct acting acting;
    struct used used;
    int error = inode_use(t, node, &used);

    if (error)
        return error;
    error = mask & W_OK ? may(t, used.fd, MAY_CHANGE) : 0;
    if (!error && mask & R_OK)
        error = may(t, used.fd, MAY_READ);
    if (!error && mask & X_OK)
        error = may(t, used.fd, MAY_SEARCH);
    if (!error)
        error = act_as(t, identity, false, &acting);
    if (!error) {
        if (syscall(SYS_faccessat2, used.fd, "", mask & 7, AT_EACCESS | AT_EMPTY_PATH))
            error = -errno;
        act_as_server(t, &acting);
    }
    if (!error && t->read_only && mask & W_OK &&
        (used.type == S_IFREG >> 12 || used.type == S_IFDIR >> 12 || used.type == S_IFLNK >> 12))
        error = -EROFS;
    inode_done(t, &used);
    return error;
}

/* bsize, frsize, blocks, bfree, bavail, files, ffree, namemax of the filesystem that holds the node. */
int tree_statfs(struct tables *t, uint64_t node, uint64_t *numbers)
{
    struct statfs st;
    struct used used;
    int error = inode_use(t, node, &used);

    if (error)
        return error;
    if (fstatfs(used.fd, &st)) {
        error = -errno;
    } else {
        numbers[0] = (uint64_t)st.f_bsize;
        numbers[1] = (uint64_t)st.f_frsize;
        numbers[2] = st.f_blocks;
        numbers[3] = st.f_bfree;
        numbers[4] = st.f_bavail;
        numbers[5] = st.f_files;
        numbers[6] = st.f_ffree;
        numbers[7] = (uint64_t)st.f_namelen;
    }
    inode_done(t, &used);
    return error;
}
