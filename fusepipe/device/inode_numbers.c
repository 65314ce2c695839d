#include "inode_numbers.h"

#include "kernel.h"

static void move(struct fuse_entry_out *entry)
{
	entry->attr.ino = entry->generation;
	entry->generation = 0; /* node ids are never given twice, so they need no generation */
}

/* A page of READDIRPLUS: an entry without node id has no attributes, but its number is shown all the same. */
static void move_in_page(char *page, size_t size)
{
	for (size_t at = 0; at + FUSE_NAME_OFFSET_DIRENTPLUS <= size;) {
		struct fuse_direntplus *entry = (void *)(page + at);

		entry->dirent.ino = entry->entry_out.generation;
		move(&entry->entry_out);
		at += FUSE_DIRENTPLUS_SIZE(entry);
	}
}

void inode_numbers_move(unsigned int opcode, void *body, size_t size)
{
	switch (opcode) {
	case FUSE_LOOKUP:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_SYMLINK:
	case FUSE_LINK:
	case FUSE_CREATE:
		if (size >= sizeof(struct fuse_entry_out))
			move(body);
		break;
	case FUSE_READDIRPLUS:
		move_in_page(body, size);
		break;
	}
}
