#include "crc32.h"

static const uint32_t POLYNOMIAL = 0xedb88320u;

uint32_t crc32(uint32_t crc, const void *bytes, size_t count)
{
    const unsigned char *at = bytes;

    crc = ~crc;
    while (count--) {
        crc ^= *at++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ POLYNOMIAL : crc >> 1;
    }
    return ~crc;
}
