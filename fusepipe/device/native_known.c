#include "native_known.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "clones.h"
#include "native_policy.h"

#define SECOND UINT64_C(1000000000)
#define PLACES 256 /* where two nodes have the same place, the later one has it: the other is asked about */

struct new_file {
	uint64_t node; /* 0: none */
	uint64_t since;
};

struct directory {
	uint64_t node; /* 0: none */
	uint64_t since;
	uint64_t changes; /* of nodes that have this place */
	struct fuse_attr_out attr;
};

struct end {
	uint64_t handle, offset; /* 0: none */
	uint64_t since;
	uint64_t changes; /* of the directory, up to the reply */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of what follows; a leaf */
static struct new_file new_files[PLACES];
static struct directory directories[PLACES];
static struct end ends[PLACES];
static uint32_t known_directories; /* mostly none or one */
static uint64_t general_changes;   /* of which it is not known what they concern */

uint64_t known_now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

/* How old something may be that is said to the kernel. */
static uint64_t oldest(void)
{
	const uint64_t known = native_policy.known * (SECOND / 1000);

	return native_policy.attr_seconds > known / SECOND || native_policy.attr_nanoseconds > known ?
		       known :
		       native_policy.attr_seconds * SECOND + native_policy.attr_nanoseconds;
}

bool known_is_young(uint64_t since)
{
	return known_now() - since < oldest();
}

/* ---- what a request changes ---- */

enum effect {
	EFFECT_NONE, /* nothing, or no directory */
	EFFECT_NODE, /* of directories the one that it names, if it is one */
	EFFECT_ANY,
};

static enum effect effect_of(uint32_t opcode)
{
	switch (opcode) {
	case FUSE_LOOKUP:
	case FUSE_GETATTR:
	case FUSE_READLINK:
	case FUSE_OPEN:
	case FUSE_READ:
	case FUSE_WRITE:
	case FUSE_FLUSH:
	case FUSE_FSYNC:
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
	case FUSE_OPENDIR:
	case FUSE_STATFS:
	case FUSE_INTERRUPT:
		return EFFECT_NONE;
	case FUSE_SETATTR:
	case FUSE_CREATE:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_SYMLINK:
	case FUSE_LINK:
	case FUSE_UNLINK:
	case FUSE_READDIR: /* the time of its last access */
	case FUSE_READDIRPLUS:
		return EFFECT_NODE;
	default: /* RENAME and RMDIR among them: what has the name may be a directory that is known, too */
		return EFFECT_ANY;
	}
}

/* ---- under the lock ---- */

/* Node ids and handles count rows in their lower half: neighbours have places of their own. */
static size_t place_of(uint64_t number)
{
	return number % PLACES;
}

static bool take_new(uint64_t node)
{
	struct new_file *place = &new_files[place_of(node)];
	const bool known = place->node == node && known_is_young(place->since);

	if (place->node == node)
		place->node = 0;
	return known;
}

static void forget(struct directory *place)
{
	known_directories -= place->node != 0;
	place->node = 0;
}

/* The kernel may keep them for as long as if it had asked when they were new. */
static bool take_attributes(uint64_t node, struct fuse_attr_out *attr)
{
	struct directory *place = &directories[place_of(node)];
	uint64_t age, left;

	if (place->node != node)
		return false;
	forget(place);
	age = known_now() - place->since;
	if (age >= oldest())
		return false;
	*attr = place->attr;
	if (attr->attr_valid < UINT64_MAX / SECOND) {
		left = attr->attr_valid * SECOND + attr->attr_valid_nsec - age;
		attr->attr_valid = left / SECOND;
		attr->attr_valid_nsec = (uint32_t)(left % SECOND);
	}
	return true;
}

static void add(uint64_t node, const struct fuse_attr_out *attr, uint64_t since)
{
	struct directory *place = &directories[place_of(node)];

	forget(place);
	place->node = node;
	place->since = since;
	place->attr = *attr;
	known_directories++;
}

static void change(uint64_t node)
{
	struct directory *place = &directories[place_of(node)];

	place->changes++;
	forget(place);
}

static void change_all(void)
{
	general_changes++;
	for (size_t i = 0; known_directories; i++)
		forget(&directories[i]);
}

/* The other directory of RENAME; of anything else the first one. */
static uint64_t second_of(const struct fuse_in_header *in)
{
	const bool rename = in->opcode == FUSE_RENAME || in->opcode == FUSE_RENAME2;

	return rename ? ((const struct fuse_rename_in *)(in + 1))->newdir : in->nodeid;
}

/* A number that is another one after every change that concerns the request's directories. */
static uint64_t changes_of(const struct fuse_in_header *in)
{
	return general_changes + directories[place_of(in->nodeid)].changes + directories[place_of(second_of(in))].changes;
}

static void note_changes(const struct fuse_in_header *in)
{
	if (in->opcode == FUSE_SETXATTR)
		take_new(in->nodeid);
	switch (effect_of(in->opcode)) {
	case EFFECT_NONE:
		break;
	case EFFECT_NODE:
		change(in->nodeid);
		break;
	case EFFECT_ANY:
		change_all();
	}
}

/* Whether READDIRPLUS asks for what is behind the end; before its own effect is noted. */
static bool take_end(const struct fuse_in_header *in)
{
	const struct fuse_read_in *read = (const void *)(in + 1);
	struct end *place = &ends[place_of(read->fh)];

	if (!read->offset || place->handle != read->fh || place->offset != read->offset)
		return false;
	place->offset = 0;
	return place->changes == changes_of(in) && known_is_young(place->since);
}

static void add_end(const struct native_request *request, uint64_t end)
{
	const struct fuse_read_in *read = (const void *)(&request->header + 1);

	ends[place_of(read->fh)] = (struct end){ read->fh, end, request->read_at, changes_of(&request->header) };
}

/* ---- requests and replies ---- */

bool known_answers(struct native_request *request)
{
	const struct fuse_in_header *in = &request->header;
	const char *name = (const char *)(in + 1) + sizeof(struct fuse_getxattr_in);
	bool no_xattr = false, attributes = false, end;
	struct fuse_attr_out attr;

	if (effect_of(in->opcode) == EFFECT_NONE && in->opcode != FUSE_GETATTR && in->opcode != FUSE_GETXATTR)
		return false;
	pthread_mutex_lock(&lock);
	end = in->opcode == FUSE_READDIRPLUS && take_end(in);
	note_changes(in);
	request->read_at = known_now();
	request->changes = changes_of(in);
	if (in->opcode == FUSE_GETATTR)
		attributes = take_attributes(in->nodeid, &attr);
	else if (in->opcode == FUSE_GETXATTR && !strcmp(name, "security.capability"))
		no_xattr = take_new(in->nodeid);
	pthread_mutex_unlock(&lock);
	if (attributes)
		clones_answer(request->clone, in->unique, 0, &attr, sizeof attr);
	else if (no_xattr)
		clones_answer(request->clone, in->unique, ENODATA, NULL, 0);
	else if (end)
		clones_answer(request->clone, in->unique, 0, NULL, 0);
	return attributes || no_xattr || end;
}

void known_changed(const struct native_request *request, const struct fuse_attr_out *attr, uint32_t count, uint64_t end)
{
	const struct fuse_in_header *in = &request->header;
	bool alone;

	if (effect_of(in->opcode) == EFFECT_NONE)
		return;
	pthread_mutex_lock(&lock);
	alone = request->changes == changes_of(in);
	note_changes(in);
	if (alone && count > 0)
		add(in->nodeid, &attr[0], request->read_at);
	if (alone && count > 1)
		add(second_of(in), &attr[1], request->read_at);
	if (alone && end)
		add_end(request, end);
	pthread_mutex_unlock(&lock);
}

void known_add_new(const struct native_request *request, uint64_t node)
{
	pthread_mutex_lock(&lock);
	new_files[place_of(node)] = (struct new_file){ node, request->read_at };
	pthread_mutex_unlock(&lock);
}

void known_clear(void)
{
	pthread_mutex_lock(&lock);
	memset(new_files, 0, sizeof new_files);
	memset(ends, 0, sizeof ends);
	change_all();
	pthread_mutex_unlock(&lock);
}
