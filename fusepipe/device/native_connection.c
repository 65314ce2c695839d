#include "native_connection.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "native_events.h"
#include "native_lost.h"
#include "native_messages.h"
#include "native_reply.h"

#define FIRST_ROOM 65536 /* bytes of a receive buffer that has seen no larger frame */

struct connection {
	int fd;
	bool checksums;
	size_t send_limit;
	uint32_t max_payload;
	pthread_mutex_t lock; /* of sending: frames go out whole, in the order of their numbers; a leaf */
	uint32_t sent;
	uint64_t asked; /* the counter of the last control message; the opening had 1 */
	uint32_t received; /* from here on the receive thread's own */
	unsigned char *buffer;
	size_t room, from, to;
	uint64_t heard; /* how often bytes came; for any thread */
	pthread_cond_t changed; /* with the lock: another socket is there, or there will be none */
	uint64_t epoch; /* under the lock, as the next two: counts the sockets */
	bool down;	/* the socket is dead: nothing is sent on it any more */
	bool parked;	/* the receive thread has seen that, too, and waits for another one */
};

static struct connection connections[CONNECTIONS_MAX];
static uint32_t count, parked;
static bool ending; /* set under every lock in turn, so that nobody misses it */

int connection_add(int fd, uint32_t sent, uint32_t received, bool checksums, size_t send_limit, uint32_t max_payload)
{
	struct connection *connection = &connections[count];
	unsigned char *buffer;

	if (count == CONNECTIONS_MAX)
		return -EMFILE;
	buffer = malloc(FIRST_ROOM);
	if (!buffer)
		return -ENOMEM;
	*connection = (struct connection){
		.fd = fd,
		.checksums = checksums,
		.send_limit = send_limit ? send_limit : SIZE_MAX,
		.max_payload = max_payload,
		.sent = sent,
		.asked = 1,
		.received = received,
		.buffer = buffer,
		.room = FIRST_ROOM,
		.epoch = 1,
	};
	pthread_mutex_init(&connection->lock, NULL);
	pthread_cond_init(&connection->changed, NULL);
	count++;
	return 0;
}

uint32_t connections_count(void)
{
	return count;
}

/* ---- sending ---- */

/* Sends all of it, in calls of at most so many bytes.  Returns 0 or an errno. */
static int send_all(const struct connection *connection, struct iovec *iov, size_t left)
{
	while (left) {
		size_t may = connection->send_limit, parts = 0, cut = 0, sent;
		struct msghdr message = { .msg_iov = iov };
		ssize_t done;

		while (parts < left && may) {
			if (iov[parts].iov_len > may) {
				cut = iov[parts].iov_len - may;
				iov[parts].iov_len = may;
			}
			may -= iov[parts++].iov_len;
		}
		message.msg_iovlen = parts;
		done = sendmsg(connection->fd, &message, MSG_NOSIGNAL);
		iov[parts - 1].iov_len += cut;
		if (done < 0) {
			if (errno == EINTR)
				continue;
			return errno;
		}
		sent = (size_t)done;
		while (left && sent >= iov->iov_len) {
			sent -= iov->iov_len;
			iov++;
			left--;
		}
		if (left) {
			iov->iov_base = (char *)iov->iov_base + sent;
			iov->iov_len -= sent;
		}
	}
	return 0;
}

/* Under the connection's lock. */
static int send_frame(struct connection *connection, const void *header, uint32_t header_size, const void *payload,
		      uint32_t payload_size)
{
	unsigned char prefix[WIRE_PREFIX], checksum[4];
	struct iovec iov[4] = { { prefix, sizeof prefix }, { (void *)(uintptr_t)header, header_size } };
	size_t parts = 2;

	if (payload_size)
		iov[parts++] = (struct iovec){ (void *)(uintptr_t)payload, payload_size };
	if (connection->checksums) {
		wire_put_u32(checksum, wire_crc32(wire_crc32(0, header, header_size), payload, payload_size));
		iov[parts++] = (struct iovec){ checksum, sizeof checksum };
	}
	wire_put_prefix(prefix, header_size, payload_size, connection->sent++);
	return send_all(connection, iov, parts);
}

/* Under the connection's lock: nobody tells of an old socket's end when a new one is there. */
static void go_down(struct connection *connection, const char *why)
{
	connection->down = true;
	native_lost(why);
}

void connection_send(uint32_t number, const struct native_slot *slot, uint64_t seq)
{
	struct connection *connection = &connections[number];
	int error;

	pthread_mutex_lock(&connection->lock);
	/* After the claim the slot's frame stays as it is until the reply, which cannot come before the frame is sent. */
	if (!connection->down && slots_claim(slot->number, seq, connection->epoch)) {
		error = send_frame(connection, slot->header, slot->header_size, slot->request->payload,
				   slot->request->payload_size);
		if (error)
			go_down(connection, strerror(error));
	}
	pthread_mutex_unlock(&connection->lock);
}

/* The connection, locked, where a short frame can be sent on it without waiting; else NULL. */
static struct connection *lock_if_free(uint32_t number)
{
	struct connection *connection = &connections[number];
	struct pollfd room = { .events = POLLOUT };

	if (pthread_mutex_trylock(&connection->lock))
		return NULL;
	room.fd = connection->fd;
	if (!connection->down && poll(&room, 1, 0) == 1 && room.revents & POLLOUT)
		return connection;
	pthread_mutex_unlock(&connection->lock);
	return NULL;
}

/* Begins a frame outside the slots. */
static unsigned char *put_control(unsigned char *to, struct connection *connection, uint32_t fields, uint32_t op)
{
	to = wire_put_nil(wire_put_array(to, 3 + fields));
	return wire_put_uint(wire_put_uint(to, __atomic_add_fetch(&connection->asked, 1, __ATOMIC_RELEASE)), op);
}

/* Sends it, and unlocks the connection. */
static void send_control(struct connection *connection, const unsigned char *header, const unsigned char *end)
{
	const int error = send_frame(connection, header, (uint32_t)(end - header), NULL, 0);

	if (error)
		go_down(connection, strerror(error));
	pthread_mutex_unlock(&connection->lock);
}

bool connection_interrupt(uint32_t number, uint32_t slot, uint64_t seq)
{
	struct connection *connection = lock_if_free(number);
	unsigned char header[64], *end;

	if (!connection)
		return false;
	end = put_control(header, connection, 2, WIRE_INTERRUPT);
	send_control(connection, header, wire_put_uint(wire_put_uint(end, slot), seq));
	return true;
}

void connection_ping(uint32_t number)
{
	struct connection *connection = lock_if_free(number);
	unsigned char header[64];

	if (connection)
		send_control(connection, header, put_control(header, connection, 0, WIRE_PING));
}

uint64_t connection_heard(uint32_t number)
{
	return __atomic_load_n(&connections[number].heard, __ATOMIC_RELAXED);
}

/* ---- receiving ---- */

/* How many bytes the frame at the beginning of the buffer has, as far as they are known: at least the prefix. */
static size_t frame_size(struct connection *connection, const char **wrong)
{
	const unsigned char *at = connection->buffer + connection->from;

	if (connection->to - connection->from < WIRE_PREFIX)
		return WIRE_PREFIX;
	*wrong = wire_check_prefix(at, connection->received, connection->max_payload);
	if (*wrong)
		return 0;
	return WIRE_PREFIX + (size_t)wire_u32(at) + wire_u32(at + 4) + (connection->checksums ? 4 : 0);
}

/* Makes room for a frame of `size` bytes that is there in part.  Returns false without memory. */
static bool make_room(struct connection *connection, size_t size)
{
	const size_t have = connection->to - connection->from;

	if (connection->from && (!have || connection->from + size > connection->room)) {
		memmove(connection->buffer, connection->buffer + connection->from, have);
		connection->from = 0;
		connection->to = have;
	}
	if (size > connection->room) {
		unsigned char *larger = realloc(connection->buffer, size);

		if (!larger)
			return false;
		connection->buffer = larger;
		connection->room = size;
	}
	return true;
}

/* Takes a frame that is there whole.  Returns why it cannot be understood, or NULL. */
static const char *take_frame(struct connection *connection)
{
	const unsigned char *prefix = connection->buffer + connection->from, *header = prefix + WIRE_PREFIX;
	const uint32_t header_size = wire_u32(prefix), payload_size = wire_u32(prefix + 4);
	const unsigned char *payload = header + header_size;

	if (connection->checksums &&
	    wire_u32(payload + payload_size) != wire_crc32(0, header, (size_t)header_size + payload_size))
		return "the checksum of a frame's header and payload is wrong";
	return native_reply(header, header_size, payload, payload_size,
			    __atomic_load_n(&connection->asked, __ATOMIC_ACQUIRE));
}

/* Receives until the socket is dead.  Returns why. */
static const char *receive(struct connection *connection)
{
	const char *wrong = NULL;

	for (;;) {
		size_t size;
		ssize_t done;

		while (size = frame_size(connection, &wrong), size && connection->to - connection->from >= size) {
			wrong = take_frame(connection);
			if (wrong)
				break;
			connection->received++;
			connection->from += size;
		}
		if (wrong)
			return wrong;
		if (!make_room(connection, size))
			return "there is no memory for a reply";
		/* Of a frame that is longer than the first buffer just the rest, so that nothing must be moved. */
		done = recv(connection->fd, connection->buffer + connection->to,
			    size > FIRST_ROOM ? connection->from + size - connection->to : connection->room - connection->to, 0);
		if (done > 0) {
			connection->to += (size_t)done;
			__atomic_add_fetch(&connection->heard, 1, __ATOMIC_RELAXED);
		} else if (!done || errno != EINTR) {
			return done ? strerror(errno) : "the server closed the connection";
		}
	}
}

/* Waits until there is another socket; false where there will be none. */
static bool wait_for_another(struct connection *connection, const char *why)
{
	bool another;

	pthread_mutex_lock(&connection->lock);
	go_down(connection, why);
	connection->parked = true;
	if (__atomic_add_fetch(&parked, 1, __ATOMIC_ACQ_REL) == count)
		native_raise(NATIVE_PARKED);
	while (connection->parked && !__atomic_load_n(&ending, __ATOMIC_RELAXED))
		pthread_cond_wait(&connection->changed, &connection->lock);
	another = !connection->parked;
	pthread_mutex_unlock(&connection->lock);
	return another;
}

void connection_receive(uint32_t number)
{
	struct connection *connection = &connections[number];

	while (wait_for_another(connection, receive(connection)))
		;
}

/* ---- after a loss ---- */

void connections_shut(void)
{
	for (uint32_t i = 0; i < count; i++) {
		struct connection *connection = &connections[i];

		shutdown(connection->fd, SHUT_RDWR); /* whoever holds the lock to send does not wait any more */
		pthread_mutex_lock(&connection->lock);
		connection->down = true;
		pthread_mutex_unlock(&connection->lock);
	}
}

bool connections_parked(void)
{
	return __atomic_load_n(&parked, __ATOMIC_ACQUIRE) == count;
}

void connection_replace(uint32_t number, int fd, uint32_t sent, uint32_t received, bool checksums)
{
	struct connection *connection = &connections[number];

	pthread_mutex_lock(&connection->lock);
	close(connection->fd);
	connection->fd = fd;
	connection->sent = sent;
	__atomic_store_n(&connection->asked, 1, __ATOMIC_RELEASE);
	connection->received = received;
	connection->checksums = checksums;
	connection->from = connection->to = 0;
	connection->epoch++;
	connection->down = connection->parked = false;
	__atomic_sub_fetch(&parked, 1, __ATOMIC_ACQ_REL);
	pthread_cond_signal(&connection->changed);
	pthread_mutex_unlock(&connection->lock);
}

/* ---- the end ---- */

void connections_end(void)
{
	connections_shut();
	for (uint32_t i = 0; i < count; i++) {
		pthread_mutex_lock(&connections[i].lock);
		__atomic_store_n(&ending, true, __ATOMIC_RELAXED);
		pthread_cond_signal(&connections[i].changed);
		pthread_mutex_unlock(&connections[i].lock);
	}
}

void connections_close(void)
{
	while (count) {
		struct connection *connection = &connections[--count];

		close(connection->fd);
		free(connection->buffer);
		pthread_mutex_destroy(&connection->lock);
		pthread_cond_destroy(&connection->changed);
	}
	parked = 0;
	ending = false;
}
