/*
 * The native server: threads that receive requests, run the hot ones on the tables and answer them, without Python.
 * What they do is what server/session.py and wire/server_session.py do; every frame that is unusual in any way (another
 * operation, another form, a slot rule that it breaks, a resent request) goes to Python unchanged.
 *
 * One thread receives on a connection (it "leads", server/leading.py) and runs what it receives; what is known to wait,
 * or was slow of late, it gives to the pool.  Where it is held up all the same, another thread leads (native_watch.c).
 * Replies leave under the connection's send lock, whoever made them.
 *
 * Lock order: a slot's lock > pool.lock, watch.lock, a connection's `send` lock.  The last three are leaves.
 */
#ifndef FUSEPIPE_NATIVE_H
#define FUSEPIPE_NATIVE_H

#include "operations.h"

#include "native_messages.h"

#define REPLY_HEADER 512u            /* bytes: a prefix and the longest header of a native reply without a long value */
#define MAX_GROUPS 32u               /* supplementary groups of who makes something; Python takes any number */
#define LATER (-WIRE_ERRNO_MAX - 1)  /* no errno: it cannot be done without waiting */

struct native_connection;
struct native_job;

/* Guarded by `lock`, which is the slot's lock also for Python and for the slot's row in the tables. */
struct native_slot {
    pthread_mutex_t lock;
    struct native_connection *route; /* where the reply goes; holds a reference */
    uint64_t charge;                 /* bytes in flight */
    uint64_t running;                /* seq of the request that runs, or 0 */
    pthread_t thread;                /* who runs it; 0 while it waits for a worker */
    uint64_t early;                  /* seq of the request that was interrupted before it ran */
};

struct native_pool {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct native_job *first, **last;
    uint32_t waiting, idle, threads, limit;
    pthread_t *ids;
    bool stopped;
};

struct native_watch {
    pthread_mutex_t lock;            /* guards what follows */
    pthread_cond_t roused;
    struct native_connection *first; /* those that are led; holds a reference to each */
    uint32_t quiet;
    bool awake;                      /* atomic */
    bool stopped;
};

/* How long requests of one kind have taken: what is expected to be slow goes to the pool. */
struct native_pace {
    uint32_t expected;               /* atomic: so many of them are taken to be slow */
    uint32_t next;                   /* atomic: how many will be, when the next one that is tried is slow */
    uint32_t untried;                /* atomic: so many of them are run without `quick`, which would fail */
};

#define OPERATIONS 128u              /* numbers of operations are below */

struct native_session {
    struct tables *t;
    uint32_t slot_count, request_slots, cleanup_slots, max_read, max_name;
    uint64_t max_in_flight;
    uint64_t in_flight;              /* atomic, like the five below */
    uint32_t unsettled;              /* replies that have been made and not been sent */
    bool agreed, draining;
    bool leaving;                    /* what is interrupted now has not run: the next process is asked again */
    bool locks_used;                 /* handles may have locks, which are Python's: it takes all releases from then on */
    int interrupt_signal;
    void (*report_wrong)(void *context, uint64_t *numbers, uint32_t count);
    void *context;
    struct native_pool pool;
    struct native_watch watch;
    struct native_pace paces[OPERATIONS];
    struct native_slot slots[];
};

/* A frame that was received, in memory that stays until the next one is asked for, or that the frame owns. */
struct native_frame {
    const unsigned char *header, *payload;
    uint32_t header_size, payload_size;
    unsigned char *owned;
};

/* A reply that waits to be sent: its header stands at `header` + WIRE_PREFIX. */
struct native_reply {
    unsigned char *header, *payload;
    uint32_t header_size, payload_size;
    unsigned char crc[4];
};

#define BATCH 32u                    /* replies that leave together */
#define ARENA ((size_t)512 << 10)    /* bytes of their headers and payloads */
#define BUFFER ((size_t)128 << 10)   /* bytes that one receive takes at most */

struct native_connection {
    struct native_session *session;
    int fd;
    size_t limit;                    /* bytes that one call may send */
    uint32_t references;             /* atomic */
    bool current;                    /* atomic: requests that come on it count */

    /* Of the thread that leads. */
    unsigned char *buffer, *large, *given, *arena;
    size_t start, end, large_size, large_filled, arena_used;
    uint32_t number_in, max_header, max_payload;
    bool crc_in, first_in, prefix_checked;
    struct native_reply batch[BATCH];
    uint32_t batched;
    uint64_t ready;                  /* when the first of them was */
    uint64_t jobs;

    uint64_t busy;                   /* atomic: the number of what the leader works at; 0 while it receives */

    bool watched;                    /* guarded by the watch's lock, like the next three */
    struct native_connection *next;
    uint64_t seen;                   /* what it was at when the watch looked last */
    uint32_t looks;                  /* how often it has been seen there */

    pthread_mutex_t send;            /* guards what follows */
    pthread_cond_t room;
    uint32_t number_out;
    bool crc_out, first_out, receiving, flushing, shut;
    unsigned char *unsent;
    size_t unsent_start, unsent_size, unsent_room;
};

/* A request: decoded, and where its reply goes. */
struct native_call {
    struct native_session *session;
    const struct native_op *op;
    uint64_t seq;
    uint32_t slot;
    union {
        struct wire_lookup_request lookup;
        struct wire_getattr_request getattr;
        struct wire_setattr_request setattr;
        struct wire_open_request open;
        struct wire_create_request create;
        struct wire_read_request read;
        struct wire_write_request write;
        struct wire_readdir_request readdir;
        struct wire_opendir_request opendir;
        struct wire_unlink_request unlink;
        struct wire_rmdir_request rmdir;
        struct wire_mkdir_request mkdir;
        struct wire_readlink_request readlink;
        struct wire_symlink_request symlink;
        struct wire_link_request link;
        struct wire_rename_request rename;
        struct wire_flush_request flush;
        struct wire_fsync_request fsync;
        struct wire_getxattr_request getxattr;
        struct wire_cleanup_request cleanup;
    } request;
    const unsigned char *payload;
    uint32_t payload_size;
    uint32_t reply_room;             /* bytes of payload that the reply may have */
    uint32_t header_room;            /* bytes that `run` needs for prefix and header; `quick` has REPLY_HEADER */
    unsigned char *header, *data;    /* the reply's: room for a header, behind that of a prefix, and for `reply_room` */
    uint32_t data_size;
};

/*
 * `read` decodes and checks; `run` and `quick` carry out and write the reply's header, and return where it ends, or set
 * `*error` to -errno; `quick` also to LATER.  `dear`: `quick` makes more system calls than `run`.
 */
struct native_op {
    uint32_t number, fields;
    bool cleanup, payload, dear;
    bool (*read)(struct wire_reader *reader, struct native_call *call);
    unsigned char *(*run)(struct native_call *call, int *error);
    unsigned char *(*quick)(struct native_call *call, int *error);
};

/* native_operations.c */
const struct native_op *native_op(uint32_t number);

/* native_calls.c */
bool native_decode(struct native_session *s, const struct native_frame *frame, struct native_call *call);
bool native_begin(struct native_call *call, struct native_connection *c, uint64_t in_flight, int *error);
void native_carry_out(struct native_call *call, bool quick, int *error, struct native_reply *reply);
struct native_connection *native_settle(struct native_call *call, const struct native_reply *reply, int error);
void native_answer(struct native_call *call, struct native_reply *reply, int error);
void native_start(struct native_call *call, int *error);
bool native_is_slow(struct native_session *s, uint32_t number);
bool native_may_be_slow(struct native_session *s, uint32_t number);
bool native_tries(struct native_session *s, const struct native_op *op);
void native_missed(struct native_session *s, uint32_t number);
void native_took(struct native_session *s, uint32_t number, uint64_t nanoseconds);

/* native_watch.c */
void native_watch_init(struct native_watch *w);
void native_watch_free(struct native_session *s);
void native_watch_add(struct native_session *s, struct native_connection *c);
void native_watch_remove(struct native_session *s, struct native_connection *c);

/* native_pool.c */
bool native_pool_start(struct native_session *s);
bool native_run_later(struct native_connection *c, struct native_call *call, struct native_frame *frame);
bool native_flush_later(struct native_connection *c);

/* native_receiving.c */
void native_send_batch(struct native_connection *c);

/* native_sending.c */
void native_connection_hold(struct native_connection *c);
void native_connection_drop(struct native_connection *c);
void native_send_replies(struct native_connection *c, struct native_reply *replies, uint32_t count);
void native_flush(struct native_connection *c);

/* Asked from Python; any thread unless it says otherwise. */
struct native_session *native_session_new(struct tables *t, int interrupt_signal,
                                          void (*report_wrong)(void *, uint64_t *, uint32_t), void *context);
void native_session_agree(struct native_session *s, uint32_t request_slots, uint32_t cleanup_slots,
                          uint32_t connections, uint32_t max_read, uint32_t max_name, uint64_t max_in_flight);
void native_session_drain(struct native_session *s, bool leaving);
void native_session_has_locks(struct native_session *s);
bool native_session_stop(struct native_session *s, double patience);
void native_session_free(struct native_session *s);
uint32_t native_session_unsettled(const struct native_session *s);

void native_slot_lock(struct native_session *s, uint32_t slot);
void native_slot_unlock(struct native_session *s, uint32_t slot);
/* The following ones of a slot are called under its lock. */
bool native_slot_charge(struct native_session *s, uint32_t slot, uint64_t size);
void native_slot_discharge(struct native_session *s, uint32_t slot);
uint64_t native_in_flight(const struct native_session *s);
void native_slot_set_route(struct native_session *s, uint32_t slot, struct native_connection *c);
struct native_connection *native_slot_route(const struct native_session *s, uint32_t slot);
bool native_slot_start(struct native_session *s, uint32_t slot, uint64_t seq);
void native_slot_end(struct native_session *s, uint32_t slot);
uint64_t native_slot_running(const struct native_session *s, uint32_t slot, uint64_t *thread);
void native_slot_expect(struct native_session *s, uint32_t slot, uint64_t seq);

uint64_t native_lead_begin(struct native_connection *c, bool here);
bool native_lead_end(struct native_connection *c, uint64_t job);
bool native_lead_take(struct native_connection *c, uint64_t job);
const struct native_connection *native_watch(struct native_session *s, uint64_t *job);
void native_watch_rouse(struct native_session *s);
void native_watch_stop(struct native_session *s);

enum native_kind { NATIVE_FRAME, NATIVE_END, NATIVE_CUT, NATIVE_FAILED, NATIVE_BROKEN, NATIVE_RELIEVED };
struct native_event {
    /* CUT: the stream ended within a frame; FAILED: `error` is an errno; RELIEVED: another thread leads now */
    uint32_t kind;
    int error;
    const char *reason;              /* of BROKEN */
    const unsigned char *header, *payload;
    uint32_t header_size, payload_size;
};
struct native_connection *native_connection_new(struct native_session *s, int fd, size_t limit);
void native_connection_bounds(struct native_connection *c, uint32_t max_header, uint32_t max_payload);
void native_connection_sums(struct native_connection *c, bool in, bool out);
void native_connection_set_current(struct native_connection *c, bool current);
bool native_connection_feed(struct native_connection *c, const unsigned char *data, size_t size);
void native_receive(struct native_connection *c, struct native_event *event);   /* the thread that leads */
void native_send(struct native_connection *c, const unsigned char *header, uint32_t header_size,
                 const unsigned char *payload, uint32_t payload_size);
bool native_has_unsent(struct native_connection *c);
void native_shut(struct native_connection *c);
void native_end_receiving(struct native_connection *c);

#endif
