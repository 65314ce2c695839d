/*
 * Handles: what OPEN, CREATE and OPENDIR gave.  A handle's number is generation << 32 | row, like a node id.  It keeps
 * its inode's row alive, and never says anything about the host's descriptor behind it.
 */
#include "tables.h"

#include <stdlib.h>
#include <string.h>

#define DIRECTORY_BUFFER 32768u

/*
 * A handle for an open file of an inode in use.  Takes `fd`, for which one descriptor was reserved.  Returns 0 or
 * -ENFILE where the table is full; the descriptor stays the caller's then.
 */
int handle_new(struct tables *t, const struct used *inode, int fd, uint32_t flags, uint64_t *handle)
{
    struct tables_header *h = t->header;
    struct handle_row *r = NULL;
    uint32_t row;

    inode_hold(t, inode);
    pthread_mutex_lock(&t->handles_lock);
    row = t->free_handle;
    if (row) {
        t->free_handle = t->handles[row].next;
    } else if (h->handles < h->max_handles &&
               (h->handles < t->handles_allocated ||
                !allocate_rows(t, h->handles_at, sizeof *r, h->max_handles, &t->handles_allocated))) {
        row = h->handles;
        store_word(&h->handles, row + 1);
    }
    if (row) {
        r = &t->handle_rows[row];
        r->flags = flags & ~((uint32_t)(O_CREAT | O_EXCL | O_TRUNC) | HANDLE_LOCKS);
        r->node = inode->node;
        t->handles[row] = (struct handle){ .fd = fd };
        store_word(&r->word, r->word | 1);
        *handle = (uint64_t)(r->word >> 1) << 32 | row;
        slot_made(*handle);
        t->live_handles++;
    }
    pthread_mutex_unlock(&t->handles_lock);
    if (row)
        return 0;
    inode_unhold(t, inode->node);
    return -ENFILE;
}

/* The row of a handle that is known, or 0.  Wants handles_lock. */
uint32_t handle_row_locked(const struct tables *t, uint64_t handle)
{
    uint32_t row = row_of(handle);

    if (!row || row >= t->header->handles || handle >> 32 > MAX_GENERATION)
        return 0;
    return t->handle_rows[row].word == live_word(handle) ? row : 0;
}

/* An open file for a row that outlived its process; what opening did once (creating, truncating) is not done again. */
static int open_again(struct tables *t, struct used_handle *used)
{
    struct used inode;
    int fd = -1, error = fds_reserve(t, 1);

    if (error)
        return error;
    error = inode_use(t, used->node, &inode);
    if (!error) {
        fd = reopen(t, inode.fd, (int)used->flags);
        error = fd < 0 ? fd : 0;
        inode_done(t, &inode);
    }
    if (error) {
        fds_release(t, 1);
        return error;
    }
    pthread_mutex_lock(&t->handles_lock);
    used->fd = t->handles[used->row].fd;
    if (used->fd < 0)
        used->fd = t->handles[used->row].fd = fd;
    pthread_mutex_unlock(&t->handles_lock);
    if (used->fd != fd) {
        close(fd);
        fds_release(t, 1);
    }
    return 0;
}

/*
 * The open file of a handle, which stays open until handle_done.  Returns 0 or -errno: EBADF where the handle is not
 * known, or is one of a directory where a file is wanted or the reverse.
 */
int handle_use(struct tables *t, uint64_t handle, bool directory, struct used_handle *used)
{
    int error = 0;

    pthread_mutex_lock(&t->handles_lock);
    used->row = handle_row_locked(t, handle);
    if (used->row) {
        used->fd = t->handles[used->row].fd;
        used->flags = t->handle_rows[used->row].flags & ~HANDLE_LOCKS;
        used->node = t->handle_rows[used->row].node;
        if (directory != ((used->flags & HANDLE_OF_DIRECTORY) != 0)) {
            used->row = 0;
        } else {
            t->handles[used->row].uses++;
            t->handles[used->row].used = true;
        }
    }
    pthread_mutex_unlock(&t->handles_lock);
    if (!used->row)
        return -EBADF;
    if (used->fd < 0)
        error = open_again(t, used);
    if (error)
        handle_done(t, used);
    return error;
}

/* The same for a file where it needs no waiting: it is open here. */
bool handle_use_quick(struct tables *t, uint64_t handle, struct used_handle *used)
{
    bool ready = false;

    pthread_mutex_lock(&t->handles_lock);
    used->row = handle_row_locked(t, handle);
    if (used->row) {
        used->fd = t->handles[used->row].fd;
        used->flags = t->handle_rows[used->row].flags & ~HANDLE_LOCKS;
        used->node = t->handle_rows[used->row].node;
        ready = used->fd >= 0 && !(used->flags & HANDLE_OF_DIRECTORY);
        if (ready) {
            t->handles[used->row].uses++;
            t->handles[used->row].used = true;
        }
    }
    pthread_mutex_unlock(&t->handles_lock);
    return ready;
}

/* Takes a released handle that nobody uses apart.  Closing may take seconds (a large unlinked file), so: no lock. */
static void finish(struct tables *t, const struct handle *handle, uint64_t node)
{
    if (handle->directory) {
        pthread_mutex_destroy(&handle->directory->lock);
        free(handle->directory->buffer);
        free(handle->directory);
    }
    if (handle->fd >= 0) {
        close_fd(handle->fd);
        fds_release(t, 1);
    }
    inode_unhold(t, node);
}

/* Gives the row back.  Wants handles_lock, and that the row's word says that it is free. */
static struct handle take_locked(struct tables *t, uint32_t row)
{
    struct handle handle = t->handles[row];

    t->live_handles--;
    if (t->handle_rows[row].word >> 1 <= MAX_GENERATION) {
        t->handles[row].next = t->free_handle;
        t->free_handle = row;
    }
    return handle;
}

void handle_done(struct tables *t, struct used_handle *used)
{
    struct handle handle;
    bool last;

    pthread_mutex_lock(&t->handles_lock);
    last = !--t->handles[used->row].uses && t->handles[used->row].closing;
    if (last)
        handle = take_locked(t, used->row);
    pthread_mutex_unlock(&t->handles_lock);
    if (last)
        finish(t, &handle, used->node);
}

/* Ends a handle; calls that use it end first.  Returns 0, or -EBADF where it is not known. */
int handle_release(struct tables *t, uint64_t number, bool taken)
{
    struct handle handle;
    uint64_t node = 0;
    bool last = false, used = false;
    uint32_t row;

    pthread_mutex_lock(&t->handles_lock);
    row = handle_row_locked(t, number);
    if (row) {
        node = t->handle_rows[row].node;
        store_word(&t->handle_rows[row].word, ((t->handle_rows[row].word >> 1) + 1) << 1);
        t->handles[row].closing = true;
        last = !t->handles[row].uses;
        used = t->handles[row].used;
        if (last)
            handle = take_locked(t, row);
    }
    pthread_mutex_unlock(&t->handles_lock);
    if (row)
        keep_released(t, node, number, taken || used);
    if (last)
        finish(t, &handle, node);
    return row ? 0 : -EBADF;
}

/* Whether a handle that is still open has been used. */
bool handle_was_used(struct tables *t, uint64_t handle)
{
    uint32_t row;
    bool used;

    pthread_mutex_lock(&t->handles_lock);
    row = handle_row_locked(t, handle);
    used = row && t->handles[row].used;
    pthread_mutex_unlock(&t->handles_lock);
    return used;
}

/* A lock of this kind (HANDLE_LOCKED, HANDLE_FLOCKED) is held by way of the handle, or none is. */
void handle_note_lock(struct tables *t, uint64_t handle, uint32_t lock, bool held)
{
    uint32_t row;

    pthread_mutex_lock(&t->handles_lock);
    row = handle_row_locked(t, handle);
    if (row)
        t->handle_rows[row].flags = held ? t->handle_rows[row].flags | lock : t->handle_rows[row].flags & ~lock;
    pthread_mutex_unlock(&t->handles_lock);
}

/* The reading position of a directory's handle in use; NULL where there is no memory. */
struct directory *handle_directory(struct tables *t, const struct used_handle *used)
{
    struct directory *directory;

    pthread_mutex_lock(&t->handles_lock);
    directory = t->handles[used->row].directory;
    if (!directory) {
        directory = calloc(1, sizeof *directory);
        if (directory)
            directory->buffer = malloc(DIRECTORY_BUFFER);
        if (directory && directory->buffer) {
            pthread_mutex_init(&directory->lock, NULL);
            directory->room = DIRECTORY_BUFFER;
            t->handles[used->row].directory = directory;
        } else {
            free(directory);
            directory = NULL;
        }
    }
    pthread_mutex_unlock(&t->handles_lock);
    return directory;
}

/* The handles of a memfd that was mapped: each holds its inode; descriptors come with the first use. */
void handles_rebuild(struct tables *t)
{
    for (uint32_t row = 1; row < t->header->handles; row++) {
        struct handle_row *r = &t->handle_rows[row];
        uint32_t word = load_word(&r->word), inode = row_of(r->node);

        t->handles[row] = (struct handle){ .fd = -1 };
        if (word & 1 && (!inode || inode >= t->header->inodes || t->inode_rows[inode].word != live_word(r->node))) {
            word = ((word >> 1) + 1) << 1;   /* its inode went first; nothing can be done with it */
            store_word(&r->word, word);
        }
        if (word & 1 && r->flags & HANDLE_LOCKS) {
            t->counters.lost_locks++;        /* unless it comes: succession.c */
            r->flags &= ~HANDLE_LOCKS;
        }
        if (word & 1) {
            t->inodes[inode].handles++;
            t->live_handles++;
        } else if (word >> 1 <= MAX_GENERATION) {
            t->handles[row].next = t->free_handle;
            t->free_handle = row;
        }
    }
    inodes_settle(t);
}
