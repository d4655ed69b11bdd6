/* SPDX-License-Identifier: Apache-2.0 */
/* block.h — up to 1,024 tokens of one layer in memory, already in the layout of a sealed segment.
 *
 * Per KV head one region for K and one for V: 48 bytes of header, then rows (1024, D). Sealing
 * computes headers and checksums in place; the writer then hands each region to the store as it is.
 *
 * Memory   regions are touched only as rows arrive: 2·G pages for a first token, not megabytes
 * Threads  rows below the published token count are immutable; one appender; readers hold
 *          references
 * Errors   NULL when there is no memory
 * Tests    tests/unit/test_context.c
 */
#ifndef MEMD_MEMORY_BLOCK_H
#define MEMD_MEMORY_BLOCK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "memory/format.h"
#include "memory/model.h"

/* What the shape of a block depends on; one per context, immutable. */
struct block_shape {
    uint32_t heads, head_dim, dtype;
    size_t row_bytes;    /* D elements of one head */
    size_t region_bytes; /* distance between regions */
    uint64_t model_hash;
};

void block_shape_init(const struct model *model, struct block_shape *ret_shape);

/* K and V of one token. */
static inline size_t block_token_bytes(const struct block_shape *shape)
{
    return (size_t)2 * shape->heads * shape->row_bytes;
}

/* Values of a segment, headers included, without and with ids. */
static inline uint64_t block_segment_bytes(const struct block_shape *shape, bool has_ids)
{
    uint64_t value = FORMAT_HEADER_BYTES + FORMAT_SEGMENT_TOKENS * (uint64_t)shape->row_bytes;
    return 2 * (uint64_t)shape->heads * value +
           (has_ids ? FORMAT_HEADER_BYTES + FORMAT_SEGMENT_TOKENS * (uint64_t)4 : 0);
}

/* Memory of blocks that were let go, for the next ones: a block has megabytes, and getting them
 * from the system costs more than filling them. Bounded; what does not fit goes back at once.
 * Any thread. */
struct block_cache {
    pthread_mutex_t lock;
    struct block *free; /* locked by lock */
    size_t bytes;       /* in `free`; locked by lock */
    size_t bytes_max;
    atomic_size_t held_bytes; /* of blocks that somebody holds */
};

void block_cache_init(struct block_cache *cache, size_t bytes_max);
void block_cache_trim(struct block_cache *cache); /* free what it holds */
void block_cache_fini(struct block_cache *cache);

struct block {
    atomic_uint references;
    struct block_cache *cache; /* where it goes when nobody holds it */
    struct block *next;        /* in the cache */
    size_t bytes;              /* of data */
    bool has_ids;              /* every row has a token id; locked by the context */
    bool sealed;               /* headers and checksums are in place: all 1,024 rows are there */
    unsigned char *data;
};

struct block *block_new(struct block_cache *cache, const struct block_shape *shape);
struct block *block_get(struct block *block); /* one reference more */
void block_put(struct block *block);          /* one less; the last frees. NULL is fine */

/* Row 0 of head `head`; V when `value` is set. Rows are contiguous, row_bytes apart. */
unsigned char *block_rows(const struct block *block, const struct block_shape *shape, uint32_t head,
                          enum format_kind kind);
uint32_t *block_ids(const struct block *block, const struct block_shape *shape);

struct given_rows {
    const unsigned char *k, *v; /* (n, G, D) */
    const void *ids;            /* (n) u32, or NULL */
    size_t count;
};
/* Write rows [first, first + rows->count); ids where there are any (has_ids is the caller's to
 * keep). */
void block_write(struct block *block, const struct block_shape *shape, size_t first,
                 const struct given_rows *rows);

/* Do rows [first, first + count) hold exactly these bytes? Ids are not compared. */
bool block_equals(const struct block *block, const struct block_shape *shape, size_t first,
                  const struct given_rows *rows);

/* The same for a sealed segment: values (2, G). */
bool block_values_equal(const unsigned char *const *values, const struct block_shape *shape,
                        size_t first, const struct given_rows *rows);

/* Headers and checksums of a full block whose first token stands at `position`. */
void block_seal(struct block *block, const struct block_shape *shape, uint64_t position,
                bool has_ids);

/* The finished value (header and payload) of a sealed block. */
const unsigned char *block_value(const struct block *block, const struct block_shape *shape,
                                 uint32_t head, enum format_kind kind, size_t *ret_bytes);

/* Rows as a tail record: writes block_tail_bytes(…) bytes, header included. */
size_t block_tail_bytes(const struct block_shape *shape, size_t count, bool has_ids);
void block_tail_encode(const struct block *block, const struct block_shape *shape,
                       uint64_t position, size_t count, bool has_ids, unsigned char *ret_value);

#endif
