/*
 * Flags of the kernel's replies to OPEN and CREATE (FOPEN_*) that pyfuse3 has no field for.
 *
 * pyfuse3 says "nonseekable" of files of which the kernel need not ask FLUSH, since no file here is that; the bit is put
 * in its place.
 */
#ifndef FUSEPIPE_DEVICE_OPEN_FLAGS_H
#define FUSEPIPE_DEVICE_OPEN_FLAGS_H

#include <stddef.h>

/* Changes the body of a reply, whose `size` is in bytes, where `opcode` opens a file. */
void open_flags_move(unsigned int opcode, void *body, size_t size);

#endif
