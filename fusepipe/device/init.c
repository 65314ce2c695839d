#include "init.h"

void init_note_request(struct init_agreed *agreed, const struct fuse_init_in *in, size_t size)
{
	*agreed = (struct init_agreed){ .offered = in->flags };
	if ((in->flags & FUSE_INIT_EXT) && size >= offsetof(struct fuse_init_in, flags2) + sizeof in->flags2)
		agreed->offered |= (uint64_t)in->flags2 << 32;
	agreed->minor = in->minor;
}

void init_change_reply(struct init_agreed *agreed, const struct init_wishes *wishes, struct fuse_init_out *out)
{
	uint64_t flags = out->flags;

	if (out->flags & FUSE_INIT_EXT)
		flags |= (uint64_t)out->flags2 << 32;
	flags = (flags | (wishes->wanted & agreed->offered)) & ~wishes->refused;
	if (flags >> 32)
		flags |= FUSE_INIT_EXT; /* without it the kernel does not look at flags2 */

	if (out->max_write > wishes->max_write)
		out->max_write = wishes->max_write;
	if (flags & FUSE_MAX_PAGES)
		out->max_pages = (uint16_t)((out->max_write + wishes->page_size - 1) / wishes->page_size);
	out->max_readahead = wishes->max_readahead;
	out->max_background = wishes->max_background;
	out->congestion_threshold = wishes->congestion_threshold;
	out->time_gran = 1; /* nanoseconds */
	out->flags = (uint32_t)flags;
	out->flags2 = (uint32_t)(flags >> 32);

	agreed->max_write = out->max_write;
	agreed->max_pages = out->max_pages;
	agreed->max_readahead = out->max_readahead;
	agreed->max_background = out->max_background;
	agreed->congestion_threshold = out->congestion_threshold;
	__atomic_store_n(&agreed->flags, flags, __ATOMIC_RELEASE);
}
