/* SPDX-License-Identifier: Apache-2.0 */
/* chain.h — the durable rows of a context inside one transaction: chain entries, references,
 * tail records.
 *
 * Every function that changes how many bytes are stored adds the difference to txn-wide *delta;
 * a segment that several chains share counts once. Errors are sticky in the transaction.
 *
 * Threads  changes: writer. Looking: any
 * Tests    tests/unit/test_context.c, tests/unit/test_catalog.c
 */
#ifndef MEMD_MEMORY_CHAIN_H
#define MEMD_MEMORY_CHAIN_H

#include <stdbool.h>
#include <stdint.h>

#include "memory/format.h"
#include "memory/store.h"

/* A new segment, held once. */
void chain_put(struct store_txn *txn, const struct chain_key *key, uint64_t segment, uint64_t bytes,
               int64_t *delta);

/* One holder less; the last takes the values along. */
void chain_release_segment(struct store_txn *txn, uint64_t segment, int64_t *delta);

/* Does anybody hold it? */
bool chain_holds_segment(struct store_txn *txn, uint64_t segment);

/* Its values grew or shrank by `change` bytes. False when nobody holds it any more. */
bool chain_resize_segment(struct store_txn *txn, uint64_t segment, int64_t change, int64_t *delta);

/* Remove chain entries of (context, layer) with sequence ≥ first->sequence, at most `limit`; how
 * many. */
uint64_t chain_cut(struct store_txn *txn, const struct chain_key *first, uint64_t limit,
                   int64_t *delta);

/* Remove tail records of (context, layer) with first->position ≤ position < end. */
void chain_cut_tails(struct store_txn *txn, const struct tail_key *first, uint64_t end,
                     int64_t *delta);

/* Remove notes of (context, layer, kind) with sequence ≥ first->sequence. */
void chain_cut_notes(struct store_txn *txn, const struct note_key *first, int64_t *delta);

/* The saved index of a layer: a new one in place of the old one. */
void chain_put_index(struct store_txn *txn, const struct layer_key *key, struct slice value,
                     int64_t *delta);
/* Remove it if it covers more than `tokens`. False when there was none to remove. */
bool chain_cut_index(struct store_txn *txn, const struct layer_key *key, uint64_t tokens,
                     int64_t *delta);

/* Let context `to` hold the rows that context `from` holds. */
void chain_fork(struct store_txn *txn, uint64_t from, uint64_t to, int64_t *delta);
/* And what was stored for the method of `from`: notes and tensors. */
void chain_fork_method(struct store_txn *txn, uint64_t from, uint64_t to, int64_t *delta);

/* Tokens of one layer, from the ends of its chain and tail; a few cursor steps. */
uint64_t chain_tokens(struct store_txn *txn, uint64_t context, uint32_t layer,
                      uint64_t *ret_segments);

#endif
