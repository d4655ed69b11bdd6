/* SPDX-License-Identifier: Apache-2.0 */
/* grown.h — some bytes per token and KV head that a fold adds to and never changes: lengths of
 * keys, projected keys.
 *
 * They stand in chunks of GROWN_CHUNK tokens, head after head within a chunk, so that the rows of a
 * head can be scanned in runs and nothing moves when more tokens come. What is there for the tokens
 * below any limit is the same as when there were no others: such a fold can be read as of any
 * token.
 *
 * Rejected: one array per head that is doubled (a query would wait for a copy of all of it), chunks
 * of a segment's 1,024 tokens (short contexts would pay for tokens that never come).
 *
 * Shapes   (G, tokens) rows of row_bytes, in runs; chunks begin at 64-byte boundaries
 * Memory   on the heap; a chunk is GROWN_CHUNK * G * row_bytes
 * Threads  grown_reserve alone, everything else beside each other
 * Errors   MEMD_ENOMEM; what was there stays
 * Tests    tests/unit/test_norms.c
 */
#ifndef MEMD_INDEX_GROWN_H
#define MEMD_INDEX_GROWN_H

#include <stddef.h>
#include <stdint.h>

struct error;

enum { GROWN_CHUNK = 256 };

struct grown {
    size_t heads, row_bytes;
    unsigned char **chunks;
    size_t count, capacity; /* of chunks */
};

void grown_init(struct grown *grown, size_t heads, size_t row_bytes);
void grown_fini(struct grown *grown);

/* Room for tokens 0 … tokens-1. */
int grown_reserve(struct grown *grown, uint64_t tokens, struct error *err);

/* The row of a token of a head that there is room for; *ret_rows, at most `most`, is how many rows
 * of the tokens from it on stand together. */
void *grown_rows(const struct grown *grown, size_t head, uint64_t position, size_t most,
                 size_t *ret_rows);

/* Of memory. */
size_t grown_bytes(const struct grown *grown);

#endif
