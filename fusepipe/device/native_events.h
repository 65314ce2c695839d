/*
 * What native threads have to say to Python: bits, and an eventfd that becomes readable with the first of them.
 *
 * Thread-safe, without a lock.
 */
#ifndef FUSEPIPE_DEVICE_NATIVE_EVENTS_H
#define FUSEPIPE_DEVICE_NATIVE_EVENTS_H

#include <stdint.h>

enum native_event {
	NATIVE_COLLECTED = 1, /* lookup counts or handles, where there were none */
	NATIVE_SLOT = 2,      /* a slot for a request of Python's that waits for one */
	NATIVE_LOST = 4,      /* a connection is lost; native_reason says why */
	NATIVE_NO_SPACE = 8,  /* requests failed for want of space, and wait for native_again */
	NATIVE_BUSY = 16,     /* something is in flight, which slots_tell_busy asked for */
	NATIVE_PARKED = 32,   /* all connections are at rest, after one of them was lost */
};

/* Opens the eventfd, non-blocking.  Returns it, or -errno. */
int native_events_open(void);
void native_events_close(void);

void native_raise(enum native_event event);

/* native_raise(NATIVE_COLLECTED). */
void native_collected(void);

/* Takes an event back that has not been fetched. */
void native_unraise(enum native_event event);

/* The events since the last call. */
uint32_t native_events(void);

#endif
