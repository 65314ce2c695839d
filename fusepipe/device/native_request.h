/*
 * Memory for requests of the kernel, each from its read until its reply: the payload of a WRITE is sent from where it was
 * read.  Freed ones are used again, the last one first.
 *
 * Thread-safe; the lock is a leaf.
 */
#ifndef FUSEPIPE_DEVICE_NATIVE_REQUEST_H
#define FUSEPIPE_DEVICE_NATIVE_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernel.h"

/* The kernel gives no request to a reader with less room than its longest one: 1 MiB of data and what is around it. */
#define NATIVE_ROOM ((1u << 20) + (1u << 16))

struct native_request {
	struct native_request *next; /* in whatever list it is */
	const void *payload;	     /* what is sent as the frame's payload */
	uint32_t payload_size;
	uint32_t reply_size; /* bytes of payload that the reply may have */
	uint32_t clone;	     /* that read it */
	uint32_t size;
	uint64_t read_at, changes; /* native_known.c's own */
	uint64_t opening;	   /* native_contents.c's own */
	bool large;	     /* it has the memory of a long one, from this request or one before */
	int failed_with;     /* the errno with which it has failed once for want of space, or 0 */
	union {
		struct fuse_in_header header;
		unsigned char bytes[NATIVE_ROOM];
	};
};

/* NULL without memory. */
struct native_request *request_get(void);
void request_put(struct native_request *request);

/* Gives all free ones back to the system. */
void requests_free(void);

#endif
