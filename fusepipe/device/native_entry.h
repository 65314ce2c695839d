/*
 * The server's attributes and directory pages in the kernel's form.  Node ids and inode numbers stay apart here by
 * themselves: the one is `nodeid`, the other `attr.ino`.
 */
#ifndef FUSEPIPE_DEVICE_NATIVE_ENTRY_H
#define FUSEPIPE_DEVICE_NATIVE_ENTRY_H

#include <stdint.h>
#include <sys/types.h>

#include "kernel.h"
#include "native_messages.h"

void native_attr(struct fuse_attr *to, const struct wire_attr *from);
void native_attr_out(struct fuse_attr_out *to, const struct wire_attr *from);
void native_entry_out(struct fuse_entry_out *to, const struct wire_entry *from);

/* The answer to LOOKUP that makes the kernel remember that there is no such name. */
void native_no_entry(struct fuse_entry_out *to);

/* Called for each entry of a page that counts as looked up, with its node. */
typedef void native_counted(uint64_t node);

/*
 * Turns a directory page into the kernel's form, at `to` with room for `room` bytes.  `unseen` is told of each node that
 * did not fit; `next` is the offset behind the last entry, 0 where there is none, or not all did fit.  Returns the bytes
 * used, or -1 where the page is malformed.
 */
ssize_t native_page(unsigned char *to, size_t room, const unsigned char *page, size_t size, native_counted *unseen,
		    uint64_t *next);

#endif
