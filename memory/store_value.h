/* SPDX-License-Identifier: Apache-2.0 */
/* store_value.h — what is asked before a value's pages are given back.
 *
 * Errors   LMDB's
 * Threads  the writer
 * Tests    tests/unit/test_pages.c, tests/unit/test_store.c
 */
#ifndef MEMD_MEMORY_STORE_VALUE_H
#define MEMD_MEMORY_STORE_VALUE_H

#include <stddef.h>

struct MDB_cursor;

/* MDB_CORRUPTED: what stands in front of the value under the cursor is not of that value. */
int store_value_check(struct MDB_cursor *cursor, size_t page_bytes);

/* Delete the value under the cursor, which was checked, where it would leave its pages to one of
 * `bytes` that takes its place. */
int store_value_drop_longer(struct MDB_cursor *cursor, size_t bytes);

#endif
