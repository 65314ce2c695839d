/* CRC-32 as zlib's, eight bytes at a time (Intel's "slicing by 8"): every frame has one, on vsock over its whole length. */
#include "native.h"

static uint32_t tables[8][256];

__attribute__((constructor)) static void make_tables(void)
{
	for (uint32_t byte = 0; byte < 256; byte++) {
		uint32_t crc = byte;

		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
		tables[0][byte] = crc;
	}
	for (uint32_t byte = 0; byte < 256; byte++)
		for (int i = 1; i < 8; i++)
			tables[i][byte] = tables[i - 1][byte] >> 8 ^ tables[0][tables[i - 1][byte] & 0xff];
}

uint32_t wire_crc32(uint32_t crc, const void *data, size_t size)
{
	const unsigned char *at = data;

	crc = ~crc;
	for (; size >= 8; size -= 8, at += 8) {
		const uint32_t low = crc ^ wire_u32(at), high = wire_u32(at + 4);

		crc = tables[7][low & 0xff] ^ tables[6][low >> 8 & 0xff] ^ tables[5][low >> 16 & 0xff] ^ tables[4][low >> 24] ^
		      tables[3][high & 0xff] ^ tables[2][high >> 8 & 0xff] ^ tables[1][high >> 16 & 0xff] ^ tables[0][high >> 24];
	}
	while (size--)
		crc = crc >> 8 ^ tables[0][(crc ^ *at++) & 0xff];
	return ~crc;
}
