/*
 * Requests of the kernel as frames for the server: include/uapi/linux/fuse.h on one side, protocol/SPEC.md on the other.
 *
 * Thread-safe: works on what it is given, and on what was agreed at INIT.
 */
#ifndef FUSEPIPE_DEVICE_NATIVE_ENCODE_H
#define FUSEPIPE_DEVICE_NATIVE_ENCODE_H

#include <stdbool.h>

#include "native_slots.h"

enum native_fate {
	FATE_PYTHON,   /* nothing that native code knows, or something unusual */
	FATE_SEND,     /* its payload and the size of its reply are set */
	FATE_TOO_LONG, /* a name is too long: to be answered ENAMETOOLONG */
};

enum native_fate native_look_at(struct native_request *request);

/* Writes the header of a slot's request. */
void native_encode(struct native_slot *slot);

#endif
