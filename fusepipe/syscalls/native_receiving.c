/* Receiving: frames out of a stream of bytes, and what becomes of each.  Everything here is the leading thread's. */
#include "native.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

#define MAX_UNSENT ((size_t)4 << 20) /* bytes of replies that wait, beyond which nothing more is taken */
#define CHECKSUM 4u
#define HOLD 100000u                 /* ns for which a reply waits for others to leave with it, and one request */
#define TOGETHER 16384u              /* bytes of replies that wait for no others */

struct native_connection *native_connection_new(struct native_session *s, int fd, size_t limit)
{
    struct native_connection *c = calloc(1, sizeof *c);

    if (!c)
        return NULL;
    c->session = s;
    c->fd = fd;
    c->limit = limit;
    c->references = 1;
    c->first_in = c->first_out = c->receiving = true;
    pthread_mutex_init(&c->send, NULL);
    pthread_cond_init(&c->room, NULL);
    c->buffer = malloc(BUFFER);
    c->arena = malloc(ARENA);
    if (!c->buffer || !c->arena) {
        c->fd = -1;                  /* it stays the caller's */
        native_connection_drop(c);
        return NULL;
    }
    native_watch_add(s, c);
    return c;
}

/* Longest header and payload of the frames to come; by the thread that leads. */
void native_connection_bounds(struct native_connection *c, uint32_t max_header, uint32_t max_payload)
{
    c->max_header = max_header;
    c->max_payload = max_payload;
}

void native_connection_set_current(struct native_connection *c, bool current)
{
    __atomic_store_n(&c->current, current, __ATOMIC_RELEASE);
}

/* Bytes that were received elsewhere, such as the first frame; before anything is received here. */
bool native_connection_feed(struct native_connection *c, const unsigned char *data, size_t size)
{
    if (size > BUFFER - c->end)
        return false;
    memcpy(c->buffer + c->end, data, size);
    c->end += size;
    return true;
}

/* Sends the replies that were collected. */
void native_send_batch(struct native_connection *c)
{
    if (!c->batched)
        return;
    native_send_replies(c, c->batch, c->batched);
    __atomic_fetch_sub(&c->session->unsettled, c->batched, __ATOMIC_RELEASE);
    c->batched = 0;
    c->arena_used = 0;
}

/*
 * The next frame: 1; 0: more bytes are needed; -1: the client broke the protocol.  A frame of which much is still to
 * come gets memory of its own, and the rest is received straight into that.
 */
static int next_frame(struct native_connection *c, struct native_frame *frame, const char **reason)
{
    const unsigned char *at = c->large ? c->large : c->buffer + c->start;
    const size_t have = c->large ? c->large_filled : c->end - c->start;
    uint32_t header, payload, sum;
    size_t total;

    if (have < WIRE_PREFIX)
        return 0;
    if (!c->prefix_checked) {
        *reason = wire_check_prefix(at, c->number_in, c->max_payload);
        if (!*reason && wire_u32(at) > c->max_header)
            *reason = "a header is longer than allowed";
        if (*reason)
            return -1;
        c->prefix_checked = true;
    }
    header = wire_u32(at);
    payload = wire_u32(at + 4);
    sum = c->crc_in || c->first_in ? CHECKSUM : 0;
    total = (size_t)WIRE_PREFIX + header + payload + sum;
    if (have < total) {
        if (!c->large && total > BUFFER / 2) {
            c->large = malloc(total);
            if (!c->large) {
                *reason = "there is no memory for a frame";
                return -1;
            }
            memcpy(c->large, at, have);
            c->large_size = total;
            c->large_filled = have;
            c->start = c->end = 0;
        }
        return 0;
    }
    at += WIRE_PREFIX;
    if (sum && wire_u32(at + header + payload) != wire_crc32(wire_crc32(0, at, header), at + header, payload)) {
        *reason = "the checksum of a frame's header and payload is wrong";
        return -1;
    }
    *frame = (struct native_frame){ at, at + header, header, payload, c->large };
    if (c->large)
        c->large = NULL;
    else
        c->start += total;
    c->number_in++;
    c->first_in = c->prefix_checked = false;
    return 1;
}

static uint64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A reply that was made where the arena's unused part begins is the next one of the batch; `ready`: since when. */
static void collect(struct native_connection *c, const struct native_reply *reply, uint64_t ready)
{
    const unsigned char *begin = c->arena + c->arena_used;
    const unsigned char *end = reply->header + WIRE_PREFIX + reply->header_size;

    if (reply->payload_size)
        end = reply->payload + reply->payload_size;
    if (!c->batched)
        c->ready = ready;
    c->batch[c->batched++] = *reply;
    c->arena_used += ((size_t)(end - begin) + 15) & ~(size_t)15;
}

/* Runs a request now and collects its reply; with LATER in `*error` there is none yet. */
static void run_now(struct native_connection *c, struct native_call *call, int *error)
{
    struct native_session *s = c->session;
    struct native_connection *route;
    struct native_reply reply;

    call->header = c->arena + c->arena_used + WIRE_PREFIX;
    call->data = c->arena + c->arena_used + REPLY_HEADER;
    native_carry_out(call, true, error, &reply);
    if (*error == LATER)
        return;
    __atomic_fetch_add(&s->unsettled, 1, __ATOMIC_RELAXED);
    route = native_settle(call, &reply, *error);
    if (route == c) {
        collect(c, &reply, c->batched ? 0 : now());
    } else {
        if (route)
            native_send_replies(route, &reply, 1);
        __atomic_fetch_sub(&s->unsettled, 1, __ATOMIC_RELEASE);
    }
    if (route)
        native_connection_drop(route);
}

/*
 * Runs a request to its end and answers it, however long that takes: false where another thread leads now, and nothing of
 * what is the leader's may be touched any more.  Replies that were collected before wait for this one, but not for long:
 * where it is not expected to take long, and no longer than until another thread leads (native_watch.c).
 */
static bool run_here(struct native_connection *c, struct native_call *call, struct native_frame *frame)
{
    struct native_session *s = c->session;
    unsigned char *buffer = c->buffer, *arena = c->arena;
    const uint64_t began = now();
    struct native_connection *route;
    struct native_reply reply;
    int error = LATER;
    uint64_t job, took;
    bool leads;

    if (c->batched && (began - c->ready > HOLD || native_may_be_slow(s, call->op->number)))
        native_send_batch(c);
    native_connection_hold(c);
    native_start(call, &error);
    call->header = arena + c->arena_used + WIRE_PREFIX;
    call->data = arena + c->arena_used + call->header_room;
    job = native_lead_begin(c, true);
    native_watch_rouse(s);
    native_carry_out(call, false, &error, &reply);
    took = now() - began;
    native_took(s, call->op->number, took);
    __atomic_fetch_add(&s->unsettled, 1, __ATOMIC_RELAXED);
    route = native_settle(call, &reply, error);
    free(frame->owned);
    leads = native_lead_end(c, job);
    if (leads && route == c) {
        collect(c, &reply, began + took);
        if (took > HOLD || c->arena_used > TOGETHER)
            native_send_batch(c);
    } else {
        if (route)
            native_send_replies(route, &reply, 1);
        __atomic_fetch_sub(&s->unsettled, 1, __ATOMIC_RELEASE);
    }
    if (route)
        native_connection_drop(route);
    if (!leads) {
        free(buffer);
        free(arena);
    }
    native_connection_drop(c);
    return leads;
}

enum handled { FOR_PYTHON, HANDLED, RELIEVED };

/* Does with a frame what can be done here.  Nothing has been done where it is for Python. */
static enum handled handle(struct native_connection *c, struct native_frame *frame)
{
    struct native_session *s = c->session;
    struct native_call call;
    int error = LATER;
    bool tries;

    if (!__atomic_load_n(&s->agreed, __ATOMIC_ACQUIRE) || __atomic_load_n(&s->draining, __ATOMIC_ACQUIRE) ||
        !native_decode(s, frame, &call))
        return FOR_PYTHON;
    if (!native_begin(&call, c, (uint64_t)frame->header_size + frame->payload_size + call.reply_room, &error))
        return FOR_PYTHON;
    if (error != LATER)
        call.reply_room = 0;         /* all that is left is to say so, also where the data would not have fitted */
    if (c->batched == BATCH || c->arena_used + call.header_room + call.reply_room > ARENA)
        native_send_batch(c);
    tries = (error != LATER || (call.op->quick && native_tries(s, call.op))) && REPLY_HEADER + call.reply_room <= ARENA;
    if (tries)
        run_now(c, &call, &error);
    if (error == LATER && call.header_room + (size_t)call.reply_room <= ARENA && !native_is_slow(s, call.op->number)) {
        if (tries)
            native_missed(s, call.op->number);
        return run_here(c, &call, frame) ? HANDLED : RELIEVED;
    }
    if (error == LATER && native_run_later(c, &call, frame))
        return HANDLED;              /* the pool has its memory */
    free(frame->owned);
    return HANDLED;
}

/* Ends when the client reads, or the connection ends. */
static void wait_for_room(struct native_connection *c)
{
    pthread_mutex_lock(&c->send);
    while (c->unsent_size > MAX_UNSENT && !c->shut)
        pthread_cond_wait(&c->room, &c->send);
    pthread_mutex_unlock(&c->send);
}

/*
 * Receives and does what comes, until there is something for Python: a frame, or the end.  Waits without an end, since
 * a guest may be paused for days.  What the event points to stays until the next call.
 */
void native_receive(struct native_connection *c, struct native_event *event)
{
    struct native_frame frame;

    free(c->given);
    c->given = NULL;
    *event = (struct native_event){ .kind = NATIVE_BROKEN };
    for (;;) {
        unsigned char *to;
        size_t room;
        ssize_t got;
        int next;

        while ((next = next_frame(c, &frame, &event->reason)) > 0) {
            /* Before each frame: one receive may bring thousands of small requests for much data. */
            wait_for_room(c);
            switch (handle(c, &frame)) {
            case HANDLED:
                continue;
            case RELIEVED:
                event->kind = NATIVE_RELIEVED;
                return;
            case FOR_PYTHON:
                break;
            }
            native_send_batch(c);
            c->given = frame.owned;
            event->kind = NATIVE_FRAME;
            event->header = frame.header;
            event->header_size = frame.header_size;
            event->payload = frame.payload;
            event->payload_size = frame.payload_size;
            return;
        }
        native_send_batch(c);
        if (next < 0)
            return;
        wait_for_room(c);
        if (c->start == c->end) {
            c->start = c->end = 0;
        } else if (c->end > BUFFER / 2) {
            memmove(c->buffer, c->buffer + c->start, c->end - c->start);
            c->end -= c->start;
            c->start = 0;
        }
        to = c->large ? c->large + c->large_filled : c->buffer + c->end;
        room = c->large ? c->large_size - c->large_filled : BUFFER - c->end;
        do
            got = recv(c->fd, to, room, 0);
        while (got < 0 && errno == EINTR);
        if (got <= 0) {
            event->error = errno;
            event->kind = got < 0 ? NATIVE_FAILED : c->large || c->start != c->end ? NATIVE_CUT : NATIVE_END;
            return;
        }
        if (c->large)
            c->large_filled += (size_t)got;
        else
            c->end += (size_t)got;
    }
}
