#include "native_known.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

#include "native_policy.h"

#define SECOND UINT64_C(1000000000)
#define PLACES 1024 /* what finds its place taken by another node takes it: that one is asked about then */

struct fresh {
	uint64_t node;
	uint64_t end; /* CLOCK_MONOTONIC, in nanoseconds */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of what follows; a leaf */
static struct fresh fresh[PLACES];

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

/* For how long attributes are good; those that are kept for ever are good for longer than any mount. */
static uint64_t life(void)
{
	const uint64_t most = UINT64_MAX / SECOND / 4, seconds = native_policy.attr_seconds;

	return (seconds < most ? seconds : most) * SECOND + native_policy.attr_nanoseconds;
}

/* Node ids count rows in their lower half: neighbours have places of their own. */
static struct fresh *place_of(uint64_t node)
{
	return &fresh[node % PLACES];
}

void known_add_new(uint64_t node)
{
	const uint64_t lasts = life();

	if (!lasts)
		return;
	pthread_mutex_lock(&lock);
	*place_of(node) = (struct fresh){ node, now() + lasts };
	pthread_mutex_unlock(&lock);
}

static bool take(uint64_t node)
{
	struct fresh *place = place_of(node);
	bool known;

	pthread_mutex_lock(&lock);
	known = place->node == node && now() < place->end;
	if (place->node == node)
		place->node = 0;
	pthread_mutex_unlock(&lock);
	return known;
}

bool known_new(uint64_t node)
{
	return take(node);
}

void known_forget(uint64_t node)
{
	take(node);
}

void known_clear(void)
{
	pthread_mutex_lock(&lock);
	memset(fresh, 0, sizeof fresh);
	pthread_mutex_unlock(&lock);
}
