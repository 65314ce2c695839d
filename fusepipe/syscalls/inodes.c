/*
 * Inodes: node ids, lookup counts and uses.
 *
 * A node id is generation << 32 | row and is never given twice.  What makes two openings the same inode: device and
 * inode number, and, since filesystems give the number of a deleted file to the next one, either a descriptor that the
 * row still holds (so the number cannot have been given away) or the same file handle, which has a generation of its own.
 * Where a program is the filesystem, only the handle tells: those that know inodes by their paths give each hard link an
 * inode of its own with the number of the others, and a descriptor of one fails when its name is gone.
 */
#include "tables.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_BUCKETS 1024u

static uint64_t hash(uint64_t dev, uint64_t ino)
{
    uint64_t x = (ino ^ dev << 40 ^ dev) * 0x9e3779b97f4a7c15ull;
    return x ^ x >> 32;
}

static uint32_t *bucket(struct tables *t, uint64_t dev, uint64_t ino)
{
    return &t->buckets[hash(dev, ino) & (t->bucket_count - 1)];
}

uint64_t inode_node(const struct tables *t, uint32_t row)
{
    return (uint64_t)(t->inode_rows[row].word >> 1) << 32 | row;
}

/* The file handle that stands in a row. */
void inode_file_id(const struct inode_row *row, struct file_id *id)
{
    id->type = row->handle_type;
    id->size = row->handle_size;
    memcpy(id->bytes, row->handle, FILE_HANDLE_ROOM);
    id->tagged = row->tagged;
    memcpy(id->tag, row->tag, TAG_SIZE);
}

static void chain(struct tables *t, uint32_t row)
{
    uint32_t *head = bucket(t, t->inode_rows[row].dev, t->inode_rows[row].ino);

    t->inodes[row].next = *head;
    *head = row;
}

/* Twice as many buckets, where there is memory for them. */
static void more_buckets(struct tables *t)
{
    uint32_t *old = t->buckets, count = t->bucket_count;
    uint32_t *buckets = calloc(2 * (size_t)count, sizeof *buckets);

    if (!buckets)
        return;
    t->buckets = buckets;
    t->bucket_count = 2 * count;
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t row = old[i], next; row; row = next) {
            next = t->inodes[row].next;
            chain(t, row);
        }
    free(old);
}

/*
 * The row of an open inode, or 0; without its file handle only a row that holds a descriptor can be known to be the same.
 * Wants inodes_lock.
 */
uint32_t inode_find_locked(struct tables *t, const struct stat *st, const struct file_id *id)
{
    uint32_t row = *bucket(t, st->st_dev, st->st_ino);

    for (; row; row = t->inodes[row].next) {
        const struct inode_row *r = &t->inode_rows[row];

        if (r->ino != st->st_ino || r->dev != st->st_dev)
            continue;
        if (t->inodes[row].fd >= 0 && !(r->handle_size && t->filesystems[t->inodes[row].filesystem].numbers_repeat))
            return row;
        if (id && id->size && r->handle_size == id->size && r->handle_type == id->type &&
            !memcmp(r->handle, id->bytes, id->size))
            return row;
    }
    return 0;
}

/* A row with one lookup counted, or 0 where there is no room. */
static uint32_t new_row(struct tables *t, uint64_t parent, const struct stat *st, const struct file_id *id)
{
    struct tables_header *h = t->header;
    struct inode_row *r;
    uint32_t row = t->free_inode;

    if (row) {
        t->free_inode = t->inodes[row].next;
    } else {
        if (h->inodes == h->max_inodes)
            return 0;
        if (h->inodes == t->inodes_allocated &&
            allocate_rows(t, h->inodes_at, sizeof *r, h->max_inodes, &t->inodes_allocated))
            return 0;
        row = h->inodes;
        store_word(&h->inodes, row + 1);
    }
    r = &t->inode_rows[row];
    r->type = (uint8_t)((st->st_mode & S_IFMT) >> 12);
    r->nlookup = 1;
    r->dev = st->st_dev;
    r->ino = st->st_ino;
    r->parent = parent;
    r->handle_size = (uint8_t)id->size;
    r->handle_type = id->type;
    memcpy(r->handle, id->bytes, id->size);
    r->tagged = id->tagged;
    if (id->tagged)
        memcpy(r->tag, id->tag, TAG_SIZE);
    t->inodes[row].fd = -1;
    t->inodes[row].dropped = (struct dropped){ 0 };
    store_word(&r->word, r->word | 1);
    if (++t->counters.inodes > t->bucket_count)
        more_buckets(t);
    chain(t, row);
    return row;
}

/*
 * Frees the row where nothing needs it any more.  Returns its descriptor, to be closed without the lock, or -1.  Wants
 * inodes_lock.
 */
int inode_settle_locked(struct tables *t, uint32_t row)
{
    struct inode_row *r = &t->inode_rows[row];
    struct inode *inode = &t->inodes[row];
    uint32_t *link, generation;
    int fd;

    if (r->nlookup || inode->uses || inode->handles || row == ROOT_ROW)
        return -1;
    for (link = bucket(t, r->dev, r->ino); *link != row; link = &t->inodes[*link].next)
        ;
    *link = inode->next;
    pin_drop_locked(t, row);
    fd = fd_remove_locked(t, row);
    generation = (r->word >> 1) + 1;
    store_word(&r->word, generation << 1);
    t->counters.inodes--;
    if (generation <= MAX_GENERATION) {
        inode->next = t->free_inode;
        t->free_inode = row;
    }
    return fd;
}

/* The row of a node id, or 0 where it was forgotten, or never given.  Wants inodes_lock. */
uint32_t inode_row_locked(const struct tables *t, uint64_t node)
{
    uint32_t row = row_of(node);

    if (!row || row >= t->header->inodes || node >> 32 > MAX_GENERATION)
        return 0;
    return t->inode_rows[row].word == live_word(node) ? row : 0;
}

static void count_locked(struct tables *t, uint32_t row)
{
    t->inode_rows[row].nlookup++;
}

/* What can be done for an inode that gets no descriptor of its own: the broker signs for it. */
static int sign_now(struct tables *t, int fd, struct file_id *id)
{
    struct signature signature;
    int error = broker_sign(t, &fd, 1, &signature);

    if (error || signature.error)
        return -ENFILE;
    id->tagged = true;
    memcpy(id->tag, signature.tag, TAG_SIZE);
    return 0;
}

/* Only a hint, for proving.c. */
static void moved_locked(struct tables *t, uint32_t row, uint64_t parent)
{
    if (parent)
        t->inode_rows[row].parent = parent;
}

/* One more lookup of an inode whose row has a descriptor. */
static void count_again_locked(struct tables *t, uint32_t row, uint64_t parent)
{
    count_locked(t, row);
    moved_locked(t, row, parent);
    t->inodes[row].referenced = true;
}

/* The node with these numbers of which there is a descriptor, so that no other inode can have them; or 0. */
uint64_t inode_open_node(struct tables *t, uint64_t dev, uint64_t ino)
{
    const struct stat st = { .st_dev = dev, .st_ino = ino };
    uint64_t node;
    uint32_t row;

    pthread_mutex_lock(&t->inodes_lock);
    row = inode_find_locked(t, &st, NULL);
    node = row ? inode_node(t, row) : 0;
    pthread_mutex_unlock(&t->inodes_lock);
    return node;
}

/*
 * As inode_enter for a name that was only looked at (`st`) after inode_open_node said `node`: -ENOENT where it may be
 * another inode.  Both times the row had a descriptor, so its inode was there in between, and nothing else had its numbers.
 */
int inode_enter_open(struct tables *t, uint64_t parent, uint64_t node, const struct stat *st)
{
    int filesystem = -ENOENT;
    uint32_t row;

    pthread_mutex_lock(&t->inodes_lock);
    row = inode_row_locked(t, node);
    if (row && t->inodes[row].fd >= 0 && t->inode_rows[row].dev == st->st_dev && t->inode_rows[row].ino == st->st_ino) {
        count_again_locked(t, row, parent);
        filesystem = t->inodes[row].filesystem;
    }
    pthread_mutex_unlock(&t->inodes_lock);
    return filesystem;
}

/* The row's inode has a name in this directory now. */
void inode_moved(struct tables *t, uint32_t row, uint64_t parent)
{
    pthread_mutex_lock(&t->inodes_lock);
    moved_locked(t, row, parent);
    pthread_mutex_unlock(&t->inodes_lock);
}

/*
 * Counts one lookup of an open inode, in its row or in a new one, and says its node id.  `parent` is that of the directory
 * in which it has a name, 0 where it has none.  Takes `fd` (O_PATH): the row keeps it where `keep_fd` and the budget say
 * so, or where nothing else can find the inode again; else it is closed.  Where a broker opens handles it is kept in any
 * case as long as the budget allows, to have many signed at once later.  Returns the filesystem's number, or -errno:
 * ENFILE where the budget is used up, ENOMEM where the table is full.
 */
int inode_enter(struct tables *t, uint64_t parent, int fd, const struct stat *st, bool keep_fd, uint64_t *node)
{
    bool unlinked = !st->st_nlink, reserved = false;
    int error, filesystem = filesystem_of(t, fd, st);
    struct file_id id;
    uint32_t row;

    if (filesystem < 0) {
        close(fd);
        return filesystem;
    }
    pthread_mutex_lock(&t->inodes_lock);
    row = inode_find_locked(t, st, NULL);
    if (row) {
        count_again_locked(t, row, parent);
        *node = inode_node(t, row);
    }
    pthread_mutex_unlock(&t->inodes_lock);
    if (row) {
        close(fd);
        return filesystem;
    }
    filesystem_file_id(&t->filesystems[filesystem], fd, &id);
    if (keep_fd || unlinked || !id.size || t->broker_fd >= 0) {
        error = fds_reserve(t, 1);
        reserved = !error;
        if (error && id.size && t->broker_fd >= 0)
            error = sign_now(t, fd, &id);
        if (error && (!id.size || t->broker_fd >= 0)) {
            close(fd);
            return error;
        }
    }
    error = filesystem;
    pthread_mutex_lock(&t->inodes_lock);
    row = inode_find_locked(t, st, &id);
    if (row) {
        count_locked(t, row);
        moved_locked(t, row, parent);
    } else {
        row = new_row(t, parent, st, &id);
    }
    if (row) {
        *node = inode_node(t, row);
        if (t->inodes[row].fd < 0 && reserved) {
            fd_install_locked(t, row, fd, (uint32_t)filesystem, unlinked && id.size);
            t->inodes[row].referenced = keep_fd;
            fd = -1;
            reserved = false;
        }
    } else {
        error = -ENOMEM;
    }
    if (reserved)
        t->counters.fds--;
    pthread_mutex_unlock(&t->inodes_lock);
    close_fd(fd);
    return error;
}

/* The inode's descriptor, by its handle.  The row is in use, so it stays. */
static int open_again(struct tables *t, struct used *used, const struct inode_row *row)
{
    struct file_id id;
    struct stat st;
    int fd, error, found = filesystem_find(t, row->dev);

    if (found < 0)
        return found;
    used->filesystem = (uint32_t)found;
    inode_file_id(row, &id);
    fd = filesystem_open(t, &t->filesystems[found], &id);
    if (fd < 0)
        return fd;
    if (fstat(fd, &st) || st.st_dev != row->dev || st.st_ino != row->ino) {
        close(fd);
        return -ESTALE;
    }
    error = fds_reserve(t, 1);
    pthread_mutex_lock(&t->inodes_lock);
    t->counters.reopened++;
    used->fd = fd;
    used->own = error;               /* no room in the cache: for this call only */
    if (!error && t->inodes[used->row].fd < 0) {
        fd_install_locked(t, used->row, fd, used->filesystem, false);
    } else if (!error) {
        t->counters.fds--;
        used->fd = t->inodes[used->row].fd;
    }
    pthread_mutex_unlock(&t->inodes_lock);
    if (used->fd != fd)
        close(fd);
    return 0;
}

/*
 * An O_PATH descriptor of a node that stays open until inode_done.  Returns 0 or -errno: ESTALE where the node is not
 * known, or the inode is gone.
 */
int inode_use(struct tables *t, uint64_t node, struct used *used)
{
    struct inode_row copy;
    int error = 0;

    pthread_mutex_lock(&t->inodes_lock);
    used->node = node;
    used->row = inode_row_locked(t, node);
    if (used->row) {
        struct inode *inode = &t->inodes[used->row];

        inode->uses++;
        inode->referenced = true;
        used->fd = inode->fd;
        used->own = false;
        used->filesystem = inode->filesystem;
        used->type = t->inode_rows[used->row].type;
        if (used->fd < 0)
            copy = t->inode_rows[used->row];
    }
    pthread_mutex_unlock(&t->inodes_lock);
    if (!used->row)
        return -ESTALE;
    if (used->fd < 0)
        error = open_again(t, used, &copy);
    if (error)
        inode_done(t, used);
    return error;
}

/* The same where it needs no waiting: there is a descriptor, on a filesystem of this machine's own. */
bool inode_use_quick(struct tables *t, uint64_t node, struct used *used)
{
    bool ready = false;

    pthread_mutex_lock(&t->inodes_lock);
    used->node = node;
    used->row = inode_row_locked(t, node);
    if (used->row) {
        struct inode *inode = &t->inodes[used->row];

        ready = inode->fd >= 0 && t->filesystems[inode->filesystem].quiet_close;
        if (ready) {
            inode->uses++;
            inode->referenced = true;
            used->fd = inode->fd;
            used->own = false;
            used->filesystem = inode->filesystem;
            used->type = t->inode_rows[used->row].type;
        }
    }
    pthread_mutex_unlock(&t->inodes_lock);
    return ready;
}

void inode_done(struct tables *t, struct used *used)
{
    int fd;

    if (used->own)
        close_fd(used->fd);
    pthread_mutex_lock(&t->inodes_lock);
    t->inodes[used->row].uses--;
    fd = inode_settle_locked(t, used->row);
    pthread_mutex_unlock(&t->inodes_lock);
    close_fd(fd);
    pins_flush(t);
}

/* Counts one more lookup of an inode in use. */
void inode_count(struct tables *t, const struct used *used, uint64_t *node)
{
    pthread_mutex_lock(&t->inodes_lock);
    count_locked(t, used->row);
    *node = inode_node(t, used->row);
    pthread_mutex_unlock(&t->inodes_lock);
}

/* A handle names the inode in use: its row stays until inode_unhold. */
void inode_hold(struct tables *t, const struct used *used)
{
    bool keep;

    pthread_mutex_lock(&t->inodes_lock);
    t->inodes[used->row].handles++;
    keep = (t->inodes[used->row].leaving || t->inodes[used->row].list == LIST_PINS) && pin_wanted_locked(t, used->row);
    pthread_mutex_unlock(&t->inodes_lock);
    if (keep)
        pin_keep(t, used->row, used->fd);
}

void inode_unhold(struct tables *t, uint64_t node)
{
    uint32_t row = row_of(node);
    int fd;

    pthread_mutex_lock(&t->inodes_lock);
    t->inodes[row].handles--;
    fd = inode_settle_locked(t, row);
    pthread_mutex_unlock(&t->inodes_lock);
    close_fd(fd);
    pins_flush(t);
}

/*
 * The guest forgets `count` lookups.  Returns 0; 1 where that is more than were counted (all are forgotten then);
 * -ESTALE where the node is not known.  The last two are errors of the client and are counted.
 */
int inode_forget(struct tables *t, uint64_t node, uint64_t count)
{
    struct inode_row *r;
    uint32_t row;
    int fd = -1, result = 0;

    pthread_mutex_lock(&t->inodes_lock);
    row = inode_row_locked(t, node);
    r = &t->inode_rows[row];
    if (!row) {
        result = -ESTALE;
    } else {
        result = count > r->nlookup;
        r->nlookup -= result ? r->nlookup : count;
        fd = inode_settle_locked(t, row);
    }
    t->counters.overforgotten += result != 0;
    pthread_mutex_unlock(&t->inodes_lock);
    close_fd(fd);
    pins_flush(t);
    return result;
}

/* Chains and free rows of a memfd that was mapped; every row is without a descriptor. */
int inodes_rebuild(struct tables *t)
{
    uint32_t count = FIRST_BUCKETS;

    while (count < t->header->inodes)
        count *= 2;
    t->buckets = calloc(count, sizeof *t->buckets);
    if (!t->buckets)
        return -ENOMEM;
    t->bucket_count = count;
    for (uint32_t row = 1; row < t->header->inodes; row++) {
        uint32_t word = load_word(&t->inode_rows[row].word);

        if (word & 1) {
            if (t->inode_rows[row].handle_size > FILE_HANDLE_ROOM)
                return -EINVAL;      /* no process of ours wrote that */
            t->counters.inodes++;
            chain(t, row);
        } else if (word >> 1 <= MAX_GENERATION) {
            t->inodes[row].next = t->free_inode;
            t->free_inode = row;
        }
    }
    return 0;
}

/* Whether there is a row with this number that nothing can open. */
bool inode_unproven(struct tables *t, uint64_t dev, uint64_t ino)
{
    uint32_t row;

    pthread_mutex_lock(&t->inodes_lock);
    for (row = *bucket(t, dev, ino); row; row = t->inodes[row].next)
        if (t->inode_rows[row].ino == ino && t->inode_rows[row].dev == dev && inode_unproven_locked(t, row))
            break;
    pthread_mutex_unlock(&t->inodes_lock);
    return row;
}

/* Nobody has signed for the row's handle, and there is no descriptor.  Wants inodes_lock. */
bool inode_unproven_locked(const struct tables *t, uint32_t row)
{
    const struct inode_row *r = &t->inode_rows[row];

    return (load_word(&r->word) & 1) && t->inodes[row].fd < 0 && r->handle_size && !r->tagged;
}

/* Frees the rows that nothing needs: a process may have died between the last forget and the row's end. */
void inodes_settle(struct tables *t)
{
    for (uint32_t row = 1; row < t->header->inodes; row++)
        if (load_word(&t->inode_rows[row].word) & 1)
            inode_settle_locked(t, row);
}
