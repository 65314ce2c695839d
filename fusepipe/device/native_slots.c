#include "native_slots.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "clones.h"
#include "native_events.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of everything below; a leaf */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER; /* for slots_next */

static struct native_slot *slots;
static uint32_t *free_slots; /* numbers; the one that was freed last is used first */
static uint32_t count, free_count;
static uint64_t in_flight, max_in_flight; /* bytes */
static uint32_t abandoned;

static struct native_request *first_parked, **last_parked = &first_parked;
static uint32_t python_waits; /* requests of Python's that wait for a slot */
static uint32_t granted;      /* free slots that are kept for them; at most `python_waits` */
static bool python_needs_bytes; /* it had a slot and could not use it: it may try again once fewer are in flight */
static bool python_was_last;  /* to have a slot: the next one is for a parked request of native code */
static bool tell_busy; /* once: raise NATIVE_BUSY with the next request */
static int failed; /* the errno of all requests from now on, or 0 */
static bool stopped;
static uint32_t resend_from; /* the first slot of which slots_next has not looked whether it must be sent again */

int slots_set_up(uint32_t wanted, uint64_t bytes)
{
	slots = calloc(wanted, sizeof *slots);
	free_slots = calloc(wanted, sizeof *free_slots);
	if (!slots || !free_slots) {
		slots_clear();
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < wanted; i++) {
		slots[i].number = i;
		free_slots[i] = wanted - 1 - i;
	}
	count = free_count = resend_from = wanted;
	max_in_flight = bytes;
	return 0;
}

void slots_clear(void)
{
	for (uint32_t i = 0; i < count; i++)
		if (slots[i].request)
			request_put(slots[i].request);
	free(slots);
	free(free_slots);
	slots = NULL;
	free_slots = NULL;
	first_parked = NULL;
	last_parked = &first_parked;
	count = free_count = abandoned = python_waits = granted = resend_from = 0;
	in_flight = 0;
	failed = 0;
	python_needs_bytes = tell_busy = stopped = false;
}

/* ---- under the lock ---- */

static uint64_t bytes_of(const struct native_request *request)
{
	return (uint64_t)NATIVE_HEADER + request->payload_size + request->reply_size;
}

static bool fits(uint64_t bytes)
{
	return !in_flight || in_flight + bytes <= max_in_flight;
}

static struct native_slot *give(struct native_request *request)
{
	struct native_slot *slot = &slots[free_slots[--free_count]];

	slot->seq++;
	slot->state = SLOT_WAITING;
	slot->encoded = slot->tried = slot->sent = false;
	slot->epoch = 0;
	slot->request = request;
	slot->in_flight = bytes_of(request);
	in_flight += slot->in_flight;
	if (tell_busy)
		native_raise(NATIVE_BUSY);
	tell_busy = false;
	return slot;
}

/* Keeps free slots for Python where it is its turn; wakes the thread that starts parked requests where it is theirs. */
static void share_out(void)
{
	while (python_waits > granted && free_count > granted && !python_needs_bytes &&
	       !(first_parked && python_was_last)) {
		granted++;
		python_was_last = true;
		native_raise(NATIVE_SLOT);
	}
	if (first_parked && free_count > granted)
		pthread_cond_signal(&changed);
}

static void fewer_in_flight(uint64_t bytes)
{
	in_flight -= bytes;
	if (bytes)
		python_needs_bytes = false;
}

static void free_one(struct native_slot *slot)
{
	slot->state = SLOT_FREE;
	slot->request = NULL;
	free_slots[free_count++] = slot->number;
	fewer_in_flight(slot->in_flight);
	slot->in_flight = 0;
	share_out();
}

/* ---- device threads ---- */

struct native_slot *slots_take(struct native_request *request)
{
	struct native_slot *slot = NULL;
	int error;

	pthread_mutex_lock(&lock);
	error = failed;
	if (error) {
		/* answered below */
	} else if (!first_parked && python_waits == granted && free_count > granted && fits(bytes_of(request))) {
		slot = give(request);
	} else {
		request->next = NULL;
		*last_parked = request;
		last_parked = &request->next;
		share_out();
	}
	pthread_mutex_unlock(&lock);
	if (error) {
		clones_answer(request->clone, request->header.unique, error, NULL, 0);
		request_put(request);
	}
	return slot;
}

void slots_sent(uint32_t slot, uint64_t seq)
{
	pthread_mutex_lock(&lock);
	if (slots[slot].seq == seq)
		slots[slot].sent = true;
	pthread_mutex_unlock(&lock);
}

static struct native_request *unpark(struct native_request **place)
{
	struct native_request *request = *place;

	*place = request->next;
	if (!*place)
		last_parked = place;
	return request;
}

void slots_encoded(uint32_t slot, uint64_t seq)
{
	pthread_mutex_lock(&lock);
	if (slots[slot].seq == seq)
		slots[slot].encoded = true;
	pthread_mutex_unlock(&lock);
}

static bool waits_for_reply(const struct native_slot *slot)
{
	return slot->state == SLOT_WAITING || slot->state == SLOT_ABANDONED;
}

bool slots_claim(uint32_t number, uint64_t seq, uint64_t epoch)
{
	struct native_slot *slot = &slots[number];
	bool mine;

	pthread_mutex_lock(&lock);
	mine = slot->seq == seq && waits_for_reply(slot) && slot->encoded && slot->epoch != epoch;
	if (mine) {
		slot->epoch = epoch;
		slot->tried = true;
		slot->sent = false;
	}
	pthread_mutex_unlock(&lock);
	return mine;
}

/* The next request that is to be sent again, if any.  Under the lock. */
static struct native_slot *next_resend(struct native_resend *again)
{
	while (resend_from < count) {
		struct native_slot *slot = &slots[resend_from++];

		if (waits_for_reply(slot) && slot->encoded) {
			*again = (struct native_resend){ slot->seq, slot->request->clone };
			return slot;
		}
	}
	return NULL;
}

struct native_slot *slots_next(struct native_resend *again)
{
	struct native_slot *slot = NULL;

	*again = (struct native_resend){ 0 };
	pthread_mutex_lock(&lock);
	/* Ends with slots_stop; every change that could let a request go on signals. */
	while (!stopped && !slot) {
		slot = next_resend(again);
		if (slot)
			break;
		if (first_parked && free_count > granted && fits(bytes_of(first_parked))) {
			slot = give(unpark(&first_parked));
			python_was_last = false;
			share_out();
		} else {
			pthread_cond_wait(&changed, &lock);
		}
	}
	pthread_mutex_unlock(&lock);
	return slot;
}

/* ---- receive threads ---- */

struct native_slot *slots_reply_came(uint64_t number, uint64_t seq, bool *late, bool *violation)
{
	struct native_slot *slot = NULL;

	*violation = false;
	pthread_mutex_lock(&lock);
	if (number >= count || seq > slots[number].seq) {
		*violation = true;
	} else if (seq == slots[number].seq) {
		slot = &slots[number];
		*late = slot->state == SLOT_ABANDONED;
		if (slot->state == SLOT_WAITING || *late) {
			slot->state = SLOT_ANSWERING;
		} else {
			*violation = slot->state == SLOT_PYTHON;
			slot = NULL;
		}
	}
	pthread_mutex_unlock(&lock);
	return slot;
}

struct native_request *slots_done(struct native_slot *slot, bool late)
{
	struct native_request *request;

	pthread_mutex_lock(&lock);
	request = slot->request;
	abandoned -= late;
	free_one(slot);
	pthread_mutex_unlock(&lock);
	return request;
}

/* ---- Python ---- */

int64_t slots_python_take(void)
{
	int64_t slot = -1;

	pthread_mutex_lock(&lock);
	if (granted || (free_count && !first_parked)) {
		if (granted)
			granted--;
		slot = free_slots[--free_count];
	}
	pthread_mutex_unlock(&lock);
	return slot;
}

bool slots_reserve(uint64_t bytes)
{
	bool may;

	pthread_mutex_lock(&lock);
	may = fits(bytes);
	if (may)
		in_flight += bytes;
	pthread_mutex_unlock(&lock);
	return may;
}

void slots_python_put(uint32_t slot, uint64_t seq)
{
	pthread_mutex_lock(&lock);
	slots[slot].seq = seq;
	slots[slot].state = SLOT_PYTHON;
	pthread_mutex_unlock(&lock);
}

void slots_python_clear(uint32_t slot)
{
	pthread_mutex_lock(&lock);
	free_one(&slots[slot]);
	pthread_mutex_unlock(&lock);
}

void slots_python_give_back(uint32_t slot)
{
	pthread_mutex_lock(&lock);
	python_needs_bytes = in_flight > 0;
	free_one(&slots[slot]);
	pthread_mutex_unlock(&lock);
}

void slots_release(uint64_t bytes)
{
	pthread_mutex_lock(&lock);
	fewer_in_flight(bytes);
	share_out();
	pthread_mutex_unlock(&lock);
}

void slots_python_waits(uint32_t requests)
{
	pthread_mutex_lock(&lock);
	python_waits = requests;
	if (granted > requests)
		granted = requests;
	share_out();
	pthread_mutex_unlock(&lock);
}

uint64_t slots_seq(uint32_t slot)
{
	uint64_t seq;

	pthread_mutex_lock(&lock);
	seq = slots[slot].seq;
	pthread_mutex_unlock(&lock);
	return seq;
}

uint64_t slots_last_sent(uint32_t number)
{
	const struct native_slot *slot = &slots[number];
	uint64_t seq;

	pthread_mutex_lock(&lock);
	seq = slot->seq - (waits_for_reply(slot) && !slot->tried);
	pthread_mutex_unlock(&lock);
	return seq;
}

void slots_resend(void)
{
	pthread_mutex_lock(&lock);
	resend_from = 0;
	pthread_cond_signal(&changed);
	pthread_mutex_unlock(&lock);
}

uint64_t slots_in_flight(void)
{
	uint64_t bytes;

	pthread_mutex_lock(&lock);
	bytes = in_flight;
	pthread_mutex_unlock(&lock);
	return bytes;
}

static bool is(const struct native_request *request, uint64_t unique)
{
	return request && request->header.unique == unique;
}

enum native_found slots_find(uint64_t unique, struct native_target *target, bool down)
{
	enum native_found found = FOUND_NOT;
	struct native_request *parked = NULL;

	pthread_mutex_lock(&lock);
	for (uint32_t i = 0; i < count && found == FOUND_NOT; i++) {
		const struct native_slot *slot = &slots[i];

		if (slot->state == SLOT_WAITING && (slot->sent || down) && is(slot->request, unique)) {
			*target = (struct native_target){ slot->seq, i, slot->request->clone, slot->request->header.pid };
			found = FOUND_WAITING;
		}
	}
	for (struct native_request **place = &first_parked; *place && found == FOUND_NOT; place = &(*place)->next)
		if (is(*place, unique)) {
			parked = unpark(place);
			found = FOUND_PARKED;
			share_out();
			break;
		}
	pthread_mutex_unlock(&lock);
	if (parked) {
		clones_answer(parked->clone, unique, EINTR, NULL, 0);
		request_put(parked);
	}
	return found;
}

bool slots_waits(uint32_t slot, uint64_t seq)
{
	bool waits;

	pthread_mutex_lock(&lock);
	waits = slots[slot].seq == seq && slots[slot].state == SLOT_WAITING;
	pthread_mutex_unlock(&lock);
	return waits;
}

static bool may_abandon(uint32_t most)
{
	if (abandoned >= most)
		return false;
	abandoned++;
	return true;
}

bool slots_abandon(uint32_t number, uint64_t seq, uint32_t most)
{
	struct native_slot *slot = &slots[number];
	struct native_request *request = NULL;
	uint64_t unique = 0;
	uint32_t clone = 0;
	bool done = true;

	pthread_mutex_lock(&lock);
	if (slot->seq == seq && slot->state == SLOT_WAITING) {
		done = may_abandon(most);
		if (done) {
			slot->state = SLOT_ABANDONED;
			request = slot->request;
			unique = request->header.unique;
			clone = request->clone;
		}
	}
	pthread_mutex_unlock(&lock);
	if (request)
		clones_answer(clone, unique, EINTR, NULL, 0);
	return done;
}

void slots_tell_busy(void)
{
	pthread_mutex_lock(&lock);
	tell_busy = !in_flight;
	if (in_flight)
		native_raise(NATIVE_BUSY);
	pthread_mutex_unlock(&lock);
}

uint32_t slots_abandoned(void)
{
	uint32_t now;

	pthread_mutex_lock(&lock);
	now = abandoned;
	pthread_mutex_unlock(&lock);
	return now;
}

bool slots_abandon_one(uint32_t most)
{
	bool may;

	pthread_mutex_lock(&lock);
	may = may_abandon(most);
	pthread_mutex_unlock(&lock);
	return may;
}

void slots_abandoned_came(void)
{
	pthread_mutex_lock(&lock);
	abandoned--;
	pthread_mutex_unlock(&lock);
}

/* ---- the end ---- */

void slots_stop(void)
{
	pthread_mutex_lock(&lock);
	stopped = true;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

void slots_fail(int error)
{
	struct native_request *parked;

	pthread_mutex_lock(&lock);
	failed = error;
	parked = first_parked;
	first_parked = NULL;
	last_parked = &first_parked;
	for (uint32_t i = 0; i < count; i++)
		if (slots[i].state == SLOT_WAITING) {
			slots[i].state = SLOT_ANSWERING; /* for good */
			clones_answer(slots[i].request->clone, slots[i].request->header.unique, error, NULL, 0);
		}
	pthread_mutex_unlock(&lock);
	while (parked) {
		struct native_request *next = parked->next;

		clones_answer(parked->clone, parked->header.unique, error, NULL, 0);
		request_put(parked);
		parked = next;
	}
}
