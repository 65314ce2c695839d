"""Builds fusepipe.syscalls._syscalls, the host's side: `python fusepipe/syscalls/_build.py` compiles it in place.

Needs a C compiler.  CFLAGS are handed on, so `CFLAGS=-fsanitize=address,undefined` gives a build that checks itself.
"""

import os
import sys
import tempfile

from cffi import FFI  # type: ignore[import-untyped]  # it ships no types

ALONE = __name__ == "__main__"
FOLDER = os.path.dirname(os.path.abspath(__file__))
SOURCES = (
    "attributes",
    "broker",
    "cleanup",
    "creating",
    "descriptors",
    "directories",
    "files",
    "filesystems",
    "flags",
    "handles",
    "identity",
    "inodes",
    "keeping",
    "leaving",
    "locks",
    "memory",
    "names",
    "native_calls",
    "native_operations",
    "native_pool",
    "native_receiving",
    "native_sending",
    "native_session",
    "native_watch",
    "opening",
    "pins",
    "policy",
    "process",
    "proving",
    "ranges",
    "sandbox",
    "session",
    "settling",
    "slots",
    "succession",
    "xattrs",
)
WIRE = os.path.join(os.path.dirname(FOLDER), "wire")
WARNINGS = ["-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra"]

ffi = FFI()
ffi.cdef(
    """
    #define IOCTL_ROOM ...
    #define HANDLE_LOCKED ...
    #define TABLES_VERSION ...
    #define FILE_HANDLE_ROOM ...
    #define TAG_SIZE ...
    #define SIGN_TOGETHER ...

    struct tables;
    struct counters {
        uint64_t inodes, handles, fds, pinned, evictions, reopened, overforgotten, pins_given_up, filesystems,
                 kept, lost_locks, unreachable, signed_handles;
    };
    struct id_extent { uint32_t guest, host, count; };
    struct id_map { const struct id_extent *extents; uint32_t count; bool squash_root, squash_all; uint32_t all; };
    struct policy { bool no_setuid, no_devices; struct id_map uids, gids; };
    uint32_t id_in(const struct id_map *map, uint32_t guest);
    bool id_out(const struct id_map *map, uint32_t host, uint32_t *guest);
    int tables_set_policy(struct tables *t, const struct policy *policy);
    struct identity { uint32_t uid, gid; const uint32_t *groups; uint32_t group_count, umask; };
    struct attribute_changes {
        uint32_t valid, mode, uid, gid;
        uint64_t size;
        int64_t atime, mtime;
        uint32_t atime_ns, mtime_ns;
    };

    int tables_create(uint32_t slots, uint32_t inodes, uint32_t handles);
    struct tables *tables_open(int memfd, int root_fd, uint64_t fd_budget, bool privileged, bool read_only,
                               int proc_fd, int broker_fd, int *error);
    void tables_close(struct tables *t);
    void tables_statistics(struct tables *t, struct counters *counters, uint64_t *lookups);
    size_t tables_bytes_per_inode(void);

    uint32_t slots_count(const struct tables *t);
    uint64_t slot_load(const struct tables *t, uint32_t slot);
    int slot_store(struct tables *t, uint32_t slot, uint64_t seq, uint32_t op, uint32_t state);
    void slot_keep(struct tables *t, uint32_t slot, const unsigned char *header, uint32_t header_size,
                   const unsigned char *payload, uint32_t payload_size);
    int slot_reply(const struct tables *t, uint32_t slot, const unsigned char **reply,
                   uint32_t *payload_size);
    void slot_enter(struct tables *t, uint32_t slot);
    void slot_leave(void);
    uint32_t slot_deaths(const struct tables *t);
    #define SETTLED_NOT_DONE ...
    #define SETTLED_DONE ...
    void settle_made(struct tables *t);
    int handle_appends(struct tables *t, uint64_t handle);
    int settle_removal(struct tables *t, uint64_t parent, const char *name, size_t size);
    int settle_rename(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t new_parent,
                      const char *new_name, size_t new_size, uint32_t flags);
    void handle_note_lock(struct tables *t, uint64_t handle, uint32_t lock, bool held);
    uint64_t tables_prove(struct tables *t);
    struct handle_id { uint64_t dev; ...; };
    int handle_of(int fd, struct handle_id *id, int *mount);
    int handle_open(int mount_fd, const struct handle_id *id);
    int handle_within(int root_fd, int mount_fd, const struct handle_id *id);
    int tables_know_filesystem(struct tables *t, int root, const char *path);
    bool tables_by_handle(const struct tables *t);
    void tables_keep(struct tables *t, int fd);
    int pin_restore(struct tables *t, uint64_t node, int fd);
    #define SESSION_OPEN ...
    #define SESSION_KNOWN ...
    #define SESSION_ENDED ...
    int session_begin(struct tables *t, const unsigned char *opening, uint32_t size, const unsigned char *secret);
    void session_secret(struct tables *t, const unsigned char *secret);
    void session_mark(struct tables *t, uint32_t bits);
    uint32_t session_load(const struct tables *t, const unsigned char **opening, uint32_t *size,
                          const unsigned char **secret);

    int tree_lookup(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t *entry);
    int tree_readlink(struct tables *t, uint64_t node, char *target, size_t room);
    int tree_link(struct tables *t, uint64_t node, uint64_t parent, const char *name, size_t size, uint64_t *entry);
    int tree_unlink(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t *parent_attr);
    int tree_rmdir(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t *parent_attr);
    int tree_rename(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t new_parent,
                    const char *new_name, size_t new_size, uint32_t flags, uint64_t *parent_attr,
                    uint64_t *new_parent_attr);
    int tree_mknod(struct tables *t, uint64_t parent, const char *name, size_t size, uint32_t mode, uint64_t rdev,
                   const struct identity *identity, uint64_t *entry);
    int tree_mkdir(struct tables *t, uint64_t parent, const char *name, size_t size, uint32_t mode,
                   const struct identity *identity, uint64_t *entry);
    int tree_symlink(struct tables *t, uint64_t parent, const char *name, size_t size, const char *target,
                     size_t target_size, const struct identity *identity, uint64_t *entry);
    int tree_create(struct tables *t, uint64_t parent, const char *name, size_t size, uint32_t flags, uint32_t mode,
                    bool kill, const struct identity *identity, uint64_t *entry, uint64_t *handle,
                    uint32_t *reply_flags, uint64_t *parent_attr);
    int tree_getattr(struct tables *t, uint64_t node, uint64_t handle, uint64_t *attr);
    int tree_setattr(struct tables *t, uint64_t node, uint64_t handle, const struct attribute_changes *changes,
                     uint64_t *attr);
    int tree_access(struct tables *t, uint64_t node, uint32_t mask, const struct identity *identity);
    int tree_statfs(struct tables *t, uint64_t node, uint64_t *numbers);
    int tree_getxattr(struct tables *t, uint64_t node, const char *name, size_t size, char *value, size_t room);
    int tree_setxattr(struct tables *t, uint64_t node, const char *name, size_t size, const char *value,
                      size_t value_size, uint32_t flags);
    int tree_listxattr(struct tables *t, uint64_t node, char *names, size_t room);
    int tree_removexattr(struct tables *t, uint64_t node, const char *name, size_t size);
    struct contents;
    int tree_open(struct tables *t, uint64_t node, uint32_t flags, bool kill, uint32_t keep, uint64_t *handle,
                  uint32_t *reply_flags, struct contents *contents);
    int tree_read(struct tables *t, uint64_t handle, uint64_t offset, char *data, size_t size);
    int tree_write(struct tables *t, uint64_t handle, uint64_t offset, uint32_t flags, const char *data, size_t size);
    int tree_flush(struct tables *t, uint64_t handle);
    int tree_fsync(struct tables *t, uint64_t handle, bool directory, bool datasync);
    int tree_tmpfile(struct tables *t, uint64_t parent, uint32_t flags, uint32_t mode, const struct identity *identity,
                     uint64_t *entry, uint64_t *handle, uint32_t *reply_flags);
    int tree_statx(struct tables *t, uint64_t node, uint64_t handle, uint32_t flags, uint32_t mask, uint64_t *numbers);
    int tree_ioctl(struct tables *t, uint64_t handle, uint32_t number, unsigned char *data, size_t size,
                   const struct identity *identity);
    int tree_fallocate(struct tables *t, uint64_t handle, uint32_t mode, uint64_t offset, uint64_t length, bool kill);
    int tree_copy_range(struct tables *t, uint64_t handle, uint64_t offset, uint64_t to_handle, uint64_t to_offset,
                        uint64_t length, bool kill, uint64_t *copied);
    int tree_lseek(struct tables *t, uint64_t handle, uint64_t offset, uint32_t whence, uint64_t *found);
    int tree_handle_node(struct tables *t, uint64_t handle, uint64_t *node);
    int tree_lock_open(struct tables *t, uint64_t handle);
    void tree_lock_close(struct tables *t, int fd);
    int lock_set(int fd, uint32_t type, uint64_t start, uint64_t end, bool wait);
    int lock_get(int fd, uint32_t type, uint64_t start, uint64_t end, uint64_t *found);
    int tree_flock(struct tables *t, uint64_t handle, uint32_t type, bool wait);
    uint64_t succession_without_handle(struct tables *t);
    void succession_sign(struct tables *t);
    void succession_pins(struct tables *t);
    void succession_no_locks(struct tables *t);
    uint32_t succession_flocked(struct tables *t, uint64_t after, uint64_t *handles, int *fds, uint32_t room);
    int succession_restore_lock(struct tables *t, uint64_t handle, int fd);
    int succession_restore_flock(struct tables *t, uint64_t handle, int fd);
    int tree_opendir(struct tables *t, uint64_t node, uint32_t keep, uint64_t *handle, uint32_t *reply_flags);
    int tree_readdir(struct tables *t, uint64_t handle, uint64_t offset, char *page, size_t size, uint32_t *entries,
                     bool *end);
    int tree_cleanup(struct tables *t, const uint64_t *forgets, size_t forget_count, const uint64_t *handles,
                     size_t handle_count, size_t taken_count, uint64_t *wrong);

    struct native_session;
    struct native_connection;
    #define NATIVE_FRAME ...
    #define NATIVE_END ...
    #define NATIVE_CUT ...
    #define NATIVE_FAILED ...
    #define NATIVE_BROKEN ...
    #define NATIVE_RELIEVED ...
    struct native_event {
        uint32_t kind;
        int error;
        const char *reason;
        const unsigned char *header, *payload;
        uint32_t header_size, payload_size;
    };
    extern "Python" void report_wrong(void *context, uint64_t *numbers, uint32_t count);

    struct native_session *native_session_new(struct tables *t, int interrupt_signal,
                                              void (*report_wrong)(void *, uint64_t *, uint32_t), void *context);
    void native_session_agree(struct native_session *s, uint32_t request_slots, uint32_t cleanup_slots,
                              uint32_t connections, uint32_t max_read, uint32_t max_name, uint64_t max_in_flight);
    void native_session_drain(struct native_session *s, bool leaving);
    void native_session_has_locks(struct native_session *s);
    bool native_session_stop(struct native_session *s, double patience);
    void native_session_free(struct native_session *s);
    uint32_t native_session_unsettled(const struct native_session *s);
    void native_slot_lock(struct native_session *s, uint32_t slot);
    void native_slot_unlock(struct native_session *s, uint32_t slot);
    bool native_slot_charge(struct native_session *s, uint32_t slot, uint64_t size);
    void native_slot_discharge(struct native_session *s, uint32_t slot);
    uint64_t native_in_flight(const struct native_session *s);
    void native_slot_set_route(struct native_session *s, uint32_t slot, struct native_connection *c);
    struct native_connection *native_slot_route(const struct native_session *s, uint32_t slot);
    bool native_slot_start(struct native_session *s, uint32_t slot, uint64_t seq);
    void native_slot_end(struct native_session *s, uint32_t slot);
    uint64_t native_slot_running(const struct native_session *s, uint32_t slot, uint64_t *thread);
    void native_slot_expect(struct native_session *s, uint32_t slot, uint64_t seq);
    struct native_connection *native_connection_new(struct native_session *s, int fd, size_t limit);
    void native_connection_drop(struct native_connection *c);
    void native_connection_bounds(struct native_connection *c, uint32_t max_header, uint32_t max_payload);
    void native_connection_sums(struct native_connection *c, bool in, bool out);
    void native_connection_set_current(struct native_connection *c, bool current);
    bool native_connection_feed(struct native_connection *c, const unsigned char *data, size_t size);
    void native_receive(struct native_connection *c, struct native_event *event);
    void native_send(struct native_connection *c, const unsigned char *header, uint32_t header_size,
                     const unsigned char *payload, uint32_t payload_size);
    bool native_has_unsent(struct native_connection *c);
    void native_shut(struct native_connection *c);
    void native_end_receiving(struct native_connection *c);
    uint64_t native_lead_begin(struct native_connection *c, bool here);
    bool native_lead_end(struct native_connection *c, uint64_t job);
    bool native_lead_take(struct native_connection *c, uint64_t job);
    const struct native_connection *native_watch(struct native_session *s, uint64_t *job);
    void native_watch_rouse(struct native_session *s);
    void native_watch_stop(struct native_session *s);

    int install_interrupt_handler(int signal_number);
    int effective_capabilities(uint64_t *bits);

    int sandbox_part_children(void);
    int sandbox_volume(int root_fd, bool read_only, int *proc_fd);
    int sandbox_network(void);
    int sandbox_capabilities(uint64_t kept);
    int sandbox_privileges(void);
    int sandbox_filter(const void *program, size_t size);
    """
)
ffi.set_source(
    "fusepipe.syscalls._syscalls",
    '#include "native.h"',
    # setuptools wants paths relative to the project, a compilation in place happens elsewhere
    sources=[
        os.path.join(folder if ALONE else os.path.relpath(folder), f"{name}.c")
        for folder, names in ((FOLDER, SOURCES), (WIRE, ("native",)))
        for name in names
    ],
    include_dirs=[FOLDER, WIRE],
    # -Werror only for who works on the C files: a later compiler's new warning must not break an installation.
    extra_compile_args=[*WARNINGS, *(["-Werror"] if ALONE else [])],
    libraries=["pthread"],
)

if ALONE:
    # In a folder of its own: setuptools would read, and reject where it is old, the project's pyproject.toml.  The
    # finished module is renamed into place, so a process that has the old one loaded keeps it.
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".build-") as scratch:
        built = ffi.compile(tmpdir=scratch, verbose="-v" in sys.argv[1:])
        os.replace(built, os.path.join(FOLDER, os.path.basename(built)))
