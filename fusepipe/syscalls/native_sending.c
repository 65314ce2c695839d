/*
 * Sending frames: whole ones, in the order of their numbers.  Nobody waits here: what the socket does not take is kept,
 * and a worker of the pool waits until the client has read it (native_flush).
 */
#include "native.h"

#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define PIECES (3 * BATCH)           /* of the frames that leave together: prefix and header, payload, checksum */

void native_connection_hold(struct native_connection *c)
{
    __atomic_fetch_add(&c->references, 1, __ATOMIC_RELAXED);
}

void native_connection_drop(struct native_connection *c)
{
    if (__atomic_sub_fetch(&c->references, 1, __ATOMIC_ACQ_REL))
        return;
    close_fd(c->fd);
    pthread_mutex_destroy(&c->send);
    pthread_cond_destroy(&c->room);
    free(c->unsent);
    free(c->buffer);
    free(c->large);
    free(c->given);
    free(c->arena);
    free(c);
}

static void close_if_unused(struct native_connection *c)
{
    if (c->shut && !c->receiving && !c->flushing && c->fd >= 0) {
        close(c->fd);
        c->fd = -1;
    }
}

static void shut_now(struct native_connection *c)
{
    if (c->shut)
        return;
    c->shut = true;
    c->unsent_size = 0;
    pthread_cond_broadcast(&c->room);
    shutdown(c->fd, SHUT_RDWR);
    close_if_unused(c);
}

/* Sends what the socket takes and moves on to what is left; false where the connection is broken. */
static bool take(struct native_connection *c, struct iovec **pieces, uint32_t *count)
{
    while (*count) {
        struct iovec *first = *pieces;
        struct msghdr message = { .msg_iov = first, .msg_iovlen = *count };
        size_t cut = 0;
        ssize_t sent;

        if (c->limit) {
            /* As many pieces as one call may carry, the last one cut. */
            size_t room = c->limit;
            uint32_t i = 0;

            while (i < *count && first[i].iov_len <= room)
                room -= first[i++].iov_len;
            if (i < *count && room) {
                cut = first[i].iov_len;
                first[i++].iov_len = room;
            }
            message.msg_iovlen = i;
        }
        sent = sendmsg(c->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (cut)
            first[message.msg_iovlen - 1].iov_len = cut;
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return errno == EAGAIN || errno == EWOULDBLOCK;
        while (*count && (size_t)sent >= (*pieces)->iov_len) {
            sent -= (ssize_t)(*pieces)->iov_len;
            ++*pieces;
            --*count;
        }
        if (*count) {
            (*pieces)->iov_base = (char *)(*pieces)->iov_base + sent;
            (*pieces)->iov_len -= (size_t)sent;
        }
    }
    return true;
}

/* Keeps what is left of the pieces: false where there is no memory. */
static bool keep(struct native_connection *c, const struct iovec *pieces, uint32_t count)
{
    size_t more = 0;

    for (uint32_t i = 0; i < count; i++)
        more += pieces[i].iov_len;
    if (c->unsent_start && c->unsent_start + c->unsent_size + more > c->unsent_room) {
        memmove(c->unsent, c->unsent + c->unsent_start, c->unsent_size);
        c->unsent_start = 0;
    }
    if (c->unsent_start + c->unsent_size + more > c->unsent_room) {
        const size_t room = 2 * (c->unsent_size + more);
        unsigned char *bigger = realloc(c->unsent, room);

        if (!bigger)
            return false;
        c->unsent = bigger;
        c->unsent_room = room;
    }
    for (uint32_t i = 0; i < count; i++) {
        memcpy(c->unsent + c->unsent_start + c->unsent_size, pieces[i].iov_base, pieces[i].iov_len);
        c->unsent_size += pieces[i].iov_len;
    }
    return true;
}

/* Under the send lock.  Returns whether somebody must see to it that native_flush runs. */
static bool send_pieces(struct native_connection *c, struct iovec *pieces, uint32_t count)
{
    if (c->shut)
        return false;
    if (!c->unsent_size && !take(c, &pieces, &count)) {
        shut_now(c);
        return false;
    }
    if (!count)
        return false;
    if (!keep(c, pieces, count)) {
        shut_now(c);
        return false;
    }
    if (c->flushing)
        return false;
    c->flushing = true;
    return true;
}

/* Sends replies together.  Their memory is the caller's again afterwards. */
void native_send_replies(struct native_connection *c, struct native_reply *replies, uint32_t count)
{
    struct iovec pieces[PIECES];
    uint32_t used = 0;
    bool flush;

    pthread_mutex_lock(&c->send);
    for (uint32_t i = 0; i < count; i++) {
        struct native_reply *r = &replies[i];

        wire_put_prefix(r->header, r->header_size, r->payload_size, c->number_out++);
        pieces[used++] = (struct iovec){ r->header, WIRE_PREFIX + r->header_size };
        if (r->payload_size)
            pieces[used++] = (struct iovec){ r->payload, r->payload_size };
        if (c->crc_out || c->first_out) {
            const uint32_t crc = wire_crc32(0, r->header + WIRE_PREFIX, r->header_size);

            wire_put_u32(r->crc, wire_crc32(crc, r->payload, r->payload_size));
            pieces[used++] = (struct iovec){ r->crc, sizeof r->crc };
        }
        c->first_out = false;
    }
    flush = send_pieces(c, pieces, used);
    pthread_mutex_unlock(&c->send);
    if (flush && !native_flush_later(c))
        native_shut(c);
}

/* A frame of Python's; its header has no room for a prefix in front. */
void native_send(struct native_connection *c, const unsigned char *header, uint32_t header_size,
                 const unsigned char *payload, uint32_t payload_size)
{
    struct native_reply reply = { NULL, (unsigned char *)(uintptr_t)payload, header_size, payload_size, { 0 } };
    unsigned char place[REPLY_HEADER];

    reply.header = WIRE_PREFIX + header_size <= sizeof place ? place : malloc(WIRE_PREFIX + header_size);
    if (!reply.header) {
        native_shut(c);
        return;
    }
    memcpy(reply.header + WIRE_PREFIX, header, header_size);
    native_send_replies(c, &reply, 1);
    if (reply.header != place)
        free(reply.header);
}

/* Waits until the client has read what is unsent; without an end, but for the end of the connection. */
void native_flush(struct native_connection *c)
{
    for (;;) {
        struct pollfd wait = { .fd = c->fd, .events = POLLOUT };
        struct iovec piece, *pieces = &piece;
        uint32_t count = 1;

        poll(&wait, 1, -1);
        pthread_mutex_lock(&c->send);
        if (!c->shut && c->unsent_size) {
            piece = (struct iovec){ c->unsent + c->unsent_start, c->unsent_size };
            if (take(c, &pieces, &count)) {
                const size_t left = count ? piece.iov_len : 0;

                c->unsent_start += c->unsent_size - left;
                c->unsent_size = left;
                pthread_cond_broadcast(&c->room);
            } else {
                shut_now(c);
            }
        }
        if (c->shut || !c->unsent_size) {
            /* One answer to a client that did not read may have been of any size. */
            free(c->unsent);
            c->unsent = NULL;
            c->unsent_start = c->unsent_room = 0;
            c->flushing = false;
            close_if_unused(c);
            pthread_mutex_unlock(&c->send);
            return;
        }
        pthread_mutex_unlock(&c->send);
    }
}

bool native_has_unsent(struct native_connection *c)
{
    bool unsent;

    pthread_mutex_lock(&c->send);
    unsent = c->unsent_size != 0;
    pthread_mutex_unlock(&c->send);
    return unsent;
}

/* Ends the connection now: the thread that leads sees its end, what is unsent is dropped.  Twice is no error. */
void native_shut(struct native_connection *c)
{
    pthread_mutex_lock(&c->send);
    shut_now(c);
    pthread_mutex_unlock(&c->send);
}

/* Nobody leads any more. */
void native_end_receiving(struct native_connection *c)
{
    pthread_mutex_lock(&c->send);
    c->receiving = false;
    close_if_unused(c);
    pthread_mutex_unlock(&c->send);
    native_watch_remove(c->session, c);
}

void native_connection_sums(struct native_connection *c, bool in, bool out)
{
    c->crc_in = in;
    pthread_mutex_lock(&c->send);
    c->crc_out = out;
    pthread_mutex_unlock(&c->send);
}
