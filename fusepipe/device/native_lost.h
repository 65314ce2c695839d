/*
 * The end of the connections: the first error in one of them is told to Python.
 *
 * Thread-safe.
 */
#ifndef FUSEPIPE_DEVICE_NATIVE_LOST_H
#define FUSEPIPE_DEVICE_NATIVE_LOST_H

/* A connection is dead, for this reason.  Only the first one is kept. */
void native_lost(const char *reason);

/* The reason, once NATIVE_LOST was raised; "" before. */
const char *native_reason(void);

/* Before a session begins, and before it goes on over other connections; nobody calls native_lost meanwhile. */
void native_lost_reset(void);

#endif
