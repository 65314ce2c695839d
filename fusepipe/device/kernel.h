/*
 * Bits of the kernel's FUSE interface that the <linux/fuse.h> of a supported distribution may not name yet.
 * Numbers are those of include/uapi/linux/fuse.h in the kernel's tree; the kernel never changes them.
 */
#ifndef FUSEPIPE_DEVICE_KERNEL_H
#define FUSEPIPE_DEVICE_KERNEL_H

#include <stdint.h>

#include <linux/fuse.h>

/* A reply to OPEN: the kernel need not ask FLUSH (Linux 5.16; older ones do not look at the bit). */
#define KERNEL_FOPEN_NOFLUSH (1u << 5)

/* Of INIT, above bit 31: a request that creates something brings the supplementary group that matters (Linux 6.3). */
#define KERNEL_CREATE_SUPP_GROUP (1ull << 34)

/* Of INIT, too: a file that is opened with FOPEN_DIRECT_IO can be mapped shared (Linux 6.6). */
#define KERNEL_DIRECT_IO_ALLOW_MMAP (1ull << 36)

/* Type of the extension that carries groups (struct kernel_groups), sent where CREATE_SUPP_GROUP was agreed. */
#define KERNEL_EXT_GROUPS 32

/* Set in the `unique` of INTERRUPT, which else is that of the request it is about (fs/fuse/fuse_i.h). */
#define KERNEL_INTERRUPT_BIT 1u

struct kernel_groups {
	uint32_t count;
	uint32_t groups[];
};

#endif
