/*
 * The request slots of the session: which requests wait for a reply of the server, and which wait for a slot.  One array
 * for device threads and Python, by the rules of protocol/SPEC.md, sections "Slots" and "Bytes in flight".
 *
 * A slot of a device thread's request keeps all that is needed to answer it, and to send it again: the kernel's `unique`,
 * the clone that read it, and the frame.  Of a request that Python has sent only the slot's state is here.
 *
 * Thread-safe.  One lock for everything; it is a leaf, and nothing that may wait is done under it.
 */
#ifndef FUSEPIPE_DEVICE_NATIVE_SLOTS_H
#define FUSEPIPE_DEVICE_NATIVE_SLOTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "native_request.h"

#define NATIVE_HEADER 1024 /* bytes; the longest header of a request that native code sends has 255 of name and some numbers */

enum native_state {
	SLOT_FREE,
	SLOT_PYTHON,	/* Python's request */
	SLOT_WAITING,	/* for the reply */
	SLOT_ABANDONED, /* for the reply, but nobody else does: the kernel has been answered */
	SLOT_ANSWERING, /* the reply has come, and its receiver is busy with it */
};

struct native_slot {
	uint64_t seq;
	uint64_t in_flight; /* bytes */
	struct native_request *request;
	bool encoded; /* the header is there, and anybody may send it */
	bool tried;   /* to be sent: what RESUME tells the server */
	bool sent;    /* whole, so that what is sent on the same connection comes after it */
	uint64_t epoch; /* of the connection's socket that it was sent on */
	enum native_state state;
	uint32_t number;
	uint32_t header_size;
	unsigned char header[NATIVE_HEADER];
};

/* Makes `count` slots.  Returns 0, or -ENOMEM. */
int slots_set_up(uint32_t count, uint64_t max_in_flight);

/* Frees everything; no other thread may use it any more. */
void slots_clear(void);

/* ---- device threads ---- */

/*
 * A slot for a request, whose seq has been counted up; its state is SLOT_WAITING.  NULL where none is free, too many bytes
 * are in flight, or others wait already: then the request is parked, and slots_next_parked gives it back.  NULL also after
 * slots_fail: then it has been answered.
 */
struct native_slot *slots_take(struct native_request *request);

/* The slot's request with this seq has been sent; its reply may have come before. */
void slots_sent(uint32_t slot, uint64_t seq);

/* The slot's request with this seq has its header, and may be sent by anybody. */
void slots_encoded(uint32_t slot, uint64_t seq);

/* Whether the caller is to send the slot's request on a connection's socket: it waits for its reply, and nobody has. */
bool slots_claim(uint32_t slot, uint64_t seq, uint64_t epoch);

/* A request that is to be sent again; seq is 0 where it is none. */
struct native_resend {
	uint64_t seq;
	uint32_t clone;
};

/*
 * Waits for what is to be sent: a request that waits for its reply, after slots_resend, or a parked one that can have a
 * slot, which it is given.  NULL once slots_stop was called.
 */
struct native_slot *slots_next(struct native_resend *again);

/* ---- receive threads ---- */

/*
 * The slot that a reply is for.  `late` says that nobody waits for it.  NULL: the reply is for nobody, and to be dropped,
 * or, where `violation` is set, for a request that was never sent by native code.
 */
struct native_slot *slots_reply_came(uint64_t slot, uint64_t seq, bool *late, bool *violation);

/* The slot is free again, and whoever waits may have it.  Its request is the caller's. */
struct native_request *slots_done(struct native_slot *slot, bool late);

/* ---- Python ---- */

/* A slot for Python's next request, or -1.  Its seq has not been counted up yet. */
int64_t slots_python_take(void);

/* Whether so many bytes may be in flight, too; they are counted then. */
bool slots_reserve(uint64_t bytes);

/* The slot carries a request of Python's with this seq; it is free again; it could not be used for want of bytes. */
void slots_python_put(uint32_t slot, uint64_t seq);
void slots_python_clear(uint32_t slot);
void slots_python_give_back(uint32_t slot);

/* Bytes of a request without a slot of this array are not in flight any more. */
void slots_release(uint64_t bytes);

/* So many requests of Python's wait for a slot; NATIVE_SLOT is raised when it may have one. */
void slots_python_waits(uint32_t requests);

uint64_t slots_seq(uint32_t slot);

/* The seq of the last request of native code that was sent in this slot, or may have been. */
uint64_t slots_last_sent(uint32_t slot);

/* Has every request that waits for its reply sent again. */
void slots_resend(void);
uint64_t slots_in_flight(void);

/* Raises NATIVE_BUSY once, as soon as something is in flight. */
void slots_tell_busy(void);

/* What INTERRUPT is about. */
enum native_found {
	FOUND_NOT,     /* no request of native code has this `unique`, or it is being sent */
	FOUND_PARKED,  /* it had no slot, and has been answered EINTR */
	FOUND_WAITING, /* it waits for its reply */
};

struct native_target {
	uint64_t seq;
	uint32_t slot;
	uint32_t clone;
	uint32_t pid;
};

/* With `down`, while there is no connection, also requests that are not sent. */
enum native_found slots_find(uint64_t unique, struct native_target *target, bool down);

/* Whether the request still waits for its reply. */
bool slots_waits(uint32_t slot, uint64_t seq);

/*
 * Answers EINTR to the kernel and lets the slot wait for the reply alone.  False where `most` slots are abandoned
 * already; true also where the reply has come meanwhile.
 */
bool slots_abandon(uint32_t slot, uint64_t seq, uint32_t most);

/* Counts a request slot that Python abandons: false where `most` of them are abandoned already. */
bool slots_abandon_one(uint32_t most);
void slots_abandoned_came(void);
uint32_t slots_abandoned(void);

/* ---- the end ---- */

/* Ends slots_next for good. */
void slots_stop(void);

/*
 * Answers every request of native code that waits, for a slot or for a reply, with an error, and every later one.  Replies
 * must not come any more.  Their memory is kept until slots_clear: a thread may still be about to send it.
 */
void slots_fail(int error);

#endif
