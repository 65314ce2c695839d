#define _GNU_SOURCE

#include "native_device.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "clones.h"
#include "filter.h"
#include "given_back.h"
#include "native_connection.h"
#include "native_contents.h"
#include "native_encode.h"
#include "native_events.h"
#include "native_known.h"
#include "native_slots.h"
#include "native_space.h"

/* Interrupts a read of the device; nobody else uses it, and without a handler it does nothing (signal(7)). */
#define WAKE SIGURG
#define WAKE_AGAIN 1000000 /* nanoseconds: a signal that came before the read is lost */

#define PAIR_ROOM (4 << 20) /* bytes that may be on their way to Python */

struct thread {
	pthread_t id;
	uint32_t number;
	bool ended;
};

struct native_counters native_counters;

static struct thread readers[CLONES_MAX], receivers[CONNECTIONS_MAX], parker;
static uint32_t reader_count, receiver_count;
static bool parking;
static int to_python = -1;
static bool stopping;

/* ---- requests ---- */

/* A slot that was just given to a request, which is the caller's until it is encoded. */
static void send_first(struct native_slot *slot)
{
	const uint32_t clone = slot->request->clone;
	const uint64_t seq = slot->seq;

	native_encode(slot);
	__atomic_fetch_add(&native_counters.native, 1, __ATOMIC_RELAXED);
	slots_encoded(slot->number, seq);
	/* From here on slot and request may be gone: somebody else may send them, and their reply come. */
	connection_send(clone % connections_count(), slot, seq);
	slots_sent(slot->number, seq);
}

bool native_interrupt(const struct native_target *target)
{
	return connection_interrupt(target->clone % connections_count(), target->slot, target->seq);
}

void native_start(struct native_request *request)
{
	struct native_slot *slot = slots_take(request);

	if (slot)
		send_first(slot);
}

static void hand_on(const struct native_request *request)
{
	uint32_t clone = request->clone;
	struct iovec iov[2] = { { &clone, sizeof clone }, { (void *)(uintptr_t)request->bytes, request->size } };
	const struct msghdr message = { .msg_iov = iov, .msg_iovlen = 2 };
	ssize_t sent;

	__atomic_fetch_add(&native_counters.handed, 1, __ATOMIC_RELAXED);
	do
		sent = sendmsg(to_python, &message, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (sent < 0)
		clones_answer(clone, request->header.unique, EIO, NULL, 0);
}

/* Does with a request what is to be done; returns whether its memory can be used again. */
static bool done_with(struct native_request *request)
{
	if (given_back(&request->header, request->clone))
		return true;
	if (known_answers(request) || contents_answer(request))
		return true;
	switch (native_look_at(request)) {
	case FATE_SEND:
		native_start(request);
		return false;
	case FATE_TOO_LONG:
		clones_answer(request->clone, request->header.unique, ENAMETOOLONG, NULL, 0);
		return true;
	default:
		hand_on(request);
		return true;
	}
}

/* ---- threads ---- */

static void *read_device(void *argument)
{
	struct thread *self = argument;
	struct native_request *request = NULL;

	while (!__atomic_load_n(&stopping, __ATOMIC_ACQUIRE)) {
		ssize_t size;

		if (!request)
			request = request_get();
		if (!request) { /* the kernel keeps its requests until there is memory again */
			nanosleep(&(struct timespec){ .tv_nsec = WAKE_AGAIN }, NULL);
			continue;
		}
		size = read(clones_fd(self->number), request->bytes, sizeof request->bytes);
		if (size < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN))
			continue; /* ENOENT: the kernel took the request back */
		if (size < (ssize_t)sizeof request->header)
			break; /* ENODEV: unmounted or aborted */
		request->clone = self->number;
		request->size = (uint32_t)size;
		if (!done_with(request))
			request = NULL;
	}
	if (request)
		request_put(request);
	shutdown(to_python, SHUT_RDWR);
	__atomic_store_n(&self->ended, true, __ATOMIC_RELEASE);
	return NULL;
}

static void *receive(void *argument)
{
	connection_receive(((struct thread *)argument)->number);
	return NULL;
}

static void *send_parked(void *argument)
{
	struct native_resend again;
	struct native_slot *slot;

	(void)argument;
	while ((slot = slots_next(&again))) {
		if (!again.seq) {
			send_first(slot);
		} else {
			connection_send(again.clone % connections_count(), slot, again.seq);
			slots_sent(slot->number, again.seq);
		}
	}
	return NULL;
}

static void woken(int signal)
{
	(void)signal;
}

/* ---- beginning ---- */

/* The session's descriptor becomes one end of a socket pair. */
static int make_pair(void)
{
	const int room = PAIR_ROOM;
	int pair[2], result = 0;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -errno;
	if (setsockopt(pair[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room))
		setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room); /* as far as this user may */
	if (fcntl(pair[1], F_SETFL, O_NONBLOCK) || dup3(pair[1], filter_session(), O_CLOEXEC) < 0)
		result = -errno;
	close(pair[1]);
	if (result)
		close(pair[0]);
	else
		to_python = pair[0];
	return result;
}

static int start_thread(struct thread *thread, uint32_t number, void *(*run)(void *))
{
	*thread = (struct thread){ .number = number };
	return -pthread_create(&thread->id, NULL, run, thread);
}

/* Threads that read come last: before them nothing happens, so that all can be taken back. */
static int start_threads(uint32_t threads)
{
	int result = start_thread(&parker, 0, send_parked);

	parking = !result;
	for (uint32_t i = 0; !result && i < connections_count(); i++) {
		result = start_thread(&receivers[i], i, receive);
		receiver_count += (uint32_t)!result;
	}
	for (uint32_t i = 0; !result && i < threads; i++) {
		result = start_thread(&readers[i], i, read_device);
		reader_count += (uint32_t)!result;
	}
	return reader_count ? 0 : result; /* fewer readers than clones do no harm: all clones see all requests */
}

/* The session's descriptor is the device again. */
static void take_back(void)
{
	const int session = filter_session();

	if (to_python >= 0 && dup3(clones_fd(0), session, O_CLOEXEC) < 0)
		return; /* as good as impossible: the mount will not answer, and the caller gives up */
	clones_close();
	clones_single(session);
	filter_hand_over(false);
	fcntl(session, F_SETFL, O_RDWR | O_NONBLOCK);
}

int native_begin(uint32_t threads)
{
	const struct sigaction action = { .sa_handler = woken }; /* without SA_RESTART: a read ends */
	sigset_t blocked, before;
	int result;

	stopping = false;
	given_back_on_first = native_collected;
	native_counters = (struct native_counters){ 0 };
	if (sigaction(WAKE, &action, NULL))
		return -errno;
	result = clones_open(filter_session(), threads);
	if (result)
		return result;
	result = make_pair();
	if (!result) {
		filter_hand_over(true);
		sigfillset(&blocked);
		sigdelset(&blocked, WAKE);
		pthread_sigmask(SIG_SETMASK, &blocked, &before); /* all other signals are Python's; threads inherit it */
		result = start_threads(threads);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	if (result) {
		native_stop();
		take_back();
		return result;
	}
	return 0;
}

/* ---- the end ---- */

void native_resume(void)
{
	slots_resend();
}

void native_fail(int error)
{
	connections_shut();
	slots_fail(error);
	native_again(false);
}

static void end_reader(struct thread *reader)
{
	/* Ends with the next read that is interrupted, or is not begun any more. */
	while (!__atomic_load_n(&reader->ended, __ATOMIC_ACQUIRE)) {
		pthread_kill(reader->id, WAKE);
		nanosleep(&(struct timespec){ .tv_nsec = WAKE_AGAIN }, NULL);
	}
	pthread_join(reader->id, NULL);
}

void native_stop(void)
{
	__atomic_store_n(&stopping, true, __ATOMIC_RELEASE);
	connections_end();
	slots_stop();
	if (to_python >= 0)
		shutdown(to_python, SHUT_RDWR);
	while (reader_count)
		end_reader(&readers[--reader_count]);
	while (receiver_count)
		pthread_join(receivers[--receiver_count].id, NULL);
	if (parking)
		pthread_join(parker.id, NULL);
	parking = false;
}

void native_clear(void)
{
	native_again(false);
	if (to_python >= 0)
		close(to_python);
	to_python = -1;
	connections_close();
	slots_clear();
	contents_clear();
	known_clear();
	requests_free();
	native_events_close();
}
