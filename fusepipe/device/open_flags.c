#include "open_flags.h"

#include "kernel.h"

void open_flags_move(unsigned int opcode, void *body, size_t size)
{
	struct fuse_open_out *open = body;

	if (opcode == FUSE_CREATE) {
		open = (void *)((struct fuse_entry_out *)body + 1);
		size = size < sizeof(struct fuse_entry_out) ? 0 : size - sizeof(struct fuse_entry_out);
	}
	if ((opcode != FUSE_OPEN && opcode != FUSE_CREATE) || size < sizeof *open)
		return;
	if (open->open_flags & FOPEN_NONSEEKABLE)
		open->open_flags = (open->open_flags & ~(uint32_t)FOPEN_NONSEEKABLE) | KERNEL_FOPEN_NOFLUSH;
}
