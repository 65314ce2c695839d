#define _GNU_SOURCE

#include "native_request.h"

#include <pthread.h>
#include <sys/mman.h>

#define LARGE 65536	   /* bytes; of so long a request the memory is worth giving back */
#define KEPT_WITH_MEMORY 16 /* free ones that keep it all the same: its pages would have to be made again */
#define PAGE 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the list; a leaf */
static struct native_request *first;
static uint32_t large; /* free ones with the memory of a long request */

struct native_request *request_get(void)
{
	struct native_request *request;

	pthread_mutex_lock(&lock);
	request = first;
	if (request) {
		first = request->next;
		__atomic_store_n(&large, large - request->large, __ATOMIC_RELAXED);
	}
	pthread_mutex_unlock(&lock);
	if (!request) {
		request = mmap(NULL, sizeof *request, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (request == MAP_FAILED)
			return NULL;
	}
	request->failed_with = 0;
	request->payload_size = request->reply_size = 0;
	return request;
}

void request_put(struct native_request *request)
{
	if (request->size > LARGE)
		request->large = true;
	if (request->large && __atomic_load_n(&large, __ATOMIC_RELAXED) >= KEPT_WITH_MEMORY) {
		madvise((char *)request + PAGE, sizeof *request - PAGE, MADV_DONTNEED);
		request->large = false;
	}
	pthread_mutex_lock(&lock);
	request->next = first;
	first = request;
	__atomic_store_n(&large, large + request->large, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&lock);
}

void requests_free(void)
{
	while (first) {
		struct native_request *next = first->next;

		munmap(first, sizeof *first);
		first = next;
	}
	large = 0;
}
