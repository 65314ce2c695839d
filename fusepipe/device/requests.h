/*
 * The requests that the kernel is waiting for, keyed by the whole `unique`: a hash table with open addressing that
 * grows, so that no request is lost however many wait and however long.
 *
 * Not thread-safe: used by the thread that reads the device only.
 */
#ifndef FUSEPIPE_DEVICE_REQUESTS_H
#define FUSEPIPE_DEVICE_REQUESTS_H

#include <stddef.h>
#include <stdint.h>

struct request {
	uint64_t unique; /* 0: this place is free; the kernel never gives 0 to a request */
	uint32_t opcode;
	uint32_t clone; /* of the device, whose read brought it */
};

struct requests {
	struct request *places;
	size_t size; /* a power of two, or 0 before the first request */
	size_t used;
};

/* Returns 0, or -1 without memory. */
int requests_add(struct requests *table, struct request request);

/* Returns the request and forgets it; all is 0 (which is no opcode) where it is not there. */
struct request requests_remove(struct requests *table, uint64_t unique);

void requests_clear(struct requests *table);

#endif
