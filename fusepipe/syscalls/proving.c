/*
 * After the death of another process: inodes of which there is no descriptor any more, and whose handles the broker had not
 * signed for yet.  It signs for those that lie in the volume.  That is told by the path that the kernel knows of them; where
 * it knows none, by reading the directory in which they were seen last, once for all of them.
 */
#include "operations.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#define ENTRIES_ROOM 65536u

static bool unproven(struct tables *t, uint32_t row)
{
    bool result;

    pthread_mutex_lock(&t->inodes_lock);
    result = inode_unproven_locked(t, row);
    pthread_mutex_unlock(&t->inodes_lock);
    return result;
}

static void prove_rows(struct tables *t, const uint32_t *rows, uint32_t count)
{
    struct signature signatures[SIGN_TOGETHER];
    struct file_id ids[SIGN_TOGETHER];
    uint64_t devs[SIGN_TOGETHER];

    for (uint32_t i = 0; i < count; i++) {
        devs[i] = t->inode_rows[rows[i]].dev;
        inode_file_id(&t->inode_rows[rows[i]], &ids[i]);
    }
    if (!count || broker_prove(t, devs, ids, count, signatures))
        return;
    tag_signed(t, rows, signatures, count);
}

/* Has the broker sign for what this name stands for, where it is one of those. */
static void show_entry(struct tables *t, int directory, const char *name)
{
    int filesystem, fd = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    struct signature signature;
    struct file_id id;
    struct stat st;
    uint32_t row;

    if (fd < 0)
        return;
    if (!fstat(fd, &st) && (filesystem = filesystem_of(t, fd, &st)) >= 0) {
        filesystem_file_id(&t->filesystems[filesystem], fd, &id);
        pthread_mutex_lock(&t->inodes_lock);
        row = inode_find_locked(t, &st, &id);
        pthread_mutex_unlock(&t->inodes_lock);
        if (row && unproven(t, row) && !broker_sign(t, &fd, 1, &signature) && !signature.error) {
            pthread_mutex_lock(&t->inodes_lock);
            tag_locked(t, row, signature.tag);
            pthread_mutex_unlock(&t->inodes_lock);
        }
    }
    close(fd);
}

/* Where it cannot be read, nothing is found. */
static void search(struct tables *t, uint64_t node)
{
    char *entries = malloc(ENTRIES_ROOM);
    struct used used;
    ssize_t size;
    int fd;

    if (!entries || inode_use(t, node, &used)) {
        free(entries);
        return;
    }
    fd = used.type == S_IFDIR >> 12 ? reopen(t, used.fd, O_RDONLY | O_DIRECTORY) : -1;
    while (fd >= 0 && (size = getdents64(fd, entries, ENTRIES_ROOM)) > 0)
        for (ssize_t at = 0; at < size;) {
            const struct dirent64 *entry = (const void *)(entries + at);

            if (inode_unproven(t, t->inode_rows[used.row].dev, entry->d_ino))
                show_entry(t, fd, entry->d_name);
            at += entry->d_reclen;
        }
    close_fd(fd);
    inode_done(t, &used);
    free(entries);
}

/* Before the first request, and after all that was kept.  Returns how many inodes are not found. */
uint64_t tables_prove(struct tables *t)
{
    uint32_t rows[SIGN_TOGETHER], count = 0;
    uint64_t lost = 0;

    if (t->broker_fd < 0)
        return 0;
    for (uint32_t row = 1; row < t->header->inodes; row++) {
        if (unproven(t, row))
            rows[count++] = row;
        if (count == SIGN_TOGETHER) {
            prove_rows(t, rows, count);
            count = 0;
        }
    }
    prove_rows(t, rows, count);
    for (uint32_t row = 1; row < t->header->inodes; row++) {
        const uint64_t parent = t->inode_rows[row].parent;

        if (!parent || row_of(parent) >= t->header->inodes || t->inodes[row_of(parent)].searched || !unproven(t, row))
            continue;
        t->inodes[row_of(parent)].searched = true;
        search(t, parent);
    }
    for (uint32_t row = 1; row < t->header->inodes; row++)
        lost += unproven(t, row);
    return lost;
}
