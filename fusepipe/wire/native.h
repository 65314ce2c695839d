/*
 * Frames and headers for code in C: the parts of msgpack that headers use, prefixes and checksums.  protocol/SPEC.md,
 * sections "Frames" and "Headers"; the messages themselves are in native_messages.h, which is generated.
 *
 * Everything here works on memory of the caller's and keeps nothing, so it may be used from any thread.
 */
#ifndef FUSEPIPE_WIRE_NATIVE_H
#define FUSEPIPE_WIRE_NATIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define WIRE_PREFIX 16		 /* bytes */
#define WIRE_MAX_HEADER (256 * 1024) /* bytes, of any frame but the first */
#define WIRE_MAX_ARRAY 64	 /* elements */
#define WIRE_MAX_DEPTH 8	 /* of arrays in a header; structs need 3 */
#define WIRE_ERRNO_MAX 4095

/* Bytes within a header. */
struct wire_bytes {
	const unsigned char *data;
	uint32_t size;
};

/* ---- checksums ---- */

/* The CRC-32 of zlib; `crc` is what the bytes before gave, 0 at the beginning. */
uint32_t wire_crc32(uint32_t crc, const void *data, size_t size);

/* ---- prefixes ---- */

static inline void wire_put_u32(unsigned char *to, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		to[i] = (unsigned char)(value >> (8 * i));
}

static inline uint32_t wire_u32(const unsigned char *from)
{
	return from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

static inline void wire_put_prefix(unsigned char *to, uint32_t header, uint32_t payload, uint32_t number)
{
	wire_put_u32(to, header);
	wire_put_u32(to + 4, payload);
	wire_put_u32(to + 8, number);
	wire_put_u32(to + 12, wire_crc32(0, to, 12));
}

/* Why a prefix is refused, or NULL. */
static inline const char *wire_check_prefix(const unsigned char *from, uint32_t number, uint32_t max_payload)
{
	if (wire_u32(from + 12) != wire_crc32(0, from, 12))
		return "the checksum of a frame's prefix is wrong";
	if (wire_u32(from + 8) != number)
		return "a frame has the wrong number: bytes were lost";
	if (!wire_u32(from) || wire_u32(from) > WIRE_MAX_HEADER)
		return "a header has no length that is allowed";
	if (wire_u32(from + 4) > max_payload)
		return "a payload is longer than allowed";
	return NULL;
}

/* ---- writing: the caller has room for the longest form, 9 bytes for a number and 5 more than its length for bytes ---- */

static inline unsigned char *wire_put_big(unsigned char *to, uint64_t value, int bytes)
{
	while (bytes--)
		*to++ = (unsigned char)(value >> (8 * bytes));
	return to;
}

static inline unsigned char *wire_put_uint(unsigned char *to, uint64_t value)
{
	if (value < 0x80) {
		*to = (unsigned char)value;
		return to + 1;
	}
	if (value <= UINT8_MAX) {
		*to = 0xcc;
		return wire_put_big(to + 1, value, 1);
	}
	if (value <= UINT16_MAX) {
		*to = 0xcd;
		return wire_put_big(to + 1, value, 2);
	}
	if (value <= UINT32_MAX) {
		*to = 0xce;
		return wire_put_big(to + 1, value, 4);
	}
	*to = 0xcf;
	return wire_put_big(to + 1, value, 8);
}

static inline unsigned char *wire_put_int(unsigned char *to, int64_t value)
{
	if (value >= 0)
		return wire_put_uint(to, (uint64_t)value);
	if (value >= -32) {
		*to = (unsigned char)value;
		return to + 1;
	}
	if (value >= INT8_MIN) {
		*to = 0xd0;
		return wire_put_big(to + 1, (uint64_t)value, 1);
	}
	if (value >= INT16_MIN) {
		*to = 0xd1;
		return wire_put_big(to + 1, (uint64_t)value, 2);
	}
	if (value >= INT32_MIN) {
		*to = 0xd2;
		return wire_put_big(to + 1, (uint64_t)value, 4);
	}
	*to = 0xd3;
	return wire_put_big(to + 1, (uint64_t)value, 8);
}

static inline unsigned char *wire_put_bool(unsigned char *to, bool value)
{
	*to = value ? 0xc3 : 0xc2;
	return to + 1;
}

static inline unsigned char *wire_put_nil(unsigned char *to)
{
	*to = 0xc0;
	return to + 1;
}

/* At most WIRE_MAX_ARRAY elements. */
static inline unsigned char *wire_put_array(unsigned char *to, uint32_t elements)
{
	if (elements < 16) {
		*to = (unsigned char)(0x90 | elements);
		return to + 1;
	}
	*to = 0xdc;
	return wire_put_big(to + 1, elements, 2);
}

static inline unsigned char *wire_put_bytes(unsigned char *to, struct wire_bytes bytes)
{
	const int width = bytes.size <= UINT8_MAX ? 1 : bytes.size <= UINT16_MAX ? 2 : 4;

	*to = (unsigned char)(width == 1 ? 0xc4 : width == 2 ? 0xc5 : 0xc6);
	to = wire_put_big(to + 1, bytes.size, width);
	if (bytes.size)
		memcpy(to, bytes.data, bytes.size);
	return to + bytes.size;
}

/* ---- reading: what is not as expected sets `bad`, and everything from then on is 0 ---- */

struct wire_reader {
	const unsigned char *at, *end;
	bool bad;
};

static inline uint64_t wire_take_big(struct wire_reader *reader, int bytes)
{
	uint64_t value = 0;

	if (reader->bad || reader->end - reader->at < bytes) {
		reader->bad = true;
		return 0;
	}
	while (bytes--)
		value = value << 8 | *reader->at++;
	return value;
}

static inline uint64_t wire_refuse(struct wire_reader *reader)
{
	reader->bad = true;
	return 0;
}

/* A number of 0 or more; in any of msgpack's forms, also the signed ones. */
static inline uint64_t wire_take_uint(struct wire_reader *reader, uint64_t max)
{
	const uint64_t kind = wire_take_big(reader, 1);
	uint64_t value;

	if (kind < 0x80) {
		value = kind;
	} else if (kind >= 0xcc && kind <= 0xcf) {
		value = wire_take_big(reader, 1 << (kind - 0xcc));
	} else if (kind >= 0xd0 && kind <= 0xd3) {
		value = wire_take_big(reader, 1 << (kind - 0xd0));
		if (value >> ((8 << (kind - 0xd0)) - 1))
			return wire_refuse(reader); /* it is negative */
	} else {
		return wire_refuse(reader);
	}
	return value <= max ? value : wire_refuse(reader);
}

static inline int64_t wire_take_int(struct wire_reader *reader)
{
	uint64_t kind;

	if (reader->bad || reader->at == reader->end)
		return (int64_t)wire_refuse(reader);
	kind = *reader->at;
	if (kind >= 0xe0) {
		reader->at++;
		return (int8_t)kind;
	}
	if (kind < 0xd0 || kind > 0xd3)
		return (int64_t)wire_take_uint(reader, INT64_MAX);
	reader->at++;
	switch (kind) {
	case 0xd0:
		return (int8_t)wire_take_big(reader, 1);
	case 0xd1:
		return (int16_t)wire_take_big(reader, 2);
	case 0xd2:
		return (int32_t)wire_take_big(reader, 4);
	default:
		return (int64_t)wire_take_big(reader, 8);
	}
}

static inline bool wire_take_bool(struct wire_reader *reader)
{
	const uint64_t kind = wire_take_big(reader, 1);

	if (kind != 0xc2 && kind != 0xc3)
		return wire_refuse(reader) != 0;
	return kind == 0xc3;
}

static inline uint32_t wire_take_array(struct wire_reader *reader)
{
	const uint64_t kind = wire_take_big(reader, 1);
	uint64_t elements;

	if (kind >> 4 == 9)
		elements = kind & 15;
	else if (kind == 0xdc || kind == 0xdd)
		elements = wire_take_big(reader, kind == 0xdc ? 2 : 4);
	else
		return (uint32_t)wire_refuse(reader);
	return elements <= WIRE_MAX_ARRAY ? (uint32_t)elements : (uint32_t)wire_refuse(reader);
}

static inline struct wire_bytes wire_take_bytes(struct wire_reader *reader)
{
	const uint64_t kind = wire_take_big(reader, 1);
	struct wire_bytes bytes = { reader->at, 0 };
	uint64_t size;

	if (kind < 0xc4 || kind > 0xc6) {
		wire_refuse(reader);
		return bytes;
	}
	size = wire_take_big(reader, 1 << (kind - 0xc4));
	if (reader->bad || size > (uint64_t)(reader->end - reader->at)) {
		wire_refuse(reader);
		return bytes;
	}
	bytes = (struct wire_bytes){ reader->at, (uint32_t)size };
	reader->at += size;
	return bytes;
}

/* Passes over one element of any kind, which stands where an earlier version knows of nothing. */
static inline void wire_skip(struct wire_reader *reader, int depth)
{
	const uint64_t kind = wire_take_big(reader, 1);
	uint64_t bytes = 0, elements = 0;

	if (kind < 0x80 || kind >= 0xe0 || kind == 0xc0 || kind == 0xc2 || kind == 0xc3)
		return;
	if (kind >> 4 == 9)
		elements = kind & 15;
	else if (kind >> 5 == 5)
		bytes = kind & 31;
	else if (kind >= 0xc4 && kind <= 0xc6)
		bytes = wire_take_big(reader, 1 << (kind - 0xc4));
	else if (kind == 0xca || kind == 0xcb)
		bytes = kind == 0xca ? 4 : 8;
	else if (kind >= 0xcc && kind <= 0xd3)
		bytes = 1u << (kind & 3);
	else if (kind >= 0xd9 && kind <= 0xdb)
		bytes = wire_take_big(reader, 1 << (kind - 0xd9));
	else if (kind == 0xdc || kind == 0xdd)
		elements = wire_take_big(reader, kind == 0xdc ? 2 : 4);
	else
		reader->bad = true;
	if (elements > WIRE_MAX_ARRAY || (elements && depth >= WIRE_MAX_DEPTH) || reader->bad ||
	    bytes > (uint64_t)(reader->end - reader->at)) {
		reader->bad = true;
		return;
	}
	reader->at += bytes;
	while (elements--)
		wire_skip(reader, depth + 1);
}

/* What every header begins with. */
struct wire_head {
	uint64_t slot, seq;
	uint32_t third;	 /* the operation, or the errno */
	uint32_t fields; /* elements that follow */
	bool has_slot, has_seq; /* else nil stands there */
};

static inline struct wire_head wire_take_head(struct wire_reader *reader)
{
	struct wire_head head = { .fields = wire_take_array(reader) };

	if (head.fields < 3) {
		reader->bad = true;
		return head;
	}
	head.fields -= 3;
	head.has_slot = reader->at == reader->end || *reader->at != 0xc0;
	head.slot = head.has_slot ? wire_take_uint(reader, UINT32_MAX) : wire_take_big(reader, 1);
	head.has_seq = reader->at == reader->end || *reader->at != 0xc0;
	head.seq = head.has_seq ? wire_take_uint(reader, UINT64_MAX) : wire_take_big(reader, 1);
	head.third = (uint32_t)wire_take_uint(reader, UINT32_MAX);
	return head;
}

/* `left` elements follow that are not known here; then the header must end.  Returns whether all of it was well. */
static inline bool wire_finish(struct wire_reader *reader, uint32_t left)
{
	while (left-- && !reader->bad)
		wire_skip(reader, 1);
	return !reader->bad && reader->at == reader->end;
}

#endif
