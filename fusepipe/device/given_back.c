#include "given_back.h"

#include <errno.h>
#include <pthread.h>

#include "clones.h"
#include "collected.h"
#include "filter.h"

void (*given_back_on_first)(void);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the lists; a leaf */
static struct collected forgets, handles, untaken;
static struct collected withheld; /* in no order: there are as many as open files with locks */

/* Adds `count` groups of `width` values, each of which stays together. */
static void collect(struct collected *list, const uint64_t *values, size_t count, size_t width)
{
	size_t lost = 0;
	bool first;

	pthread_mutex_lock(&lock);
	first = !forgets.count && !handles.count && !untaken.count;
	for (size_t i = 0; i < count; i++)
		lost += (size_t)(collected_add(list, values + i * width, width) != 0);
	pthread_mutex_unlock(&lock);
	if (lost) /* the server keeps it until the session ends */
		__atomic_fetch_add(&filter_counters.lost, lost, __ATOMIC_RELAXED);
	if (first && lost < count)
		given_back_on_first();
}

void given_back_forget(uint64_t node, uint64_t count)
{
	collect(&forgets, (uint64_t[]){ node, count }, 1, 2);
}

void given_back_untaken(uint64_t handle)
{
	collect(&untaken, &handle, 1, 1);
}

static size_t find_withheld(uint64_t handle)
{
	size_t at = withheld.first;

	while (at < withheld.first + withheld.count && withheld.values[at] != handle)
		at++;
	return at - withheld.first;
}

int given_back_withhold(uint64_t handle)
{
	int error = 0;

	pthread_mutex_lock(&lock);
	if (find_withheld(handle) == withheld.count && collected_add(&withheld, &handle, 1))
		error = -ENOMEM;
	pthread_mutex_unlock(&lock);
	return error;
}

void given_back_admit(uint64_t handle)
{
	size_t at;

	pthread_mutex_lock(&lock);
	at = find_withheld(handle);
	if (at < withheld.count)
		withheld.values[withheld.first + at] = withheld.values[withheld.first + --withheld.count];
	pthread_mutex_unlock(&lock);
}

static bool is_withheld(uint64_t handle)
{
	bool found;

	pthread_mutex_lock(&lock);
	found = find_withheld(handle) < withheld.count;
	pthread_mutex_unlock(&lock);
	return found;
}

bool given_back(const struct fuse_in_header *in, uint32_t clone)
{
	const void *arguments = in + 1;

	switch (in->opcode) {
	case FUSE_FORGET:
		__atomic_fetch_add(&filter_counters.forgets, 1, __ATOMIC_RELAXED);
		given_back_forget(in->nodeid, ((const struct fuse_forget_in *)arguments)->nlookup);
		return true;
	case FUSE_BATCH_FORGET: {
		const struct fuse_batch_forget_in *batch = arguments;

		_Static_assert(sizeof(struct fuse_forget_one) == 2 * sizeof(uint64_t), "a node and a count");
		__atomic_fetch_add(&filter_counters.forgets, batch->count, __ATOMIC_RELAXED);
		collect(&forgets, (const void *)(batch + 1), batch->count, 2);
		return true;
	}
	case FUSE_RELEASE:
		if (is_withheld(((const struct fuse_release_in *)arguments)->fh))
			return false;
		/* fallthrough */
	case FUSE_RELEASEDIR:
		__atomic_fetch_add(&filter_counters.releases, 1, __ATOMIC_RELAXED);
		collect(&handles, &((const struct fuse_release_in *)arguments)->fh, 1, 1);
		clones_answer(clone, in->unique, 0, NULL, 0);
		return true;
	default:
		return false;
	}
}

static size_t take(struct collected *list, uint64_t *taken, size_t limit)
{
	size_t count;

	pthread_mutex_lock(&lock);
	count = collected_take(list, taken, limit);
	pthread_mutex_unlock(&lock);
	return count;
}

size_t given_back_take_forgets(uint64_t *pairs, size_t limit)
{
	return take(&forgets, pairs, limit & ~(size_t)1);
}

size_t given_back_take_handles(uint64_t *taken, size_t limit)
{
	return take(&handles, taken, limit);
}

size_t given_back_take_untaken(uint64_t *taken, size_t limit)
{
	return take(&untaken, taken, limit);
}

void given_back_clear(void)
{
	pthread_mutex_lock(&lock);
	collected_clear(&forgets);
	collected_clear(&handles);
	collected_clear(&untaken);
	collected_clear(&withheld);
	pthread_mutex_unlock(&lock);
}
