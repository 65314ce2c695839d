/* The memfd: made, mapped, grown. */
#include "operations.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MAGIC 0x31656c6261547046ull  /* "FpTable1" */
#define PAGE 4096u
#define CHUNK (1u << 18)             /* bytes of rows that get their pages at once */

static uint64_t pages(uint64_t size) { return (size + PAGE - 1) / PAGE * PAGE; }

/* Pages that do not exist would be made at first touch, and where memory is short that is a SIGBUS. */
int allocate_rows(struct tables *t, uint64_t base, size_t row_size, uint32_t limit, uint32_t *allocated)
{
    uint64_t from = *allocated * (uint64_t)row_size / PAGE * PAGE, to = pages(from + CHUNK);

    if (to > pages(limit * (uint64_t)row_size))
        to = pages(limit * (uint64_t)row_size);
    if (to <= from)
        return -ENOMEM;
    while (fallocate(t->memfd, 0, (off_t)(base + from), (off_t)(to - from)))
        if (errno != EINTR)
            return -ENOMEM;
    to /= row_size;
    *allocated = to > limit ? limit : (uint32_t)to;
    return 0;
}

/*
 * A memfd for `slots` slots and at most so many inodes and handles, at its full size from the beginning (sparse: only
 * header and slots have pages yet), which the seals keep.  Returns the descriptor or -errno.
 */
int tables_create(uint32_t slots, uint32_t inodes, uint32_t handles)
{
    struct tables_header h = { .magic = MAGIC, .version = TABLES_VERSION, .slots = slots, .max_inodes = inodes,
                               .max_handles = handles, .inodes = 1, .handles = 1 };
    int fd, error;

    if (!slots || inodes < 2 || handles < 2)
        return -EINVAL;
    h.slots_at = pages(sizeof h);
    h.handles_at = h.slots_at + pages(slots * (uint64_t)sizeof(struct slot_row));
    h.inodes_at = h.handles_at + pages(handles * (uint64_t)sizeof(struct handle_row));
    h.size = h.inodes_at + pages(inodes * (uint64_t)sizeof(struct inode_row));
    fd = memfd_create("fusepipe-tables", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)h.size) || fallocate(fd, 0, 0, (off_t)h.handles_at) ||
        pwrite(fd, &h, sizeof h, 0) != sizeof h ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
        error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

static bool valid(const struct tables_header *h, uint64_t size)
{
    return h->magic == MAGIC && h->version == TABLES_VERSION && h->size == size && h->slots && h->inodes >= 1 &&
           h->handles >= 1 && h->inodes <= h->max_inodes && h->handles <= h->max_handles &&
           h->slots_at == pages(sizeof *h) &&
           h->handles_at == h->slots_at + pages(h->slots * (uint64_t)sizeof(struct slot_row)) &&
           h->inodes_at == h->handles_at + pages(h->max_handles * (uint64_t)sizeof(struct handle_row)) &&
           h->size == h->inodes_at + pages(h->max_inodes * (uint64_t)sizeof(struct inode_row));
}

static void *own_rows(uint32_t count, size_t size)
{
    void *p = mmap(NULL, count * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* A descriptor of the root that we own, O_PATH; the inode tables want one more that is not (for file handles). */
static int open_root(struct tables *t, int root_fd)
{
    struct stat st;
    uint64_t node;
    int error, fd = openat(root_fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return -errno;
    if (fstat(fd, &st)) {
        error = -errno;
        close(fd);
        return error;
    }
    if (t->header->inodes > 1 &&
        (t->inode_rows[ROOT_ROW].dev != st.st_dev || t->inode_rows[ROOT_ROW].ino != st.st_ino)) {
        close(fd);
        return -ESTALE;
    }
    error = filesystem_of(t, fd, &st);   /* becomes number 0, the volume's own */
    if (error >= 0)
        error = inodes_rebuild(t);
    if (error < 0) {
        close(fd);
        return error;
    }
    if (t->header->inodes == 1) {
        error = inode_enter(t, 0, fd, &st, true, &node);
        if (error < 0)
            return error;
    } else {
        error = fds_reserve(t, 1);
        if (error) {
            close(fd);
            return error;
        }
        pthread_mutex_lock(&t->inodes_lock);
        fd_install_locked(t, ROOT_ROW, fd, 0, false);
        pthread_mutex_unlock(&t->inodes_lock);
    }
    /* One use that never ends: the root is neither evicted nor freed. */
    pthread_mutex_lock(&t->inodes_lock);
    t->inodes[ROOT_ROW].uses++;
    pthread_mutex_unlock(&t->inodes_lock);
    return 0;
}

/*
 * Maps a memfd of tables_create for the directory `root_fd`, with all that rows in it say.  Both descriptors stay the
 * caller's, as does `proc_fd`: /proc/self/fd where that is the working directory, or -1, then it is opened by its path;
 * and `broker_fd`: a socket to who opens inodes by handle, or -1, then this process does.
 * NULL, and -errno in `error`: EINVAL where the memfd is none of ours, ESTALE where its root is another.
 */
struct tables *tables_open(int memfd, int root_fd, uint64_t fd_budget, bool privileged, bool read_only, int proc_fd,
                           int broker_fd, int *error)
{
    struct tables *t = calloc(1, sizeof *t);
    struct tables_header h;
    struct stat st;
    void *base;
    int seals;

    if (!t) {
        *error = -ENOMEM;
        return NULL;
    }
    t->memfd = t->proc_fd = t->keep_fd = t->broker_fd = -1;
    pthread_mutex_init(&t->inodes_lock, NULL);
    pthread_mutex_init(&t->handles_lock, NULL);
    pthread_mutex_init(&t->filesystems_lock, NULL);
    pthread_mutex_init(&t->keep_lock, NULL);
    pthread_mutex_init(&t->broker_lock, NULL);
    pthread_cond_init(&t->signed_some, NULL);
    t->fd_budget = fd_budget;
    t->privileged = privileged;
    t->read_only = read_only;
    t->root_is_root = true;
    t->own.uid = geteuid();
    t->own.gid = getegid();
    t->own.group_count = getgroups(0, NULL);
    t->own.groups = calloc((size_t)t->own.group_count + 1, sizeof(gid_t));
    if (!t->own.groups || getgroups(t->own.group_count, t->own.groups) != t->own.group_count) {
        *error = -ENOMEM;
        goto failed;
    }
    *error = -EINVAL;
    seals = fcntl(memfd, F_GET_SEALS);
    if (fstat(memfd, &st) || seals < 0 || !(seals & F_SEAL_SHRINK) || pread(memfd, &h, sizeof h, 0) != sizeof h ||
        !valid(&h, (uint64_t)st.st_size))
        goto failed;
    t->memfd = fcntl(memfd, F_DUPFD_CLOEXEC, 0);
    if (proc_fd < 0)
        t->proc_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
    else
        t->proc_fd = fcntl(proc_fd, F_DUPFD_CLOEXEC, 0);
    t->proc_prefix = proc_fd < 0 ? "/proc/self/fd/" : "";
    if (broker_fd >= 0)
        t->broker_fd = fcntl(broker_fd, F_DUPFD_CLOEXEC, 0);
    if (t->memfd < 0 || t->proc_fd < 0 || (broker_fd >= 0 && t->broker_fd < 0)) {
        *error = -errno;
        goto failed;
    }
    base = mmap(NULL, h.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, t->memfd, 0);
    if (base == MAP_FAILED) {
        *error = -errno;
        goto failed;
    }
    t->header = base;
    t->slot_rows = (void *)((char *)base + h.slots_at);
    t->handle_rows = (void *)((char *)base + h.handles_at);
    t->inode_rows = (void *)((char *)base + h.inodes_at);
    t->inodes = own_rows(h.max_inodes, sizeof *t->inodes);
    t->handles = own_rows(h.max_handles, sizeof *t->handles);
    t->long_replies = calloc(h.slots, sizeof *t->long_replies);
    *error = t->inodes && t->handles && t->long_replies ? 0 : -ENOMEM;
    for (uint32_t i = 0; !*error && i < h.inodes; i++)
        t->inodes[i].fd = -1;
    for (uint32_t i = 0; !*error && i < h.handles; i++)
        t->handles[i].fd = -1;
    while (!*error && t->inodes_allocated < h.inodes)
        *error = allocate_rows(t, h.inodes_at, sizeof *t->inode_rows, h.max_inodes, &t->inodes_allocated);
    while (!*error && t->handles_allocated < h.handles)
        *error = allocate_rows(t, h.handles_at, sizeof *t->handle_rows, h.max_handles, &t->handles_allocated);
    if (!*error)
        *error = open_root(t, root_fd);
    if (!*error) {
        handles_rebuild(t);
        slots_rebuild(t);
        return t;
    }
failed:
    tables_close(t);
    return NULL;
}

/* Closes and unmaps all that this process has; the rows stay as they are.  No call may be running. */
void tables_close(struct tables *t)
{
    if (t->inodes && t->handles && t->header) {
        for (uint32_t i = 1; i < t->header->inodes; i++)
            if (load_word(&t->inode_rows[i].word) & 1)
                close_fd(t->inodes[i].fd);
        for (uint32_t i = 1; i < t->header->handles; i++) {
            if (!(load_word(&t->handle_rows[i].word) & 1))
                continue;
            close_fd(t->handles[i].fd);
            if (t->handles[i].directory) {
                pthread_mutex_destroy(&t->handles[i].directory->lock);
                free(t->handles[i].directory->buffer);
                free(t->handles[i].directory);
            }
        }
    }
    for (uint32_t i = 0; i < t->filesystem_count; i++)
        close_fd(t->filesystems[i].mount_fd);
    for (uint32_t i = 0; t->long_replies && i < t->header->slots; i++)
        free(t->long_replies[i].data);
    free(t->long_replies);
    if (t->inodes)
        munmap(t->inodes, t->header->max_inodes * sizeof *t->inodes);
    if (t->handles)
        munmap(t->handles, t->header->max_handles * sizeof *t->handles);
    if (t->header)
        munmap(t->header, t->header->size);
    free(t->own.groups);
    free(t->extents);
    free(t->buckets);
    free(t->unkept);
    close_fd(t->memfd);
    close_fd(t->proc_fd);
    close_fd(t->keep_fd);
    close_fd(t->broker_fd);
    pthread_mutex_destroy(&t->broker_lock);
    pthread_cond_destroy(&t->signed_some);
    pthread_mutex_destroy(&t->keep_lock);
    pthread_mutex_destroy(&t->inodes_lock);
    pthread_mutex_destroy(&t->handles_lock);
    pthread_mutex_destroy(&t->filesystems_lock);
    free(t);
}

/* What the tables hold at this moment; `lookups` is the sum over all inodes (it walks the table). */
void tables_statistics(struct tables *t, struct counters *counters, uint64_t *lookups)
{
    *lookups = 0;
    pthread_mutex_lock(&t->inodes_lock);
    *counters = t->counters;
    counters->pinned = t->chains[LIST_PINS].length;
    for (uint32_t i = 1; i < t->header->inodes; i++) {
        if (!(t->inode_rows[i].word & 1))
            continue;
        *lookups += t->inode_rows[i].nlookup;
        counters->unreachable += t->inodes[i].fd < 0 && !t->inode_rows[i].handle_size;
    }
    pthread_mutex_unlock(&t->inodes_lock);
    pthread_mutex_lock(&t->handles_lock);
    counters->handles = t->live_handles;
    pthread_mutex_unlock(&t->handles_lock);
    counters->filesystems = __atomic_load_n(&t->filesystem_count, __ATOMIC_ACQUIRE);
}

/* What an inode costs in memory that is there, its share of the hash table included. */
size_t tables_bytes_per_inode(void)
{
    return sizeof(struct inode_row) + sizeof(struct inode) + sizeof(uint32_t);
}
