#ifndef CRC32_H
#define CRC32_H

#include <stddef.h>
#include <stdint.h>

/* The CRC-32 of zip, gzip and PNG. Start with 0; pass the last result to go on. */
uint32_t crc32(uint32_t crc, const void *bytes, size_t count);

#endif
