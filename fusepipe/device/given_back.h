/*
 * Requests by which the kernel gives something back, FORGET, RELEASE and RELEASEDIR: answered at once, and collected for
 * Python, which sends them to the server in batches.
 *
 * Thread-safe: filter and native threads share it.  Its lock is a leaf.
 */
#ifndef FUSEPIPE_DEVICE_GIVEN_BACK_H
#define FUSEPIPE_DEVICE_GIVEN_BACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernel.h"

/* Called, with no lock held, when something was collected where there was nothing. */
extern void (*given_back_on_first)(void);

/*
 * Collects and answers the request, which `clone` has read.  Returns false for every other one, which is not touched, and
 * for the RELEASE of a handle that is withheld.
 */
bool given_back(const struct fuse_in_header *in, uint32_t clone);

/* Collects what the kernel will not give back itself, since it never saw it. */
void given_back_forget(uint64_t node, uint64_t count);
void given_back_untaken(uint64_t handle);

/*
 * Leaves the RELEASE of this handle to Python: it carries a lock, which must be gone before the next one is asked for.
 * Returns 0 or -ENOMEM.
 */
int given_back_withhold(uint64_t handle);

/* That RELEASE has come. */
void given_back_admit(uint64_t handle);

size_t given_back_take_forgets(uint64_t *pairs, size_t limit);
size_t given_back_take_handles(uint64_t *handles, size_t limit);
size_t given_back_take_untaken(uint64_t *handles, size_t limit);

void given_back_clear(void);

#endif
