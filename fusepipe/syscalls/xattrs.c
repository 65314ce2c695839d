/*
 * Extended attributes, by the path /proc/self/fd/N, or N where that is the working directory: the calls on descriptors
 * refuse O_PATH ones.  The link leads to the inode itself, also to a symlink, whose trusted.* and security.* are reached like that and whose user.* the kernel
 * refuses (xattr(7)).
 */
#include "operations.h"

#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#define XATTR_NAME_LIMIT 255u        /* XATTR_NAME_MAX */

struct proc_path { char text[sizeof "/proc/self/fd/" + sizeof(struct proc_name)]; };

static struct proc_path proc_path(const struct tables *t, int fd)
{
    struct proc_path path;
    struct proc_name name = proc_name(fd);

    strcpy(path.text, t->proc_prefix);
    strcat(path.text, name.text);
    return path;
}

static int begin(struct tables *t, uint64_t node, const char *name, size_t size, struct used *used,
                 struct proc_path *path)
{
    int error;

    if (size > XATTR_NAME_LIMIT || memchr(name, 0, size))
        return size > XATTR_NAME_LIMIT ? -ERANGE : -EINVAL;
    error = inode_use(t, node, used);
    if (!error)
        *path = proc_path(t, used->fd);
    return error;
}

static int end(struct tables *t, struct used *used, ssize_t result)
{
    int value = result < 0 ? -errno : (int)result;

    inode_done(t, used);
    return value;
}

int tree_getxattr(struct tables *t, uint64_t node, const char *name, size_t size, char *value, size_t room)
{
    struct used used;
    struct proc_path path;
    int error = begin(t, node, name, size, &used, &path);

    if (error)
        return error;
    error = may_get_xattr(t, name);
    if (!error)
        error = may(t, used.fd, MAY_READ);
    if (error) {
        inode_done(t, &used);
        return error;
    }
    error = end(t, &used, getxattr(path.text, name, value, room));
    if (error > 0 && room)
        xattr_out(t, name, value, (size_t)error);
    return error;
}

/*
 * Without waiting: a value that fits, or -ENODATA; else -EAGAIN.  Of an inode that the host has in memory, on a filesystem
 * of this machine's own, the few bytes of its attributes are there, too.
 */
int tree_getxattr_quick(struct tables *t, uint64_t node, const char *name, size_t size, char *value, size_t room)
{
    struct used used;
    int got;

    if (size > XATTR_NAME_LIMIT || memchr(name, 0, size) || !inode_use_quick(t, node, &used))
        return -EAGAIN;
    if (may_get_xattr(t, name) || may(t, used.fd, MAY_READ)) {
        inode_done(t, &used);
        return -EAGAIN;
    }
    got = end(t, &used, getxattr(proc_path(t, used.fd).text, name, value, room));
    if (got > 0 && room)
        xattr_out(t, name, value, (size_t)got);
    return got >= 0 || got == -ENODATA ? got : -EAGAIN;
}

/* To change an attribute: as `begin`. */
static int begin_change(struct tables *t, uint64_t node, const char *name, size_t size, struct used *used,
                        struct proc_path *path)
{
    int error = t->read_only ? -EROFS : begin(t, node, name, size, used, path);

    if (error)
        return error;
    error = may_set_xattr(t, name);
    if (!error)
        error = may(t, used->fd, MAY_CHANGE);
    if (error)
        inode_done(t, used);
    return error;
}

int tree_setxattr(struct tables *t, uint64_t node, const char *name, size_t size, const char *value,
                  size_t value_size, uint32_t flags)
{
    struct used used;
    struct proc_path path;
    char *copy;
    int error = begin_change(t, node, name, size, &used, &path);

    if (error)
        return error;
    error = xattr_in(t, name, value, value_size, &copy);
    if (error) {
        inode_done(t, &used);
        return error;
    }
    error = end(t, &used, setxattr(path.text, name, copy ? copy : value, value_size, (int)flags));
    free(copy);
    return error;
}

/* NUL-ended names, one after the other. */
int tree_listxattr(struct tables *t, uint64_t node, char *names, size_t room)
{
    struct used used;
    struct proc_path path;
    int error = begin(t, node, "", 0, &used, &path);

    return error ? error : end(t, &used, listxattr(path.text, names, room));
}

int tree_removexattr(struct tables *t, uint64_t node, const char *name, size_t size)
{
    struct used used;
    struct proc_path path;
    int error = begin_change(t, node, name, size, &used, &path);

    return error ? error : end(t, &used, removexattr(path.text, name));
}
