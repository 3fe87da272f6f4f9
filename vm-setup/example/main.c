/* checksum [FILE]...: the CRC-32, the size and the name of each file; of stdin where none is given. */

#include <stdio.h>

#include "crc32.h"

static int print(FILE *file, const char *name)
{
    unsigned char buffer[65536];
    uint32_t crc = 0;
    unsigned long long bytes = 0;
    size_t count;

    while ((count = fread(buffer, 1, sizeof buffer, file)) > 0) {
        crc = crc32(crc, buffer, count);
        bytes += count;
    }
    if (ferror(file)) {
        perror(name);
        return 1;
    }
    printf("%08x %llu %s\n", (unsigned)crc, bytes, name);
    return 0;
}

int main(int argc, char **argv)
{
    int failed = 0;

    if (argc < 2)
        return print(stdin, "-");
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");

        if (!file) {
            perror(argv[i]);
            failed = 1;
            continue;
        }
        failed |= print(file, argv[i]);
        fclose(file);
    }
    return failed;
}
