/*
 * File handles, for who may open them, and for who has to ask.
 *
 * A session in a sandbox cannot open inodes by handle itself.  Its broker (server/broker.py) does it on the session's own
 * mounts, and only for handles that it has signed.  It signs what the session shows it open, and what it finds in the
 * volume.  One request is under way at a time; broker_lock is a leaf, and the wait under it is as long as the host takes.
 */
#include "tables.h"

#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define PATH_ROOM 4096u

/* As server/broker.py reads and writes them. */
enum kind { SHOW_MOUNT = 1, SIGN = 2, PROVE = 3, OPEN = 4 };
struct header { uint32_t kind, count; };
struct item { struct handle_id id; unsigned char tag[TAG_SIZE]; };
struct request { struct header header; struct item items[SIGN_TOGETHER]; };
struct answer { int32_t error; unsigned char tag[TAG_SIZE]; };

/* ---- for who may ------------------------------------------------------------------------------------------------- */

/* The handle of an open inode (name_to_handle_at(2)), and the number of the mount that it was opened through; or -errno. */
int handle_of(int fd, struct handle_id *id, int *mount)
{
    struct file_handle_buffer buffer = { .handle_bytes = FILE_HANDLE_ROOM };
    struct stat st;

    memset(id, 0, sizeof *id);
    if (fstat(fd, &st) || name_to_handle_at(fd, "", (struct file_handle *)&buffer, mount, AT_EMPTY_PATH))
        return -errno;
    id->dev = st.st_dev;
    id->size = buffer.handle_bytes;
    id->type = buffer.handle_type;
    memcpy(id->bytes, buffer.bytes, buffer.handle_bytes);
    return 0;
}

/* An O_PATH descriptor of the inode with this handle, seen through the mount of `mount_fd`; or -errno. */
int handle_open(int mount_fd, const struct handle_id *id)
{
    struct file_handle_buffer buffer = { .handle_bytes = id->size, .handle_type = id->type };
    int fd;

    if (!id->size || id->size > FILE_HANDLE_ROOM)
        return -ESTALE;
    memcpy(buffer.bytes, id->bytes, id->size);
    fd = open_by_handle_at(mount_fd, (struct file_handle *)&buffer, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/*
 * Whether the inode with this handle can be reached from the directory `root_fd`, the root of a mount namespace: 0, or
 * -errno.  Where the kernel knows a path of it there, that path has to lead to it; it is a hint and no more.  The kernel
 * knows one of every directory, and of other files as long as it has a name of them in memory.
 */
int handle_within(int root_fd, int mount_fd, const struct handle_id *id)
{
    struct open_how how = { .flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
                            .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS };
    char link[32], path[PATH_ROOM];
    struct handle_id found;
    int mount, error, fd = handle_open(mount_fd, id);
    ssize_t size;

    if (fd < 0)
        return fd;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    size = readlink(link, path, sizeof path - 1);
    error = size < 0 ? -errno : -ESTALE;
    close(fd);
    if (size < 1 || path[0] != '/')
        return error;
    path[size] = 0;
    fd = (int)syscall(SYS_openat2, root_fd, size == 1 ? "." : path + 1, &how, sizeof how);
    if (fd < 0)
        return -errno;
    error = handle_of(fd, &found, &mount);
    close(fd);
    return error ? error : memcmp(&found, id, sizeof found) ? -ESTALE : 0;
}

/* ---- for who has to ask ------------------------------------------------------------------------------------------ */

static int send_request(int sock, const struct request *request, size_t size, const int *fds, unsigned count)
{
    union { struct cmsghdr header; char room[CMSG_SPACE(SIGN_TOGETHER * sizeof(int))]; } control = { .room = { 0 } };
    struct iovec part = { (void *)(uintptr_t)request, size };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
    ssize_t sent;

    if (count) {
        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE(count * sizeof *fds);
        control.header = (struct cmsghdr){ CMSG_LEN(count * sizeof *fds), SOL_SOCKET, SCM_RIGHTS };
        memcpy(CMSG_DATA(&control.header), fds, count * sizeof *fds);
    }
    do
        sent = sendmsg(sock, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : 0;
}

/* Waits also where a signal comes: the answer would be taken for that of the next request. */
static int receive_answers(int sock, struct answer *answers, unsigned count, int *fd)
{
    union { struct cmsghdr header; char room[CMSG_SPACE(sizeof *fd)]; } control;
    struct iovec part = { answers, count * sizeof *answers };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.room,
                              .msg_controllen = sizeof control.room };
    struct cmsghdr *header;
    ssize_t received;

    do
        received = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
    while (received < 0 && errno == EINTR);
    if (received != (ssize_t)(count * sizeof *answers))
        return received < 0 ? -errno : -EPIPE;
    header = CMSG_FIRSTHDR(&message);
    *fd = -1;
    if (header && header->cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(header), sizeof *fd);
    return 0;
}

/* Returns 0 or -errno, and the descriptor that came with the answers, or -1.  Without a broker any more: ESTALE. */
static int ask(struct tables *t, struct request *request, unsigned items, const int *shown, unsigned count,
               struct answer *answers, int *fd)
{
    const size_t size = sizeof request->header + items * sizeof *request->items;
    int error;

    pthread_mutex_lock(&t->broker_lock);
    error = send_request(t->broker_fd, request, size, shown, shown ? count : 0);
    if (!error)
        error = receive_answers(t->broker_fd, answers, count, fd);
    pthread_mutex_unlock(&t->broker_lock);
    return error == -EPIPE || error == -ECONNRESET ? -ESTALE : error;
}

/* A descriptor that is not O_PATH of a filesystem in the volume: the broker opens handles of it on its mount. */
int broker_show_mount(struct tables *t, int mount_fd)
{
    struct request request = { .header = { SHOW_MOUNT, 1 } };
    struct answer answer;
    int none, error = ask(t, &request, 0, &mount_fd, 1, &answer, &none);

    return error ? error : answer.error;
}

static void take(const struct answer *answers, struct signature *signatures, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        signatures[i].error = answers[i].error;
        memcpy(signatures[i].tag, answers[i].tag, TAG_SIZE);
    }
}

/* Has the handles of open inodes signed, SIGN_TOGETHER at most: from then on broker_open takes them. */
int broker_sign(struct tables *t, const int *fds, unsigned count, struct signature *signatures)
{
    struct request request = { .header = { SIGN, count } };
    struct answer answers[SIGN_TOGETHER];
    int none, error = ask(t, &request, 0, fds, count, answers, &none);

    if (!error)
        take(answers, signatures, count);
    return error;
}

static void put(struct item *item, uint64_t dev, const struct file_id *id)
{
    *item = (struct item){ .id = { .dev = dev, .size = id->size, .type = id->type } };
    memcpy(item->id.bytes, id->bytes, id->size);
    memcpy(item->tag, id->tag, TAG_SIZE);
}

/* The same for handles of inodes that nobody has open, where it finds them in the volume. */
int broker_prove(struct tables *t, const uint64_t *devs, const struct file_id *ids, unsigned count,
                 struct signature *signatures)
{
    struct request request = { .header = { PROVE, count } };
    struct answer answers[SIGN_TOGETHER];
    int none, error;

    for (unsigned i = 0; i < count; i++)
        put(&request.items[i], devs[i], &ids[i]);
    error = ask(t, &request, count, NULL, count, answers, &none);
    if (!error)
        take(answers, signatures, count);
    return error;
}

/* The inode with a handle that has been signed, as handle_open gives it. */
int broker_open(struct tables *t, uint64_t dev, const struct file_id *id)
{
    struct request request = { .header = { OPEN, 1 } };
    struct answer answer;
    int fd, error;

    put(&request.items[0], dev, id);
    error = ask(t, &request, 1, NULL, 1, &answer, &fd);
    if (!error)
        error = answer.error;
    if (!error && fd < 0)
        error = -ENFILE;   /* this process has no room for it */
    return error ? error : fd;
}
