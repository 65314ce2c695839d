/* What the connections of a session share: limits, slots, bytes in flight. */
#include "native.h"

#include <stdlib.h>

struct native_session *native_session_new(struct tables *t, int interrupt_signal,
                                          void (*report_wrong)(void *, uint64_t *, uint32_t), void *context)
{
    const uint32_t count = slots_count(t);
    struct native_session *s = calloc(1, sizeof *s + count * sizeof s->slots[0]);

    if (!s)
        return NULL;
    s->t = t;
    s->slot_count = count;
    s->interrupt_signal = interrupt_signal;
    s->report_wrong = report_wrong;
    s->context = context;
    s->pool.last = &s->pool.first;
    pthread_mutex_init(&s->pool.lock, NULL);
    pthread_cond_init(&s->pool.wake, NULL);
    native_watch_init(&s->watch);
    for (uint32_t i = 0; i < count; i++)
        pthread_mutex_init(&s->slots[i].lock, NULL);
    return s;
}

/* What HELLO granted: from now on requests are taken.  Once, by the thread that leads the first connection. */
void native_session_agree(struct native_session *s, uint32_t request_slots, uint32_t cleanup_slots,
                          uint32_t connections, uint32_t max_read, uint32_t max_name, uint64_t max_in_flight)
{
    s->request_slots = request_slots;
    s->cleanup_slots = cleanup_slots;
    s->max_read = max_read;
    s->max_name = max_name;
    s->max_in_flight = max_in_flight;
    /* One thread per request in service, and one per connection whose client does not read. */
    s->pool.limit = request_slots + cleanup_slots + connections;
    s->pool.ids = calloc(s->pool.limit, sizeof *s->pool.ids);
    __atomic_store_n(&s->agreed, s->pool.ids != NULL, __ATOMIC_RELEASE);
}

/*
 * From now on every request goes to Python, which knows that the end is near.  `leaving`: a request that is interrupted is
 * not answered, but has not been made: it comes again to the next process.
 */
void native_session_drain(struct native_session *s, bool leaving)
{
    __atomic_store_n(&s->leaving, leaving, __ATOMIC_RELEASE);
    __atomic_store_n(&s->draining, true, __ATOMIC_RELEASE);
}

/* Handles have locks that came from the process before. */
void native_session_has_locks(struct native_session *s)
{
    __atomic_store_n(&s->locks_used, true, __ATOMIC_RELEASE);
}

/* Only after `native_session_stop` has returned true and every connection has been dropped by who made it. */
void native_session_free(struct native_session *s)
{
    native_watch_free(s);
    for (uint32_t i = 0; i < s->slot_count; i++) {
        if (s->slots[i].route)
            native_connection_drop(s->slots[i].route);
        pthread_mutex_destroy(&s->slots[i].lock);
    }
    pthread_mutex_destroy(&s->pool.lock);
    pthread_cond_destroy(&s->pool.wake);
    free(s->pool.ids);
    free(s);
}

uint32_t native_session_unsettled(const struct native_session *s)
{
    return __atomic_load_n(&s->unsettled, __ATOMIC_ACQUIRE);
}

void native_slot_lock(struct native_session *s, uint32_t slot)
{
    pthread_mutex_lock(&s->slots[slot].lock);
}

void native_slot_unlock(struct native_session *s, uint32_t slot)
{
    pthread_mutex_unlock(&s->slots[slot].lock);
}

/* Counts the bytes of a request that is about to run; false where too many are in flight. */
bool native_slot_charge(struct native_session *s, uint32_t slot, uint64_t size)
{
    uint64_t before = __atomic_load_n(&s->in_flight, __ATOMIC_RELAXED);

    do {
        if (before && before + size > s->max_in_flight)
            return false;
    } while (!__atomic_compare_exchange_n(&s->in_flight, &before, before + size, true, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    s->slots[slot].charge = size;
    return true;
}

void native_slot_discharge(struct native_session *s, uint32_t slot)
{
    __atomic_fetch_sub(&s->in_flight, s->slots[slot].charge, __ATOMIC_RELAXED);
    s->slots[slot].charge = 0;
}

uint64_t native_in_flight(const struct native_session *s)
{
    return __atomic_load_n(&s->in_flight, __ATOMIC_RELAXED);
}

void native_slot_set_route(struct native_session *s, uint32_t slot, struct native_connection *c)
{
    struct native_connection *before = s->slots[slot].route;

    if (before == c)
        return;
    native_connection_hold(c);
    s->slots[slot].route = c;
    if (before)
        native_connection_drop(before);
}

struct native_connection *native_slot_route(const struct native_session *s, uint32_t slot)
{
    return s->slots[slot].route;
}

/* The calling thread is about to run this request: false where it was interrupted before. */
bool native_slot_start(struct native_session *s, uint32_t slot, uint64_t seq)
{
    struct native_slot *place = &s->slots[slot];

    if (place->early == seq)
        return false;
    __atomic_store_n(&place->running, seq, __ATOMIC_RELEASE);
    place->thread = pthread_self();
    return true;
}

void native_slot_end(struct native_session *s, uint32_t slot)
{
    __atomic_store_n(&s->slots[slot].running, 0, __ATOMIC_RELEASE);
    s->slots[slot].thread = 0;
}

/* The seq of the request that runs, or 0, and its thread, 0 while it waits for one.  Also without the lock. */
uint64_t native_slot_running(const struct native_session *s, uint32_t slot, uint64_t *thread)
{
    const uint64_t running = __atomic_load_n(&s->slots[slot].running, __ATOMIC_ACQUIRE);

    if (thread)
        *thread = (uint64_t)s->slots[slot].thread;
    return running;
}

/* The request with this seq is not to run. */
void native_slot_expect(struct native_session *s, uint32_t slot, uint64_t seq)
{
    s->slots[slot].early = seq;
}
