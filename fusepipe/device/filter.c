#define FUSE_USE_VERSION 314

#include "filter.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include <fuse_lowlevel.h>
#include <linux/ioctl.h>

#include "clones.h"
#include "given_back.h"
#include "inode_numbers.h"
#include "native_contents.h"
#include "open_flags.h"
#include "requests.h"

/* One read of libfuse takes at most so many requests that are answered here: the event loop has other work, too. */
#define ANSWERED_IN_ONE_READ 128

/* Opcodes are small numbers; the table of what Python takes has room for some more than there are. */
#define OPCODES 256

struct current_request filter_current;
struct init_agreed filter_agreed;
struct filter_counters filter_counters;
void (*filter_on_collected)(void);
void (*filter_on_interrupt)(uint64_t unique, uint64_t target);
void (*filter_on_ended)(void);
void (*filter_on_taken)(const void *arguments, size_t size);

static struct fuse_session *session;
static struct init_wishes wishes;
static struct requests waiting;
static bool handed; /* native threads read the device and hand requests on */
static bool taken[OPCODES];

/*
 * ENOTTY for all ioctls but those about inode flags (FS_IOC_*FLAGS, FS_IOC_FS*XATTR): whether a file is a terminal is asked
 * by every open() of Python, and must cost nothing.
 */
static bool ioctl_answered(const struct fuse_in_header *in, uint32_t clone)
{
	const uint32_t type = _IOC_TYPE(((const struct fuse_ioctl_in *)(in + 1))->cmd);

	if (type == 'f' || type == 'X')
		return false;
	clones_answer(clone, in->unique, ENOTTY, NULL, 0);
	return true;
}

/* Answers what needs nobody else.  Returns false for everything that libfuse or Python is to see. */
static bool answered_here(const struct fuse_in_header *in, uint32_t clone)
{
	switch (in->opcode) {
	case FUSE_INTERRUPT:
		filter_counters.interrupts++;
		filter_on_interrupt(in->unique, ((const struct fuse_interrupt_in *)(in + 1))->unique);
		return true;
	case FUSE_IOCTL:
		return ioctl_answered(in, clone);
	default:
		return given_back(in, clone);
	}
}

/*
 * With SETXATTR_EXT the arguments of SETXATTR are longer than libfuse expects, which has not asked for it.  Takes out what
 * is longer, after it was noted; returns the request's new size.
 */
static size_t shorten_setxattr(struct fuse_in_header *in, size_t size)
{
	const size_t short_size = sizeof *in + FUSE_COMPAT_SETXATTR_IN_SIZE;
	const size_t long_size = sizeof *in + sizeof(struct fuse_setxattr_in);

	memmove((char *)in + short_size, (char *)in + long_size, size - long_size);
	in->len -= (uint32_t)(long_size - short_size);
	return size - (long_size - short_size);
}

/* Reads a request from the device, or one that a native thread has handed on, with the clone that it came from. */
static ssize_t read_request(int fd, void *buffer, size_t room, uint32_t *clone)
{
	struct iovec iov[2] = { { clone, sizeof *clone }, { buffer, room } };
	ssize_t size;

	*clone = 0;
	if (!handed)
		return read(fd, buffer, room);
	size = readv(fd, iov, 2);
	if (size > 0)
		return size - (ssize_t)sizeof *clone;
	if (!size) { /* the native threads have seen the end of the mount */
		errno = ENODEV;
		return -1;
	}
	return size;
}

static ssize_t filter_read(int fd, void *buffer, size_t room, void *user)
{
	(void)user;
	for (int i = 0; i < ANSWERED_IN_ONE_READ; i++) {
		struct fuse_in_header *in = buffer;
		uint32_t clone;
		ssize_t size = read_request(fd, buffer, room, &clone);

		if (size < 0) {
			if (errno == ENOENT)
				continue; /* the kernel took the request back */
			if (errno == EAGAIN)
				break;
			if (errno == ENODEV) { /* unmounted or aborted, which ends libfuse's session */
				filter_on_ended();
				errno = ENODEV;
			}
			return size;
		}
		if ((size_t)size < sizeof *in) {
			errno = EIO;
			return -1;
		}
		filter_counters.requests++;
		if (answered_here(in, clone))
			continue;
		if (in->opcode == FUSE_INIT)
			init_note_request(&filter_agreed, (const void *)(in + 1), (size_t)size - sizeof *in);
		if (in->opcode != FUSE_NOTIFY_REPLY &&
		    requests_add(&waiting, (struct request){ in->unique, in->opcode, clone })) {
			clones_answer(clone, in->unique, ENOMEM, NULL, 0);
			continue;
		}
		current_set(&filter_current, in, filter_agreed.flags);
		if (in->opcode < OPCODES && taken[in->opcode]) {
			filter_counters.taken++;
			filter_on_taken(in + 1, (size_t)size - sizeof *in);
			continue;
		}
		if (in->opcode == FUSE_SETXATTR && (filter_agreed.flags & FUSE_SETXATTR_EXT))
			size = (ssize_t)shorten_setxattr(in, (size_t)size);
		return size;
	}
	errno = EINTR; /* pyfuse3 waits again on EINTR and takes EAGAIN for fatal */
	return -1;
}

static ssize_t filter_writev(int fd, struct iovec *iov, int count, void *user)
{
	const struct fuse_out_header *out = iov[0].iov_base;
	const uint64_t unique = out->unique; /* 0: a notification, perhaps from another thread */
	const size_t size = out->len;
	uint32_t clone = 0;
	ssize_t written;

	(void)fd;
	(void)user;
	if (unique) {
		const struct request request = requests_remove(&waiting, unique);

		clone = request.clone;
		contents_described_any();
		if (!out->error && count == 2) {
			if (request.opcode == FUSE_INIT && iov[1].iov_len >= sizeof(struct fuse_init_out)) {
				init_change_reply(&filter_agreed, &wishes, iov[1].iov_base);
			} else {
				inode_numbers_move(request.opcode, iov[1].iov_base, iov[1].iov_len);
				open_flags_move(request.opcode, iov[1].iov_base, iov[1].iov_len);
			}
		}
	}
	written = writev(clones_fd(clone), iov, count);
	if (written < 0 && unique && (errno == ENOENT || errno == ENODEV))
		return (ssize_t)size; /* the connection was aborted meanwhile: nobody waits, and nothing is wrong here */
	return written;
}

int filter_session(void)
{
	return session ? fuse_session_fd(session) : -1;
}

void filter_hand_over(bool by_native_threads)
{
	handed = by_native_threads;
}

int filter_hooked(void)
{
	return session != NULL;
}

int filter_attach(const struct init_wishes *asked)
{
	static const struct fuse_custom_io io = { .read = filter_read, .writev = filter_writev };
	int fd, flags;

	if (!session)
		return -ENOSYS;
	fd = fuse_session_fd(session);
	flags = fcntl(fd, F_GETFL);
	/* Another reader, or an abort, may take away the request that made the device readable. */
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	wishes = *asked;
	filter_agreed = (struct init_agreed){ 0 };
	filter_counters = (struct filter_counters){ 0 };
	given_back_on_first = filter_on_collected;
	clones_single(fd);
	return fuse_session_custom_io(session, &io, fd);
}

int filter_take(uint32_t opcode)
{
	if (opcode >= OPCODES)
		return -EINVAL;
	taken[opcode] = true;
	return 0;
}

int filter_answer(uint64_t unique, int error, const void *body, size_t size)
{
	if (!session)
		return -ENODEV;
	contents_described_any();
	return clones_answer(requests_remove(&waiting, unique).clone, unique, error, body, size);
}

size_t filter_waiting(void)
{
	return waiting.used;
}

void filter_detach(void)
{
	session = NULL;
	handed = false;
	clones_close();
	requests_clear(&waiting);
	given_back_clear();
}

void filter_session_made(struct fuse_session *made)
{
	session = made;
}
