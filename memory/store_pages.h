/* SPDX-License-Identifier: Apache-2.0 */
/* store_pages.h — the pages that lead to the values, looked at before LMDB walks over them.
 *
 * Cost     one read of each page of the trees (of the values only their numbers), 2 bits per page
 *          of the file, while the store is opened; where pages are claimed twice three times that,
 *          eight times at most
 * Memory   the list belongs to the caller: pages_fini
 * Errors   MEMD_ECORRUPT what leads to all tables is damaged · MEMD_EIO · MEMD_ENOMEM
 * Threads  before the environment is opened, by who holds the directory's lock
 * Tests    tests/unit/test_pages.c, tests/unit/test_fences.c
 */
#ifndef MEMD_MEMORY_STORE_PAGES_H
#define MEMD_MEMORY_STORE_PAGES_H

#include <stddef.h>
#include <stdint.h>

#include "memory/page.h"

struct error;

enum { PAGES_LISTED_MAX = 256 };

/* Keys that nobody can reach any more: first ≤ key < end, an end of 0 bytes is that of the table.
 * Keys keep their order: they never overlap, and what is written later lies outside. */
struct pages_damage {
    char table[32]; /* "" = the list of free pages, which has no keys; or a meta page */
    const char *why;
    uint64_t page; /* what was damaged */
    size_t first_bytes, end_bytes;
    unsigned char first[PAGE_KEY_BYTES_MAX], end[PAGE_KEY_BYTES_MAX];
};

struct pages_report {
    struct pages_damage *list; /* by table, ascending */
    size_t count;              /* listed: PAGES_LISTED_MAX, and every table that is lost */
    size_t total;              /* found */
};

/* Check DIR/data.mdb, fence off what is damaged, let in again what is sound now. A file that is
 * not there or that LMDB refuses is left to LMDB. */
int pages_check(const char *path, struct pages_report *ret_report, struct error *err);
void pages_fini(struct pages_report *report);

#endif
