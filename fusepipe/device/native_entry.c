#include "native_entry.h"

#include <stdbool.h>
#include <string.h>

#include "native_contents.h"
#include "native_policy.h"

/* A record of a directory page as it lies there, little-endian, before its name: SPEC.md, "Directory pages". */
#define RECORD 112

void native_attr(struct fuse_attr *to, const struct wire_attr *from)
{
	*to = (struct fuse_attr){
		.ino = from->ino,
		.size = from->size,
		.blocks = from->blocks,
		.atime = (uint64_t)from->atime,
		.mtime = (uint64_t)from->mtime,
		.ctime = (uint64_t)from->ctime,
		.atimensec = from->atime_ns,
		.mtimensec = from->mtime_ns,
		.ctimensec = from->ctime_ns,
		.mode = from->mode,
		.nlink = from->nlink,
		.uid = from->uid,
		.gid = from->gid,
		.rdev = (uint32_t)from->rdev,
		.blksize = from->blksize,
	};
}

void native_attr_out(struct fuse_attr_out *to, const struct wire_attr *from)
{
	*to = (struct fuse_attr_out){
		.attr_valid = native_policy.attr_seconds,
		.attr_valid_nsec = native_policy.attr_nanoseconds,
	};
	native_attr(&to->attr, from);
}

void native_entry_out(struct fuse_entry_out *to, const struct wire_entry *from)
{
	*to = (struct fuse_entry_out){
		.nodeid = from->node,
		.entry_valid = native_policy.entry_seconds,
		.entry_valid_nsec = native_policy.entry_nanoseconds,
		.attr_valid = native_policy.attr_seconds,
		.attr_valid_nsec = native_policy.attr_nanoseconds,
	};
	native_attr(&to->attr, &from->attr);
}

void native_no_entry(struct fuse_entry_out *to)
{
	*to = (struct fuse_entry_out){
		.entry_valid = native_policy.entry_seconds,
		.entry_valid_nsec = native_policy.entry_nanoseconds,
	};
}

static uint64_t u64_at(const unsigned char *from)
{
	return wire_u32(from) | (uint64_t)wire_u32(from + 4) << 32;
}

static void read_record(const unsigned char *from, struct wire_entry *entry)
{
	*entry = (struct wire_entry){
		.node = u64_at(from),
		.attr = {
			.ino = u64_at(from + 8),
			.size = u64_at(from + 32),
			.blocks = u64_at(from + 40),
			.atime = (int64_t)u64_at(from + 48),
			.mtime = (int64_t)u64_at(from + 56),
			.ctime = (int64_t)u64_at(from + 64),
			.rdev = u64_at(from + 72),
			.atime_ns = wire_u32(from + 80),
			.mtime_ns = wire_u32(from + 84),
			.ctime_ns = wire_u32(from + 88),
			.mode = wire_u32(from + 92),
			.nlink = wire_u32(from + 96),
			.uid = wire_u32(from + 100),
			.gid = wire_u32(from + 104),
			.blksize = wire_u32(from + 108),
		},
	};
}

/* Writes an entry; without a node it has no attributes, but its number and type are shown all the same. */
static void put_entry(struct fuse_direntplus *to, const struct wire_entry *entry, const unsigned char *record)
{
	const uint32_t length = wire_u32(record + 24);

	if (entry->node) {
		contents_described(entry->node);
		native_entry_out(&to->entry_out, entry);
	} else {
		memset(&to->entry_out, 0, sizeof to->entry_out);
	}
	to->dirent = (struct fuse_dirent){
		.ino = entry->attr.ino,
		.off = u64_at(record + 16),
		.namelen = length,
		.type = wire_u32(record + 28),
	};
	memcpy(to->dirent.name, record + RECORD, length);
	memset(to->dirent.name + length, 0, FUSE_DIRENTPLUS_SIZE(to) - FUSE_NAME_OFFSET_DIRENTPLUS - length);
}

ssize_t native_page(unsigned char *to, size_t room, const unsigned char *page, size_t size, native_counted *unseen,
		    uint64_t *next)
{
	size_t used = 0;
	bool fits = true;

	*next = 0;
	for (size_t at = 0; at < size;) {
		const unsigned char *record = page + at;
		struct wire_entry entry;
		uint32_t length;
		size_t padded;

		if (size - at < RECORD)
			return -1;
		length = wire_u32(record + 24);
		padded = ((size_t)length + 7) & ~(size_t)7;
		if (!length || padded > size - at - RECORD || memchr(record + RECORD, 0, length) ||
		    memchr(record + RECORD, '/', length))
			return -1;
		at += RECORD + padded;
		read_record(record, &entry);
		fits = fits && FUSE_NAME_OFFSET_DIRENTPLUS + padded <= room - used;
		*next = fits ? u64_at(record + 16) : 0;
		if (fits) {
			put_entry((void *)(to + used), &entry, record);
			used += FUSE_NAME_OFFSET_DIRENTPLUS + padded;
		} else if (entry.node) {
			unseen(entry.node);
		}
	}
	return (ssize_t)used;
}
