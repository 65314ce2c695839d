/*
 * Node id and inode number are two things, for which pyfuse3 has one field: the client puts the node id there, and the
 * inode number into `generation`.  Here it moves to where the kernel looks for it.
 */
#ifndef FUSEPIPE_DEVICE_INODE_NUMBERS_H
#define FUSEPIPE_DEVICE_INODE_NUMBERS_H

#include <stddef.h>

/* `body` is what follows the header of a reply without error to a request with this opcode. */
void inode_numbers_move(unsigned int opcode, void *body, size_t size);

#endif
