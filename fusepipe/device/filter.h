/*
 * The filter between libfuse and /dev/fuse.  fuse_session_custom_io(3) lets a session read and write through functions of
 * ours; hooks.c learns which session pyfuse3 made.
 *
 * There is one session in a process.  Everything here belongs to the thread that runs pyfuse3's loop, which holds
 * Python's lock while it reads and writes the device; only notifications may be written from other threads, and they
 * touch nothing here.  Native threads (native.h) hand on what they read; what they share is in given_back.c and clones.c.
 */
#ifndef FUSEPIPE_DEVICE_FILTER_H
#define FUSEPIPE_DEVICE_FILTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "current.h"
#include "init.h"

struct filter_counters {
	uint64_t requests;   /* read from the kernel */
	uint64_t forgets;    /* collected, by any thread, as are `releases` and `lost` */
	uint64_t releases;   /* collected */
	uint64_t interrupts; /* handed to Python */
	uint64_t taken;	     /* handed to Python instead of libfuse */
	uint64_t lost;	     /* lookup counts and handles that could not be kept, for want of memory */
};

extern struct current_request filter_current;
extern struct init_agreed filter_agreed;
extern struct filter_counters filter_counters;

/* Its flags, for any thread: the kernel sends nothing before it has the reply to INIT, and so they are known. */
static inline uint64_t filter_agreed_flags(void)
{
	return __atomic_load_n(&filter_agreed.flags, __ATOMIC_ACQUIRE);
}

/*
 * Called inside the read of the device: when the first of a batch was collected, for each INTERRUPT, when the kernel
 * says that there is no mount any more, and for each request that was taken, with what follows its header; filter_current
 * has the header's fields then, and the arguments are gone when it returns.
 */
extern void (*filter_on_collected)(void);
extern void (*filter_on_interrupt)(uint64_t unique, uint64_t target);
extern void (*filter_on_ended)(void);
extern void (*filter_on_taken)(const void *arguments, size_t size);

/* Whether pyfuse3 has made its session through the hooks. */
int filter_hooked(void);

/* Puts the filter on the device.  Returns 0 or -errno; -ENOSYS when the session was made by another library. */
int filter_attach(const struct init_wishes *wishes);

/*
 * From now on, and for every session of this process, requests with this opcode are not libfuse's but Python's, which
 * answers each with filter_answer, at once or later.  Returns 0, or -EINVAL for a number that is no opcode.
 */
int filter_take(uint32_t opcode);

/* Answers a request without libfuse.  Returns 0 or -errno; -ENOENT when the kernel does not wait for it (any more). */
int filter_answer(uint64_t unique, int error, const void *body, size_t size);

/* The descriptor that pyfuse3 reads requests from; -1 without a session. */
int filter_session(void);

/*
 * Whether that descriptor is one end of a socket pair (SOCK_SEQPACKET), on which native threads hand requests on: the
 * number of the clone that read it (u32), then the request.  Else it is the device.
 */
void filter_hand_over(bool by_native_threads);

/* Number of requests that the kernel waits for. */
size_t filter_waiting(void);

/* Frees what is kept and forgets the session, which is about to be destroyed. */
void filter_detach(void);

/* Called by hooks.c. */
struct fuse_session;
void filter_session_made(struct fuse_session *session);

#endif
