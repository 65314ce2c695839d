#define _GNU_SOURCE

#include "native_encode.h"

#include <fcntl.h>
#include <string.h>

#include "current.h"
#include "filter.h"
#include "native_contents.h"
#include "native_messages.h"
#include "native_policy.h"

/* What the server is told of FATTR_* and FUSE_WRITE_*; device/flags.py has the same (SetattrFlag.SENT, WriteFlag.SENT). */
#define SETATTR_SENT                                                                                                  \
	(FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE | FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW | \
	 FATTR_KILL_SUIDGID)
#define WRITE_SENT (FUSE_WRITE_CACHE | FUSE_WRITE_KILL_SUIDGID)

#define LONGEST_TARGET 512 /* bytes of a symlink: with a name it fits into NATIVE_HEADER */

struct native_policy native_policy;

/* ---- names: each ends with a NUL, which the kernel has put there ---- */

static struct wire_bytes name_at(const void *text)
{
	return (struct wire_bytes){ text, (uint32_t)strlen(text) };
}

static const char *name_of(const struct fuse_in_header *in)
{
	switch (in->opcode) {
	case FUSE_CREATE:
		return (const char *)(in + 1) + sizeof(struct fuse_create_in);
	case FUSE_MKDIR:
		return (const char *)(in + 1) + sizeof(struct fuse_mkdir_in);
	case FUSE_RENAME:
		return (const char *)(in + 1) + sizeof(struct fuse_rename_in);
	case FUSE_RENAME2:
		return (const char *)(in + 1) + sizeof(struct fuse_rename2_in);
	case FUSE_LINK:
		return (const char *)(in + 1) + sizeof(struct fuse_link_in);
	case FUSE_GETXATTR:
		return (const char *)(in + 1) + sizeof(struct fuse_getxattr_in);
	case FUSE_LOOKUP:
	case FUSE_UNLINK:
	case FUSE_RMDIR:
	case FUSE_SYMLINK:
		return (const char *)(in + 1);
	default:
		return "";
	}
}

/* The text behind a request's first name: RENAME's new name, SYMLINK's target. */
static const char *second_of(const struct fuse_in_header *in)
{
	const char *name = name_of(in);

	return name + strlen(name) + 1;
}

static bool names_fit(const struct fuse_in_header *in)
{
	const bool two = in->opcode == FUSE_RENAME || in->opcode == FUSE_RENAME2;

	return strlen(name_of(in)) <= native_policy.max_name &&
	       !(two && strlen(second_of(in)) > native_policy.max_name);
}

/* ---- what to do with a request ---- */

enum native_fate native_look_at(struct native_request *request)
{
	const struct fuse_in_header *in = &request->header;
	const void *arguments = in + 1;

	if (in->opcode >= sizeof native_policy.opcodes || !native_policy.opcodes[in->opcode])
		return FATE_PYTHON;
	request->payload_size = request->reply_size = 0;
	switch (in->opcode) {
	case FUSE_READ:
	case FUSE_READDIRPLUS: {
		const struct fuse_read_in *read = arguments;

		request->reply_size = read->size;
		if (read->size > native_policy.max_read) {
			if (in->opcode == FUSE_READ)
				return FATE_PYTHON;
			request->reply_size = native_policy.max_read;
		}
		return FATE_SEND;
	}
	case FUSE_WRITE: {
		const struct fuse_write_in *write = arguments;

		if (write->size > native_policy.max_write)
			return FATE_PYTHON;
		request->payload = write + 1;
		request->payload_size = write->size;
		return FATE_SEND;
	}
	case FUSE_OPEN:
		request->reply_size = contents_wanted(request);
		return FATE_SEND;
	case FUSE_GETXATTR: /* its name is none of a file; the kernel allows no longer one (XATTR_NAME_MAX) */
		return strlen(name_of(in)) < 256 ? FATE_SEND : FATE_PYTHON;
	case FUSE_SYMLINK:
		if (strlen(second_of(in)) > LONGEST_TARGET)
			return FATE_PYTHON;
		/* fallthrough */
	case FUSE_CREATE:
	case FUSE_MKDIR:
		/* Without it Python asks /proc for the caller's groups. */
		if (in->uid && !(filter_agreed_flags() & KERNEL_CREATE_SUPP_GROUP))
			return FATE_PYTHON;
		break;
	}
	return names_fit(in) ? FATE_SEND : FATE_TOO_LONG;
}

/* ---- headers ---- */

static uint32_t umask_of(uint32_t umask)
{
	return filter_agreed_flags() & FUSE_DONT_MASK ? umask : 0;
}

/* The caller's group that matters for what it creates, as the field `groups`: numbers of 4 bytes.  `memory` keeps them. */
static struct wire_bytes groups_of(const struct fuse_in_header *in, unsigned char memory[4])
{
	uint32_t group;

	if (!(filter_agreed_flags() & KERNEL_CREATE_SUPP_GROUP) || !current_group(in, &group))
		return (struct wire_bytes){ memory, 0 };
	wire_put_u32(memory, group);
	return (struct wire_bytes){ memory, 4 };
}

/*
 * With write-back the kernel fills pages before it changes parts of them, through any handle, and appends by itself
 * (libfuse's passthrough_ll, lo_open).
 */
static uint32_t flags_of(uint32_t flags)
{
	if (!native_policy.writeback)
		return flags;
	if ((flags & O_ACCMODE) == O_WRONLY)
		flags = (flags & ~(uint32_t)O_ACCMODE) | O_RDWR;
	return flags & ~(uint32_t)(O_APPEND | O_DIRECT);
}

static unsigned char *put_create(unsigned char *to, const struct native_slot *slot, const struct fuse_in_header *in)
{
	const struct fuse_create_in *create = (const void *)(in + 1);
	unsigned char memory[4];

	return wire_put_create_request(to, slot->number, slot->seq,
				       &(struct wire_create_request){
					       .parent = in->nodeid,
					       .name = name_at(name_of(in)),
					       .flags = flags_of(create->flags),
					       .mode = create->mode,
					       .umask = umask_of(create->umask),
					       .uid = in->uid,
					       .gid = in->gid,
					       .groups = groups_of(in, memory),
					       .kill = create->open_flags & FUSE_OPEN_KILL_SUIDGID,
				       });
}

static unsigned char *put_mkdir(unsigned char *to, const struct native_slot *slot, const struct fuse_in_header *in)
{
	const struct fuse_mkdir_in *mkdir = (const void *)(in + 1);
	unsigned char memory[4];

	return wire_put_mkdir_request(to, slot->number, slot->seq,
				      &(struct wire_mkdir_request){
					      .parent = in->nodeid,
					      .name = name_at(name_of(in)),
					      .mode = mkdir->mode,
					      .umask = umask_of(mkdir->umask),
					      .uid = in->uid,
					      .gid = in->gid,
					      .groups = groups_of(in, memory),
				      });
}

static unsigned char *put_setattr(unsigned char *to, const struct native_slot *slot, const struct fuse_in_header *in)
{
	const struct fuse_setattr_in *setattr = (const void *)(in + 1);

	return wire_put_setattr_request(to, slot->number, slot->seq,
					&(struct wire_setattr_request){
						.node = in->nodeid,
						.handle = setattr->valid & FATTR_FH ? setattr->fh : 0,
						.valid = setattr->valid & SETATTR_SENT,
						.mode = setattr->mode,
						.uid = setattr->uid,
						.gid = setattr->gid,
						.size = setattr->size,
						.atime = (int64_t)setattr->atime,
						.atime_ns = setattr->atimensec,
						.mtime = (int64_t)setattr->mtime,
						.mtime_ns = setattr->mtimensec,
					});
}

static unsigned char *put_symlink(unsigned char *to, const struct native_slot *slot, const struct fuse_in_header *in)
{
	unsigned char memory[4];

	return wire_put_symlink_request(to, slot->number, slot->seq,
					&(struct wire_symlink_request){
						.parent = in->nodeid,
						.name = name_at(name_of(in)),
						.target = name_at(second_of(in)),
						.uid = in->uid,
						.gid = in->gid,
						.groups = groups_of(in, memory),
					});
}

/* The kernel sends RENAME2 only where there are flags; what both begin with is the same. */
static unsigned char *put_rename(unsigned char *to, const struct native_slot *slot, const struct fuse_in_header *in)
{
	const struct fuse_rename2_in *rename = (const void *)(in + 1);

	return wire_put_rename_request(to, slot->number, slot->seq,
				       &(struct wire_rename_request){
					       .parent = in->nodeid,
					       .name = name_at(name_of(in)),
					       .new_parent = rename->newdir,
					       .new_name = name_at(second_of(in)),
					       .flags = in->opcode == FUSE_RENAME2 ? rename->flags : 0,
				       });
}

/*
 * Half as long as those of files: a listing whose names are not believed any more costs a request for each of them, where
 * a new one would bring all.
 */
static uint32_t keep_pages_of_directory(void)
{
	return native_policy.keep == UINT32_MAX ? UINT32_MAX : native_policy.keep / 2;
}

static unsigned char *put(unsigned char *to, const struct native_slot *slot)
{
	const uint64_t number = slot->number, seq = slot->seq;
	const struct fuse_in_header *in = &slot->request->header;
	const void *arguments = in + 1;

	switch (in->opcode) {
	case FUSE_LOOKUP:
		return wire_put_lookup_request(to, number, seq,
					       &(struct wire_lookup_request){ in->nodeid, name_at(arguments) });
	case FUSE_GETATTR: {
		const struct fuse_getattr_in *getattr = arguments;
		const uint64_t handle = getattr->getattr_flags & FUSE_GETATTR_FH ? getattr->fh : 0;

		return wire_put_getattr_request(to, number, seq, &(struct wire_getattr_request){ in->nodeid, handle });
	}
	case FUSE_SETATTR:
		return put_setattr(to, slot, in);
	case FUSE_OPEN: {
		const struct fuse_open_in *open = arguments;

		return wire_put_open_request(to, number, seq,
					     &(struct wire_open_request){
						     .node = in->nodeid,
						     .flags = flags_of(open->flags),
						     .kill = open->open_flags & FUSE_OPEN_KILL_SUIDGID,
						     .keep = native_policy.keep,
						     .size = slot->request->reply_size,
					     });
	}
	case FUSE_CREATE:
		return put_create(to, slot, in);
	case FUSE_READ: {
		const struct fuse_read_in *read = arguments;

		return wire_put_read_request(to, number, seq,
					     &(struct wire_read_request){ read->fh, read->offset, read->size });
	}
	case FUSE_WRITE: {
		const struct fuse_write_in *write = arguments;

		return wire_put_write_request(
			to, number, seq,
			&(struct wire_write_request){ write->fh, write->offset, write->write_flags & WRITE_SENT });
	}
	case FUSE_FSYNC: {
		const struct fuse_fsync_in *fsync = arguments;

		return wire_put_fsync_request(
			to, number, seq, &(struct wire_fsync_request){ fsync->fh, fsync->fsync_flags & FUSE_FSYNC_FDATASYNC });
	}
	case FUSE_GETXATTR:
		return wire_put_getxattr_request(
			to, number, seq, &(struct wire_getxattr_request){ in->nodeid, name_at(name_of(in)) });
	case FUSE_OPENDIR:
		return wire_put_opendir_request(
			to, number, seq, &(struct wire_opendir_request){ in->nodeid, keep_pages_of_directory() });
	case FUSE_READDIRPLUS: {
		const struct fuse_read_in *read = arguments;

		return wire_put_readdir_request(
			to, number, seq, &(struct wire_readdir_request){ read->fh, read->offset, slot->request->reply_size });
	}
	case FUSE_MKDIR:
		return put_mkdir(to, slot, in);
	case FUSE_UNLINK:
		return wire_put_unlink_request(to, number, seq,
					       &(struct wire_unlink_request){ in->nodeid, name_at(arguments) });
	case FUSE_RMDIR:
		return wire_put_rmdir_request(to, number, seq,
					      &(struct wire_rmdir_request){ in->nodeid, name_at(arguments) });
	case FUSE_READLINK:
		return wire_put_readlink_request(to, number, seq, &(struct wire_readlink_request){ in->nodeid });
	case FUSE_SYMLINK:
		return put_symlink(to, slot, in);
	case FUSE_LINK: {
		const struct fuse_link_in *link = arguments;

		return wire_put_link_request(
			to, number, seq, &(struct wire_link_request){ link->oldnodeid, in->nodeid, name_at(name_of(in)) });
	}
	default: /* native_look_at lets nothing else pass */
		return put_rename(to, slot, in);
	}
}

void native_encode(struct native_slot *slot)
{
	slot->header_size = (uint32_t)(put(slot->header, slot) - slot->header);
}
