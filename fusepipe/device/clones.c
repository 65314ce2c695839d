#include "clones.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "kernel.h"

static int fds[CLONES_MAX];
static uint32_t count;
static int owned;

void clones_single(int session)
{
	fds[0] = session;
	count = 1;
	owned = 0;
}

static int clone_of(int device)
{
	const uint32_t original = (uint32_t)device;
	const int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	int error;

	if (fd < 0)
		return -errno;
	if (!ioctl(fd, FUSE_DEV_IOC_CLONE, &original))
		return fd;
	error = -errno;
	close(fd);
	return error;
}

int clones_open(int session, uint32_t wanted)
{
	int opened[CLONES_MAX], flags, result = 0;
	uint32_t made = 0;

	if (!wanted || wanted > CLONES_MAX)
		return -EINVAL;
	while (made < wanted) {
		const int fd = made ? clone_of(session) : fcntl(session, F_DUPFD_CLOEXEC, 0);

		if (fd < 0) {
			result = made ? fd : -errno;
			break;
		}
		opened[made++] = fd;
	}
	if (!result) {
		flags = fcntl(opened[0], F_GETFL);
		if (flags < 0 || fcntl(opened[0], F_SETFL, flags & ~O_NONBLOCK) < 0)
			result = -errno;
	}
	if (result) {
		while (made)
			close(opened[--made]);
		return result;
	}
	for (uint32_t i = 0; i < made; i++)
		fds[i] = opened[i];
	count = made;
	owned = 1;
	return 0;
}

int clones_fd(uint32_t clone)
{
	return fds[clone];
}

uint32_t clones_count(void)
{
	return count;
}

int clones_answer(uint32_t clone, uint64_t unique, int error, const void *body, size_t size)
{
	struct fuse_out_header out = { .len = (uint32_t)(sizeof out + size), .error = -error, .unique = unique };
	const struct iovec iov[2] = { { &out, sizeof out }, { (void *)(uintptr_t)body, size } };

	if (!(unique & KERNEL_INTERRUPT_BIT))
		return writev(fds[clone], iov, size ? 2 : 1) < 0 ? -errno : 0;
	for (uint32_t i = 0; i < count; i++)
		if (writev(fds[i], iov, 1) >= 0)
			return 0;
	return -errno;
}

void clones_close(void)
{
	while (owned && count)
		close(fds[--count]);
	owned = 0;
	count = 0;
}
