/* SPDX-License-Identifier: Apache-2.0 */
/* store_free.h — LMDB's list of free pages, as its next transaction will go through it.
 *
 * Units    pages; struct store_free has bytes
 * Cost     free_list_read
 * Threads  any, with a cursor of its own
 * Tests    tests/unit/test_store.c
 */
#ifndef MEMD_MEMORY_STORE_FREE_H
#define MEMD_MEMORY_STORE_FREE_H

#include <stdbool.h>
#include <stddef.h>

#include "memory/store.h"

struct free_list {
    size_t last, oldest; /* transactions: committed, read by somebody (`last` at most) */
    size_t pages;        /* of the file */
    size_t page_bytes;
    size_t group; /* pages that are to stand side by side */
};

/* Reads the list with a cursor of table 0 until it has found what is asked for. The numbers of free
 * pages are read one by one, those that are used before a run of `group` is found among them;
 * besides there is a bit per page of the file, looked at only as often as pays. False: there is not
 * enough, and `ret_free` has all there is. True too without memory, with nothing found. */
bool free_list_read(const struct free_list *list, struct MDB_cursor *cursor,
                    const struct store_ask *ask, struct store_free *ret_free);

#endif
