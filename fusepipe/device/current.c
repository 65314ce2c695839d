#include "current.h"

#include <string.h>

/*
 * The extensions stand behind the arguments and fill the last `total_extlen` units of 8 bytes; each begins with its size
 * and type (include/uapi/linux/fuse.h, struct fuse_ext_header).  The kernel sends at most one group, that of the parent
 * directory where the caller has it as a supplementary one (fs/fuse/dir.c, get_create_supp_group).
 */
bool current_group(const struct fuse_in_header *in, uint32_t *group)
{
	size_t left = 8 * (size_t)in->total_extlen;
	const char *at;

	if (left > in->len - sizeof *in)
		return false;
	at = (const char *)in + in->len - left;
	while (left >= sizeof(struct fuse_ext_header)) {
		const struct fuse_ext_header *extension = (const void *)at;
		const struct kernel_groups *list = (const void *)(extension + 1);

		if (extension->size < sizeof *extension || extension->size > left)
			return false;
		if (extension->type == KERNEL_EXT_GROUPS &&
		    extension->size >= sizeof *extension + sizeof *list + sizeof list->groups[0] && list->count) {
			*group = list->groups[0];
			return true;
		}
		at += extension->size;
		left -= extension->size;
	}
	return false;
}

void current_set(struct current_request *current, const struct fuse_in_header *in, uint64_t agreed)
{
	const void *arguments = in + 1;

	*current = (struct current_request){
		.unique = in->unique,
		.node = in->nodeid,
		.opcode = in->opcode,
		.uid = in->uid,
		.gid = in->gid,
		.pid = in->pid,
	};
	current->has_group = current_group(in, &current->group);

	switch (in->opcode) {
	case FUSE_GETATTR: {
		const struct fuse_getattr_in *getattr = arguments;

		if (getattr->getattr_flags & FUSE_GETATTR_FH)
			current->handle = getattr->fh;
		break;
	}
	case FUSE_SETATTR: {
		const struct fuse_setattr_in *setattr = arguments;

		current->valid = setattr->valid;
		if (setattr->valid & FATTR_FH)
			current->handle = setattr->fh;
		break;
	}
	case FUSE_MKNOD:
		current->umask = ((const struct fuse_mknod_in *)arguments)->umask;
		break;
	case FUSE_MKDIR:
		current->umask = ((const struct fuse_mkdir_in *)arguments)->umask;
		break;
	case FUSE_OPEN: {
		const struct fuse_open_in *open = arguments;

		current->flags = open->flags;
		current->kill = open->open_flags & FUSE_OPEN_KILL_SUIDGID;
		break;
	}
	case FUSE_CREATE: {
		const struct fuse_create_in *create = arguments;

		current->flags = create->flags;
		current->umask = create->umask;
		current->kill = create->open_flags & FUSE_OPEN_KILL_SUIDGID;
		break;
	}
	case FUSE_READ:
	case FUSE_READDIRPLUS: {
		const struct fuse_read_in *read = arguments;

		current->handle = read->fh;
		current->size = read->size;
		break;
	}
	case FUSE_WRITE: {
		const struct fuse_write_in *write = arguments;

		current->handle = write->fh;
		current->size = write->size;
		current->flags = write->write_flags;
		break;
	}
	case FUSE_FLUSH:
		current->handle = ((const struct fuse_flush_in *)arguments)->fh;
		current->owner = ((const struct fuse_flush_in *)arguments)->lock_owner;
		break;
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
		current->handle = ((const struct fuse_fsync_in *)arguments)->fh;
		break;
	case FUSE_SETXATTR: {
		const struct fuse_setxattr_in *setxattr = arguments;

		current->flags = setxattr->flags;
		if (agreed & FUSE_SETXATTR_EXT)
			current->kill = setxattr->setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID;
		break;
	}
	}
}
