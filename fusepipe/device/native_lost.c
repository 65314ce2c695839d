#include "native_lost.h"

#include <stdbool.h>
#include <stdio.h>

#include "native_events.h"

static char reason[200];
static bool lost;

void native_lost(const char *why)
{
	if (__atomic_exchange_n(&lost, true, __ATOMIC_ACQ_REL))
		return;
	snprintf(reason, sizeof reason, "%s", why);
	native_raise(NATIVE_LOST); /* publishes the reason */
}

const char *native_reason(void)
{
	return reason;
}

void native_lost_reset(void)
{
	reason[0] = 0;
	native_unraise(NATIVE_LOST);
	__atomic_store_n(&lost, false, __ATOMIC_RELEASE);
}
