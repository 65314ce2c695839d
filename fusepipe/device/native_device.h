/*
 * The native path: threads that turn requests of the kernel into frames and replies back, without Python's lock.
 *
 * One thread for each clone of the device reads requests.  What it knows (native_encode.h) takes a slot and goes out on a
 * connection of the thread's own; one thread for each connection takes the replies; one more sends what had to wait for a
 * slot.  Everything else is handed on to the filter, through a socket pair that has taken the place of the session's
 * descriptor.
 *
 * One session in a process.  Called by Python's thread, but for native_start.  Locks: those of native_slots.c,
 * native_request.c, native_space.c and given_back.c are leaves; of them only that of native_slots.c is taken under
 * another one, that of sending on a connection.
 */
#ifndef FUSEPIPE_DEVICE_NATIVE_DEVICE_H
#define FUSEPIPE_DEVICE_NATIVE_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "native_request.h"

struct native_counters {
	uint64_t native; /* requests that went to the server from here */
	uint64_t handed; /* to Python */
};

extern struct native_counters native_counters;

/*
 * Begins to read the device with so many threads; connections and slots are set up, and the filter is on the device.
 * Returns 0 or -errno; then nothing has changed, and the filter reads the device itself.
 */
int native_begin(uint32_t threads);

/* Sends a request of the kernel, as soon as it has a slot.  For any thread. */
void native_start(struct native_request *request);

/*
 * Asks the server to end a request early, on its own connection: on another one INTERRUPT might overtake it, and the
 * request would not be run at all.  Does not wait: false where it would have to.
 */
struct native_target;
bool native_interrupt(const struct native_target *target);

/* There are other sockets in all connections: sends again what waits for its reply. */
void native_resume(void);

/* The session is lost: every request that waits, and every later one, is answered with this errno. */
void native_fail(int error);

/* Ends the threads and waits for them, which takes a moment: whatever they wait for is ended first. */
void native_stop(void);

/* Frees what is left; after native_stop, or where native_begin failed. */
void native_clear(void);

#endif
