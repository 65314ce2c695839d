#include "collected.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_ROOM 1024
#define ROOM_TO_KEEP 65536 /* a larger array is given back once it is empty */

/* Makes room for `more` values behind the last one: first where values were taken, then by a larger array. */
static int make_room(struct collected *list, size_t more)
{
	size_t room = list->room ? list->room : FIRST_ROOM;
	uint64_t *larger;

	if (list->first + list->count + more <= list->room)
		return 0;
	if (list->first >= list->room / 2 && list->count + more <= list->room) {
		memmove(list->values, list->values + list->first, list->count * sizeof *list->values);
		list->first = 0;
		return 0;
	}
	while (room < list->first + list->count + more)
		room *= 2;
	larger = realloc(list->values, room * sizeof *larger);
	if (!larger)
		return -1;
	list->values = larger;
	list->room = room;
	return 0;
}

int collected_add(struct collected *list, const uint64_t *values, size_t count)
{
	if (make_room(list, count))
		return -1;
	memcpy(list->values + list->first + list->count, values, count * sizeof *values);
	list->count += count;
	return 0;
}

size_t collected_take(struct collected *list, uint64_t *values, size_t limit)
{
	size_t taken = list->count < limit ? list->count : limit;

	if (!taken)
		return 0;
	memcpy(values, list->values + list->first, taken * sizeof *values);
	list->first += taken;
	list->count -= taken;
	if (!list->count)
		list->first = 0;
	if (!list->count && list->room > ROOM_TO_KEEP)
		collected_clear(list);
	return taken;
}

void collected_clear(struct collected *list)
{
	free(list->values);
	*list = (struct collected){ 0 };
}
