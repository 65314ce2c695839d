/* Slots: the last request of each and its reply.  The caller holds that slot's own lock; nothing here waits. */
#include "tables.h"
#include "operations.h"

#include <stdlib.h>
#include <string.h>

#define STATE_FREE 0u
#define STATE_RUNNING 1u
#define STATE_DONE 2u
#define STATE_BROKEN 3u
#define MAX_SEQ (1ull << 54)
#define MAX_OP 256u

uint32_t slots_count(const struct tables *t) { return t->header->slots; }

/*
 * What a process kept beside its memfd went with it: such a request runs again when it comes again.  One that was running
 * is broken until it comes again, and then settled (server/settling.py).
 */
void slots_rebuild(struct tables *t)
{
    for (uint32_t i = 0; i < t->header->slots; i++) {
        struct slot_row *r = &t->slot_rows[i];
        const uint64_t seq = r->word >> 10;

        if ((r->word & 3) == STATE_DONE && r->header_size == REPLY_ELSEWHERE) {
            __atomic_store_n(&r->word, r->word & ~3ull, __ATOMIC_RELEASE);
        } else if ((r->word & 3) == STATE_RUNNING) {
            __atomic_store_n(&r->word, r->word | STATE_BROKEN, __ATOMIC_RELEASE);
            r->deaths = r->deaths_seq == seq ? r->deaths + 1 : 1;
            __atomic_store_n(&r->deaths_seq, seq, __ATOMIC_RELEASE);
        }
    }
}

/* seq << 10 | op << 2 | state. */
uint64_t slot_load(const struct tables *t, uint32_t slot)
{
    return __atomic_load_n(&t->slot_rows[slot].word, __ATOMIC_ACQUIRE);
}

static void drop_long_reply(struct tables *t, uint32_t slot)
{
    free(t->long_replies[slot].data);
    t->long_replies[slot] = (struct long_reply){ NULL, 0, 0 };
}

int slot_store(struct tables *t, uint32_t slot, uint64_t seq, uint32_t op, uint32_t state)
{
    if (seq >= MAX_SEQ || op >= MAX_OP || state > STATE_DONE)
        return -ERANGE;
    drop_long_reply(t, slot);
    __atomic_store_n(&t->slot_rows[slot].word, seq << 10 | op << 2 | state, __ATOMIC_RELEASE);
    return 0;
}

/*
 * Keeps a reply and then says that the request has run.  One that is too long for the row is kept in this process; the
 * request of one for which there is no memory runs again when it comes again.
 */
void slot_keep(struct tables *t, uint32_t slot, const unsigned char *header, uint32_t header_size,
               const unsigned char *payload, uint32_t payload_size)
{
    struct slot_row *r = &t->slot_rows[slot];
    bool fits = header_size <= REPLY_ROOM && payload_size <= REPLY_ROOM - header_size;
    unsigned char *to = r->reply;
    uint64_t state = STATE_DONE;

    drop_long_reply(t, slot);
    r->header_size = fits ? header_size : REPLY_ELSEWHERE;
    r->payload_size = fits ? payload_size : 0;
    if (!fits) {
        to = malloc((size_t)header_size + payload_size);
        if (to)
            t->long_replies[slot] = (struct long_reply){ to, header_size, payload_size };
        else
            state = STATE_FREE;
    }
    if (to)
        memcpy(to, header, header_size);
    if (to && payload_size)
        memcpy(to + header_size, payload, payload_size);
    __atomic_store_n(&r->word, (r->word & ~3ull) | state, __ATOMIC_RELEASE);
}

/* A kept reply, header and payload in one, until the slot changes; returns the header's size, or -ENOENT. */
int slot_reply(const struct tables *t, uint32_t slot, const unsigned char **reply, uint32_t *payload_size)
{
    const struct long_reply *kept = &t->long_replies[slot];
    const struct slot_row *r = &t->slot_rows[slot];

    if (kept->data) {
        *reply = kept->data;
        *payload_size = kept->payload_size;
        return (int)kept->header_size;
    }
    if (r->header_size > REPLY_ROOM || r->payload_size > REPLY_ROOM - r->header_size)
        return -ENOENT;
    *reply = r->reply;
    *payload_size = r->payload_size;
    return (int)r->header_size;
}
