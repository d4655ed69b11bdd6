/* SPDX-License-Identifier: Apache-2.0 */
/* owned.h — tables whose keys begin with the id of whom the value belongs to (tails, indexes,
 * notes, params): what is done with all values of an owner, whatever they are.
 *
 * Every function that changes how many bytes are stored adds the difference to txn-wide *delta.
 * Errors are sticky in the transaction.
 *
 * Threads  changes: writer. Looking: any
 * Tests    tests/unit/test_context.c, tests/unit/test_notes.c
 */
#ifndef MEMD_MEMORY_OWNED_H
#define MEMD_MEMORY_OWNED_H

#include <stdbool.h>
#include <stdint.h>

#include "memory/store.h"

/* In place of what was there. */
void owned_put(struct store_txn *txn, enum store_table table, struct slice key, struct slice value,
               int64_t *delta);
/* False when there was nothing to remove. */
bool owned_remove(struct store_txn *txn, enum store_table table, struct slice key, int64_t *delta);

/* Give `to`, which has none and is the younger, what `from` has. */
void owned_copy(struct store_txn *txn, enum store_table table, uint64_t from, uint64_t to,
                int64_t *delta);
/* Remove at most `limit` values; how many. */
uint64_t owned_clear(struct store_txn *txn, enum store_table table, uint64_t owner, uint64_t limit,
                     int64_t *delta);
/* Bytes of all values. */
uint64_t owned_bytes(struct store_txn *txn, enum store_table table, uint64_t owner);

#endif
