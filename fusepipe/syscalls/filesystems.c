/* The filesystems in a volume: which of them can give an inode back by its file handle, and what numbers they show. */
#include "operations.h"

#include <linux/magic.h>
#include <string.h>
#include <sys/vfs.h>

/* The finaliser of splitmix64: every bit of the input changes every bit of the result. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

/* The file handle of an open inode (name_to_handle_at(2)); size 0 where it has none that we can use. */
void filesystem_file_id(const struct filesystem *fs, int fd, struct file_id *id)
{
    struct file_handle_buffer buffer = { .handle_bytes = FILE_HANDLE_ROOM };
    int mount_id;

    id->size = 0;
    id->tagged = false;
    if (fs->mount_fd < 0 || name_to_handle_at(fd, "", (struct file_handle *)&buffer, &mount_id, AT_EMPTY_PATH))
        return;
    id->type = buffer.handle_type;
    id->size = buffer.handle_bytes;
    memcpy(id->bytes, buffer.bytes, buffer.handle_bytes);
}

/* An O_PATH descriptor of the inode with this handle, or -errno; ESTALE where it is gone, or nobody has signed for it. */
int filesystem_open(struct tables *t, const struct filesystem *fs, const struct file_id *id)
{
    struct handle_id handle = { .type = id->type, .size = id->size };
    int fd;

    if (fs->mount_fd < 0 || !id->size || (t->broker_fd >= 0 && !id->tagged))
        return -ESTALE;
    if (t->broker_fd >= 0) {
        fd = broker_open(t, fs->dev, id);
    } else {
        memcpy(handle.bytes, id->bytes, id->size);
        fd = handle_open(fs->mount_fd, &handle);
    }
    return fd == -ENOENT || fd == -EPERM ? -ESTALE : fd == -EMFILE ? -ENFILE : fd;
}

int filesystem_find(struct tables *t, uint64_t dev)
{
    uint32_t count = __atomic_load_n(&t->filesystem_count, __ATOMIC_ACQUIRE);

    for (uint32_t i = 0; i < count; i++)
        if (t->filesystems[i].dev == dev)
            return (int)i;
    return -ESTALE;
}

/*
 * open_by_handle_at wants a descriptor that is not O_PATH, of the mount through which the inodes are to be used.  It is
 * kept where opening by handle was seen to work: it needs CAP_DAC_READ_SEARCH here or a broker, and not every filesystem
 * can do it.
 */
static int open_mount(struct tables *t, int fd, const struct stat *st)
{
    struct filesystem probe = { .mount_fd = -1, .dev = st->st_dev };
    struct signature signature;
    struct file_id id;
    int found;

    if (S_ISDIR(st->st_mode))
        probe.mount_fd = reopen(t, fd, O_RDONLY | O_DIRECTORY | O_NONBLOCK);
    else if (S_ISREG(st->st_mode))   /* a file that something is mounted on */
        probe.mount_fd = reopen(t, fd, O_RDONLY | O_NONBLOCK);
    if (probe.mount_fd < 0)
        return -1;
    filesystem_file_id(&probe, fd, &id);
    if (t->broker_fd >= 0 && id.size && !broker_show_mount(t, probe.mount_fd) &&
        !broker_sign(t, &fd, 1, &signature) && !signature.error) {
        id.tagged = true;
        memcpy(id.tag, signature.tag, TAG_SIZE);
    }
    found = filesystem_open(t, &probe, &id);
    if (found < 0) {
        close(probe.mount_fd);
        return -1;
    }
    close(found);
    return probe.mount_fd;
}

/*
 * Filesystems without a flush operation (struct file_operations) that can fail: what could not be written is reported by
 * write(2) and fsync(2) alone.  On others (NFS, FUSE) close(2) is where a late error comes out.
 */
static bool closes_quietly(long type)
{
    return type == EXT4_SUPER_MAGIC || type == XFS_SUPER_MAGIC || type == BTRFS_SUPER_MAGIC || type == TMPFS_MAGIC;
}

/* The number of the filesystem that holds an open inode, made known where it is new; or -errno. */
int filesystem_of(struct tables *t, int fd, const struct stat *st)
{
    struct filesystem *fs;
    struct statfs statfs;
    int found = filesystem_find(t, st->st_dev);

    if (found >= 0)
        return found;
    pthread_mutex_lock(&t->filesystems_lock);
    found = filesystem_find(t, st->st_dev);
    if (found < 0 && t->filesystem_count == MAX_FILESYSTEMS) {
        found = -ENFILE;
    } else if (found < 0 && fstatfs(fd, &statfs)) {
        found = -errno;
    } else if (found < 0) {
        fs = &t->filesystems[t->filesystem_count];
        fs->dev = st->st_dev;
        memcpy(&fs->fsid, &statfs.f_fsid, sizeof fs->fsid);
        /* Some filesystems have no id (FUSE among them): then their numbers last until they are mounted again. */
        if (!fs->fsid)
            fs->fsid = mix((uint64_t)statfs.f_type) ^ st->st_dev;
        fs->mount_fd = open_mount(t, fd, st);
        fs->numbers_repeat = statfs.f_type == FUSE_SUPER_MAGIC;
        fs->quiet_close = closes_quietly(statfs.f_type);
        found = (int)t->filesystem_count;
        __atomic_store_n(&t->filesystem_count, t->filesystem_count + 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&t->filesystems_lock);
    return found;
}

/* The filesystem at this path, which comes from the host, is known from now on.  Returns 0 or -errno. */
int tables_know_filesystem(struct tables *t, int root, const char *path)
{
    struct stat st;
    int error, fd = openat(root, path, O_PATH | O_NOFOLLOW | O_CLOEXEC);

    if (fd < 0)
        return -errno;
    error = fstat(fd, &st) ? -errno : filesystem_of(t, fd, &st);
    close(fd);
    return error < 0 ? error : 0;
}

/* Whether inodes of the volume's own filesystem can be opened by their handles. */
bool tables_by_handle(const struct tables *t) { return t->filesystems[0].mount_fd >= 0; }

/*
 * The inode number that the guest sees: the host's for the volume's own filesystem (number 0), for any other a hash of
 * filesystem id and inode number, with the top bit set, so that both stay the same after a remount and never meet.
 */
uint64_t shown_ino(const struct tables *t, uint32_t filesystem, uint64_t ino)
{
    return filesystem ? mix(mix(t->filesystems[filesystem].fsid) ^ ino) | 1ull << 63 : ino;
}
