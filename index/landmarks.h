/* SPDX-License-Identifier: Apache-2.0 */
/* landmarks.h — granularity "block that ends with a landmark": where a client's landmark tokens
 * stand, and their keys side by side, so that a query scores them without looking at the rows
 * between.
 *
 *     block 0         | block 1         |     | what no landmark has closed yet
 *     … … … landmark 0 … … … landmark 1   …    …
 *
 * Blocks are as long as the client makes them (marks, columns.h). Everything here is a fold
 * (fold.h) that is only added to: as of any earlier limit it is its first landmarks.
 *
 * Keys are kept as they are stored, or (`rotated`) at their own positions.
 *
 * Shapes   keys (count, G, D) fp32
 * Cost     fold: one byte of every row is read, and the landmarks' keys; scores: one product of D
 *          per landmark and query
 * Memory   4 G D + 16 bytes for each landmark, up to twice that while it grows
 * Threads  as fold.h
 * Errors   MEMD_ENOMEM · what `stop` says
 * Tests    tests/unit/test_landmark.c
 */
#ifndef MEMD_INDEX_LANDMARKS_H
#define MEMD_INDEX_LANDMARKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "index/fold.h"

struct landmarks {
    struct fold base;
    size_t kv_heads, head_dim, count, room;
    bool rotated;
    uint64_t *ends; /* (room) positions of the landmarks, ascending */
    uint64_t *even; /* (room) blocks even[b] … b are of one length */
    float *keys;    /* (room, G, D) */
};

/* fold_type.open and .free: of `source`'s shape, none yet. */
int landmarks_new(const struct fold_type *type, const struct fold_source *source, bool rotated,
                  struct landmarks **ret_landmarks, struct error *err);
void landmarks_free(struct fold *fold); /* NULL is fine */

/* fold_type.advance; source->columns has marks. */
int landmarks_advance(struct landmarks *landmarks, const struct fold_source *source, uint64_t end,
                      struct error *err);

/* How many blocks are complete below `limit`. */
size_t landmarks_below(const struct landmarks *landmarks, uint64_t limit);

/* The first token of block `block`, or (block = count) the one behind all of them. */
uint64_t landmarks_begin(const struct landmarks *landmarks, size_t block);

/* Products of a query (D) with the landmarks first … first+count-1 of a KV head; ret_scores
 * (count). */
void landmarks_scores(const struct landmarks *landmarks, size_t kv_head, const float *q,
                      size_t first, size_t count, float *ret_scores);

#endif
