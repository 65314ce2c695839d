/*
 * The tables of one session: what stands in the memfd, and what a process keeps beside it.
 *
 * Only the rows in the memfd are truth.  A row appears, changes and goes by one release store of its word, which is
 * written last, so whoever maps the memfd after a crash sees each row whole or not at all.  Hash chains, free lists,
 * locks, uses and file descriptors are this process's own and are rebuilt when the memfd is mapped.  In doubt a lookup
 * count stays too high: that costs memory, the opposite would take an inode away from under the guest.
 *
 * Lock order: directory.lock > tables.filesystems_lock, tables.keep_lock > tables.inodes_lock, tables.handles_lock,
 * tables.broker_lock.  The last three are leaves, of which nobody holds two; no system call that may wait is made under
 * the first two of them.
 */
#ifndef FUSEPIPE_TABLES_H
#define FUSEPIPE_TABLES_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include "policy.h"

#define ROOT_ROW 1u
#define MAX_GENERATION 0x7ffffffeu   /* a row whose generations are used up is never given again */
#define FILE_HANDLE_ROOM 40          /* ext4 8, tmpfs 12, xfs 8 to 12, btrfs 20 to 40 bytes; longer ones count as none */
#define TAG_SIZE 16                  /* bytes of the broker's signature under a handle: broker.c */
#define SIGN_TOGETHER 64u            /* handles in one request to it, and descriptors that it has open then for one session */
#define REPLY_ROOM 496               /* bytes of a kept reply; all but READDIR's are shorter */
#define REPLY_ELSEWHERE UINT32_MAX   /* the reply was too long: it is in the process that made it (long_replies) */
#define SECRET_ROOM 32
#define TABLES_VERSION 3u            /* of what stands in the memfd */
#define OPENING_ROOM 1024

/* ---- in the memfd ------------------------------------------------------------------------------------------------ */

/* What the session's connections share.  `state` and `turn` are stored last. */
struct session_row {
    uint32_t state;                  /* SESSION_* */
    uint32_t turn;                   /* which of the secrets counts */
    uint32_t opening_size;
    unsigned char secrets[2][SECRET_ROOM];
    unsigned char opening[OPENING_ROOM];   /* what HELLO was answered */
};
#define SESSION_OPEN 1u
#define SESSION_KNOWN 2u             /* the client has shown that it knows the session */
#define SESSION_ENDED 4u

struct tables_header {
    uint64_t magic;
    uint32_t version, slots, max_inodes, max_handles;
    uint32_t inodes, handles;        /* rows that were ever in use, row 0 included; grows before the row appears */
    uint64_t slots_at, handles_at, inodes_at, size;
    struct session_row session;
};

/* `word` is generation << 1 | live.  Freeing a row is one store of the next generation. */
struct inode_row {
    uint32_t word;
    uint8_t type;                    /* S_IFMT bits of its mode >> 12; never changes */
    uint8_t handle_size;             /* 0: there is none, the inode lives by its descriptor alone */
    uint8_t tagged;                  /* `tag` is there; stored after it */
    uint8_t unused;
    uint64_t nlookup;                /* lookups that the guest has not forgotten yet */
    uint64_t dev, ino;               /* st_dev and st_ino on the host */
    uint64_t parent;                 /* where it was seen last, a hint: the node of the directory, 0: nowhere */
    int32_t handle_type;
    unsigned char handle[FILE_HANDLE_ROOM];
    unsigned char tag[TAG_SIZE];     /* of the session's broker; only who has that key can tell whether it is right */
};

struct handle_row {
    uint32_t word;                   /* as above */
    uint32_t flags;                  /* of open(2) */
    uint64_t node;
};

/* An inode that a request is about to take a name from. */
struct noted_inode {
    uint64_t dev, ino;
    int32_t handle_type;
    uint32_t handle_size;            /* NOTHING: there was none of that name */
    unsigned char handle[FILE_HANDLE_ROOM];
};
#define NOTHING UINT32_MAX

/*
 * `word` is seq << 10 | op << 2 | state, so that the three change at once.  What is noted while a request runs belongs to
 * the seq that stands beside it, which is stored last: so nothing has to be cleared for the next one.
 */
struct slot_row {
    uint64_t word;
    uint64_t deaths_seq;             /* processes that died while they ran it */
    uint64_t noted_seq;              /* what its names were before */
    uint64_t progress_seq;           /* forgets of a batch that were begun */
    uint64_t made_seq, made;         /* the handle that it has got */
    uint32_t deaths, progress;
    struct noted_inode from, to;
    uint32_t header_size, payload_size;
    unsigned char reply[REPLY_ROOM];
};

/* ---- beside it --------------------------------------------------------------------------------------------------- */

enum fd_list { LIST_NONE, LIST_FILES, LIST_DIRECTORIES, LIST_PINS, LISTS };

/* The last opening that made the guest drop the pages that it had cached of a file: keeping.c. */
struct dropped {
    uint64_t by;                     /* its handle; 0: there was none, or it says nothing */
    int64_t at;                      /* CLOCK_BOOTTIME, in nanoseconds */
    int64_t size, mtime, ctime;      /* of the file then; times in nanoseconds */
    bool done;                       /* the handle was used before it was released */
};

/* Guarded by tables.inodes_lock. */
struct inode {
    int fd;                          /* O_PATH, or -1: only the file handle is known */
    uint32_t next;                   /* in the hash chain, or in the list of free rows */
    uint32_t older, newer;           /* in the list of descriptors that may be given up */
    uint32_t uses;                   /* calls that work with the inode at this moment */
    uint32_t handles;                /* rows of the handle table that name it */
    uint16_t filesystem;             /* while there is a descriptor */
    uint8_t list;                    /* enum fd_list */
    bool referenced;                 /* used since eviction last looked at it */
    bool searched;                   /* proving.c: a directory that was read */
    bool kept;                       /* whoever keeps the memfd has a descriptor, too: pins.c */
    uint16_t leaving;                /* calls that take a name from it at this moment */
    struct dropped dropped;
};

struct fd_chain { uint32_t oldest, newest, length; };

/* Guarded by its lock: the part of a directory that getdents64 returned and READDIR has not sent yet. */
struct directory {
    pthread_mutex_t lock;
    uint64_t cookie;                 /* where the entry at `position` starts */
    size_t position, filled, room;
    unsigned char *buffer;
};

/* Guarded by tables.handles_lock, but what `directory` points to. */
struct handle {
    int fd;                          /* -1: the row outlived the process that opened it */
    uint32_t next;                   /* in the list of free rows */
    uint32_t uses;
    bool closing;                    /* released while in use: the last user closes it */
    bool used;                       /* the guest has used it, so it has taken the reply that brought it */
    struct directory *directory;     /* made by the first READDIR */
};

/* One per st_dev in the volume.  Written before it is published, constant afterwards. */
struct filesystem {
    uint64_t dev, fsid;
    int mount_fd;                    /* a real descriptor for open_by_handle_at; -1: its inodes live by descriptors */
    bool numbers_repeat;             /* inodes that exist at the same time may have the same number: FUSE */
    bool quiet_close;                /* close(2) reports nothing there that write(2) and fsync(2) do not */
};
#define MAX_FILESYSTEMS 1024u

struct counters {
    uint64_t inodes, handles, fds, pinned, evictions, reopened, overforgotten, pins_given_up, filesystems, kept,
             lost_locks, unreachable, signed_handles;
};

/* A reply that is too long for its slot's row.  Guarded by the slot's lock. */
struct long_reply { unsigned char *data; uint32_t header_size, payload_size; };

struct tables {
    struct tables_header *header;
    struct long_reply *long_replies; /* one per slot */
    struct slot_row *slot_rows;
    struct handle_row *handle_rows;
    struct inode_row *inode_rows;
    struct inode *inodes;
    struct handle *handles;
    int memfd, proc_fd;              /* proc_fd is /proc/self/fd: a link in it stands for the inode itself */
    const char *proc_prefix;         /* what a path to a link in it begins with */
    uint64_t fd_budget;
    bool privileged, read_only;
    struct policy policy;
    struct id_extent *extents;       /* of the policy's maps */
    bool maps_ids, root_is_root;     /* any id is another one's there; the guest's 0 is the host's */
    struct { uid_t uid; gid_t gid; int group_count; gid_t *groups; } own;   /* the server's identity */

    pthread_mutex_t inodes_lock;
    uint32_t *buckets, bucket_count, free_inode;
    uint32_t inodes_allocated;       /* rows whose pages exist */
    struct fd_chain chains[LISTS];
    struct counters counters;        /* fds: descriptors that count against the budget */

    pthread_cond_t signed_some;      /* with inodes_lock */
    unsigned signing;                /* threads that have descriptors signed, which are in use meanwhile */

    pthread_mutex_t broker_lock;     /* held from a request to its answer */
    int broker_fd;                   /* a socket to who opens inodes by handle; -1: this process does */

    pthread_mutex_t keep_lock;       /* before inodes_lock; held while something is said on keep_fd */
    int keep_fd;                     /* -1: nobody keeps descriptors */
    uint64_t *unkept;                /* nodes whose descriptor need not be kept any more; guarded by inodes_lock */
    uint32_t unkept_count, unkept_room;

    pthread_mutex_t handles_lock;
    uint32_t free_handle, handles_allocated;
    uint64_t live_handles;

    pthread_mutex_t filesystems_lock;
    uint32_t filesystem_count;       /* published by a release store */
    struct filesystem filesystems[MAX_FILESYSTEMS];
};

/* memory.c */
int tables_create(uint32_t slots, uint32_t inodes, uint32_t handles);
struct tables *tables_open(int memfd, int root_fd, uint64_t fd_budget, bool privileged, bool read_only,
                           int proc_fd, int broker_fd, int *error);
void tables_close(struct tables *t);
void tables_statistics(struct tables *t, struct counters *counters, uint64_t *lookups);
size_t tables_bytes_per_inode(void);
int allocate_rows(struct tables *t, uint64_t base, size_t row_size, uint32_t limit, uint32_t *allocated);

struct file_id { int type; unsigned size; unsigned char bytes[FILE_HANDLE_ROOM]; bool tagged; unsigned char tag[TAG_SIZE]; };

/* inodes.c: nodes, their counts and uses.  Every function may be called from any thread. */
struct used { uint64_t node; uint32_t row; int fd; uint32_t filesystem; uint8_t type; bool own; };
int inodes_rebuild(struct tables *t);
int inode_use(struct tables *t, uint64_t node, struct used *used);
bool inode_use_quick(struct tables *t, uint64_t node, struct used *used);
void inode_done(struct tables *t, struct used *used);
int inode_enter(struct tables *t, uint64_t parent, int fd, const struct stat *st, bool keep_fd, uint64_t *node);
uint64_t inode_open_node(struct tables *t, uint64_t dev, uint64_t ino);
int inode_enter_open(struct tables *t, uint64_t parent, uint64_t node, const struct stat *st);
void inode_moved(struct tables *t, uint32_t row, uint64_t parent);
bool inode_unproven(struct tables *t, uint64_t dev, uint64_t ino);
bool inode_unproven_locked(const struct tables *t, uint32_t row);
void inode_count(struct tables *t, const struct used *used, uint64_t *node);
void inode_hold(struct tables *t, const struct used *used);
void inode_unhold(struct tables *t, uint64_t node);
int inode_forget(struct tables *t, uint64_t node, uint64_t count);
int inode_settle_locked(struct tables *t, uint32_t row);
void inodes_settle(struct tables *t);
uint32_t inode_find_locked(struct tables *t, const struct stat *st, const struct file_id *id);
uint32_t inode_row_locked(const struct tables *t, uint64_t node);
uint64_t inode_node(const struct tables *t, uint32_t row);
void inode_file_id(const struct inode_row *row, struct file_id *id);

/* settling.c */
void slot_made(uint64_t handle);

/* leaving.c: what has a name that is about to go */
struct leaving {
    bool there, begun;
    int fd;                          /* O_PATH; -1: the row has a descriptor, or there is nothing */
    uint32_t row;                    /* in use until leaving_done; 0: the guest does not know it */
    int filesystem;                  /* negative: not known */
    struct stat st;                  /* before */
    struct file_id id;
};
int leaving_find(struct tables *t, int directory, const char *name, struct leaving *leaving);
void leaving_begin(struct tables *t, struct leaving *leaving);
void leaving_gone(struct tables *t, struct leaving *leaving, bool sure);
void leaving_done(struct tables *t, struct leaving *leaving);

/* pins.c: descriptors of inodes without a name, kept by whoever keeps the memfd */
void tables_keep(struct tables *t, int fd);
int pin_restore(struct tables *t, uint64_t node, int fd);
void pin_keep(struct tables *t, uint32_t row, int fd);
bool pin_wanted_locked(const struct tables *t, uint32_t row);
void pin_drop_locked(struct tables *t, uint32_t row);
void pins_flush(struct tables *t);

/* descriptors.c: the budget.  The functions named *_locked want inodes_lock. */
int fds_reserve(struct tables *t, unsigned count);
void fds_release(struct tables *t, unsigned count);
void fd_install_locked(struct tables *t, uint32_t row, int fd, uint32_t filesystem, bool pin);
int fd_remove_locked(struct tables *t, uint32_t row);
void fd_pin_locked(struct tables *t, uint32_t row);
void tag_locked(struct tables *t, uint32_t row, const unsigned char *tag);

/* filesystems.c */
int filesystem_find(struct tables *t, uint64_t dev);
int filesystem_of(struct tables *t, int fd, const struct stat *st);
void filesystem_file_id(const struct filesystem *fs, int fd, struct file_id *id);
int filesystem_open(struct tables *t, const struct filesystem *fs, const struct file_id *id);
uint64_t shown_ino(const struct tables *t, uint32_t filesystem, uint64_t ino);

/* broker.c */
struct file_handle_buffer { unsigned int handle_bytes; int handle_type; unsigned char bytes[FILE_HANDLE_ROOM]; };
struct handle_id { uint64_t dev; int32_t type; uint32_t size; unsigned char bytes[FILE_HANDLE_ROOM]; };   /* zeroes behind */
struct signature { int error; unsigned char tag[TAG_SIZE]; };
int handle_of(int fd, struct handle_id *id, int *mount);
int handle_open(int mount_fd, const struct handle_id *id);
int handle_within(int root_fd, int mount_fd, const struct handle_id *id);
int broker_show_mount(struct tables *t, int mount_fd);
int broker_sign(struct tables *t, const int *fds, unsigned count, struct signature *signatures);
void tag_signed(struct tables *t, const uint32_t *rows, const struct signature *signatures, uint32_t count);
int broker_prove(struct tables *t, const uint64_t *devs, const struct file_id *ids, unsigned count,
                 struct signature *signatures);
int broker_open(struct tables *t, uint64_t dev, const struct file_id *id);

/* handles.c */
struct used_handle { uint32_t row; int fd; uint32_t flags; uint64_t node; };
void handles_rebuild(struct tables *t);
int handle_new(struct tables *t, const struct used *inode, int fd, uint32_t flags, uint64_t *handle);
int handle_use(struct tables *t, uint64_t handle, bool directory, struct used_handle *used);
bool handle_use_quick(struct tables *t, uint64_t handle, struct used_handle *used);
void handle_done(struct tables *t, struct used_handle *used);
int handle_release(struct tables *t, uint64_t handle, bool taken);
bool handle_was_used(struct tables *t, uint64_t handle);
void handle_note_lock(struct tables *t, uint64_t handle, uint32_t lock, bool held);
uint32_t handle_row_locked(const struct tables *t, uint64_t handle);
#define HANDLE_OF_DIRECTORY ((uint32_t)O_DIRECTORY)   /* in handle_row.flags */
#define HANDLE_LOCKED (1u << 31)     /* beside them: locks of fcntl(2) were set by it, which end with the process */
#define HANDLE_FLOCKED (1u << 30)    /* it has a lock of flock(2), or had one a moment ago */
#define HANDLE_LOCKS (HANDLE_LOCKED | HANDLE_FLOCKED)
struct directory *handle_directory(struct tables *t, const struct used_handle *used);

/* keeping.c: flags of the replies to OPEN and CREATE */
#define REPLY_KEEP 1u
#define REPLY_NOFLUSH 2u
#define REPLY_NEW 4u
uint32_t keep_flag_of(struct tables *t, const struct used *inode, const struct stat *st, uint32_t flags, uint32_t keep,
                      uint64_t handle);
uint32_t keep_flag(struct tables *t, const struct used *inode, int fd, uint32_t flags, uint32_t keep, uint64_t handle);
uint32_t flush_flag(const struct tables *t, uint32_t filesystem, uint32_t flags);
void keep_released(struct tables *t, uint64_t node, uint64_t handle, bool used);

/* opening.c: an inode through its link in /proc/self/fd */
struct proc_name { char text[12]; };
struct proc_name proc_name(int fd);
int reopen(const struct tables *t, int fd, int flags);
uint32_t open_flags(uint32_t asked);

static inline uint32_t row_of(uint64_t id) { return (uint32_t)id; }
static inline uint32_t live_word(uint64_t id) { return (uint32_t)(id >> 32) << 1 | 1; }
static inline uint32_t load_word(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static inline void store_word(uint32_t *word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
static inline void close_fd(int fd) { int saved = errno; if (fd >= 0) close(fd); errno = saved; }

#endif
