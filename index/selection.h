/* SPDX-License-Identifier: Apache-2.0 */
/* selection.h — what a one-shot compression kept of a prompt: per head some of its tokens.
 *
 * Made once for a layer (SnapKV, PyramidKV, L2 norm), from then on queries read the kept tokens of
 * the prompt and every token behind it. It is stored as it is and cannot be made again, since the
 * queries that decided it are gone.
 *
 * Shapes   ids: for each head a run of ascending positions below `tokens`. Heads are the G KV
 *          heads, or the H query heads where each of a group keeps tokens of its own
 * Bytes    selection_encode: u64 tokens, u32 heads, u32 zero, (heads) u64 counts, then the ids as
 *          u32, little-endian
 * Memory   one allocation on the heap
 * Threads  immutable
 * Errors   MEMD_ENOMEM · MEMD_ECORRUPT bytes that are no selection
 * Tests    tests/unit/test_selection.c
 */
#ifndef MEMD_INDEX_SELECTION_H
#define MEMD_INDEX_SELECTION_H

#include <stddef.h>
#include <stdint.h>

struct error;

struct selection {
    uint64_t tokens;   /* of the prompt */
    uint32_t heads;    /* G, or H */
    uint64_t *first;   /* (heads + 1) where the ids of each begin, and the end of the last */
    uint64_t *ids;     /* (first[heads]) */
};

/* Room for `counts` (heads) ids; `first` is filled in, ids are the caller's to fill. */
int selection_new(uint64_t tokens, uint32_t heads, const uint64_t *counts,
                  struct selection **ret_selection, struct error *err);
void selection_free(struct selection *selection); /* NULL is fine */

size_t selection_encoded_bytes(const struct selection *selection);
void selection_encode(const struct selection *selection, unsigned char *ret_data);
int selection_decode(const void *data, size_t bytes, struct selection **ret_selection,
                     struct error *err);

#endif
