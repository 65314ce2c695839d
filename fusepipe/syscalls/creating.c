/* Making things, as the caller: his ids and groups, his umask or the directory's default ACL, its set-gid bit. */
#include "identity.h"

#include <string.h>

#define RACES 64                     /* how often a name may come and go under a CREATE before it gives up */

/*
 * A signal that interrupts what follows a creation must not take it back, so nothing here returns EINTR once something
 * was made: the calls that follow do not wait.
 */
static int begin(struct tables *t, uint64_t parent, const char *name, size_t size, const struct identity *identity,
                 bool with_umask, struct used *directory, struct acting *acting)
{
    int error = t->read_only ? -EROFS : check_name(name, size);

    if (!error)
        error = inode_use(t, parent, directory);
    if (error)
        return error;
    error = may(t, directory->fd, MAY_CHANGE);
    if (!error)
        error = act_as(t, identity, with_umask, acting);
    if (error)
        inode_done(t, directory);
    return error;
}

static int end(struct tables *t, int failed, const char *name, struct used *directory, const struct acting *acting,
               uint64_t *entry)
{
    int error = failed ? -errno : 0;

    act_as_server(t, acting);
    if (!error)
        error = enter_name(t, directory, name, entry);
    inode_done(t, directory);
    return error;
}

int tree_mknod(struct tables *t, uint64_t parent, const char *name, size_t size, uint32_t mode, uint64_t rdev,
               const struct identity *identity, uint64_t *entry)
{
    struct used directory;
    struct acting acting;
    int error = may_make(t, mode, rdev);

    if (!error)
        error = begin(t, parent, name, size, identity, true, &directory, &acting);
    if (error)
        return error;
    return end(t, mknodat(directory.fd, name, mode & (S_IFMT | 07777), rdev), name, &directory, &acting, entry);
}

int tree_mkdir(struct tables *t, uint64_t parent, const char *name, size_t size, uint32_t mode,
               const struct identity *identity, uint64_t *entry)
{
    struct used directory;
    struct acting acting;
    int error = may_make(t, S_IFDIR | (mode & 07777), 0);

    if (!error)
        error = begin(t, parent, name, size, identity, true, &directory, &acting);
    if (error)
        return error;
    return end(t, mkdirat(directory.fd, name, mode & 07777), name, &directory, &acting, entry);
}

int tree_symlink(struct tables *t, uint64_t parent, const char *name, size_t size, const char *target,
                 size_t target_size, const struct identity *identity, uint64_t *entry)
{
    struct used directory;
    struct acting acting;
    int error;

    if (!target_size || memchr(target, 0, target_size))
        return target_size ? -EINVAL : -ENOENT;
    error = begin(t, parent, name, size, identity, false, &directory, &acting);
    if (error)
        return error;
    return end(t, symlinkat(target, directory.fd, name), name, &directory, &acting, entry);
}

/*
 * Opens what already has the name, which O_CREAT alone would do too, but only a regular file: opening a fifo or a
 * device could wait for good.
 */
static int open_existing(struct tables *t, int directory, const char *name, int flags, bool kill)
{
    int opened, fd = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    struct killing killing = { 0 };
    struct stat st;

    if (fd < 0)
        return -errno;
    if (fstat(fd, &st))
        opened = -errno;
    else if (!S_ISREG(st.st_mode))
        opened = S_ISDIR(st.st_mode) ? -EISDIR : S_ISLNK(st.st_mode) ? -ELOOP : -ENXIO;
    else
        opened = may_open(t, fd, (uint32_t)flags);
    if (!opened && flags & O_TRUNC && (kill || t->policy.no_setuid))
        opened = begin_killing(t, fd, &killing);
    if (!opened)
        opened = reopen(t, fd, flags);
    end_killing(t, &killing);
    close(fd);
    return opened;
}

/* One open(2) with O_CREAT and O_EXCL makes the file, which `*made` says, or it is there already. */
static int create_or_open(struct tables *t, int directory, const char *name, uint32_t asked, uint32_t mode, bool kill,
                          bool *made)
{
    int fd, flags = (int)open_flags(asked);

    for (int race = 0; race < RACES; race++) {
        fd = openat(directory, name, (flags & ~O_TRUNC) | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY,
                    mode & 07777);
        *made = fd >= 0;
        if (fd >= 0)
            return fd;
        if (errno != EEXIST || asked & O_EXCL)
            return -errno;
        fd = open_existing(t, directory, name, flags, kill);
        if (fd != -ENOENT)
            return fd;
    }
    return -EAGAIN;
}

/* Entry and handle are those of the file that was opened, whatever has its name by now. */
static int enter_opened(struct tables *t, uint64_t parent, int fd, uint32_t flags, uint64_t *entry, uint64_t *handle,
                        uint32_t *reply_flags)
{
    struct used used;
    struct stat st;
    int filesystem, error, path_fd = reopen(t, fd, O_PATH);

    if (path_fd < 0)
        return path_fd;
    if (fstat(path_fd, &st)) {
        error = -errno;
        close(path_fd);
        return error;
    }
    filesystem = inode_enter(t, parent, path_fd, &st, true, entry);
    if (filesystem < 0)
        return filesystem;
    put_attributes(t, (uint32_t)filesystem, &st, entry + 1);
    error = inode_use(t, entry[0], &used);
    if (!error) {
        error = handle_new(t, &used, fd, flags, handle);
        inode_done(t, &used);
    }
    if (error)
        inode_forget(t, entry[0], 1);
    *reply_flags = flush_flag(t, (uint32_t)filesystem, flags);
    return error;
}

int tree_create(struct tables *t, uint64_t parent, const char *name, size_t size, uint32_t flags, uint32_t mode,
                bool kill, const struct identity *identity, uint64_t *entry, uint64_t *handle, uint32_t *reply_flags,
                uint64_t *parent_attr)
{
    struct used directory;
    struct acting acting;
    bool made = false;
    int fd, error = may_make(t, S_IFREG | (mode & 07777), 0);

    if (!error)
        error = fds_reserve(t, 1);       /* first: a file that is made and cannot be opened would be worse */
    if (error)
        return error;
    error = begin(t, parent, name, size, identity, true, &directory, &acting);
    if (error) {
        fds_release(t, 1);
        return error;
    }
    fd = create_or_open(t, directory.fd, name, flags, mode, kill, &made);
    act_as_server(t, &acting);
    error = fd < 0 ? fd : enter_opened(t, directory.node, fd, open_flags(flags), entry, handle, reply_flags);
    if (!error)
        put_changed(t, &directory, parent_attr);
    inode_done(t, &directory);
    if (error) {
        if (fd >= 0)
            close(fd);
        fds_release(t, 1);
    } else if (made) {
        *reply_flags |= REPLY_NEW;
    }
    return error;
}

/* Linking it later goes by its descriptor, as for any inode (names.c), and O_EXCL forbids that (open(2)). */
int tree_tmpfile(struct tables *t, uint64_t parent, uint32_t flags, uint32_t mode, const struct identity *identity,
                 uint64_t *entry, uint64_t *handle, uint32_t *reply_flags)
{
    const uint32_t opened = open_flags(flags) & ~(uint32_t)O_TRUNC;
    struct used directory;
    struct acting acting;
    int fd, error = t->read_only ? -EROFS : may_make(t, S_IFREG | (mode & 07777), 0);

    if (!error)
        error = fds_reserve(t, 1);
    if (error)
        return error;
    error = inode_use(t, parent, &directory);
    if (error) {
        fds_release(t, 1);
        return error;
    }
    error = may(t, directory.fd, MAY_CHANGE);
    if (!error)
        error = act_as(t, identity, true, &acting);
    if (!error) {
        fd = openat(directory.fd, ".", (int)(opened | (flags & O_EXCL)) | O_TMPFILE | O_CLOEXEC | O_NOCTTY, mode & 07777);
        error = fd < 0 ? -errno : 0;
        act_as_server(t, &acting);
    }
    if (!error) {
        error = enter_opened(t, 0, fd, opened, entry, handle, reply_flags);
        if (error)
            close(fd);
        else
            *reply_flags |= REPLY_NEW;
    }
    inode_done(t, &directory);
    if (error)
        fds_release(t, 1);
    return error;
}
