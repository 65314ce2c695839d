/*
 * Any bytes, to the C codec (fusepipe/wire/native.h, native_messages.h) and to prefixes: a header is read whole or refused,
 * nothing behind its end is read, and what was read is written again as a header that says the same.
 *
 * For libFuzzer: tests/fuzz/native.py puts a case for each message in the place of the line with CASES, and compiles it.
 */
#include "native_messages.h"

#include <stdlib.h>

static const unsigned char *given;
static size_t given_size;

/* A reader of a header, and the head that it begins with. */
static struct wire_head begin(struct wire_reader *reader, const unsigned char *data, size_t size)
{
	*reader = (struct wire_reader){ data, data + size, false };
	return wire_take_head(reader);
}

static void same(const unsigned char *first, const unsigned char *first_end, const unsigned char *second,
		 const unsigned char *second_end)
{
	if (first_end - first != second_end - second || memcmp(first, second, (size_t)(first_end - first)))
		abort();
}

static void check(unsigned which)
{
	unsigned char *first = malloc(2 * given_size + 512), *second = malloc(2 * given_size + 512), *end, *again;
	struct wire_reader reader;
	struct wire_head head = begin(&reader, given, given_size);

	switch (which) {
@CASES@
	default:
		if (given_size >= WIRE_PREFIX)
			wire_check_prefix(given, 0, 1 << 20);
		else
			wire_finish(&reader, head.fields);
	}
	free(first);
	free(second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	unsigned char *copy;

	if (!size)
		return 0;
	copy = malloc(size - 1 ? size - 1 : 1); /* exactly as long, so that a read behind its end is seen */
	memcpy(copy, data + 1, size - 1);
	given = copy;
	given_size = size - 1;
	check(data[0]);
	free(copy);
	return 0;
}
