/*
 * What a request notes in its slot before it takes effect, and what the next process concludes from it where this one died
 * meanwhile: only what proves itself.
 *
 * The slot is that of the request which the calling thread runs; without one nothing is noted.
 */
#include "operations.h"

#include <stdio.h>   /* RENAME_* */
#include <string.h>

static __thread struct slot_row *running;

void slot_enter(struct tables *t, uint32_t slot) { running = &t->slot_rows[slot]; }
void slot_leave(void) { running = NULL; }

static uint64_t seq_of(const struct slot_row *r) { return r->word >> 10; }

/* How many processes have died while they ran this request. */
uint32_t slot_deaths(const struct tables *t)
{
    (void)t;
    return running && running->deaths_seq == seq_of(running) ? running->deaths : 0;
}

/* How many forgets of this request's batch were begun before. */
uint32_t slot_progress(const struct tables *t)
{
    (void)t;
    return running && running->progress_seq == seq_of(running) ? running->progress : 0;
}

/* Said before the forget, so that none is done twice: in doubt a count stays too high. */
void slot_progressed(struct tables *t, uint32_t count)
{
    (void)t;
    if (!running)
        return;
    if (running->progress_seq != seq_of(running)) {
        running->progress = 0;
        __atomic_store_n(&running->progress_seq, seq_of(running), __ATOMIC_RELEASE);
    }
    __atomic_store_n(&running->progress, count, __ATOMIC_RELEASE);
}

/* The handle is this request's: nobody else knows it before it is answered. */
void slot_made(uint64_t handle)
{
    if (!running)
        return;
    running->made = handle;
    __atomic_store_n(&running->made_seq, seq_of(running), __ATOMIC_RELEASE);
}

/* Releases the handle that the process before had made for this request. */
void settle_made(struct tables *t)
{
    if (running && running->made_seq == seq_of(running))
        handle_release(t, running->made, false);
}

/* Whether the handle appends; -errno where it is not known. */
int handle_appends(struct tables *t, uint64_t handle)
{
    struct used_handle used;
    int error = handle_use(t, handle, false, &used);

    if (error)
        return error;
    handle_done(t, &used);
    return (used.flags & O_APPEND) != 0;
}

static void describe(const struct leaving *what, struct noted_inode *noted)
{
    *noted = (struct noted_inode){ .handle_size = NOTHING };
    if (!what->there)
        return;
    noted->dev = what->st.st_dev;
    noted->ino = what->st.st_ino;
    noted->handle_type = what->id.type;
    noted->handle_size = what->id.size;
    memcpy(noted->handle, what->id.bytes, what->id.size);
}

/* Without file handles nothing proves itself: a number may have been given to another inode. */
static bool same(const struct noted_inode *a, const struct noted_inode *b)
{
    return a->handle_size && a->handle_size <= FILE_HANDLE_ROOM && a->handle_size == b->handle_size &&
           a->dev == b->dev && a->ino == b->ino && a->handle_type == b->handle_type &&
           !memcmp(a->handle, b->handle, a->handle_size);
}

static bool nothing(const struct noted_inode *noted) { return noted->handle_size == NOTHING; }

/* What the names of this request stand for, which is about to change that. */
void slot_note(const struct leaving *from, const struct leaving *to)
{
    if (!running)
        return;
    describe(from, &running->from);
    describe(to, &running->to);
    __atomic_store_n(&running->noted_seq, seq_of(running), __ATOMIC_RELEASE);
}

/* What a name stands for now. */
static int look(struct tables *t, uint64_t parent, const char *name, size_t size, struct noted_inode *found)
{
    struct leaving now;
    struct used directory;
    int error = check_name(name, size);

    if (!error)
        error = inode_use(t, parent, &directory);
    if (error)
        return error;
    error = leaving_find(t, directory.fd, name, &now);
    describe(&now, found);
    leaving_done(t, &now);
    inode_done(t, &directory);
    return error == -ENOENT ? 0 : error;
}

/* Whether UNLINK or RMDIR has been done by a process that died: enum settled, or -errno where that cannot be seen. */
int settle_removal(struct tables *t, uint64_t parent, const char *name, size_t size)
{
    struct noted_inode now;
    int error;

    if (!running || running->noted_seq != seq_of(running))
        return SETTLED_NOT_DONE;     /* it had not come that far */
    error = look(t, parent, name, size, &now);
    if (error)
        return error;
    if (nothing(&now))
        return SETTLED_DONE;
    return same(&now, &running->from) ? SETTLED_NOT_DONE : SETTLED_UNKNOWN;
}

/* The same of RENAME, with the flags of renameat2(2). */
int settle_rename(struct tables *t, uint64_t parent, const char *name, size_t size, uint64_t new_parent,
                  const char *new_name, size_t new_size, uint32_t flags)
{
    struct noted_inode from, to;
    const struct noted_inode *was_from, *was_to;
    int error;

    if (!running || running->noted_seq != seq_of(running))
        return SETTLED_NOT_DONE;
    was_from = &running->from;
    was_to = &running->to;
    if (nothing(was_from))
        return SETTLED_NOT_DONE;     /* nor could it have been */
    error = look(t, parent, name, size, &from);
    if (!error)
        error = look(t, new_parent, new_name, new_size, &to);
    if (error)
        return error;
    if (same(&from, was_from) && (nothing(was_to) ? nothing(&to) : same(&to, was_to)))
        return SETTLED_NOT_DONE;     /* also where both are one inode: then it does nothing, however often */
    if (!same(&to, was_from))
        return SETTLED_UNKNOWN;
    if (flags & RENAME_EXCHANGE)
        return same(&from, was_to) ? SETTLED_DONE : SETTLED_UNKNOWN;
    return flags & RENAME_WHITEOUT || nothing(&from) ? SETTLED_DONE : SETTLED_UNKNOWN;
}
