/* SPDX-License-Identifier: Apache-2.0 */
/* block.h — up to 1,024 tokens of one layer in memory, already in the layout of a sealed segment.
 *
 * Per KV head one region for K and one for V: 48 bytes of header, then rows (1024, D). One more for
 * token ids, and one for the records of index/columns.h where the method has columns. Sealing
 * computes headers and checksums in place; the writer then hands each region to the store as it is.
 *
 * A context that keeps states (n, W) instead of K and V has one head of W/2 dimensions: K is the
 * first half of a state, V the second. Nothing below this header knows a difference.
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

#include "index/columns.h"
#include "memory/format.h"
#include "memory/model.h"

/* What the shape of a block depends on; one per context, immutable. */
struct block_shape {
    uint32_t heads, head_dim, dtype; /* of rows: not the model's where states are kept */
    size_t state_width;              /* W, or 0: K and V are kept */
    size_t row_bytes;    /* D elements of one head */
    size_t region_bytes; /* distance between regions */
    struct columns columns;
    uint64_t model_hash;
};

/* What a context of this model keeps of a token: these columns (COLUMNS_…), and states of `width`
 * elements (a multiple of 16) unless that is 0. */
void block_shape_init(const struct model *model, uint32_t columns, size_t width,
                      struct block_shape *ret_shape);

/* K and V of one token. */
static inline size_t block_token_bytes(const struct block_shape *shape)
{
    return (size_t)2 * shape->heads * shape->row_bytes;
}

/* And its columns: what waits to be committed of it. */
static inline size_t block_stored_bytes(const struct block_shape *shape)
{
    return block_token_bytes(shape) + shape->columns.token_bytes;
}

/* Values of a segment, headers included, without and with ids. */
static inline uint64_t block_segment_bytes(const struct block_shape *shape, bool has_ids)
{
    uint64_t value = FORMAT_HEADER_BYTES + FORMAT_SEGMENT_TOKENS * (uint64_t)shape->row_bytes;
    uint64_t records = FORMAT_SEGMENT_TOKENS * (uint64_t)shape->columns.token_bytes;
    return 2 * (uint64_t)shape->heads * value +
           (has_ids ? FORMAT_HEADER_BYTES + FORMAT_SEGMENT_TOKENS * (uint64_t)4 : 0) +
           (records > 0 ? FORMAT_HEADER_BYTES + records : 0);
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
/* Of row 0; records are shape->columns.token_bytes apart. Only where there are columns. */
unsigned char *block_columns(const struct block *block, const struct block_shape *shape);

struct given_rows {
    const unsigned char *k, *v; /* (n, G, D) */
    size_t stride_bytes;        /* from one token's k to the next one's, and v's */
    const void *ids;            /* (n) u32, or NULL */
    size_t count;
};
/* Write rows [first, first + rows->count); ids where there are any (has_ids is the caller's to
 * keep). Columns are the caller's to write. */
void block_write(struct block *block, const struct block_shape *shape, size_t first,
                 const struct given_rows *rows);

/* Do rows [first, first + count) hold exactly these bytes? Neither ids nor columns are compared. */
bool block_equals(const struct block *block, const struct block_shape *shape, size_t first,
                  const struct given_rows *rows);

/* The same for a sealed segment: values (2, G). */
bool block_values_equal(const unsigned char *const *values, const struct block_shape *shape,
                        size_t first, const struct given_rows *rows);

/* Headers and checksums of a full block whose first token stands at `position`. */
void block_seal(struct block *block, const struct block_shape *shape, uint64_t position,
                bool has_ids);

/* Bytes of a value of a segment (K, V, ids, columns), header included. */
size_t block_value_bytes(const struct block_shape *shape, enum format_kind kind);

/* The finished value (header and payload) of a sealed block. */
const unsigned char *block_value(const struct block *block, const struct block_shape *shape,
                                 uint32_t head, enum format_kind kind);

/* Rows as a tail record: writes block_tail_bytes(…) bytes, header included. */
size_t block_tail_bytes(const struct block_shape *shape, size_t count, bool has_ids);
void block_tail_encode(const struct block *block, const struct block_shape *shape,
                       uint64_t position, size_t count, bool has_ids, unsigned char *ret_value);

#endif
