/* SPDX-License-Identifier: Apache-2.0 */
/* human.h — numbers as people write and read them: sizes, durations, ages, shares.
 *
 * Sizes are binary ("17.5 MiB"), durations carry one unit ("3 m", "2.1 h") with enough digits to
 * compare, and reading accepts what operators type: "90", "90s", "15m" or "15min" (as in
 * memd.conf), "2h", "7d".
 *
 * Tests    tests/memctl/test_human.c
 */
#ifndef MEMD_CLIENTS_MEMCTL_HUMAN_H
#define MEMD_CLIENTS_MEMCTL_HUMAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A short text by value, so that several can stand in one call: human_bytes(n).text. */
struct human {
    char text[48];
};

struct human human_bytes(uint64_t bytes);          /* "0 B", "1023 B", "1.00 KiB", "17.5 MiB" */
struct human human_bytes_rate(
    double per_second); /* "1.07 GB/s": decimal, as disks and networks count */
struct human human_count(uint64_t count);          /* "1,234,567" */
/* "1 token", "2,048 tokens", "0 indexes"; the name is of one, and shorter than 20 bytes. */
struct human human_counted(uint64_t count, const char *name);
struct human human_seconds(
    double seconds); /* "850 ns", "41.0 us", "3.20 ms", "12 s", "2.5 h", "3.1 d" */
/* How long before now_ms (both Unix milliseconds): "5 s ago", "in 3 m"; "never" for 0. */
struct human human_since(uint64_t then_ms, uint64_t now_ms);
struct human human_share(double share);            /* "12.5 %" */

/* A duration in seconds from "90", "250ms", "90s", "15m", "2h", "7d"; at most a year. False when
 * it is none. */
bool human_parse_seconds(const char *text, double *ret_seconds);
/* A whole number from 0 to max, digits only. */
bool human_parse_uint(const char *text, uint64_t max, uint64_t *ret_value);

#endif
