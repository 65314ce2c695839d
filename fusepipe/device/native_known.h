/*
 * What the server has said before the kernel asks, so that it need not be asked again:
 *
 * - A file that CREATE has made has no `security.capability`.  The kernel asks for that before the first write to an inode,
 *   and never again once it was told that there is none.
 * - What a directory is like after a change of its names.  The kernel drops the attributes that it has with each such change
 *   and asks for them with the next path that goes through the directory.
 * - Where a directory ends.  The kernel reads on behind the last entry, and believes it only when it is told nothing more.
 *
 * Each is good once, for a short while after its request was read, and never for longer than the kernel may keep attributes.
 * All that the guest changes itself comes by here, as a request and as a reply, and makes what it may touch unknown both
 * times; attributes that came with a reply, and the end of a directory, are known only where nothing did that since its
 * request was read.
 *
 * Thread-safe.  One lock, a leaf.
 */
#ifndef FUSEPIPE_DEVICE_NATIVE_KNOWN_H
#define FUSEPIPE_DEVICE_NATIVE_KNOWN_H

#include <stdbool.h>
#include <stdint.h>

#include "native_request.h"

/* A request was read: whether it is answered, since what it asks for is known. */
bool known_answers(struct native_request *request);

/*
 * A request has been carried out; before the kernel is answered.  `attr` are attributes of the directories that it has
 * changed: of none, of the one that it names first, or of both.  `end` is the offset at which the directory that was read
 * ends, or 0.
 */
void known_changed(const struct native_request *request, const struct fuse_attr_out *attr, uint32_t count, uint64_t end);

/* CREATE has made this file. */
void known_add_new(const struct native_request *request, uint64_t node);

void known_clear(void);

/* CLOCK_MONOTONIC, in nanoseconds. */
uint64_t known_now(void);

/* Whether what a request brought that was read then may still be said to the kernel. */
bool known_is_young(uint64_t since);

#endif
