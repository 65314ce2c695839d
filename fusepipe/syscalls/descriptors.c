/*
 * The budget of file descriptors.  Those of open files and of inodes that nothing but their descriptor can find stay;
 * those of inodes with a file handle are a cache.  What is given up first: files that were not used since eviction last
 * came by, then directories (finding one again by handle searches its parent).  Inodes without a name left are pinned,
 * because a handle no longer finds them; where there is nothing else to give up and pins take more than half of the
 * budget, the oldest of them goes too (its inode then answers ESTALE).
 *
 * Where a broker opens handles, it has to have signed for an inode before its descriptor goes.  It is asked for many at
 * once, and never for those of a guest that stays within the budget.
 */
#include "tables.h"

#include <string.h>

#define LOOK_AHEAD (8 * SIGN_TOGETHER)   /* descriptors that are looked at for some that nobody has signed for */

static void append(struct tables *t, uint32_t row, enum fd_list list)
{
    struct fd_chain *chain = &t->chains[list];
    struct inode *inode = &t->inodes[row];

    inode->list = (uint8_t)list;
    inode->older = chain->newest;
    inode->newer = 0;
    if (chain->newest)
        t->inodes[chain->newest].newer = row;
    else
        chain->oldest = row;
    chain->newest = row;
    chain->length++;
}

static void unlink_row(struct tables *t, uint32_t row)
{
    struct inode *inode = &t->inodes[row];
    struct fd_chain *chain = &t->chains[inode->list];

    if (inode->list == LIST_NONE)
        return;
    *(inode->older ? &t->inodes[inode->older].newer : &chain->oldest) = inode->newer;
    *(inode->newer ? &t->inodes[inode->newer].older : &chain->newest) = inode->older;
    chain->length--;
    inode->list = LIST_NONE;
}

/* Gives the row a descriptor that was reserved.  Wants inodes_lock, and that the row has none. */
void fd_install_locked(struct tables *t, uint32_t row, int fd, uint32_t filesystem, bool pin)
{
    struct inode_row *r = &t->inode_rows[row];
    struct inode *inode = &t->inodes[row];

    inode->fd = fd;
    inode->filesystem = (uint16_t)filesystem;
    inode->referenced = true;
    if (pin)
        append(t, row, LIST_PINS);
    else if (r->handle_size)
        append(t, row, r->type == S_IFDIR >> 12 ? LIST_DIRECTORIES : LIST_FILES);
}

/* Takes the row's descriptor away; the caller closes it, without the lock.  Wants inodes_lock. */
int fd_remove_locked(struct tables *t, uint32_t row)
{
    struct inode *inode = &t->inodes[row];
    int fd = inode->fd;

    if (fd >= 0) {
        unlink_row(t, row);
        inode->fd = -1;
        t->counters.fds--;
    }
    return fd;
}

/* The inode has lost its last name: its descriptor is no longer a cache.  Wants inodes_lock. */
void fd_pin_locked(struct tables *t, uint32_t row)
{
    if (t->inodes[row].list == LIST_FILES || t->inodes[row].list == LIST_DIRECTORIES) {
        unlink_row(t, row);
        append(t, row, LIST_PINS);
    }
}

/* The oldest inode of a list that nobody uses, or 0; used ones and, once, referenced ones move to the other end. */
static uint32_t candidate(struct tables *t, enum fd_list list)
{
    for (uint32_t tries = 2 * t->chains[list].length; tries; tries--) {
        uint32_t row = t->chains[list].oldest;
        struct inode *inode = &t->inodes[row];

        if (!inode->uses && !inode->referenced)
            return row;
        inode->referenced = false;
        unlink_row(t, row);
        append(t, row, list);
    }
    return 0;
}

/* The broker has signed for the row's inode.  Wants inodes_lock. */
void tag_locked(struct tables *t, uint32_t row, const unsigned char *tag)
{
    struct inode_row *r = &t->inode_rows[row];

    if (r->tagged)
        return;
    memcpy(r->tag, tag, TAG_SIZE);
    __atomic_store_n(&r->tagged, 1, __ATOMIC_RELEASE);
    t->counters.signed_handles++;
}

/* The broker has answered for these rows, and signed for those without an error. */
void tag_signed(struct tables *t, const uint32_t *rows, const struct signature *signatures, uint32_t count)
{
    pthread_mutex_lock(&t->inodes_lock);
    for (uint32_t i = 0; i < count; i++)
        if (!signatures[i].error)
            tag_locked(t, rows[i], signatures[i].tag);
    pthread_mutex_unlock(&t->inodes_lock);
}

/*
 * Has the broker sign for `first` and for those that are to be given up after it.  Comes and goes with inodes_lock held,
 * but leaves it for the broker.  An inode that it does not sign for lives by its descriptor from now on.  Returns 0, or
 * -ENFILE where there is no broker any more, or it has no room for descriptors.
 */
static int sign_oldest(struct tables *t, uint32_t first)
{
    uint32_t rows[SIGN_TOGETHER], count = 0, steps = LOOK_AHEAD;
    struct signature signatures[SIGN_TOGETHER];
    int fds[SIGN_TOGETHER], closing[SIGN_TOGETHER], error;

    for (uint32_t row = first; row && steps-- && count < SIGN_TOGETHER; row = t->inodes[row].newer) {
        if (t->inode_rows[row].tagged)
            continue;
        t->inodes[row].uses++;
        fds[count] = t->inodes[row].fd;
        rows[count++] = row;
    }
    t->signing++;
    pthread_mutex_unlock(&t->inodes_lock);
    error = broker_sign(t, fds, count, signatures);
    if (!error && signatures[0].error == -ENFILE)
        error = -ENFILE;
    pthread_mutex_lock(&t->inodes_lock);
    for (uint32_t i = 0; i < count; i++) {
        t->inodes[rows[i]].uses--;
        if (!error && !signatures[i].error)
            tag_locked(t, rows[i], signatures[i].tag);
        else if (!error && signatures[i].error != -ENFILE && !t->inode_rows[rows[i]].tagged &&
                 t->inodes[rows[i]].list != LIST_PINS)
            unlink_row(t, rows[i]);
        closing[i] = inode_settle_locked(t, rows[i]);
    }
    t->signing--;
    pthread_cond_broadcast(&t->signed_some);
    pthread_mutex_unlock(&t->inodes_lock);
    for (uint32_t i = 0; i < count; i++)
        close_fd(closing[i]);
    pthread_mutex_lock(&t->inodes_lock);
    return error ? -ENFILE : 0;
}

/*
 * Gives one cached descriptor up, or says -ENFILE.  Comes and goes with inodes_lock held, but leaves it for the system
 * calls.  An inode that lost its last name without our doing is pinned instead.
 */
static int evict(struct tables *t)
{
    for (;;) {
        struct stat st;
        uint32_t row = candidate(t, LIST_FILES);
        int fd, failed;
        bool pin = false;

        if (!row)
            row = candidate(t, LIST_DIRECTORIES);
        if (row && t->broker_fd >= 0 && !t->inode_rows[row].tagged) {
            if (sign_oldest(t, row))
                return -ENFILE;
            continue;
        }
        if (!row && t->signing) {
            pthread_cond_wait(&t->signed_some, &t->inodes_lock);
            return 0;                /* what is needed may be there by now */
        }
        if (!row && t->chains[LIST_PINS].length > t->fd_budget / 2) {
            row = candidate(t, LIST_PINS);
            pin = true;
        }
        if (!row)
            return -ENFILE;
        t->inodes[row].uses++;
        fd = t->inodes[row].fd;
        pthread_mutex_unlock(&t->inodes_lock);
        failed = fstat(fd, &st);
        pthread_mutex_lock(&t->inodes_lock);
        t->inodes[row].uses--;
        if (inode_settle_locked(t, row) < 0) {   /* else it was forgotten meanwhile, and its descriptor is ours to close */
            if (!pin && !failed && !st.st_nlink) {
                fd_pin_locked(t, row);
                continue;
            }
            if (t->inodes[row].uses || t->inodes[row].fd != fd)
                continue;
            pin_drop_locked(t, row);
            fd_remove_locked(t, row);
            t->counters.evictions++;
            t->counters.pins_given_up += pin;
        }
        pthread_mutex_unlock(&t->inodes_lock);
        close(fd);
        pthread_mutex_lock(&t->inodes_lock);
        return 0;
    }
}

/* Room for `count` more descriptors, which may cost cached ones.  Returns 0 or -ENFILE. */
int fds_reserve(struct tables *t, unsigned count)
{
    int error = 0;

    pthread_mutex_lock(&t->inodes_lock);
    while (!error && t->counters.fds + count > t->fd_budget)
        error = evict(t);
    if (!error)
        t->counters.fds += count;
    pthread_mutex_unlock(&t->inodes_lock);
    return error;
}

void fds_release(struct tables *t, unsigned count)
{
    pthread_mutex_lock(&t->inodes_lock);
    t->counters.fds -= count;
    pthread_mutex_unlock(&t->inodes_lock);
}
