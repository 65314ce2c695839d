#include "native_connection.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "native_messages.h"
#include "native_lost.h"
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
};

static struct connection connections[CONNECTIONS_MAX];
static uint32_t count;

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
	};
	pthread_mutex_init(&connection->lock, NULL);
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

void connection_send(uint32_t number, const void *header, uint32_t header_size, const void *payload, uint32_t payload_size)
{
	struct connection *connection = &connections[number];
	int error;

	pthread_mutex_lock(&connection->lock);
	error = send_frame(connection, header, header_size, payload, payload_size);
	pthread_mutex_unlock(&connection->lock);
	if (error)
		native_lost(strerror(error));
}

bool connection_interrupt(uint32_t number, uint32_t slot, uint64_t seq)
{
	struct connection *connection = &connections[number];
	struct pollfd room = { .fd = connection->fd, .events = POLLOUT };
	unsigned char header[64], *end;
	int error;

	if (pthread_mutex_trylock(&connection->lock))
		return false;
	if (poll(&room, 1, 0) != 1 || !(room.revents & POLLOUT)) {
		pthread_mutex_unlock(&connection->lock);
		return false;
	}
	end = wire_put_nil(wire_put_array(header, 5));
	end = wire_put_uint(wire_put_uint(end, __atomic_add_fetch(&connection->asked, 1, __ATOMIC_RELEASE)), WIRE_INTERRUPT);
	end = wire_put_uint(wire_put_uint(end, slot), seq);
	error = send_frame(connection, header, (uint32_t)(end - header), NULL, 0);
	pthread_mutex_unlock(&connection->lock);
	if (error)
		native_lost(strerror(error));
	return true;
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

void connection_receive(uint32_t number)
{
	struct connection *connection = &connections[number];
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
		if (wrong) {
			native_lost(wrong);
			return;
		}
		if (!make_room(connection, size)) {
			native_lost("there is no memory for a reply");
			return;
		}
		/* Of a frame that is longer than the first buffer just the rest, so that nothing must be moved. */
		done = recv(connection->fd, connection->buffer + connection->to,
			    size > FIRST_ROOM ? connection->from + size - connection->to : connection->room - connection->to, 0);
		if (done > 0) {
			connection->to += (size_t)done;
		} else if (!done || errno != EINTR) {
			native_lost(done ? strerror(errno) : "the server closed the connection");
			return;
		}
	}
}

/* ---- the end ---- */

void connections_shut(void)
{
	for (uint32_t i = 0; i < count; i++)
		shutdown(connections[i].fd, SHUT_RDWR);
}

void connections_close(void)
{
	while (count) {
		struct connection *connection = &connections[--count];

		close(connection->fd);
		free(connection->buffer);
		pthread_mutex_destroy(&connection->lock);
	}
}
