/*
 * Replies of the server as answers for the kernel.
 *
 * Called by receive threads, each with frames of its own connection.
 */
#ifndef FUSEPIPE_DEVICE_NATIVE_REPLY_H
#define FUSEPIPE_DEVICE_NATIVE_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whether a file was opened whose FLUSH may fail: then Python asks the server, else it answers by itself. */
extern bool native_flush_matters;

/*
 * Answers the request that a frame is for.  `asked` is the counter of the connection's last control message.  Returns NULL,
 * or what the server did wrong: the connection is to be closed.
 */
const char *native_reply(const unsigned char *header, size_t header_size, const unsigned char *payload,
			 size_t payload_size, uint64_t asked);

#endif
