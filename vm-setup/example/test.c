#include <stdio.h>
#include <string.h>

#include "crc32.h"

static int failures;

static void check(const char *what, uint32_t found, uint32_t expected)
{
    if (found == expected) {
        printf("ok      %s\n", what);
    } else {
        printf("FAILED  %s: found %08x, expected %08x\n", what, (unsigned)found, (unsigned)expected);
        failures++;
    }
}

int main(void)
{
    const char digits[] = "123456789";
    unsigned char zeros[32] = {0};
    uint32_t piecewise = 0;

    check("nothing", crc32(0, "", 0), 0x00000000u);
    check("the check value of the standard", crc32(0, digits, 9), 0xcbf43926u);
    check("32 zeros", crc32(0, zeros, sizeof zeros), 0x190a55adu);
    for (size_t i = 0; i < strlen(digits); i++)
        piecewise = crc32(piecewise, digits + i, 1);
    check("byte by byte", piecewise, 0xcbf43926u);
    printf("%d failed\n", failures);
    return failures != 0;
}
