/* What the connections of a session share, for the process that comes after this one.  The caller serialises the calls. */
#include "operations.h"

#include <string.h>

/* HELLO is about to be answered.  Returns 0, or -ERANGE where there is no room for the answer: then nobody comes after. */
int session_begin(struct tables *t, const unsigned char *opening, uint32_t size, const unsigned char *secret)
{
    struct session_row *s = &t->header->session;

    if (size > OPENING_ROOM)
        return -ERANGE;
    memcpy(s->opening, opening, size);
    s->opening_size = size;
    memcpy(s->secrets[s->turn & 1], secret, SECRET_ROOM);
    session_mark(t, SESSION_OPEN);
    return 0;
}

/* The secret changes at once. */
void session_secret(struct tables *t, const unsigned char *secret)
{
    struct session_row *s = &t->header->session;
    const uint32_t turn = (s->turn + 1) & 1;

    memcpy(s->secrets[turn], secret, SECRET_ROOM);
    __atomic_store_n(&s->turn, turn, __ATOMIC_RELEASE);
}

void session_mark(struct tables *t, uint32_t bits)
{
    __atomic_fetch_or(&t->header->session.state, bits, __ATOMIC_RELEASE);
}

/* The state; where it is open, with what HELLO was answered and the secret. */
uint32_t session_load(const struct tables *t, const unsigned char **opening, uint32_t *size,
                      const unsigned char **secret)
{
    const struct session_row *s = &t->header->session;
    const uint32_t state = __atomic_load_n(&s->state, __ATOMIC_ACQUIRE);

    *opening = s->opening;
    *size = s->opening_size < OPENING_ROOM ? s->opening_size : OPENING_ROOM;
    *secret = s->secrets[s->turn & 1];
    return state;
}
