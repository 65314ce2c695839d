/*
 * Who leads a connection, and the watch over those who do.
 *
 * The thread that receives runs requests itself: to wake another one for each costs as much as the request.  As long as
 * it works nobody receives, so the watch looks at all connections every TICK while there is work, and where a leader
 * has been at the same request since the last look, another thread leads from then on (server/watch.py does the same).
 */
#include "native.h"

#include <sched.h>
#include <stdlib.h>
#include <time.h>

#define TICK 500000L                 /* ns between two looks: a request waits behind a slow one for at most two */
#define QUIET 8u                     /* looks in a row that find nobody at work, after which the watch sleeps */
#define AGAIN 64u                    /* looks after which one more thread is sent where none has taken over */

#define HERE 1u                      /* in the number of a job: C runs it, in memory of the connection's */
#define TAKING 1u                    /* in place of a job: another thread is about to lead */

/* ---- who leads ---- */

/* The leader begins to work: the number of the job.  `here`: it uses the connection's memory until it has ended. */
uint64_t native_lead_begin(struct native_connection *c, bool here)
{
    const uint64_t job = (c->jobs += 2) | (here ? HERE : 0);

    __atomic_store_n(&c->busy, job, __ATOMIC_SEQ_CST);
    return job;
}

/*
 * Whether the thread that began the job still leads; else nothing of what is the leader's is its any more.  Waits only
 * while another thread copies what has been received, and sends what was collected.
 */
bool native_lead_end(struct native_connection *c, uint64_t job)
{
    if (__atomic_compare_exchange_n(&c->busy, &job, 0, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return true;
    while (__atomic_load_n(&c->busy, __ATOMIC_ACQUIRE) == TAKING)
        sched_yield();
    return false;
}

/*
 * The calling thread leads from now on, if the leader is still at this job and there is memory for two.  Replies that were
 * collected leave.
 */
bool native_lead_take(struct native_connection *c, uint64_t job)
{
    unsigned char *buffer = NULL, *arena = NULL;
    uint64_t expected = job;
    bool room = true;

    if (job & HERE) {
        buffer = malloc(BUFFER);
        arena = malloc(ARENA);
        room = buffer && arena;
    }
    if (!room ||
        !__atomic_compare_exchange_n(&c->busy, &expected, TAKING, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        free(buffer);
        free(arena);
        return false;
    }
    if (job & HERE) {                /* who led until now frees what it works in */
        native_send_batch(c);
        memcpy(buffer, c->buffer + c->start, c->end - c->start);
        c->end -= c->start;
        c->start = 0;
        c->buffer = buffer;
        c->arena = arena;
    }
    __atomic_store_n(&c->busy, 0, __ATOMIC_RELEASE);
    return true;
}

/* ---- the watch ---- */

void native_watch_init(struct native_watch *w)
{
    *w = (struct native_watch){ 0 };
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->roused, NULL);
}

void native_watch_add(struct native_session *s, struct native_connection *c)
{
    native_connection_hold(c);
    pthread_mutex_lock(&s->watch.lock);
    c->watched = true;
    c->next = s->watch.first;
    s->watch.first = c;
    pthread_mutex_unlock(&s->watch.lock);
}

/* Nobody leads it any more.  Twice is no error. */
void native_watch_remove(struct native_session *s, struct native_connection *c)
{
    struct native_connection **place;
    bool watched;

    pthread_mutex_lock(&s->watch.lock);
    watched = c->watched;
    if (watched) {
        for (place = &s->watch.first; *place != c; place = &(*place)->next)
            ;
        *place = c->next;
        c->watched = false;
    }
    pthread_mutex_unlock(&s->watch.lock);
    if (watched)
        native_connection_drop(c);
}

void native_watch_free(struct native_session *s)
{
    while (s->watch.first)
        native_watch_remove(s, s->watch.first);
    pthread_mutex_destroy(&s->watch.lock);
    pthread_cond_destroy(&s->watch.roused);
}

/* Somebody has begun to work. */
void native_watch_rouse(struct native_session *s)
{
    if (__atomic_load_n(&s->watch.awake, __ATOMIC_SEQ_CST))
        return;
    pthread_mutex_lock(&s->watch.lock);
    __atomic_store_n(&s->watch.awake, true, __ATOMIC_SEQ_CST);
    pthread_cond_signal(&s->watch.roused);
    pthread_mutex_unlock(&s->watch.lock);
}

/* Ends `native_watch`, soon. */
void native_watch_stop(struct native_session *s)
{
    pthread_mutex_lock(&s->watch.lock);
    s->watch.stopped = true;
    pthread_cond_signal(&s->watch.roused);
    pthread_mutex_unlock(&s->watch.lock);
}

static bool anybody_works(const struct native_watch *w)
{
    for (const struct native_connection *c = w->first; c; c = c->next)
        if (__atomic_load_n(&c->busy, __ATOMIC_SEQ_CST))
            return true;
    return false;
}

/* Under the lock: one look at everybody; the first whose leader has been at a job for too long. */
static struct native_connection *look(struct native_watch *w)
{
    struct native_connection *found = NULL;
    bool works = false;

    for (struct native_connection *c = w->first; c; c = c->next) {
        const uint64_t job = __atomic_load_n(&c->busy, __ATOMIC_ACQUIRE);

        works |= job != 0;
        if (job <= TAKING || job != c->seen) {
            c->seen = job;
            c->looks = 0;
        } else if (c->looks++ % AGAIN == 0 && !found) {
            found = c;
        }
    }
    w->quiet = works ? 0 : w->quiet + 1;
    if (w->quiet >= QUIET) {
        __atomic_store_n(&w->awake, false, __ATOMIC_SEQ_CST);
        /* A leader that began just now may have taken the watch to be awake. */
        if (anybody_works(w))
            __atomic_store_n(&w->awake, true, __ATOMIC_SEQ_CST);
        w->quiet = 0;
    }
    return found;
}

/*
 * Waits, in one thread of its own, until another thread is needed to lead a connection: which one, and for which job.
 * NULL after `native_watch_stop`.
 */
const struct native_connection *native_watch(struct native_session *s, uint64_t *job)
{
    struct native_watch *w = &s->watch;
    const struct native_connection *found = NULL;
    bool stopped = false;

    while (!found && !stopped) {
        pthread_mutex_lock(&w->lock);
        while (!__atomic_load_n(&w->awake, __ATOMIC_SEQ_CST) && !w->stopped)
            pthread_cond_wait(&w->roused, &w->lock);   /* ends when somebody begins to work, or with the session */
        stopped = w->stopped;
        pthread_mutex_unlock(&w->lock);
        if (stopped)
            break;
        nanosleep(&(struct timespec){ 0, TICK }, NULL);
        pthread_mutex_lock(&w->lock);
        found = look(w);
        *job = found ? found->seen : 0;
        pthread_mutex_unlock(&w->lock);
    }
    return found;
}
