/* Directories, read in pages of entries with attributes. */
#include "operations.h"

#include <dirent.h>
#include <string.h>

#define KERNEL_RECORD 152u           /* struct fuse_direntplus: what the kernel needs for an entry beside its name */

/* A record of a directory page; the name follows, padded to 8 bytes.  The protocol says so (SPEC.md). */
struct record {
    uint64_t node, ino, offset;
    uint32_t name_size, type;
    uint64_t size, blocks;
    int64_t atime, mtime, ctime;
    uint64_t rdev;
    uint32_t atime_ns, mtime_ns, ctime_ns, mode, nlink, uid, gid, blksize;
};
_Static_assert(sizeof(struct record) == 112, "the record has holes");

static size_t padded(size_t size) { return (size + 7) & ~(size_t)7; }

int tree_opendir(struct tables *t, uint64_t node, uint32_t keep, uint64_t *handle, uint32_t *reply_flags)
{
    struct used used;
    int fd = -1, error = fds_reserve(t, 1);

    if (error)
        return error;
    error = inode_use(t, node, &used);
    if (error) {
        fds_release(t, 1);
        return error;
    }
    error = used.type == S_IFDIR >> 12 ? may(t, used.fd, MAY_READ) : -ENOTDIR;
    if (!error)
        error = reopen(t, used.fd, O_RDONLY | O_DIRECTORY);
    if (error >= 0) {
        fd = error;
        error = handle_new(t, &used, fd, O_RDONLY | HANDLE_OF_DIRECTORY, handle);
    }
    if (error < 0) {
        close_fd(fd);
        fds_release(t, 1);
    } else {
        *reply_flags = keep_flag(t, &used, fd, 0, keep, *handle);
    }
    inode_done(t, &used);
    return error;
}

/*
 * The inode of a name, with one lookup counted: its filesystem's number, or -errno.  `ino` is a hint, the number that the
 * directory has for it: a mount point's is another one.  Where a row holds a descriptor of that inode it need not be opened.
 */
static int enter_listed(struct tables *t, const struct used_handle *directory, uint64_t dev, const char *name,
                        uint64_t ino, struct stat *st, uint64_t *node)
{
    int filesystem = -ENOENT, fd;

    *node = inode_open_node(t, dev, ino);
    if (*node && !fstatat(directory->fd, name, st, AT_SYMLINK_NOFOLLOW))
        filesystem = inode_enter_open(t, directory->node, *node, st);
    if (filesystem >= 0)
        return filesystem;
    fd = openat(directory->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (fstat(fd, st)) {
        filesystem = -errno;
        close(fd);
        return filesystem;
    }
    return inode_enter(t, directory->node, fd, st, false, node);
}

/* Fills in node and attributes, and counts a lookup.  Where that fails the entry stays without: no name is left out. */
static void look_up(struct tables *t, const struct used_handle *directory, uint64_t dev, const struct dirent64 *entry,
                    struct record *record)
{
    struct stat st;
    uint64_t node;
    int filesystem = enter_listed(t, directory, dev, entry->d_name, entry->d_ino, &st, &node);

    if (filesystem < 0)
        return;
    record->node = node;
    record->ino = shown_ino(t, (uint32_t)filesystem, st.st_ino);
    record->type = (st.st_mode & S_IFMT) >> 12;
    record->size = (uint64_t)st.st_size;
    record->blocks = (uint64_t)st.st_blocks;
    record->atime = st.st_atim.tv_sec;
    record->mtime = st.st_mtim.tv_sec;
    record->ctime = st.st_ctim.tv_sec;
    record->rdev = st.st_rdev;
    record->atime_ns = (uint32_t)st.st_atim.tv_nsec;
    record->mtime_ns = (uint32_t)st.st_mtim.tv_nsec;
    record->ctime_ns = (uint32_t)st.st_ctim.tv_nsec;
    record->mode = st.st_mode;
    record->nlink = (uint32_t)st.st_nlink;
    id_out(&t->policy.uids, st.st_uid, &record->uid);
    id_out(&t->policy.gids, st.st_gid, &record->gid);
    record->blksize = (uint32_t)st.st_blksize;
}

/* Where the page begins: in the buffer where the last one ended, else wherever the cookie says. */
static int seek(struct directory *directory, int fd, uint64_t offset)
{
    if (offset == directory->cookie)
        return 0;
    if (offset > INT64_MAX || lseek(fd, (off_t)offset, SEEK_SET) < 0)
        return -EINVAL;
    directory->cookie = offset;
    directory->position = directory->filled = 0;
    return 0;
}

/* The next entry, which stays the next one; 0 at the end, or -errno. */
static int next_entry(struct directory *directory, int fd, const struct dirent64 **entry)
{
    ssize_t filled;

    if (directory->position == directory->filled) {
        filled = getdents64(fd, directory->buffer, directory->room);
        if (filled <= 0)
            return filled ? -errno : 0;
        directory->position = 0;
        directory->filled = (size_t)filled;
    }
    *entry = (const void *)(directory->buffer + directory->position);
    return 1;
}

/* Packs entries while they fit; only what is packed is counted.  Returns the page's size; `end`: it has the last one. */
static int fill(struct tables *t, const struct used_handle *used, struct directory *directory, uint32_t filesystem,
                const struct stat *own, char *page, size_t size, uint32_t *entries, bool *end)
{
    const bool may_search = !may(t, used->fd, MAY_SEARCH);
    const struct dirent64 *entry = NULL;
    size_t at = 0, room = size;
    int more;

    while ((more = next_entry(directory, used->fd, &entry)) > 0) {
        size_t name_size = strlen(entry->d_name);
        struct record record = { .ino = shown_ino(t, filesystem, entry->d_ino), .offset = (uint64_t)entry->d_off,
                                 .name_size = (uint32_t)name_size, .type = entry->d_type };
        bool dot = !strcmp(entry->d_name, "."), dots = !strcmp(entry->d_name, "..");

        if (KERNEL_RECORD + padded(name_size) > room)
            break;
        room -= KERNEL_RECORD + padded(name_size);
        if (!dot && !dots && may_search)
            look_up(t, used, own->st_dev, entry, &record);
        else if (dot || (dots && row_of(used->node) == ROOT_ROW))
            record.ino = shown_ino(t, filesystem, own->st_ino);   /* what is above the root is none of the guest's */
        memcpy(page + at, &record, sizeof record);
        at += sizeof record;
        memset(page + at, 0, padded(name_size));
        memcpy(page + at, entry->d_name, name_size);
        at += padded(name_size);
        directory->position += entry->d_reclen;
        directory->cookie = (uint64_t)entry->d_off;
        ++*entries;
    }
    *end = *entries && !more;
    if (*entries)
        return (int)at;                  /* an error comes again with the next page */
    return more > 0 ? -EINVAL : more;    /* as getdents(2): not one entry fits */
}

/* `end`: nothing follows the entries. */
int tree_readdir(struct tables *t, uint64_t handle, uint64_t offset, char *page, size_t size, uint32_t *entries,
                 bool *end)
{
    struct used_handle used;
    struct directory *directory;
    struct stat st;
    int result = handle_use(t, handle, true, &used), filesystem;

    *entries = 0;
    *end = false;
    if (result)
        return result;
    directory = handle_directory(t, &used);
    if (!directory)
        result = -ENOMEM;
    else if (fstat(used.fd, &st))
        result = -errno;
    if (!result) {
        filesystem = filesystem_of(t, used.fd, &st);
        pthread_mutex_lock(&directory->lock);
        result = filesystem < 0 ? filesystem : seek(directory, used.fd, offset);
        if (!result)
            result = fill(t, &used, directory, (uint32_t)filesystem, &st, page, size, entries, end);
        pthread_mutex_unlock(&directory->lock);
    }
    handle_done(t, &used);
    return result;
}
