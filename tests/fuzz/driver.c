/* SPDX-License-Identifier: Apache-2.0 */
/* driver.c — runs a fuzz target over the files of its corpus, so that every compiler replays every
 * finding.
 *
 * libFuzzer needs clang; what it once found must stay fixed under gcc, sanitizers and emulation
 * too. So each target is linked a second time with this `main` and becomes an ordinary test.
 * Besides the files as they are, every proper prefix of the small ones is fed: most decoders break
 * at a cut, and that costs nothing.
 *
 * Each input lives in a heap block of exactly its size: a sanitizer sees the first byte read beyond
 * it. An empty corpus fails, a test that ran nothing has shown nothing.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

enum { INPUT_BYTES_MAX = 1 << 20, PREFIX_BYTES_MAX = 4096, PATH_BYTES = 4096 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void close_file(FILE **file)
{
    if (*file != NULL) fclose(*file);
}

static void close_folder(DIR **folder)
{
    if (*folder != NULL) closedir(*folder);
}

/* One call of the target with the first `bytes` of `data`, in a block of its own. */
static int feed(const unsigned char *data, size_t bytes)
{
    CLEANUP(free_ptr) unsigned char *exact = malloc(bytes > 0 ? bytes : 1);
    if (exact == NULL) return -1;
    if (bytes > 0) memcpy(exact, data, bytes);
    LLVMFuzzerTestOneInput(exact, bytes);
    return 0;
}

/* Number of inputs fed, or -1 (said on stderr). */
static long replay_file(const char *path)
{
    CLEANUP(close_file) FILE *file = fopen(path, "rb");
    CLEANUP(free_ptr) unsigned char *data = malloc(INPUT_BYTES_MAX);
    if (file == NULL || data == NULL) {
        perror(path);
        return -1;
    }
    size_t bytes = fread(data, 1, INPUT_BYTES_MAX, file);
    if (ferror(file) || !feof(file)) {
        fprintf(stderr, "%s: unreadable or longer than %d bytes\n", path, INPUT_BYTES_MAX);
        return -1;
    }
    size_t first = bytes <= PREFIX_BYTES_MAX ? 0 : bytes;
    for (size_t cut = first; cut <= bytes; cut++) {
        if (feed(data, cut) < 0) return -1;
    }
    return (long)(bytes - first + 1);
}

static long replay_folder(const char *path)
{
    CLEANUP(close_folder) DIR *folder = opendir(path);
    if (folder == NULL) {
        perror(path);
        return -1;
    }
    long total = 0;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        char name[PATH_BYTES];
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        long inputs = replay_file(name);
        if (inputs < 0) return -1;
        total += inputs;
    }
    return total;
}

int main(int argc, char **argv)
{
    long total = 0;
    for (int i = 1; i < argc; i++) {
        long inputs = replay_folder(argv[i]);
        if (inputs < 0) return 1;
        total += inputs;
    }
    printf("%ld inputs (files and their prefixes)\n", total);
    return total > 0 ? 0 : 1;
}
