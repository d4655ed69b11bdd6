/* SPDX-License-Identifier: Apache-2.0 */
/* probe.h — what the machine itself can do, measured in the same run as the daemon, so that a
 * ratio stays true on a slower disk or a noisy host.
 *
 * Tests    tests/memctl/test_probe.c
 */
#ifndef MEMD_CLIENTS_MEMCTL_PROBE_H
#define MEMD_CLIENTS_MEMCTL_PROBE_H

#include <stddef.h>
#include <stdint.h>

struct probe_machine {
    char cpu[96];        /* "AMD EPYC" */
    unsigned cores;
    const char *simd;    /* "avx2": what memd's kernels use here */
    uint64_t memory_bytes;
    double load; /* threads that wanted to run in the last minute; above `cores`, figures are low */
};

struct probe_machine probe_machine(void);

/* A buffer of `bytes` (a multiple of 4096) that has been written to, for probe_stream; NULL: no
 * memory. */
void *probe_buffer(size_t bytes);
void probe_buffer_free(void *buffer, size_t bytes);

/* In order is what reading something once means; at four places at a time is the most that a core
 * gets out of its memory. */
enum probe_order { PROBE_IN_ORDER, PROBE_AT_PLACES };

/* Bytes per second of reading the buffer once with plain loads, split over `threads`. */
double probe_stream(const void *buffer, size_t bytes, unsigned threads, enum probe_order order);

/* Bytes per second of writing `bytes` to a new file in `directory`, in order, fdatasync included;
 * the file is gone afterwards. Negative: -errno. */
double probe_disk(const char *directory, uint64_t bytes);

/* The share-th smallest of `count` values (nearest rank), which are sorted in place; 0.5 is the
 * median. */
double probe_quantile(double *values, size_t count, double share);

#endif
