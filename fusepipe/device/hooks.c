/*
 * Functions of libfuse that pyfuse3 calls to make its session, in its place: up to libfuse 3.16 the first one, from 3.17
 * on the second.  This module is loaded before pyfuse3 and into the global scope, so that the linker finds these first.
 *
 * libfuse's headers stay out: whether they declare these names as functions or macros depends on their version.
 */
#include <dlfcn.h>
#include <stddef.h>

#include "filter.h"

struct fuse_args;
struct fuse_lowlevel_ops;
struct libfuse_version;

#define HOOK __attribute__((visibility("default")))

HOOK struct fuse_session *fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *ops, size_t size,
					   void *user);
HOOK struct fuse_session *fuse_session_new_versioned(struct fuse_args *args, const struct fuse_lowlevel_ops *ops,
						     size_t size, struct libfuse_version *version, void *user);

static struct fuse_session *note(struct fuse_session *session)
{
	filter_session_made(session);
	return session;
}

struct fuse_session *fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *ops, size_t size, void *user)
{
	struct fuse_session *(*real)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *);

	*(void **)&real = dlsym(RTLD_NEXT, "fuse_session_new");
	return real ? note(real(args, ops, size, user)) : NULL;
}

struct fuse_session *fuse_session_new_versioned(struct fuse_args *args, const struct fuse_lowlevel_ops *ops, size_t size,
						struct libfuse_version *version, void *user)
{
	struct fuse_session *(*real)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, struct libfuse_version *,
				     void *);

	*(void **)&real = dlsym(RTLD_NEXT, "fuse_session_new_versioned");
	return real ? note(real(args, ops, size, version, user)) : NULL;
}
