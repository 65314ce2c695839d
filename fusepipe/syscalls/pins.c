/*
 * Inodes without a name, for the process that comes after this one: it could not open them again.  Whoever keeps the memfd
 * keeps a descriptor of each that the guest has open, or that is a directory, from before its last name goes.
 *
 * Said on `keep_fd`, a socket of packets: the number of a node with its descriptor, or numbers of nodes whose descriptor
 * need not be kept any more.  One is kept while the row is in use, and its end comes after it, since both are said under
 * keep_lock; node numbers are never given twice.
 */
#include "operations.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define TOGETHER 512u                /* numbers in one packet */

/* Descriptors are kept from now on; takes `fd`.  Before the first request. */
void tables_keep(struct tables *t, int fd) { t->keep_fd = fd; }

/* A descriptor would be missing afterwards, where the inode's last name went.  Wants inodes_lock. */
bool pin_wanted_locked(const struct tables *t, uint32_t row)
{
    return t->keep_fd >= 0 && !t->inodes[row].kept && t->inode_rows[row].handle_size;
}

static bool say_kept(struct tables *t, uint64_t node, int fd)
{
    union { char room[CMSG_SPACE(sizeof fd)]; struct cmsghdr align; } control = { 0 };
    struct iovec data = { &node, sizeof node };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
                              .msg_controllen = sizeof control };
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    ssize_t sent;

    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    do
        sent = sendmsg(t->keep_fd, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent == sizeof node;
}

/* The inode in use is kept when this returns, or cannot be.  `fd` is a descriptor of it. */
void pin_keep(struct tables *t, uint32_t row, int fd)
{
    uint64_t node;
    bool wanted;

    pthread_mutex_lock(&t->keep_lock);
    pthread_mutex_lock(&t->inodes_lock);
    wanted = pin_wanted_locked(t, row);
    node = inode_node(t, row);
    pthread_mutex_unlock(&t->inodes_lock);
    if (wanted && say_kept(t, node, fd)) {
        pthread_mutex_lock(&t->inodes_lock);
        t->inodes[row].kept = true;
        t->counters.kept++;
        pthread_mutex_unlock(&t->inodes_lock);
    }
    pthread_mutex_unlock(&t->keep_lock);
}

static void note_unkept_locked(struct tables *t, uint64_t node)
{
    if (t->unkept_count == t->unkept_room) {
        const uint32_t room = t->unkept_room ? 2 * t->unkept_room : 64;
        uint64_t *more = realloc(t->unkept, room * sizeof *more);

        if (!more)
            return;                  /* then it is kept until the session ends */
        t->unkept = more;
        t->unkept_room = room;
    }
    t->unkept[t->unkept_count] = node;
    __atomic_store_n(&t->unkept_count, t->unkept_count + 1, __ATOMIC_RELEASE);
}

/* The row's inode need not be kept any more; pins_flush says so.  Wants inodes_lock. */
void pin_drop_locked(struct tables *t, uint32_t row)
{
    if (!t->inodes[row].kept)
        return;
    t->inodes[row].kept = false;
    t->counters.kept--;
    note_unkept_locked(t, inode_node(t, row));
}

/* Says what need not be kept any more, as far as that is heard without waiting.  Holds no lock of ours. */
void pins_flush(struct tables *t)
{
    while (__atomic_load_n(&t->unkept_count, __ATOMIC_ACQUIRE)) {
        uint64_t nodes[TOGETHER];
        uint32_t count;
        bool said;

        pthread_mutex_lock(&t->keep_lock);
        pthread_mutex_lock(&t->inodes_lock);
        count = t->unkept_count < TOGETHER ? t->unkept_count : TOGETHER;
        memcpy(nodes, t->unkept + t->unkept_count - count, count * sizeof *nodes);
        __atomic_store_n(&t->unkept_count, t->unkept_count - count, __ATOMIC_RELEASE);
        pthread_mutex_unlock(&t->inodes_lock);
        said = !count || send(t->keep_fd, nodes, count * sizeof *nodes, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
        if (!said && (errno == EAGAIN || errno == EINTR)) {
            pthread_mutex_lock(&t->inodes_lock);
            for (uint32_t i = 0; i < count; i++)
                note_unkept_locked(t, nodes[i]);
            pthread_mutex_unlock(&t->inodes_lock);
        }
        pthread_mutex_unlock(&t->keep_lock);
        if (!said)
            return;
    }
}

/*
 * A descriptor that was kept over the end of another process; takes `fd`.  Before the first request.  Returns 0, or
 * -ESTALE where it is of no use.  Where the inode can be opened by its handle all the same, it is: a descriptor stands for
 * the mount through which it was opened, which may have been that process's own.
 */
int pin_restore(struct tables *t, uint64_t node, int fd)
{
    struct signature signature;
    struct file_id id;
    struct stat st, again;
    int filesystem, other;
    uint32_t row;

    pthread_mutex_lock(&t->inodes_lock);
    row = inode_row_locked(t, node);
    pthread_mutex_unlock(&t->inodes_lock);
    if (!row || fstat(fd, &st) || st.st_dev != t->inode_rows[row].dev || st.st_ino != t->inode_rows[row].ino ||
        t->inodes[row].fd >= 0 || (filesystem = filesystem_of(t, fd, &st)) < 0 || fds_reserve(t, 1)) {
        close(fd);
        return -ESTALE;
    }
    if (t->broker_fd >= 0 && !t->inode_rows[row].tagged && !broker_sign(t, &fd, 1, &signature) && !signature.error) {
        pthread_mutex_lock(&t->inodes_lock);
        tag_locked(t, row, signature.tag);
        pthread_mutex_unlock(&t->inodes_lock);
    }
    inode_file_id(&t->inode_rows[row], &id);
    other = filesystem_open(t, &t->filesystems[filesystem], &id);
    if (other >= 0 && !fstat(other, &again) && again.st_dev == st.st_dev && again.st_ino == st.st_ino) {
        close(fd);
        fd = other;
    } else {
        close_fd(other < 0 ? -1 : other);
    }
    pthread_mutex_lock(&t->inodes_lock);
    t->inodes[row].kept = true;
    t->counters.kept++;
    /* It may have been kept for a name that did not go after all. */
    fd_install_locked(t, row, fd, (uint32_t)filesystem, !st.st_nlink || S_ISDIR(st.st_mode));
    if (t->inodes[row].list != LIST_PINS)
        pin_drop_locked(t, row);
    pthread_mutex_unlock(&t->inodes_lock);
    pins_flush(t);
    return 0;
}
