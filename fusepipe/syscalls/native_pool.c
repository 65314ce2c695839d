/* The pool: threads for what may wait.  They are started when nobody is idle, and stay. */
#include "native.h"

#include <signal.h>
#include <stdlib.h>
#include <time.h>

struct native_job {
    struct native_job *next;
    struct native_connection *connection;
    struct native_frame frame;
    bool flush;                      /* wait until the client of the connection reads; else run the frame's request */
    unsigned char memory[];
};

/* A worker's room for replies, which grows with what is asked for. */
struct room { unsigned char *memory; size_t size; };

static unsigned char *room_for(struct room *room, size_t size)
{
    if (room->size < size) {
        unsigned char *bigger = realloc(room->memory, size);

        if (!bigger)
            return NULL;
        room->memory = bigger;
        room->size = size;
    }
    return room->memory;
}

static void run_job(struct native_session *s, struct native_job *job, struct room *room)
{
    unsigned char small[2 * REPLY_HEADER];
    struct native_reply reply;
    struct native_call call;
    unsigned char *place;
    int error = LATER;

    native_decode(s, &job->frame, &call);   /* as before: it cannot fail */
    native_start(&call, &error);
    place = room_for(room, (size_t)call.header_room + call.reply_room);
    if (!place) {
        place = small;
        error = -ENOMEM;
        call.header_room = REPLY_HEADER;
    }
    call.header = place + WIRE_PREFIX;
    call.data = place + call.header_room;
    native_carry_out(&call, false, &error, &reply);
    native_answer(&call, &reply, error);
}

static void end_job(struct native_job *job)
{
    native_connection_drop(job->connection);
    free(job->frame.owned);
    free(job);
}

static void *work(void *argument)
{
    struct native_session *s = argument;
    struct native_pool *pool = &s->pool;
    struct room room = { NULL, 0 };

    pthread_mutex_lock(&pool->lock);
    for (;;) {
        struct native_job *job = pool->first;

        if (job) {
            pool->first = job->next;
            if (!pool->first)
                pool->last = &pool->first;
            pool->waiting--;
            pthread_mutex_unlock(&pool->lock);
            if (job->flush)
                native_flush(job->connection);
            else
                run_job(s, job, &room);
            end_job(job);
            pthread_mutex_lock(&pool->lock);
        } else if (pool->stopped) {
            break;
        } else {
            pool->idle++;
            pthread_cond_wait(&pool->wake, &pool->lock);   /* ends with a job or with native_session_stop */
            pool->idle--;
        }
    }
    pthread_mutex_unlock(&pool->lock);
    free(room.memory);
    return NULL;
}

/* Under the pool's lock: one more thread, of which only the signal that interrupts can interrupt the calls. */
static bool start_thread(struct native_session *s)
{
    struct native_pool *pool = &s->pool;
    sigset_t blocked, before;
    bool started;

    if (pool->threads == pool->limit)
        return false;
    sigfillset(&blocked);
    sigdelset(&blocked, s->interrupt_signal);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    started = !pthread_create(&pool->ids[pool->threads], NULL, work, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pool->threads += started;
    return started;
}

/* False after the end, and where there is no thread at all to do it. */
static bool enqueue(struct native_session *s, struct native_job *job)
{
    struct native_pool *pool = &s->pool;
    bool taken;

    pthread_mutex_lock(&pool->lock);
    taken = !pool->stopped && (pool->waiting < pool->idle || start_thread(s) || pool->threads);
    if (taken) {
        *pool->last = job;
        pool->last = &job->next;
        pool->waiting++;
    }
    pthread_mutex_unlock(&pool->lock);
    if (taken)
        pthread_cond_signal(&pool->wake);   /* without the lock, which who wakes up takes first */
    return taken;
}

/*
 * Hands a request that has begun to the pool.  Where that cannot be, it is run here and now, at worst without memory;
 * returns whether the frame's memory has been taken.
 */
bool native_run_later(struct native_connection *c, struct native_call *call, struct native_frame *frame)
{
    const size_t size = frame->owned ? 0 : (size_t)frame->header_size + frame->payload_size;
    struct native_job *job = malloc(sizeof *job + size), here = { .connection = c, .frame = *frame };
    struct room room = { NULL, 0 };

    if (job) {
        *job = (struct native_job){ .connection = c, .frame = *frame };
        if (!frame->owned) {
            memcpy(job->memory, frame->header, frame->header_size);
            if (frame->payload_size)
                memcpy(job->memory + frame->header_size, frame->payload, frame->payload_size);
            job->frame.header = job->memory;
            job->frame.payload = job->memory + frame->header_size;
        }
        native_connection_hold(c);
        if (enqueue(call->session, job))
            return true;
        native_connection_drop(c);
        free(job);
    }
    run_job(call->session, &here, &room);
    free(room.memory);
    return false;
}

/* Lets a worker wait until the client reads. */
bool native_flush_later(struct native_connection *c)
{
    struct native_job *job = calloc(1, sizeof *job);

    if (!job)
        return false;
    job->connection = c;
    job->flush = true;
    native_connection_hold(c);
    if (enqueue(c->session, job))
        return true;
    native_connection_drop(c);
    free(job);
    return false;
}

/*
 * Takes no more jobs and lets the threads end, once each has done what it does; waits `patience` seconds for that.
 * Returns whether all have ended.  Once, by a thread that is none of them.
 */
bool native_session_stop(struct native_session *s, double patience)
{
    struct native_pool *pool = &s->pool;
    struct timespec end;
    bool all = true;

    pthread_mutex_lock(&pool->lock);
    pool->stopped = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += (time_t)patience;
    end.tv_nsec += (long)((patience - (double)(time_t)patience) * 1e9);
    if (end.tv_nsec >= 1000000000) {
        end.tv_nsec -= 1000000000;
        end.tv_sec++;
    }
    for (uint32_t i = 0; i < pool->threads; i++)
        all = !pthread_timedjoin_np(pool->ids[i], NULL, &end) && all;
    return all;
}
