/*
 * The file descriptors of the FUSE device.  One is enough; native threads read a clone each (FUSE_DEV_IOC_CLONE), and a
 * reply must go to the clone whose read brought the request (fs/fuse/dev.c keeps what was read per file).
 *
 * Set up and closed while no other thread uses them; in between anybody may answer.
 */
#ifndef FUSEPIPE_DEVICE_CLONES_H
#define FUSEPIPE_DEVICE_CLONES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define CLONES_MAX 64

/* The session's own descriptor is the only one; it stays libfuse's. */
void clones_single(int session);

/*
 * Takes a descriptor of its own for the device that `session` is, and opens clones until there are `count` in all.  The
 * first one blocks from then on, as the others do.  Returns 0 or -errno, and then nothing has changed.
 */
int clones_open(int session, uint32_t count);

int clones_fd(uint32_t clone);

uint32_t clones_count(void);

/* Answers a request.  `unique` of an INTERRUPT belongs to the clone of the request that it is about: all are tried. */
int clones_answer(uint32_t clone, uint64_t unique, int error, const void *body, size_t size);

/* Closes what clones_open has opened. */
void clones_close(void);

#endif
