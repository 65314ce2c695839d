/*
 * What the kernel gives back and wants no answer to: lookup counts (FORGET) and file handles (RELEASE, RELEASEDIR).
 * It is collected here, and Python takes it in batches.
 *
 * Not thread-safe: given_back.c has the lock.
 */
#ifndef FUSEPIPE_DEVICE_COLLECTED_H
#define FUSEPIPE_DEVICE_COLLECTED_H

#include <stddef.h>
#include <stdint.h>

struct collected {
	uint64_t *values;
	size_t first; /* values before this one were taken */
	size_t count; /* values from `first` on */
	size_t room;
};

/* Appends `count` values, which stay together in one batch.  Returns 0, or -1 without memory. */
int collected_add(struct collected *list, const uint64_t *values, size_t count);

/* Copies up to `limit` values, oldest first, to `values`; returns how many. */
size_t collected_take(struct collected *list, uint64_t *values, size_t limit);

void collected_clear(struct collected *list);

#endif
