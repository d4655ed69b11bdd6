/* SPDX-License-Identifier: Apache-2.0 */
/* probe.c — the stream sums 64-bit words, in order, or at four places of the buffer at a time: with
 * one place, the prefetchers of one core get two thirds of what memory can give them. Both are
 * told, since the first is what people mean by "reading it once" and the second is what nobody can
 * beat. No intrinsics: loads are not what limits either. The disk probe writes what a database
 * would: large buffers, through the page cache, one fdatasync at the end.
 */
#include "clients/memctl/probe.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/cpu.h"
#include "base/pool.h"

enum { THREADS_MAX = 256, WRITE_BYTES = 4 << 20 };

static void pool_closep(struct pool **pool)
{
    pool_close(*pool);
}

static void read_model(char *ret_model, size_t bytes)
{
    FILE *file = fopen("/proc/cpuinfo", "re");
    char line[256];
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || colon == NULL) continue;
        colon[strcspn(colon, "\n")] = '\0';
        snprintf(ret_model, bytes, "%s", colon + 1 + strspn(colon + 1, " "));
        break;
    }
    if (file != NULL) fclose(file);
}

struct probe_machine probe_machine(void)
{
    struct probe_machine machine = {
        .cpu = "unknown CPU",
        .cores = (unsigned)sysconf(_SC_NPROCESSORS_ONLN),
        .simd = cpu_level_name(cpu_level()),
        .memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE),
    };
    if (getloadavg(&machine.load, 1) != 1) machine.load = -1.0;
    read_model(machine.cpu, sizeof machine.cpu);
    return machine;
}

void *probe_buffer(size_t bytes)
{
    assert(bytes % 4096 == 0);
    void *buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) return NULL;
    /* Untouched pages are all the same page of zeroes, which the cache holds. */
    memset(buffer, 0x5A, bytes);
    return buffer;
}

void probe_buffer_free(void *buffer, size_t bytes)
{
    if (buffer != NULL) munmap(buffer, bytes);
}

enum { STEP_WORDS = 8, PLACES = 4 };

static uint64_t fold(const uint64_t sums[STEP_WORDS])
{
    uint64_t sum = 0;
    for (size_t j = 0; j < STEP_WORDS; j++) sum += sums[j];
    return sum;
}

/* count is a multiple of STEP_WORDS. */
static uint64_t sum_in_order(const uint64_t *words, size_t count)
{
    uint64_t sums[STEP_WORDS] = { 0 };
    for (size_t i = 0; i < count; i += STEP_WORDS) {
        for (size_t j = 0; j < STEP_WORDS; j++) sums[j] += words[i + j];
    }
    return fold(sums);
}

/* count is a multiple of PLACES * STEP_WORDS. */
static uint64_t sum_at_places(const uint64_t *words, size_t count)
{
    size_t part = count / PLACES;
    const uint64_t *a = words, *b = a + part, *c = b + part, *d = c + part;
    uint64_t sums[STEP_WORDS] = { 0 };
    for (size_t i = 0; i < part; i += STEP_WORDS) {
        for (size_t j = 0; j < STEP_WORDS; j++) {
            sums[j] += a[i + j] + b[i + j] + c[i + j] + d[i + j];
        }
    }
    return fold(sums);
}

struct stream_part {
    const uint64_t *words;
    size_t count;
    uint64_t (*sum_up)(const uint64_t *words, size_t count);
    uint64_t sum; /* stored where others could read it, so that no load can be left out */
};

static void stream_part_run(void *arg, size_t idx)
{
    struct stream_part *part = (struct stream_part *)arg + idx;
    part->sum = part->sum_up(part->words, part->count);
}

double probe_stream(const void *buffer, size_t bytes, unsigned threads, enum probe_order order)
{
    assert(threads > 0);
    if (threads > THREADS_MAX) threads = THREADS_MAX;
    struct stream_part parts[THREADS_MAX];
    size_t step = PLACES * STEP_WORDS;
    size_t count = bytes / 8 / threads / step * step;
    for (unsigned i = 0; i < threads; i++) {
        parts[i] = (struct stream_part){
            .words = (const uint64_t *)buffer + i * count,
            .count = count,
            .sum_up = order == PROBE_IN_ORDER ? sum_in_order : sum_at_places,
        };
    }
    /* The calling thread takes part in a loop. Without a pool everything runs on it: slower,
     * still true. */
    CLEANUP(pool_closep) struct pool *pool = NULL;
    if (threads > 1) pool_open(threads - 1, &pool, NULL);
    uint64_t begun_ns = clock_monotonic_ns();
    pool_for(pool, threads, stream_part_run, parts);
    double seconds = (double)(clock_monotonic_ns() - begun_ns) / 1e9;
    return (double)(threads * count * 8) / seconds;
}

/* An open file in `directory` without a name, or -1. */
static int open_unnamed(const char *directory)
{
    int fd = open(directory, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return fd;
    char path[4096];
    snprintf(path, sizeof path, "%s/memctl-bench-XXXXXX", directory);
    fd = mkostemp(path, O_CLOEXEC);
    if (fd >= 0) unlink(path);
    return fd;
}

static int write_all(int fd, const unsigned char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t written = write(fd, data, bytes);
        if (written < 0 && errno != EINTR) return -errno;
        if (written < 0) continue;
        data += written;
        bytes -= (size_t)written;
    }
    return 0;
}

double probe_disk(const char *directory, uint64_t bytes)
{
    CLEANUP(close_fd) int fd = open_unnamed(directory);
    if (fd < 0) return -errno;
    CLEANUP(free_ptr) unsigned char *block = malloc(WRITE_BYTES);
    if (block == NULL) return -ENOMEM;
    uint64_t state = 1; /* xorshift64: a file system that compresses gains nothing */
    for (size_t i = 0; i < WRITE_BYTES; i += 8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memcpy(block + i, &state, 8);
    }
    uint64_t begun_ns = clock_monotonic_ns();
    for (uint64_t done = 0; done < bytes;) {
        size_t step = bytes - done < WRITE_BYTES ? (size_t)(bytes - done) : WRITE_BYTES;
        int rc = write_all(fd, block, step);
        if (rc < 0) return rc;
        done += step;
    }
    if (fdatasync(fd) != 0) return -errno;
    return (double)bytes / ((double)(clock_monotonic_ns() - begun_ns) / 1e9);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double probe_quantile(double *values, size_t count, double share)
{
    assert(count > 0 && share >= 0.0 && share <= 1.0);
    qsort(values, count, sizeof *values, compare);
    size_t rank = (size_t)(share * (double)count);
    return values[rank < count ? rank : count - 1];
}
