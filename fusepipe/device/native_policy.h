/*
 * What Python has decided about a mount, for native code: set before the first request, and not changed afterwards.
 */
#ifndef FUSEPIPE_DEVICE_NATIVE_POLICY_H
#define FUSEPIPE_DEVICE_NATIVE_POLICY_H

#include <stdbool.h>
#include <stdint.h>

/* What the reply to OPEN says (fusepipe/wire/opened.py, OpenedFlag). */
#define OPENED_KEEP 1u
#define OPENED_NOFLUSH 2u
#define OPENED_NEW 4u

struct native_policy {
	uint64_t entry_seconds; /* for which names are good */
	uint64_t attr_seconds;	/* for which attributes are good */
	uint32_t entry_nanoseconds;
	uint32_t attr_nanoseconds;
	uint32_t known;		  /* how old may be what is answered for the server (native_known.h): milliseconds */
	uint32_t keep;		  /* what OPEN asks for: milliseconds for which pages may be kept */
	uint32_t contents;	  /* bytes of a file that are taken with the reply to OPEN; 0: none */
	uint32_t max_name;	  /* bytes; a longer name is refused here */
	uint32_t max_read;	  /* bytes of a READ or READDIR */
	uint32_t max_write;	  /* bytes of a WRITE */
	bool negative;		  /* the kernel may remember that a name does not exist */
	bool direct;		  /* files are read and written past the page cache, where they can be mapped all the same */
	bool no_flush;		  /* the server may say that FLUSH need not be asked */
	bool writeback;		  /* the kernel writes whole pages later: OPEN must be able to read, too, and not append */
	bool opcodes[64];	  /* the requests that native code answers, of those that it can */
};

extern struct native_policy native_policy;

#endif
