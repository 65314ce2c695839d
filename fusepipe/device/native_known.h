/*
 * What the server has said before the kernel asks, so that it need not be asked again.
 *
 * Good once, for as long as the kernel may keep attributes: nothing is known here that the kernel could not have kept
 * itself, and where attributes may not be kept nothing is known.
 *
 * Thread-safe.  One lock, a leaf.
 */
#ifndef FUSEPIPE_DEVICE_NATIVE_KNOWN_H
#define FUSEPIPE_DEVICE_NATIVE_KNOWN_H

#include <stdbool.h>
#include <stdint.h>

/*
 * A file has just been made, so it has no `security.capability`: the kernel asks for that before the first write of an inode,
 * and never again once it was told that there is none.
 */
void known_add_new(uint64_t node);

/* Whether that is known of the node; it is not known any more afterwards. */
bool known_new(uint64_t node);

/* The node gets an attribute. */
void known_forget(uint64_t node);

void known_clear(void);

#endif
