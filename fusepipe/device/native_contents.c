#define _GNU_SOURCE

#include "native_contents.h"

#include <fcntl.h>
#include <pthread.h>
#include <string.h>

#include "clones.h"
#include "native_known.h"
#include "native_policy.h"

#define BEHIND_READ 512 /* bytes; a READ is shorter, and where its data may stand then is in few pages */

#define PLACES 128 /* where two nodes have the same place, the later one has it */

struct place {
	pthread_mutex_t lock; /* of what follows */
	uint64_t node;	      /* 0: none */
	uint64_t handle;
	uint64_t since;
	uint64_t version; /* what was kept at another one is not known any more */
	size_t size;
	unsigned char data[CONTENTS_MAX];
};

static struct place places[PLACES] = { [0 ... PLACES - 1] = { .lock = PTHREAD_MUTEX_INITIALIZER } };
static uint64_t changes[PLACES], general_changes; /* atomic */

/* Node ids count rows in their lower half: neighbours have places of their own. */
static size_t place_of(uint64_t node)
{
	return node % PLACES;
}

/* Another number after everything that may concern the file. */
static uint64_t version_of(uint64_t node)
{
	return __atomic_load_n(&general_changes, __ATOMIC_SEQ_CST) + __atomic_load_n(&changes[place_of(node)], __ATOMIC_SEQ_CST);
}

void contents_described(uint64_t node)
{
	__atomic_add_fetch(&changes[place_of(node)], 1, __ATOMIC_SEQ_CST);
}

void contents_described_any(void)
{
	__atomic_add_fetch(&general_changes, 1, __ATOMIC_SEQ_CST);
}

static uint32_t flags_of(const struct fuse_in_header *in)
{
	return ((const struct fuse_open_in *)(in + 1))->flags;
}

/* What changes no file's contents, or was looked at with the reply; of everything else it is not known which file it changes. */
static void note(const struct fuse_in_header *in)
{
	switch (in->opcode) {
	case FUSE_LOOKUP:
	case FUSE_READ:
	case FUSE_FLUSH:
	case FUSE_FSYNC:
	case FUSE_READLINK:
	case FUSE_GETXATTR:
	case FUSE_OPENDIR:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
	case FUSE_MKDIR:
	case FUSE_SYMLINK:
	case FUSE_LINK:
	case FUSE_UNLINK:
	case FUSE_RMDIR:
	case FUSE_RENAME:
	case FUSE_RENAME2:
	case FUSE_CREATE: /* of a file that is there, O_TRUNC changes it: its attributes come with the reply */
	case FUSE_INTERRUPT:
		break;
	case FUSE_OPEN:
		if (flags_of(in) & O_TRUNC)
			contents_described(in->nodeid);
		break;
	case FUSE_GETATTR:
	case FUSE_SETATTR:
	case FUSE_WRITE:
		contents_described(in->nodeid);
		break;
	default:
		contents_described_any();
	}
}

/* Copies what a READ asks for to where its answer may stand; returns how many bytes, 0 where it is not known. */
static size_t take(const struct fuse_in_header *in, unsigned char *to)
{
	const struct fuse_read_in *read = (const void *)(in + 1);
	struct place *place = &places[place_of(in->nodeid)];
	size_t size = 0;

	pthread_mutex_lock(&place->lock);
	if (place->node == in->nodeid && place->handle == read->fh) {
		if (place->version == version_of(in->nodeid) && known_is_young(place->since) && read->offset < place->size) {
			size = place->size - read->offset;
			size = size < read->size ? size : read->size;
			memcpy(to, place->data + read->offset, size);
		}
		if (!size || read->offset + size == place->size)
			__atomic_store_n(&place->node, 0, __ATOMIC_RELAXED);
	}
	pthread_mutex_unlock(&place->lock);
	return size;
}

bool contents_answer(struct native_request *request)
{
	const struct fuse_in_header *in = &request->header;
	unsigned char *memory = request->bytes + BEHIND_READ;
	size_t size;

	if (!native_policy.contents)
		return false;
	note(in);
	if (in->opcode == FUSE_OPEN) {
		request->opening = version_of(in->nodeid);
		request->read_at = known_now();
	}
	if (in->opcode != FUSE_READ || __atomic_load_n(&places[place_of(in->nodeid)].node, __ATOMIC_RELAXED) != in->nodeid)
		return false;
	size = take(in, memory);
	if (!size)
		return false;
	clones_answer(request->clone, in->unique, 0, memory, size);
	return true;
}

uint32_t contents_wanted(const struct native_request *request)
{
	const uint32_t flags = flags_of(&request->header);

	return (flags & O_ACCMODE) == O_WRONLY || flags & (O_TRUNC | O_DIRECT) ? 0 : native_policy.contents;
}

void contents_replied(const struct native_request *request)
{
	if (native_policy.contents)
		note(&request->header);
}

void contents_keep(const struct native_request *request, uint64_t handle, const void *data, size_t size)
{
	const uint64_t node = request->header.nodeid;
	struct place *place = &places[place_of(node)];

	if (!size || size > CONTENTS_MAX)
		return;
	pthread_mutex_lock(&place->lock);
	if (request->opening == version_of(node)) {
		__atomic_store_n(&place->node, node, __ATOMIC_RELAXED);
		place->handle = handle;
		place->since = request->read_at;
		place->version = request->opening;
		place->size = size;
		memcpy(place->data, data, size);
	}
	pthread_mutex_unlock(&place->lock);
}

void contents_clear(void)
{
	contents_described_any();
}
