#include "native_events.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

static int fd = -1;
static uint32_t raised;

int native_events_open(void)
{
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	raised = 0;
	return fd < 0 ? -errno : fd;
}

void native_events_close(void)
{
	if (fd >= 0)
		close(fd);
	fd = -1;
}

void native_raise(enum native_event event)
{
	/* The eventfd's counter is far from its limit, so the write neither waits nor fails. */
	if (!__atomic_fetch_or(&raised, event, __ATOMIC_ACQ_REL) && fd >= 0)
		eventfd_write(fd, 1);
}

void native_unraise(enum native_event event)
{
	__atomic_fetch_and(&raised, ~(uint32_t)event, __ATOMIC_ACQ_REL);
}

void native_collected(void)
{
	native_raise(NATIVE_COLLECTED);
}

uint32_t native_events(void)
{
	eventfd_t ignored;

	if (fd >= 0)
		eventfd_read(fd, &ignored);
	return __atomic_exchange_n(&raised, 0, __ATOMIC_ACQ_REL);
}
