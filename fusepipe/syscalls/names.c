/* Names: finding, linking, removing and renaming them.  Every name is one component below an open directory. */
#include "operations.h"

#include <linux/openat2.h>
#include <stdio.h>   /* renameat2 */
#include <string.h>
#include <sys/syscall.h>

#ifndef RESOLVE_CACHED
#define RESOLVE_CACHED 0x20          /* Linux 5.12 */
#endif

#define NAME_LIMIT 255u              /* NAME_MAX of limits.h and of every filesystem here */
#define DEEPEST 65536                /* steps from a directory up to the root before we stop believing in one */

/* 0 for a name that can be made or removed: one component, not "." or "..". */
int check_name(const char *name, size_t size)
{
    if (size > NAME_LIMIT)
        return -ENAMETOOLONG;
    if (!size || memchr(name, '/', size) || memchr(name, 0, size))
        return -EINVAL;
    return name[0] == '.' && (size == 1 || (size == 2 && name[1] == '.')) ? -EINVAL : 0;
}

void put_attributes(const struct tables *t, uint32_t filesystem, const struct stat *st, uint64_t *attr)
{
    uint32_t uid, gid;

    attr[0] = shown_ino(t, filesystem, st->st_ino);
    attr[1] = st->st_mode;
    attr[2] = st->st_nlink;
    id_out(&t->policy.uids, st->st_uid, &uid);
    id_out(&t->policy.gids, st->st_gid, &gid);
    attr[3] = uid;
    attr[4] = gid;
    attr[5] = st->st_rdev;
    attr[6] = (uint64_t)st->st_size;
    attr[7] = (uint64_t)st->st_blksize;
    attr[8] = (uint64_t)st->st_blocks;
    attr[9] = (uint64_t)st->st_atim.tv_sec;
    attr[10] = (uint64_t)st->st_atim.tv_nsec;
    attr[11] = (uint64_t)st->st_mtim.tv_sec;
    attr[12] = (uint64_t)st->st_mtim.tv_nsec;
    attr[13] = (uint64_t)st->st_ctim.tv_sec;
    attr[14] = (uint64_t)st->st_ctim.tv_nsec;
}

/* What a directory is like after a change, where somebody wants to know (NULL: nobody). */
void put_changed(const struct tables *t, const struct used *directory, uint64_t *attr)
{
    struct stat st = { 0 };

    if (attr && fstat(directory->fd, &st))
        attr[1] = 0;
    else if (attr)
        put_attributes(t, directory->filesystem, &st, attr);
}

/* The entry of an open inode; takes `fd` (O_PATH). */
static int enter_fd(struct tables *t, uint64_t parent, int fd, uint64_t *entry)
{
    struct stat st;
    int filesystem;

    if (fd < 0)
        return -errno;
    if (fstat(fd, &st)) {
        filesystem = -errno;
        close(fd);
        return filesystem;
    }
    filesystem = inode_enter(t, parent, fd, &st, true, entry);
    if (filesystem < 0)
        return filesystem;
    put_attributes(t, (uint32_t)filesystem, &st, entry + 1);
    return 0;
}

/* The entry of a name in an open directory; a symlink is not followed, a mount point is crossed. */
int enter_name(struct tables *t, const struct used *directory, const char *name, uint64_t *entry)
{
    return enter_fd(t, directory->node, openat(directory->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC), entry);
}

/*
 * The directory above one, or -errno: ESTALE where somebody on the host has moved it out of the volume meanwhile, which
 * only walking up to the root can tell.
 */
static int open_parent(struct tables *t, int directory)
{
    const struct inode_row *root = &t->inode_rows[ROOT_ROW];
    int error = -ESTALE, parent = openat(directory, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
    int above = parent < 0 ? -1 : fcntl(parent, F_DUPFD_CLOEXEC, 0);
    uint64_t dev = 0, ino = 0;

    if (parent < 0)   /* the kernel itself does not go up from outside the root of a mount (sandbox.c) */
        return errno == ENOENT ? -ESTALE : -errno;
    for (int step = 0; above >= 0 && step < DEEPEST; step++) {
        struct stat st;
        int next;

        if (fstat(above, &st))
            break;
        if (st.st_dev == root->dev && st.st_ino == root->ino) {
            close(above);
            return parent;
        }
        if (st.st_dev == dev && st.st_ino == ino)
            break;                   /* the host's root is its own parent */
        dev = st.st_dev;
        ino = st.st_ino;
        next = openat(above, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        close(above);
        above = next;
    }
    close_fd(above);
    close(parent);
    return error;
}

/* "." (of any inode) and "..": asked only by who exports the mount (NFS).  The root is its own parent. */
static int lookup_dots(struct tables *t, const struct used *directory, bool parent, uint64_t *entry)
{
    struct stat st;
    int fd;

    if (parent && directory->type != S_IFDIR >> 12)
        return -ENOTDIR;
    if (parent && directory->row != ROOT_ROW) {
        fd = open_parent(t, directory->fd);
        return fd < 0 ? fd : enter_fd(t, 0, fd, entry);
    }
    if (fstat(directory->fd, &st))
        return -errno;
    inode_count(t, directory, entry);
    put_attributes(t, directory->filesystem, &st, entry + 1);
    return 0;
}

int tree_lookup(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t *entry)
{
    struct used directory;
    bool dots = name[0] == '.' && (size == 1 || (size == 2 && name[1] == '.'));
    int error = dots ? 0 : check_name(name, size);

    if (!error)
        error = inode_use(t, parent, &directory);
    if (error)
        return error;
    if (dots)
        error = lookup_dots(t, &directory, size == 2, entry);
    else if (!(error = may(t, directory.fd, MAY_SEARCH)))
        error = enter_name(t, &directory, name, entry);
    inode_done(t, &directory);
    return error;
}

/* Only what the host's kernel has in memory, and only on the directory's own filesystem (openat2(2)). */
int tree_lookup_quick(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t *entry)
{
    struct open_how how = { .flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_CACHED | RESOLVE_NO_XDEV };
    struct used directory;
    int fd, error;

    if (check_name(name, size) || !inode_use_quick(t, parent, &directory))
        return -EAGAIN;
    if (may(t, directory.fd, MAY_SEARCH)) {
        inode_done(t, &directory);
        return -EAGAIN;
    }
    fd = (int)syscall(SYS_openat2, directory.fd, name, &how, sizeof how);
    if (fd >= 0)
        error = enter_fd(t, parent, fd, entry);
    else
        error = errno == ENOENT ? -ENOENT : -EAGAIN;
    inode_done(t, &directory);
    return error;
}

/* Returns the length of the target. */
int tree_readlink(struct tables *t, uint64_t node, char *target, size_t room)
{
    struct used used;
    ssize_t length;
    int error = inode_use(t, node, &used);

    if (error)
        return error;
    /* With an empty path another type says ENOENT; readlink(2) by name would say EINVAL. */
    if (used.type != S_IFLNK >> 12)
        error = -EINVAL;
    else if ((length = readlinkat(used.fd, "", target, room)) < 0)
        error = -errno;
    else
        error = (size_t)length == room ? -ENAMETOOLONG : (int)length;
    inode_done(t, &used);
    return error;
}

/* Through the link in /proc/self/fd: AT_EMPTY_PATH would want CAP_DAC_READ_SEARCH (link(2)). */
int tree_link(struct tables *t, uint64_t node, uint64_t parent, const char *name, size_t size, uint64_t *entry)
{
    struct used used, directory;
    struct proc_name from;
    struct stat st;
    int error = t->read_only ? -EROFS : check_name(name, size);

    if (!error)
        error = inode_use(t, node, &used);
    if (error)
        return error;
    error = inode_use(t, parent, &directory);
    if (!error) {
        from = proc_name(used.fd);
        error = may(t, directory.fd, MAY_CHANGE);
        if (!error)
            error = may(t, used.fd, MAY_OWN);
        if (!error && (linkat(t->proc_fd, from.text, directory.fd, name, AT_SYMLINK_FOLLOW) || fstat(used.fd, &st)))
            error = -errno;
        inode_done(t, &directory);
    }
    if (!error) {
        inode_count(t, &used, entry);
        inode_moved(t, used.row, parent);
        put_attributes(t, used.filesystem, &st, entry + 1);
    }
    inode_done(t, &used);
    return error;
}

static int remove_name(struct tables *t, uint64_t parent, const char *name, size_t size, int flags,
                       uint64_t *parent_attr)
{
    const struct leaving nothing = { 0 };
    struct leaving victim;
    struct used directory;
    int error = t->read_only ? -EROFS : check_name(name, size);

    if (!error)
        error = inode_use(t, parent, &directory);
    if (error)
        return error;
    error = leaving_find(t, directory.fd, name, &victim);
    if (!error && !(error = may(t, directory.fd, MAY_CHANGE)) && !(error = may_with(t, &victim.st, MAY_OWN))) {
        slot_note(&victim, &nothing);
        leaving_begin(t, &victim);
        if (unlinkat(directory.fd, name, flags))
            error = -errno;
        else   /* some filesystems leave a removed directory its link count */
            leaving_gone(t, &victim, flags & AT_REMOVEDIR || victim.st.st_nlink == 1);
    }
    if (!error)
        put_changed(t, &directory, parent_attr);
    leaving_done(t, &victim);
    inode_done(t, &directory);
    return error;
}

int tree_unlink(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t *parent_attr)
{
    return remove_name(t, parent, name, size, 0, parent_attr);
}

int tree_rmdir(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t *parent_attr)
{
    return remove_name(t, parent, name, size, AT_REMOVEDIR, parent_attr);
}

/* Looks at one of RENAME's names.  0 or -errno: whether the guest may take it from what has it; it may be nobody's. */
static int find_to_rename(struct tables *t, int directory, const char *name, struct leaving *leaving)
{
    int found = leaving_find(t, directory, name, leaving), error;

    if (!t->maps_ids)
        return 0;                    /* renameat2(2) says what is wrong with it */
    error = may(t, directory, MAY_CHANGE);
    if (error)
        return error;
    return found ? (found == -ENOENT ? 0 : found) : may_with(t, &leaving->st, MAY_OWN);
}

/* Whether what had the new name has lost it for good, as far as that can be said of it before. */
static bool surely_gone(const struct leaving *old, const struct leaving *victim)
{
    if (old->st.st_dev == victim->st.st_dev && old->st.st_ino == victim->st.st_ino)
        return false;                /* to itself, or to another of its names: that does nothing */
    return S_ISDIR(victim->st.st_mode) || victim->st.st_nlink == 1;
}

/* For proving.c: where the inodes are whose names were moved, or exchanged. */
static void names_changed(struct tables *t, const struct leaving *old, uint64_t parent, const struct leaving *other,
                          uint64_t other_parent)
{
    if (old->row)
        inode_moved(t, old->row, parent);
    if (other && other->row)
        inode_moved(t, other->row, other_parent);
}

/* With the flags of renameat2(2); a name that is renamed over loses its inode as unlink does. */
int tree_rename(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t new_parent,
                const char *new_name, size_t new_size, uint32_t flags, uint64_t *parent_attr,
                uint64_t *new_parent_attr)
{
    const bool replaces = !(flags & (RENAME_NOREPLACE | RENAME_EXCHANGE));
    struct leaving old, victim;
    struct used from, to;
    int error = t->read_only ? -EROFS : check_name(name, size);

    if (!error)
        error = check_name(new_name, new_size);
    if (!error && flags & ~(uint32_t)(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT))
        error = -EINVAL;
    if (!error)
        error = inode_use(t, parent, &from);
    if (error)
        return error;
    error = inode_use(t, new_parent, &to);
    if (error) {
        inode_done(t, &from);
        return error;
    }
    error = find_to_rename(t, from.fd, name, &old);
    victim = (struct leaving){ .fd = -1 };
    if (!error)
        error = find_to_rename(t, to.fd, new_name, &victim);
    if (!error) {
        slot_note(&old, &victim);
        if (replaces && victim.there)
            leaving_begin(t, &victim);
        if (renameat2(from.fd, name, to.fd, new_name, flags))
            error = -errno;
        else
            names_changed(t, &old, new_parent, replaces ? NULL : &victim, parent);
        if (!error && replaces && victim.there)
            leaving_gone(t, &victim, surely_gone(&old, &victim));
    }
    if (!error) {
        put_changed(t, &from, parent_attr);
        put_changed(t, &to, new_parent_attr);
    }
    leaving_done(t, &old);
    leaving_done(t, &victim);
    inode_done(t, &to);
    inode_done(t, &from);
    return error;
}
