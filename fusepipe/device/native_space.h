/*
 * Requests that failed for want of space, or of file descriptors of the server, while it had files to close: they run once
 * more after that.  On a local disk a file's space is free once its last user has closed it; here that takes a moment
 * longer.
 *
 * Thread-safe; the lock is a leaf.
 */
#ifndef FUSEPIPE_DEVICE_NATIVE_SPACE_H
#define FUSEPIPE_DEVICE_NATIVE_SPACE_H

#include <stdbool.h>

#include "native_request.h"

/* Whether the request may run once more after this error. */
bool native_no_space(const struct native_request *request, int error);

/* Keeps the request until native_again; raises NATIVE_NO_SPACE. */
void native_wait_for_space(struct native_request *request, int error);

/* The requests that were kept run once more; where nothing was freed, they are answered with their errors instead. */
void native_again(bool anything_freed);

#endif
