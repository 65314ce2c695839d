/* A request from its frame to its reply: the rules of wire/slots.py and wire/server_session.py for what is usual. */
#include "native.h"

#define SLOW 200000u                 /* ns; what took longer is expected to be slow again */
#define FEW 16u                      /* so many times at first, twice as many after each trial that was slow, too */
#define MANY 4096u
#define UNTRIED 32u                  /* requests that follow one that was not answered at once, but was not slow either */

/* False where the frame is anything but exactly a native operation's request. */
bool native_decode(struct native_session *s, const struct native_frame *frame, struct native_call *call)
{
    struct wire_reader reader = { frame->header, frame->header + frame->header_size, false };
    const struct wire_head head = wire_take_head(&reader);
    uint32_t first = 0, count = s->request_slots;

    if (reader.bad || !head.has_slot || !head.has_seq)
        return false;
    if (head.third >= WIRE_GETLK && head.third <= WIRE_FLOCKW)
        __atomic_store_n(&s->locks_used, true, __ATOMIC_RELEASE);
    call->op = native_op(head.third);
    if (!call->op || call->op->fields != head.fields)
        return false;
    if (call->op->cleanup) {
        first = s->request_slots;
        count = s->cleanup_slots;
    }
    if (head.slot < first || head.slot - first >= count || (frame->payload_size && !call->op->payload))
        return false;
    call->session = s;
    call->slot = (uint32_t)head.slot;
    call->seq = head.seq;
    call->payload = frame->payload;
    call->payload_size = frame->payload_size;
    call->reply_room = 0;
    call->header_room = REPLY_HEADER;
    return call->op->read(&reader, call) && call->reply_room <= s->max_read;
}

/*
 * Judges the request by its slot and, where it is new and nothing speaks against it, notes that it runs.  False: Python
 * is to judge it.  `*error` is -EINTR where it was interrupted before it came, else LATER.
 */
bool native_begin(struct native_call *call, struct native_connection *c, uint64_t in_flight, int *error)
{
    struct native_session *s = call->session;
    struct native_slot *slot = &s->slots[call->slot];
    uint64_t word;
    bool runs;

    pthread_mutex_lock(&slot->lock);
    word = slot_load(s->t, call->slot);
    /* Under the lock: who drains passes through it, and knows that nothing begins afterwards. */
    runs = __atomic_load_n(&c->current, __ATOMIC_ACQUIRE) && !__atomic_load_n(&s->draining, __ATOMIC_ACQUIRE) &&
           call->seq == (word >> 10) + 1 && !(word & 1) && native_slot_charge(s, call->slot, in_flight);
    if (runs && slot_store(s->t, call->slot, call->seq, call->op->number, 1)) {
        native_slot_discharge(s, call->slot);
        runs = false;
    }
    if (runs) {
        native_slot_set_route(s, call->slot, c);
        *error = slot->early == call->seq ? -EINTR : LATER;
        __atomic_store_n(&slot->running, call->seq, __ATOMIC_RELEASE);
        slot->thread = 0;
    }
    pthread_mutex_unlock(&slot->lock);
    return runs;
}

/* The calling thread runs the request, so INTERRUPT reaches it from now on; unless it came before. */
void native_start(struct native_call *call, int *error)
{
    struct native_slot *slot = &call->session->slots[call->slot];

    pthread_mutex_lock(&slot->lock);
    if (slot->early == call->seq)
        *error = -EINTR;
    else
        slot->thread = pthread_self();
    pthread_mutex_unlock(&slot->lock);
}

/* Whether an operation is taken to be slow this time.  One time in many it is not, to learn whether it still is. */
bool native_is_slow(struct native_session *s, uint32_t number)
{
    uint32_t *expected = &s->paces[number].expected, left = __atomic_load_n(expected, __ATOMIC_RELAXED);

    while (left)
        if (__atomic_compare_exchange_n(expected, &left, left - 1, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return true;
    return false;
}

/* Whether an operation was slow when it was tried last. */
bool native_may_be_slow(struct native_session *s, uint32_t number)
{
    return __atomic_load_n(&s->paces[number].next, __ATOMIC_RELAXED);
}

/*
 * Whether it makes sense to try first what can be done without waiting.  Where that has just failed it costs the same
 * system calls twice; where it succeeds nobody has to watch.
 */
bool native_tries(struct native_session *s, const struct native_op *op)
{
    uint32_t *untried = &s->paces[op->number].untried, left = __atomic_load_n(untried, __ATOMIC_RELAXED);

    if (op->dear)
        return !__atomic_load_n(&s->watch.awake, __ATOMIC_RELAXED) || native_is_slow(s, op->number);
    if (left)
        __atomic_store_n(untried, left - 1, __ATOMIC_RELAXED);
    return !left;
}

/* It could not be done without waiting, and is not taken to be slow. */
void native_missed(struct native_session *s, uint32_t number)
{
    __atomic_store_n(&s->paces[number].untried, UNTRIED, __ATOMIC_RELAXED);
}

/* How long an operation took that was not taken to be slow. */
void native_took(struct native_session *s, uint32_t number, uint64_t nanoseconds)
{
    struct native_pace *pace = &s->paces[number];
    const uint32_t next = __atomic_load_n(&pace->next, __ATOMIC_RELAXED);

    if (nanoseconds <= SLOW) {
        if (next)
            __atomic_store_n(&pace->next, 0, __ATOMIC_RELAXED);
        return;
    }
    __atomic_store_n(&pace->untried, 0, __ATOMIC_RELAXED);
    /* One alone may have lost its processor to somebody else. */
    __atomic_store_n(&pace->expected, next < FEW ? 0 : next, __ATOMIC_RELAXED);
    __atomic_store_n(&pace->next, next < FEW ? FEW : next < MANY ? 2 * next : MANY, __ATOMIC_RELAXED);
}

/* Runs a request, unless `*error` says already what its answer is, and makes its reply. */
void native_carry_out(struct native_call *call, bool quick, int *error, struct native_reply *reply)
{
    unsigned char *end = NULL;

    call->data_size = 0;
    if (*error == LATER) {
        *error = 0;
        slot_enter(call->session->t, call->slot);
        end = (quick ? call->op->quick : call->op->run)(call, error);
        slot_leave();
        if (*error == LATER)
            return;
    }
    if (*error) {
        end = wire_put_array(call->header, 3);
        end = wire_put_uint(end, call->slot);
        end = wire_put_uint(end, call->seq);
        end = wire_put_uint(end, (uint64_t)-*error);
        call->data_size = 0;
    }
    *reply = (struct native_reply){ call->header - WIRE_PREFIX, call->data, (uint32_t)(end - call->header),
                                    call->data_size, { 0 } };
}

/*
 * Notes that the request has run, with `error` (0 or -errno): the connection to send the reply on, with a reference, or
 * NULL.
 */
struct native_connection *native_settle(struct native_call *call, const struct native_reply *reply, int error)
{
    struct native_session *s = call->session;
    struct native_slot *slot = &s->slots[call->slot];
    struct native_connection *route = NULL;
    const bool undone = error == -EINTR && __atomic_load_n(&s->leaving, __ATOMIC_ACQUIRE);

    pthread_mutex_lock(&slot->lock);
    native_slot_end(s, call->slot);
    if (undone)
        slot_store(s->t, call->slot, call->seq, call->op->number, 0);
    else if (wire_repeatable(call->op->number))
        slot_store(s->t, call->slot, call->seq, call->op->number, 2);
    else
        /* The contents that an opening brings are for now: who asks again reads. */
        slot_keep(s->t, call->slot, call->header, reply->header_size, call->data,
                  call->op->number == WIRE_OPEN ? 0 : reply->payload_size);
    native_slot_discharge(s, call->slot);
    if (!undone && slot->route && __atomic_load_n(&slot->route->current, __ATOMIC_ACQUIRE)) {
        route = slot->route;
        native_connection_hold(route);
    }
    pthread_mutex_unlock(&slot->lock);
    return route;
}

/* Notes that the request has run and sends its reply. */
void native_answer(struct native_call *call, struct native_reply *reply, int error)
{
    struct native_session *s = call->session;
    struct native_connection *route;

    __atomic_fetch_add(&s->unsettled, 1, __ATOMIC_RELAXED);
    route = native_settle(call, reply, error);
    if (route) {
        native_send_replies(route, reply, 1);
        native_connection_drop(route);
    }
    __atomic_fetch_sub(&s->unsettled, 1, __ATOMIC_RELEASE);
}
