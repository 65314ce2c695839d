#include "native_space.h"

#include <errno.h>
#include <pthread.h>

#include "clones.h"
#include "native_device.h"
#include "native_events.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the list; a leaf */
static struct native_request *first;

bool native_no_space(const struct native_request *request, int error)
{
	return (error == ENOSPC || error == EDQUOT || error == ENFILE || error == EMFILE) && !request->failed_with;
}

void native_wait_for_space(struct native_request *request, int error)
{
	request->failed_with = error;
	pthread_mutex_lock(&lock);
	request->next = first;
	first = request;
	pthread_mutex_unlock(&lock);
	native_raise(NATIVE_NO_SPACE);
}

void native_again(bool anything_freed)
{
	struct native_request *request;

	pthread_mutex_lock(&lock);
	request = first;
	first = NULL;
	pthread_mutex_unlock(&lock);
	while (request) {
		struct native_request *next = request->next;

		if (anything_freed) {
			native_start(request);
		} else {
			clones_answer(request->clone, request->header.unique, request->failed_with, NULL, 0);
			request_put(request);
		}
		request = next;
	}
}
