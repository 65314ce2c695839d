/*
 * INIT, in which kernel and filesystem agree on what they do (fs/fuse/inode.c, process_init_reply): what the kernel
 * offered is noted from the request, and what Python wants of it is put into libfuse's reply.
 */
#ifndef FUSEPIPE_DEVICE_INIT_H
#define FUSEPIPE_DEVICE_INIT_H

#include <stddef.h>
#include <stdint.h>

#include "kernel.h"

/* What Python asks for; flags above bit 31 are those of `flags2`. */
struct init_wishes {
	uint64_t wanted;  /* set where the kernel offers them */
	uint64_t refused; /* cleared, whatever libfuse set */
	uint32_t max_readahead;
	uint32_t max_write; /* upper limit; libfuse's own buffer may set a lower one */
	uint32_t page_size;
	uint16_t max_background;
	uint16_t congestion_threshold;
};

struct init_agreed {
	uint64_t offered;
	uint64_t flags;
	uint32_t minor; /* of the kernel's protocol 7.minor; 0 before INIT */
	uint32_t max_readahead;
	uint32_t max_write;
	uint16_t max_pages;
	uint16_t max_background;
	uint16_t congestion_threshold;
};

/* Notes what the kernel offers.  `size` is that of the arguments behind the header. */
void init_note_request(struct init_agreed *agreed, const struct fuse_init_in *in, size_t size);

/* Changes libfuse's reply and notes what it says now. */
void init_change_reply(struct init_agreed *agreed, const struct init_wishes *wishes, struct fuse_init_out *out);

#endif
