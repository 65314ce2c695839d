/*
 * What the Python side calls: each function is one whole operation, may be called from any thread, and returns a
 * number >= 0 or -errno.  A call that a signal interrupts before it changed anything returns -EINTR.
 *
 * Attributes are 15 numbers: ino, mode, nlink, uid, gid, rdev, size, blksize, blocks, atime, atime_ns, mtime, mtime_ns,
 * ctime, ctime_ns (the seconds are signed).  An entry is a node id and then the attributes; one lookup of it is counted.
 *
 * Names are NUL-ended and `size` bytes long without it: a NUL inside is found, not cut at.
 */
#ifndef FUSEPIPE_OPERATIONS_H
#define FUSEPIPE_OPERATIONS_H

#include "tables.h"

/*
 * The functions named *_quick do the same where they can without waiting, for a thread on which others wait; where they
 * cannot, or something is unusual, they return -EAGAIN and have changed nothing.
 */

/* Who makes something.  Only a privileged server acts as somebody else. */
struct identity { uint32_t uid, gid; const uint32_t *groups; uint32_t group_count, umask; };

/* slots.c */
uint32_t slots_count(const struct tables *t);
void slots_rebuild(struct tables *t);
uint64_t slot_load(const struct tables *t, uint32_t slot);
int slot_store(struct tables *t, uint32_t slot, uint64_t seq, uint32_t op, uint32_t state);
void slot_keep(struct tables *t, uint32_t slot, const unsigned char *header, uint32_t header_size,
               const unsigned char *payload, uint32_t payload_size);
int slot_reply(const struct tables *t, uint32_t slot, const unsigned char **reply, uint32_t *payload_size);

uint64_t tables_prove(struct tables *t);
int tables_know_filesystem(struct tables *t, int root, const char *path);
bool tables_by_handle(const struct tables *t);

/* session.c */
int session_begin(struct tables *t, const unsigned char *opening, uint32_t size, const unsigned char *secret);
void session_secret(struct tables *t, const unsigned char *secret);
void session_mark(struct tables *t, uint32_t bits);
uint32_t session_load(const struct tables *t, const unsigned char **opening, uint32_t *size,
                      const unsigned char **secret);

/* settling.c: what the calling thread's request notes in its slot, and what a later process makes of it */
enum settled { SETTLED_NOT_DONE, SETTLED_DONE, SETTLED_UNKNOWN };
void slot_enter(struct tables *t, uint32_t slot);
void slot_leave(void);
uint32_t slot_deaths(const struct tables *t);
uint32_t slot_progress(const struct tables *t);
void slot_progressed(struct tables *t, uint32_t count);
void slot_note(const struct leaving *from, const struct leaving *to);
void settle_made(struct tables *t);
int handle_appends(struct tables *t, uint64_t handle);
int settle_removal(struct tables *t, uint64_t parent, const char *name, size_t size);
int settle_rename(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t new_parent,
                  const char *new_name, size_t new_size, uint32_t flags);

/* names.c */
int tree_lookup(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t *entry);
int tree_lookup_quick(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t *entry);
int tree_readlink(struct tables *t, uint64_t node, char *target, size_t room);
int tree_link(struct tables *t, uint64_t node, uint64_t parent, const char *name, size_t size, uint64_t *entry);
/*
 * `parent_attr` (and RENAME's `new_parent_attr`, of another directory) may be NULL; else they get the directory's attributes
 * after the change, or 0 as its mode where they are not known.
 */
int tree_unlink(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t *parent_attr);
int tree_rmdir(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t *parent_attr);
int tree_rename(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t new_parent,
                const char *new_name, size_t new_size, uint32_t flags, uint64_t *parent_attr,
                uint64_t *new_parent_attr);

/* creating.c */
int tree_mknod(struct tables *t, uint64_t parent, const char *name, size_t size, uint32_t mode, uint64_t rdev,
               const struct identity *identity, uint64_t *entry);
int tree_mkdir(struct tables *t, uint64_t parent, const char *name, size_t size, uint32_t mode,
               const struct identity *identity, uint64_t *entry);
int tree_symlink(struct tables *t, uint64_t parent, const char *name, size_t size, const char *target,
                 size_t target_size, const struct identity *identity, uint64_t *entry);
int tree_create(struct tables *t, uint64_t parent, const char *name, size_t size, uint32_t flags, uint32_t mode,
                bool kill, const struct identity *identity, uint64_t *entry, uint64_t *handle,
                uint32_t *reply_flags, uint64_t *parent_attr);

int tree_tmpfile(struct tables *t, uint64_t parent, uint32_t flags, uint32_t mode, const struct identity *identity,
                 uint64_t *entry, uint64_t *handle, uint32_t *reply_flags);

/* attributes.c; `valid` has the bits of Linux's FATTR_* */
struct attribute_changes {
    uint32_t valid, mode, uid, gid;
    uint64_t size;
    int64_t atime, mtime;
    uint32_t atime_ns, mtime_ns;
};
int tree_getattr(struct tables *t, uint64_t node, uint64_t handle, uint64_t *attr);
/* After the attributes: mask, btime, btime_ns, attributes, attributes_mask, as statx(2) has them. */
#define STATX_NUMBERS 20
int tree_statx(struct tables *t, uint64_t node, uint64_t handle, uint32_t flags, uint32_t mask, uint64_t *numbers);
int tree_getattr_quick(struct tables *t, uint64_t node, uint64_t handle, uint64_t *attr);
int tree_setattr(struct tables *t, uint64_t node, uint64_t handle, const struct attribute_changes *changes,
                 uint64_t *attr);
int tree_access(struct tables *t, uint64_t node, uint32_t mask, const struct identity *identity);
int tree_statfs(struct tables *t, uint64_t node, uint64_t *numbers);

/* xattrs.c */
int tree_getxattr(struct tables *t, uint64_t node, const char *name, size_t size, char *value, size_t room);
int tree_getxattr_quick(struct tables *t, uint64_t node, const char *name, size_t size, char *value, size_t room);
int tree_setxattr(struct tables *t, uint64_t node, const char *name, size_t size, const char *value,
                  size_t value_size, uint32_t flags);
int tree_listxattr(struct tables *t, uint64_t node, char *names, size_t room);
int tree_removexattr(struct tables *t, uint64_t node, const char *name, size_t size);

/* Where an opening puts all that a short file holds; `size` 0: it does not say. */
struct contents {
    char *data;
    uint32_t room, size;
};

/* files.c; `keep`: milliseconds, 0 never, UINT32_MAX always; `reply_flags`: REPLY_* */
int tree_open(struct tables *t, uint64_t node, uint32_t flags, bool kill, uint32_t keep, uint64_t *handle,
              uint32_t *reply_flags, struct contents *contents);
int tree_open_quick(struct tables *t, uint64_t node, uint32_t flags, bool kill, uint32_t keep, uint64_t *handle,
                    uint32_t *reply_flags, struct contents *contents);
int tree_read_quick(struct tables *t, uint64_t handle, uint64_t offset, char *data, size_t size);
int tree_read(struct tables *t, uint64_t handle, uint64_t offset, char *data, size_t size);
int tree_write(struct tables *t, uint64_t handle, uint64_t offset, uint32_t flags, const char *data, size_t size);
int tree_flush(struct tables *t, uint64_t handle);
int tree_fsync(struct tables *t, uint64_t handle, bool directory, bool datasync);

/* ranges.c */
int tree_fallocate(struct tables *t, uint64_t handle, uint32_t mode, uint64_t offset, uint64_t length, bool kill);
int tree_copy_range(struct tables *t, uint64_t handle, uint64_t offset, uint64_t to_handle, uint64_t to_offset,
                    uint64_t length, bool kill, uint64_t *copied);
int tree_lseek(struct tables *t, uint64_t handle, uint64_t offset, uint32_t whence, uint64_t *found);

/* flags.c */
#define IOCTL_ROOM 32u
int tree_ioctl(struct tables *t, uint64_t handle, uint32_t number, unsigned char *data, size_t size,
               const struct identity *identity);

/* locks.c */
int tree_handle_node(struct tables *t, uint64_t handle, uint64_t *node);
int tree_lock_open(struct tables *t, uint64_t handle);
void tree_lock_close(struct tables *t, int fd);
int lock_set(int fd, uint32_t type, uint64_t start, uint64_t end, bool wait);
int lock_get(int fd, uint32_t type, uint64_t start, uint64_t end, uint64_t *found);
int tree_flock(struct tables *t, uint64_t handle, uint32_t type, bool wait);

/* succession.c */
uint64_t succession_without_handle(struct tables *t);
void succession_sign(struct tables *t);
void succession_pins(struct tables *t);
void succession_no_locks(struct tables *t);
uint32_t succession_flocked(struct tables *t, uint64_t after, uint64_t *handles, int *fds, uint32_t room);
int succession_restore_lock(struct tables *t, uint64_t handle, int fd);
int succession_restore_flock(struct tables *t, uint64_t handle, int fd);

/* directories.c */
int tree_opendir(struct tables *t, uint64_t node, uint32_t keep, uint64_t *handle, uint32_t *reply_flags);
int tree_readdir(struct tables *t, uint64_t handle, uint64_t offset, char *page, size_t size, uint32_t *entries,
                 bool *end);

/* cleanup.c */
int tree_cleanup(struct tables *t, const uint64_t *forgets, size_t forget_count, const uint64_t *handles,
                 size_t handle_count, size_t taken_count, uint64_t *wrong);

/* policy.c */
enum access { MAY_READ, MAY_SEARCH, MAY_CHANGE, MAY_OWN };
int tables_set_policy(struct tables *t, const struct policy *policy);
int may(const struct tables *t, int fd, enum access access);
int may_with(const struct tables *t, const struct stat *st, enum access access);
int may_open(const struct tables *t, int fd, uint32_t flags);
int may_make(const struct tables *t, uint32_t mode, uint64_t rdev);
int may_set_xattr(const struct tables *t, const char *name);
int may_get_xattr(const struct tables *t, const char *name);
int xattr_in(const struct tables *t, const char *name, const char *value, size_t size, char **copy);
void xattr_out(const struct tables *t, const char *name, char *value, size_t size);

/* process.c */
int install_interrupt_handler(int signal_number);
int effective_capabilities(uint64_t *bits);

/* sandbox.c */
int sandbox_part_children(void);
int sandbox_volume(int root_fd, bool read_only, int *proc_fd);
int sandbox_network(void);
int sandbox_capabilities(uint64_t kept);
int sandbox_privileges(void);
int sandbox_filter(const void *program, size_t size);

/* shared by the operations */
int check_name(const char *name, size_t size);
int enter_name(struct tables *t, const struct used *directory, const char *name, uint64_t *entry);
void put_attributes(const struct tables *t, uint32_t filesystem, const struct stat *st, uint64_t *attr);
void put_changed(const struct tables *t, const struct used *directory, uint64_t *attr);

#endif
