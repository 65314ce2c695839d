/*
 * The fields of the request that was read last, also those that libfuse or pyfuse3 do not hand on.
 */
#ifndef FUSEPIPE_DEVICE_CURRENT_H
#define FUSEPIPE_DEVICE_CURRENT_H

#include <stdbool.h>
#include <stdint.h>

#include "kernel.h"

/* What an opcode does not carry is 0. */
struct current_request {
	uint64_t unique;
	uint64_t node;
	uint64_t handle; /* GETATTR, SETATTR: only where the kernel gave one; READ, WRITE, READDIRPLUS, FSYNC, FLUSH */
	uint64_t owner;	 /* FLUSH: of the locks of the process that closes */
	uint32_t opcode;
	uint32_t uid;
	uint32_t gid;
	uint32_t pid;
	uint32_t flags; /* OPEN, CREATE: of open(2); WRITE: FUSE_WRITE_*; SETXATTR: of setxattr(2) */
	uint32_t size;	/* READ, WRITE, READDIRPLUS: bytes */
	uint32_t valid; /* SETATTR: FATTR_* */
	uint32_t umask; /* MKNOD, MKDIR, CREATE */
	uint32_t kill;	/* OPEN, CREATE: 1 where FUSE_OPEN_KILL_SUIDGID is set; SETXATTR: FUSE_SETXATTR_ACL_KILL_SGID */
	uint32_t has_group;
	uint32_t group; /* the caller's supplementary group that matters for what it creates */
};

/* The supplementary group that came with the request; false where there is none. */
bool current_group(const struct fuse_in_header *in, uint32_t *group);

/* `agreed` are the flags of INIT, which decide about the form of some requests. */
void current_set(struct current_request *current, const struct fuse_in_header *in, uint64_t agreed);

#endif
