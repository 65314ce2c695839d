/*
 * What a name stands for that is about to lose it, by UNLINK, RMDIR or RENAME: looked at once, before, for all who want to
 * know: the slot's notes (settling.c), the host's policy, the pins (pins.c).
 *
 * An inode of which the guest's row has a descriptor is within reach whatever becomes of its names, so the name's
 * attributes are enough to find it.  Any other one is opened, and its row gets that descriptor where its last name goes:
 * a handle no longer finds it then.
 */
#include "operations.h"

#include <string.h>

/* The row that holds a descriptor of it, so that its number has not been given away; in use from now on. */
static bool find_row(struct tables *t, struct leaving *leaving)
{
    const struct inode_row *row;

    pthread_mutex_lock(&t->inodes_lock);
    leaving->row = inode_find_locked(t, &leaving->st, NULL);
    if (leaving->row) {
        row = &t->inode_rows[leaving->row];
        t->inodes[leaving->row].uses++;
        leaving->filesystem = t->inodes[leaving->row].filesystem;
        leaving->id = (struct file_id){ .type = row->handle_type, .size = row->handle_size };
        memcpy(leaving->id.bytes, row->handle, row->handle_size);
    }
    pthread_mutex_unlock(&t->inodes_lock);
    return leaving->row;
}

/*
 * Looks at a name.  Returns 0 or -errno; in either case leaving_done comes last.  -ENOENT: it stands for nothing, which
 * `there` says, too.
 */
int leaving_find(struct tables *t, int directory, const char *name, struct leaving *leaving)
{
    *leaving = (struct leaving){ .fd = -1, .filesystem = -1 };
    if (fstatat(directory, name, &leaving->st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT))
        return -errno;
    if (!find_row(t, leaving)) {
        leaving->fd = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (leaving->fd < 0 || fstat(leaving->fd, &leaving->st))
            return -errno;
        leaving->filesystem = filesystem_find(t, leaving->st.st_dev);
        if (leaving->filesystem >= 0)
            filesystem_file_id(&t->filesystems[leaving->filesystem], leaving->fd, &leaving->id);
        pthread_mutex_lock(&t->inodes_lock);
        leaving->row = inode_find_locked(t, &leaving->st, &leaving->id);
        if (leaving->row)
            t->inodes[leaving->row].uses++;
        pthread_mutex_unlock(&t->inodes_lock);
    }
    leaving->there = true;
    return 0;
}

/* The name is about to go: whoever keeps the memfd keeps a descriptor of what has it, where one would be missing. */
void leaving_begin(struct tables *t, struct leaving *leaving)
{
    bool keep;
    int fd;

    if (!leaving->row)
        return;
    leaving->begun = true;
    pthread_mutex_lock(&t->inodes_lock);
    t->inodes[leaving->row].leaving++;
    keep = (t->inodes[leaving->row].handles || S_ISDIR(leaving->st.st_mode)) && pin_wanted_locked(t, leaving->row);
    fd = leaving->fd < 0 ? t->inodes[leaving->row].fd : leaving->fd;
    pthread_mutex_unlock(&t->inodes_lock);
    if (keep)
        pin_keep(t, leaving->row, fd);
}

/* Whether the name that went was the last one. */
static bool was_last(const struct tables *t, const struct leaving *leaving)
{
    const int fd = leaving->fd < 0 ? t->inodes[leaving->row].fd : leaving->fd;   /* it stays while the row is in use */
    struct stat st;

    return !fstat(fd, &st) && !st.st_nlink;
}

/*
 * The name has gone.  Where it was the last one and the guest knows the inode, the row keeps a descriptor from now on.
 * `sure`: it was, as far as the link count before can say.
 */
void leaving_gone(struct tables *t, struct leaving *leaving, bool sure)
{
    bool reserved = false, wanted;

    if (!sure && !was_last(t, leaving))
        return;
    for (;;) {
        uint32_t row = leaving->row;

        pthread_mutex_lock(&t->inodes_lock);
        if (!row)                        /* it may have been looked up meanwhile, by another name */
            row = inode_find_locked(t, &leaving->st, &leaving->id);
        wanted = row && t->inodes[row].fd < 0 && leaving->filesystem >= 0;
        if (row && t->inodes[row].fd >= 0) {
            fd_pin_locked(t, row);
        } else if (wanted && reserved) {
            fd_install_locked(t, row, leaving->fd, (uint32_t)leaving->filesystem, true);
            leaving->fd = -1;
            reserved = wanted = false;
        }
        if (reserved)
            t->counters.fds--;
        pthread_mutex_unlock(&t->inodes_lock);
        if (!wanted)
            return;
        if (fds_reserve(t, 1))
            break;
        reserved = true;
    }
    pthread_mutex_lock(&t->inodes_lock);
    t->counters.pins_given_up++;
    pthread_mutex_unlock(&t->inodes_lock);
}

/* It has gone, or has not: the last call. */
void leaving_done(struct tables *t, struct leaving *leaving)
{
    struct inode *inode = &t->inodes[leaving->row];
    int fd;

    close_fd(leaving->fd);
    if (!leaving->row)
        return;
    pthread_mutex_lock(&t->inodes_lock);
    inode->uses--;
    if (leaving->begun && !--inode->leaving && inode->list != LIST_PINS)
        pin_drop_locked(t, leaving->row);
    fd = inode_settle_locked(t, leaving->row);
    pthread_mutex_unlock(&t->inodes_lock);
    close_fd(fd);
    pins_flush(t);
}
