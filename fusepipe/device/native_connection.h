/*
 * A connection of the session that native code uses: Python has connected it and shaken hands.
 *
 * Any thread may send; one receive thread takes the replies.  After an error in either the connection is lost, and with
 * it all others: native_lost.  Then nothing is sent, receive threads park, and once all have, Python may put other
 * sockets in their places: a socket that was exchanged under a running call would get the rest of an old frame.
 *
 * Locks: a connection's, of sending; that of native_slots.c is taken under it.
 */
#ifndef FUSEPIPE_DEVICE_NATIVE_CONNECTION_H
#define FUSEPIPE_DEVICE_NATIVE_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "native_slots.h"

#define CONNECTIONS_MAX 64

/*
 * Takes over a blocking, connected socket.  `sent` and `received` are the numbers of the next frames, `checksums` says
 * that every frame has one at its end, `send_limit` how many bytes one call may send (0: any number).
 * Returns 0 or -errno; the socket is closed by connections_close.
 */
int connection_add(int fd, uint32_t sent, uint32_t received, bool checksums, size_t send_limit, uint32_t max_payload);

uint32_t connections_count(void);

/*
 * Sends the frame of a slot's request with this seq, whole, unless that has been done on this socket or the connection is
 * down: then it is sent with all that waits (slots_resend).  May wait until the server reads.  An error is told to Python.
 */
void connection_send(uint32_t connection, const struct native_slot *slot, uint64_t seq);

/* Sends INTERRUPT for a request, without waiting: false where it would have to. */
bool connection_interrupt(uint32_t connection, uint32_t slot, uint64_t seq);

/* Sends PING, unless that would have to wait: then whoever waits for a sign of life has none. */
void connection_ping(uint32_t connection);

/* A number that changes whenever bytes come. */
uint64_t connection_heard(uint32_t connection);

/* Receives frames until connections_end.  For the one receive thread of the connection. */
void connection_receive(uint32_t connection);

/* The session has lost a connection: nothing is sent or received any more on any of them. */
void connections_shut(void);

/* Whether every receive thread has parked, which NATIVE_PARKED says. */
bool connections_parked(void);

/* Goes on over another socket, as connection_add took the first one; after connections_parked. */
void connection_replace(uint32_t connection, int fd, uint32_t sent, uint32_t received, bool checksums);

/* Ends the connections, so that nobody waits for them any more. */
void connections_end(void);

/* Closes the sockets; no other thread may use them any more. */
void connections_close(void);

#endif
