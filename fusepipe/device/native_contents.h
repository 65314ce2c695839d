/*
 * What short files hold, as it came with the reply to OPEN: the first READ of such a handle need not be sent.
 *
 * It is good once, for a short while after OPEN was read, and never for longer than the kernel may keep attributes.  And the
 * kernel must not know more of the file than it is told here: whatever may change the file makes it unknown, as a request
 * and again before its reply is answered, and so does every reply with the file's attributes, since a younger size or time
 * would vouch for older pages.
 *
 * Thread-safe.  Each place has a lock, a leaf.
 */
#ifndef FUSEPIPE_DEVICE_NATIVE_CONTENTS_H
#define FUSEPIPE_DEVICE_NATIVE_CONTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "native_request.h"

#define CONTENTS_MAX 16384 /* bytes of the longest file that is kept */

/* A request was read: whether it is answered, since it asks for what is kept. */
bool contents_answer(struct native_request *request);

/* How many bytes this OPEN is to bring. */
uint32_t contents_wanted(const struct native_request *request);

/* The request was carried out, or nobody knows; before the kernel is answered. */
void contents_replied(const struct native_request *request);

/* The kernel is about to be told attributes of a file. */
void contents_described(uint64_t node);

/* The same of files that are not known. */
void contents_described_any(void);

/* OPEN has brought all that the file holds; before the kernel is answered. */
void contents_keep(const struct native_request *request, uint64_t handle, const void *data, size_t size);

void contents_clear(void);

#endif
