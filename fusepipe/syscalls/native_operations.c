/* The native operations: each is decoded and checked as wire/codec.py does, run by its tree_* call, and answered. */
#include "native.h"

#include <linux/limits.h>            /* PATH_MAX, XATTR_SIZE_MAX */
#include <stdlib.h>

#define NAME_ROOM 256u               /* NAME_MAX and the NUL */
#define MAX_CONTENTS 65536u          /* bytes of a file that come with the reply to OPEN */

struct name { char text[NAME_ROOM]; };

/* What wire/codec.py and wire/server_session.py accept as a name, of those that fit. */
static bool is_name(const struct native_call *call, struct wire_bytes name)
{
    return name.size && name.size < NAME_ROOM && name.size <= call->session->max_name &&
           !memchr(name.data, 0, name.size);
}

static const char *c_name(struct name *to, struct wire_bytes name)
{
    memcpy(to->text, name.data, name.size);
    to->text[name.size] = 0;
    return to->text;
}

/* What wire/codec.py accepts as a symlink's target. */
static bool is_target(struct wire_bytes target)
{
    return target.size && target.size < PATH_MAX && !memchr(target.data, 0, target.size);
}

static bool are_groups(struct wire_bytes groups)
{
    return groups.size % sizeof(uint32_t) == 0 && groups.size / sizeof(uint32_t) <= MAX_GROUPS;
}

/* The groups as numbers, for which `to` has room; returns how many. */
static uint32_t take_groups(uint32_t *to, struct wire_bytes groups)
{
    const uint32_t count = groups.size / (uint32_t)sizeof(uint32_t);

    for (uint32_t i = 0; i < count; i++)
        to[i] = wire_u32(groups.data + 4 * i);
    return count;
}

static struct wire_attr attributes(const uint64_t *n)
{
    return (struct wire_attr){
        .ino = n[0], .mode = (uint32_t)n[1], .nlink = (uint32_t)n[2], .uid = (uint32_t)n[3], .gid = (uint32_t)n[4],
        .rdev = n[5], .size = n[6], .blksize = (uint32_t)n[7], .blocks = n[8],
        .atime = (int64_t)n[9], .atime_ns = (uint32_t)n[10], .mtime = (int64_t)n[11], .mtime_ns = (uint32_t)n[12],
        .ctime = (int64_t)n[13], .ctime_ns = (uint32_t)n[14],
    };
}

/* What a reply says of a directory that it has changed, where that is known: whether it is. */
static bool attach(struct wire_attr *to, const uint64_t *n)
{
    if (n[1])
        *to = attributes(n);
    return n[1];
}

static struct wire_entry entry_of(const uint64_t *n)
{
    return (struct wire_entry){ .node = n[0], .attr = attributes(n + 1) };
}

static int later_where_it_waits(int error)
{
    return error == -EAGAIN ? LATER : error;
}

/* What most operations are made of. */
#define READ(op) static bool read_##op(struct wire_reader *reader, struct native_call *call)
#define RUN(op) static unsigned char *run_##op(struct native_call *call, int *error)
#define QUICK(op) static unsigned char *quick_##op(struct native_call *call, int *error)
#define EMPTY(op) (*error ? NULL : wire_put_##op##_reply(call->header, call->slot, call->seq))
#define FILLED(op) (*error ? NULL : wire_put_##op##_reply(call->header, call->slot, call->seq, &reply))

/* ---- names ---- */

READ(lookup)
{
    return wire_get_lookup_request(reader, call->op->fields, &call->request.lookup) &&
           is_name(call, call->request.lookup.name);
}

static unsigned char *lookup(struct native_call *call, int *error, bool quick)
{
    const struct wire_lookup_request *r = &call->request.lookup;
    struct native_session *s = call->session;
    struct wire_lookup_reply reply;
    uint64_t entry[16];
    struct name place;
    const char *name = c_name(&place, r->name);

    *error = quick ? later_where_it_waits(tree_lookup_quick(s->t, r->parent, name, r->name.size, entry))
                   : tree_lookup(s->t, r->parent, name, r->name.size, entry);
    if (!*error)
        reply.entry = entry_of(entry);
    return FILLED(lookup);
}

RUN(lookup) { return lookup(call, error, false); }
QUICK(lookup) { return lookup(call, error, true); }

READ(unlink)
{
    return wire_get_unlink_request(reader, call->op->fields, &call->request.unlink) &&
           is_name(call, call->request.unlink.name);
}

RUN(unlink)
{
    const struct wire_unlink_request *r = &call->request.unlink;
    struct wire_unlink_reply reply;
    uint64_t attr[15];
    struct name name;

    *error = tree_unlink(call->session->t, r->parent, c_name(&name, r->name), r->name.size, attr);
    reply.attached = !*error && attach(&reply.parent, attr);
    return FILLED(unlink);
}

READ(rmdir)
{
    return wire_get_rmdir_request(reader, call->op->fields, &call->request.rmdir) &&
           is_name(call, call->request.rmdir.name);
}

RUN(rmdir)
{
    const struct wire_rmdir_request *r = &call->request.rmdir;
    struct wire_rmdir_reply reply;
    uint64_t attr[15];
    struct name name;

    *error = tree_rmdir(call->session->t, r->parent, c_name(&name, r->name), r->name.size, attr);
    reply.attached = !*error && attach(&reply.parent, attr);
    return FILLED(rmdir);
}

READ(rename)
{
    return wire_get_rename_request(reader, call->op->fields, &call->request.rename) &&
           is_name(call, call->request.rename.name) && is_name(call, call->request.rename.new_name);
}

RUN(rename)
{
    const struct wire_rename_request *r = &call->request.rename;
    const bool two = r->parent != r->new_parent;
    struct wire_rename_reply reply;
    uint64_t attr[15], new_attr[15];
    struct name name, new_name;

    *error = tree_rename(call->session->t, r->parent, c_name(&name, r->name), r->name.size, r->new_parent,
                         c_name(&new_name, r->new_name), r->new_name.size, r->flags, attr, two ? new_attr : NULL);
    reply.attached = !*error && attach(&reply.parent, attr);
    if (reply.attached && two)
        reply.attached += attach(&reply.new_parent, new_attr);
    return FILLED(rename);
}

READ(mkdir)
{
    return wire_get_mkdir_request(reader, call->op->fields, &call->request.mkdir) &&
           is_name(call, call->request.mkdir.name) && are_groups(call->request.mkdir.groups);
}

RUN(mkdir)
{
    const struct wire_mkdir_request *r = &call->request.mkdir;
    struct wire_mkdir_reply reply;
    uint32_t groups[MAX_GROUPS];
    uint64_t entry[16];
    struct name name;

    *error = tree_mkdir(call->session->t, r->parent, c_name(&name, r->name), r->name.size, r->mode,
                        &(struct identity){ r->uid, r->gid, groups, take_groups(groups, r->groups), r->umask }, entry);
    if (!*error)
        reply.entry = entry_of(entry);
    return FILLED(mkdir);
}

READ(readlink)
{
    call->header_room = REPLY_HEADER + PATH_MAX;
    return wire_get_readlink_request(reader, call->op->fields, &call->request.readlink);
}

RUN(readlink)
{
    char target[PATH_MAX];
    const int got = tree_readlink(call->session->t, call->request.readlink.node, target, sizeof target);
    const struct wire_readlink_reply reply = { { (const unsigned char *)target, got < 0 ? 0 : (uint32_t)got } };

    *error = got < 0 ? got : 0;
    return FILLED(readlink);
}

READ(symlink)
{
    return wire_get_symlink_request(reader, call->op->fields, &call->request.symlink) &&
           is_name(call, call->request.symlink.name) && is_target(call->request.symlink.target) &&
           are_groups(call->request.symlink.groups);
}

RUN(symlink)
{
    const struct wire_symlink_request *r = &call->request.symlink;
    struct wire_symlink_reply reply;
    uint32_t groups[MAX_GROUPS];
    char target[PATH_MAX];
    uint64_t entry[16];
    struct name name;

    memcpy(target, r->target.data, r->target.size);
    target[r->target.size] = 0;
    *error = tree_symlink(call->session->t, r->parent, c_name(&name, r->name), r->name.size, target, r->target.size,
                          &(struct identity){ r->uid, r->gid, groups, take_groups(groups, r->groups), 0 }, entry);
    if (!*error)
        reply.entry = entry_of(entry);
    return FILLED(symlink);
}

READ(link)
{
    return wire_get_link_request(reader, call->op->fields, &call->request.link) &&
           is_name(call, call->request.link.new_name);
}

RUN(link)
{
    const struct wire_link_request *r = &call->request.link;
    struct wire_link_reply reply;
    uint64_t entry[16];
    struct name name;

    *error = tree_link(call->session->t, r->node, r->new_parent, c_name(&name, r->new_name), r->new_name.size, entry);
    if (!*error)
        reply.entry = entry_of(entry);
    return FILLED(link);
}

/* ---- attributes ---- */

READ(getattr)
{
    return wire_get_getattr_request(reader, call->op->fields, &call->request.getattr);
}

RUN(getattr)
{
    const struct wire_getattr_request *r = &call->request.getattr;
    struct wire_getattr_reply reply;
    uint64_t attr[15];

    *error = tree_getattr(call->session->t, r->node, r->handle, attr);
    if (!*error)
        reply.attr = attributes(attr);
    return FILLED(getattr);
}

QUICK(getattr)
{
    const struct wire_getattr_request *r = &call->request.getattr;
    struct wire_getattr_reply reply;
    uint64_t attr[15];

    *error = later_where_it_waits(tree_getattr_quick(call->session->t, r->node, r->handle, attr));
    if (!*error)
        reply.attr = attributes(attr);
    return FILLED(getattr);
}

READ(setattr)
{
    return wire_get_setattr_request(reader, call->op->fields, &call->request.setattr);
}

RUN(setattr)
{
    const struct wire_setattr_request *r = &call->request.setattr;
    const struct attribute_changes changes = {
        .valid = r->valid, .mode = r->mode, .uid = r->uid, .gid = r->gid, .size = r->size,
        .atime = r->atime, .mtime = r->mtime, .atime_ns = r->atime_ns, .mtime_ns = r->mtime_ns,
    };
    struct wire_setattr_reply reply;
    uint64_t attr[15];

    *error = tree_setattr(call->session->t, r->node, r->handle, &changes, attr);
    if (!*error)
        reply.attr = attributes(attr);
    return FILLED(setattr);
}

/* The value stands in the reply's header. */
READ(getxattr)
{
    const struct wire_bytes *name = &call->request.getxattr.name;

    call->header_room = REPLY_HEADER + XATTR_SIZE_MAX;
    return wire_get_getxattr_request(reader, call->op->fields, &call->request.getxattr) && name->size &&
           name->size < NAME_ROOM && !memchr(name->data, 0, name->size);
}

static unsigned char *filled_getxattr(struct native_call *call, int *error, int got, const char *value)
{
    const struct wire_getxattr_reply reply = { { (const unsigned char *)value, got < 0 ? 0 : (uint32_t)got } };

    *error = got < 0 ? got : 0;
    return FILLED(getxattr);
}

RUN(getxattr)
{
    const struct wire_getxattr_request *r = &call->request.getxattr;
    char value[XATTR_SIZE_MAX];
    struct name name;

    return filled_getxattr(call, error, tree_getxattr(call->session->t, r->node, c_name(&name, r->name), r->name.size,
                                                      value, sizeof value), value);
}

QUICK(getxattr)
{
    const struct wire_getxattr_request *r = &call->request.getxattr;
    char value[REPLY_HEADER / 2];
    struct name name;

    return filled_getxattr(call, error,
                           later_where_it_waits(tree_getxattr_quick(call->session->t, r->node, c_name(&name, r->name),
                                                                    r->name.size, value, sizeof value)), value);
}

/* ---- files ---- */

READ(open)
{
    const struct wire_open_request *r = &call->request.open;
    const bool well = wire_get_open_request(reader, call->op->fields, &call->request.open);

    call->reply_room = r->size < MAX_CONTENTS ? r->size : MAX_CONTENTS;
    return well;
}

static unsigned char *open_file(struct native_call *call, int *error, bool quick)
{
    const struct wire_open_request *r = &call->request.open;
    struct tables *t = call->session->t;
    struct contents contents = { (char *)call->data, call->reply_room, 0 };
    struct wire_open_reply reply;

    *error = quick ? later_where_it_waits(tree_open_quick(t, r->node, r->flags, r->kill, r->keep, &reply.handle,
                                                          &reply.flags, &contents))
                   : tree_open(t, r->node, r->flags, r->kill, r->keep, &reply.handle, &reply.flags, &contents);
    call->data_size = contents.size;
    return FILLED(open);
}

RUN(open) { return open_file(call, error, false); }
QUICK(open) { return open_file(call, error, true); }

READ(create)
{
    return wire_get_create_request(reader, call->op->fields, &call->request.create) &&
           is_name(call, call->request.create.name) && are_groups(call->request.create.groups);
}

RUN(create)
{
    const struct wire_create_request *r = &call->request.create;
    struct wire_create_reply reply;
    uint32_t groups[MAX_GROUPS];
    uint64_t entry[16], attr[15];
    struct name name;

    *error = tree_create(call->session->t, r->parent, c_name(&name, r->name), r->name.size, r->flags, r->mode, r->kill,
                         &(struct identity){ r->uid, r->gid, groups, take_groups(groups, r->groups), r->umask }, entry,
                         &reply.handle, &reply.flags, attr);
    if (!*error)
        reply.entry = entry_of(entry);
    reply.attached = !*error && attach(&reply.parent, attr);
    return FILLED(create);
}

READ(read)
{
    const struct wire_read_request *r = &call->request.read;
    const bool well = wire_get_read_request(reader, call->op->fields, &call->request.read);

    call->reply_room = r->size;
    return well;
}

static unsigned char *filled_read(struct native_call *call, int *error, int got)
{
    *error = got < 0 ? got : 0;
    call->data_size = got < 0 ? 0 : (uint32_t)got;
    return EMPTY(read);
}

RUN(read)
{
    const struct wire_read_request *r = &call->request.read;

    return filled_read(call, error, tree_read(call->session->t, r->handle, r->offset, (char *)call->data, r->size));
}

QUICK(read)
{
    const struct wire_read_request *r = &call->request.read;

    return filled_read(call, error, later_where_it_waits(tree_read_quick(call->session->t, r->handle, r->offset,
                                                                         (char *)call->data, r->size)));
}

READ(write)
{
    return wire_get_write_request(reader, call->op->fields, &call->request.write);
}

RUN(write)
{
    const struct wire_write_request *r = &call->request.write;
    const int written = tree_write(call->session->t, r->handle, r->offset, r->flags, (const char *)call->payload,
                                   call->payload_size);
    const struct wire_write_reply reply = { (uint32_t)written };

    *error = written < 0 ? written : 0;
    return FILLED(write);
}

READ(flush)
{
    /* With an owner it ends locks, which are Python's. */
    return wire_get_flush_request(reader, call->op->fields, &call->request.flush) && !call->request.flush.owner;
}

RUN(flush)
{
    *error = tree_flush(call->session->t, call->request.flush.handle);
    return EMPTY(flush);
}

READ(fsync)
{
    return wire_get_fsync_request(reader, call->op->fields, &call->request.fsync);
}

RUN(fsync)
{
    *error = tree_fsync(call->session->t, call->request.fsync.handle, false, call->request.fsync.datasync);
    return EMPTY(fsync);
}

/* ---- directories ---- */

READ(opendir)
{
    return wire_get_opendir_request(reader, call->op->fields, &call->request.opendir);
}

RUN(opendir)
{
    struct wire_opendir_reply reply;

    *error = tree_opendir(call->session->t, call->request.opendir.node, call->request.opendir.keep, &reply.handle,
                          &reply.flags);
    return FILLED(opendir);
}

READ(readdir)
{
    const bool well = wire_get_readdir_request(reader, call->op->fields, &call->request.readdir);

    call->reply_room = call->request.readdir.size;
    return well;
}

RUN(readdir)
{
    const struct wire_readdir_request *r = &call->request.readdir;
    struct wire_readdir_reply reply;
    bool end;
    const int filled = tree_readdir(call->session->t, r->handle, r->offset, (char *)call->data, r->size,
                                    &reply.entries, &end);

    reply.attached = reply.end = end;
    *error = filled < 0 ? filled : 0;
    call->data_size = filled < 0 ? 0 : (uint32_t)filled;
    return FILLED(readdir);
}

/* ---- the end of things ---- */

READ(cleanup)
{
    const struct wire_cleanup_request *r = &call->request.cleanup;

    return wire_get_cleanup_request(reader, call->op->fields, &call->request.cleanup) &&
           r->forgets.size % (2 * sizeof(uint64_t)) == 0 && r->handles.size % sizeof(uint64_t) == 0 &&
           r->untaken.size % sizeof(uint64_t) == 0 &&
           !(r->handles.size && __atomic_load_n(&call->session->locks_used, __ATOMIC_ACQUIRE));
}

RUN(cleanup)
{
    const struct wire_cleanup_request *r = &call->request.cleanup;
    const size_t forgets = r->forgets.size / sizeof(uint64_t), taken = r->handles.size / sizeof(uint64_t);
    const size_t handles = taken + r->untaken.size / sizeof(uint64_t);
    struct native_session *s = call->session;
    uint64_t few[64], *numbers = few, *wrong;
    int count;

    /* Aligned copies, and room for those that are wrong. */
    if (2 * (forgets + handles) > sizeof few / sizeof few[0])
        numbers = malloc(2 * (forgets + handles) * sizeof *numbers);
    if (!numbers) {
        *error = -ENOMEM;
        return NULL;
    }
    memcpy(numbers, r->forgets.data, r->forgets.size);
    memcpy(numbers + forgets, r->handles.data, r->handles.size);
    memcpy(numbers + forgets + taken, r->untaken.data, r->untaken.size);
    wrong = numbers + forgets + handles;
    count = tree_cleanup(s->t, numbers, forgets / 2, numbers + forgets, handles, taken, wrong);
    if (count)
        s->report_wrong(s->context, wrong, (uint32_t)count);
    if (numbers != few)
        free(numbers);
    return EMPTY(cleanup);
}

#define OPERATION(NAME, name, ...) \
    { .number = WIRE_##NAME, .fields = WIRE_##NAME##_FIELDS, .read = read_##name, .run = run_##name, __VA_ARGS__ }
#define PLAIN(NAME, name) OPERATION(NAME, name, .quick = NULL)
#define WITH_QUICK(NAME, name) OPERATION(NAME, name, .quick = quick_##name)

static const struct native_op operations[] = {
    WITH_QUICK(LOOKUP, lookup),
    PLAIN(READLINK, readlink),
    PLAIN(MKDIR, mkdir),
    PLAIN(SYMLINK, symlink),
    PLAIN(LINK, link),
    PLAIN(UNLINK, unlink),
    PLAIN(RMDIR, rmdir),
    PLAIN(RENAME, rename),
    WITH_QUICK(GETATTR, getattr),
    PLAIN(SETATTR, setattr),
    WITH_QUICK(GETXATTR, getxattr),
    OPERATION(OPEN, open, .quick = quick_open, .dear = true),
    PLAIN(CREATE, create),
    WITH_QUICK(READ, read),
    OPERATION(WRITE, write, .payload = true),
    PLAIN(FLUSH, flush),
    PLAIN(FSYNC, fsync),
    PLAIN(OPENDIR, opendir),
    PLAIN(READDIR, readdir),
    OPERATION(CLEANUP, cleanup, .cleanup = true),
};

static const struct native_op *by_number[OPERATIONS];

__attribute__((constructor)) static void index_operations(void)
{
    for (size_t i = 0; i < sizeof operations / sizeof operations[0]; i++)
        by_number[operations[i].number] = &operations[i];
}

const struct native_op *native_op(uint32_t number)
{
    return number < OPERATIONS ? by_number[number] : NULL;
}
