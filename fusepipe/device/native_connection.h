/*
 * A connection of the session that native code uses: Python has connected it and shaken hands.
 *
 * Any thread may send; one receive thread takes the replies.  After an error in either the connection is lost, and with
 * it all others: native_lost.  Nothing is sent or received any more, and the threads end.
 */
#ifndef FUSEPIPE_DEVICE_NATIVE_CONNECTION_H
#define FUSEPIPE_DEVICE_NATIVE_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONNECTIONS_MAX 64

/*
 * Takes over a blocking, connected socket.  `sent` and `received` are the numbers of the next frames, `checksums` says
 * that every frame has one at its end, `send_limit` how many bytes one call may send (0: any number).
 * Returns 0 or -errno; the socket is closed by connections_close.
 */
int connection_add(int fd, uint32_t sent, uint32_t received, bool checksums, size_t send_limit, uint32_t max_payload);

uint32_t connections_count(void);

/* Sends one frame, whole.  May wait until the server reads.  An error is told to Python. */
void connection_send(uint32_t connection, const void *header, uint32_t header_size, const void *payload,
		     uint32_t payload_size);

/* Sends INTERRUPT for a request, without waiting: false where it would have to. */
bool connection_interrupt(uint32_t connection, uint32_t slot, uint64_t seq);

/* Receives frames until the connection ends.  For the one receive thread of the connection. */
void connection_receive(uint32_t connection);

/* Ends the connections, so that nobody waits for them any more. */
void connections_shut(void);

/* Closes the sockets; no other thread may use them any more. */
void connections_close(void);

#endif
