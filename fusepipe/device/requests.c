#include "requests.h"

#include <stdlib.h>

#define FIRST_SIZE 256

/* `unique` counts up in steps of two; multiplying by the golden ratio spreads it (Knuth, volume 3, section 6.4). */
static size_t home_of(const struct requests *table, uint64_t unique)
{
	return (size_t)((unique * 0x9E3779B97F4A7C15u) >> 32) & (table->size - 1);
}

static struct request *find(const struct requests *table, uint64_t unique)
{
	size_t at = home_of(table, unique);

	while (table->places[at].unique && table->places[at].unique != unique)
		at = (at + 1) & (table->size - 1);
	return &table->places[at];
}

static int grow(struct requests *table)
{
	struct requests larger = { .size = table->size ? 2 * table->size : FIRST_SIZE, .used = table->used };

	larger.places = calloc(larger.size, sizeof *larger.places);
	if (!larger.places)
		return -1;
	for (size_t i = 0; i < table->size; i++)
		if (table->places[i].unique)
			*find(&larger, table->places[i].unique) = table->places[i];
	free(table->places);
	*table = larger;
	return 0;
}

int requests_add(struct requests *table, struct request request)
{
	struct request *place;

	if (2 * table->used >= table->size && grow(table))
		return -1;
	place = find(table, request.unique);
	if (!place->unique)
		table->used++;
	*place = request;
	return 0;
}

struct request requests_remove(struct requests *table, uint64_t unique)
{
	struct request *place, removed;
	size_t hole;

	if (!table->size)
		return (struct request){ 0 };
	place = find(table, unique);
	if (!place->unique)
		return (struct request){ 0 };
	removed = *place;
	table->used--;

	/* Move later entries of the same run up, so that no search ends at the hole (Knuth, algorithm 6.4R). */
	hole = (size_t)(place - table->places);
	for (size_t at = hole;;) {
		size_t mask = table->size - 1, home;

		at = (at + 1) & mask;
		if (!table->places[at].unique)
			break;
		home = home_of(table, table->places[at].unique);
		if (((at - home) & mask) >= ((at - hole) & mask)) {
			table->places[hole] = table->places[at];
			hole = at;
		}
	}
	table->places[hole].unique = 0;
	return removed;
}

void requests_clear(struct requests *table)
{
	free(table->places);
	*table = (struct requests){ 0 };
}
