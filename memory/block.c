/* SPDX-License-Identifier: Apache-2.0 */
/* block.c — one layout in memory and on disk.
 *
 * Rejected: small chunks of whole tokens that are transposed when sealed. They need a second
 * kind of view (strided), a second copy of every byte at the moment a commit waits for it, and a
 * reader may meet a layer in two layouts. Rows scattered by head on arrival cost the same copy,
 * once, on the appender's thread.
 *
 * A region starts at a multiple of 64; its payload does too, its header stands in the 48 bytes
 * before.
 */
#include "memory/block.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/tensor.h"

enum { ALIGN = 64, IDS_REGION_BYTES = ALIGN + FORMAT_SEGMENT_TOKENS * 4 };

void block_shape_init(const struct model *model, uint32_t columns, size_t width,
                      struct block_shape *ret_shape)
{
    uint32_t head_dim = width > 0 ? (uint32_t)(width / 2) : model->head_dim;
    size_t row_bytes = head_dim * dtype_bytes(model->dtype);
    assert(row_bytes > 0 && row_bytes % 16 == 0 && width % 16 == 0);
    *ret_shape = (struct block_shape){
        .heads = width > 0 ? 1 : model->kv_heads,
        .head_dim = head_dim,
        .dtype = model->dtype,
        .state_width = width,
        .row_bytes = row_bytes,
        .region_bytes = ALIGN + FORMAT_SEGMENT_TOKENS * row_bytes,
        .model_hash = model_hash(model),
    };
    columns_init(columns, model->query_heads, model->head_dim, &ret_shape->columns);
}

void block_cache_init(struct block_cache *cache, size_t bytes_max)
{
    *cache = (struct block_cache){ .bytes_max = bytes_max };
    pthread_mutex_init(&cache->lock, NULL);
}

static void free_block(struct block *block)
{
    free(block->data);
    free(block);
}

void block_cache_trim(struct block_cache *cache)
{
    pthread_mutex_lock(&cache->lock);
    struct block *block = cache->free;
    cache->free = NULL;
    cache->bytes = 0;
    pthread_mutex_unlock(&cache->lock);
    while (block != NULL) {
        struct block *next = block->next;
        free_block(block);
        block = next;
    }
}

void block_cache_fini(struct block_cache *cache)
{
    block_cache_trim(cache);
    pthread_mutex_destroy(&cache->lock);
}

/* A block of just this size, or NULL. */
static struct block *take_cached(struct block_cache *cache, size_t bytes)
{
    pthread_mutex_lock(&cache->lock);
    struct block **at = &cache->free;
    while (*at != NULL && (*at)->bytes != bytes) at = &(*at)->next;
    struct block *block = *at;
    if (block != NULL) {
        *at = block->next;
        cache->bytes -= bytes;
    }
    pthread_mutex_unlock(&cache->lock);
    return block;
}

static void give_back(struct block *block)
{
    struct block_cache *cache = block->cache;
    atomic_fetch_sub_explicit(&cache->held_bytes, block->bytes, memory_order_relaxed);
    pthread_mutex_lock(&cache->lock);
    bool kept = cache->bytes + block->bytes <= cache->bytes_max;
    if (kept) {
        block->next = cache->free;
        cache->free = block;
        cache->bytes += block->bytes;
    }
    pthread_mutex_unlock(&cache->lock);
    if (!kept) free_block(block);
}

static struct block *make_block(size_t bytes)
{
    struct block *block = calloc(1, sizeof *block);
    if (block == NULL) return NULL;
    void *data = NULL;
    if (posix_memalign(&data, ALIGN, bytes) != 0) {
        free(block);
        return NULL;
    }
    block->data = data;
    block->bytes = bytes;
    return block;
}

static size_t columns_region_bytes(const struct block_shape *shape)
{
    size_t token_bytes = shape->columns.token_bytes;
    return token_bytes == 0 ? 0 : ALIGN + FORMAT_SEGMENT_TOKENS * token_bytes;
}

struct block *block_new(struct block_cache *cache, const struct block_shape *shape)
{
    size_t bytes = 2 * shape->heads * shape->region_bytes + IDS_REGION_BYTES +
                   columns_region_bytes(shape);
    struct block *block = take_cached(cache, bytes);
    if (block == NULL) block = make_block(bytes);
    if (block == NULL) return NULL;
    block->cache = cache;
    atomic_fetch_add_explicit(&cache->held_bytes, bytes, memory_order_relaxed);
    block->has_ids = block->sealed = false;
    atomic_init(&block->references, 1);
    return block;
}

struct block *block_get(struct block *block)
{
    atomic_fetch_add_explicit(&block->references, 1, memory_order_relaxed);
    return block;
}

void block_put(struct block *block)
{
    if (block == NULL) return;
    unsigned before = atomic_fetch_sub_explicit(&block->references, 1, memory_order_acq_rel);
    assert(before >= 1);
    if (before == 1) give_back(block);
}

static size_t region_offset(const struct block_shape *shape, uint32_t head, enum format_kind kind)
{
    assert(head < shape->heads);
    switch (kind) {
    case FORMAT_KIND_K: return head * shape->region_bytes;
    case FORMAT_KIND_V: return (shape->heads + head) * shape->region_bytes;
    case FORMAT_KIND_COLUMNS: return 2 * shape->heads * shape->region_bytes + IDS_REGION_BYTES;
    default: return 2 * shape->heads * shape->region_bytes;
    }
}

unsigned char *block_rows(const struct block *block, const struct block_shape *shape, uint32_t head,
                          enum format_kind kind)
{
    return block->data + region_offset(shape, head, kind) + ALIGN;
}

uint32_t *block_ids(const struct block *block, const struct block_shape *shape)
{
    return (uint32_t *)(void *)block_rows(block, shape, 0, FORMAT_KIND_IDS);
}

unsigned char *block_columns(const struct block *block, const struct block_shape *shape)
{
    assert(shape->columns.token_bytes > 0);
    return block_rows(block, shape, 0, FORMAT_KIND_COLUMNS);
}

/* (n, G, D) → (G, 1024, D) from row `first` on. */
static void scatter(struct block *block, const struct block_shape *shape, size_t first,
                    const struct given_rows *rows, enum format_kind kind)
{
    const unsigned char *from = kind == FORMAT_KIND_K ? rows->k : rows->v;
    size_t row_bytes = shape->row_bytes;
    for (uint32_t head = 0; head < shape->heads; head++) {
        unsigned char *to = block_rows(block, shape, head, kind) + first * row_bytes;
        const unsigned char *row = from + head * row_bytes;
        for (size_t i = 0; i < rows->count; i++) {
            memcpy(to + i * row_bytes, row + i * rows->stride_bytes, row_bytes);
        }
    }
}

void block_write(struct block *block, const struct block_shape *shape, size_t first,
                 const struct given_rows *rows)
{
    assert(first + rows->count <= FORMAT_SEGMENT_TOKENS);
    block->sealed = false;
    scatter(block, shape, first, rows, FORMAT_KIND_K);
    scatter(block, shape, first, rows, FORMAT_KIND_V);
    if (rows->ids == NULL) return;
    memcpy(block_ids(block, shape) + first, rows->ids, rows->count * sizeof(uint32_t));
}

/* Are K and V of one head, rows one behind the other, those of head `head` in (n, G, D)? */
static bool equal_head(const unsigned char *k, const unsigned char *v,
                       const struct block_shape *shape, const struct given_rows *rows,
                       uint32_t head)
{
    size_t row_bytes = shape->row_bytes;
    for (size_t i = 0; i < rows->count; i++) {
        size_t mine = i * row_bytes, other = i * rows->stride_bytes + head * row_bytes;
        if (memcmp(k + mine, rows->k + other, row_bytes) != 0 ||
            memcmp(v + mine, rows->v + other, row_bytes) != 0)
            return false;
    }
    return true;
}

bool block_equals(const struct block *block, const struct block_shape *shape, size_t first,
                  const struct given_rows *rows)
{
    assert(first + rows->count <= FORMAT_SEGMENT_TOKENS);
    size_t offset = first * shape->row_bytes;
    for (uint32_t head = 0; head < shape->heads; head++) {
        const unsigned char *k = block_rows(block, shape, head, FORMAT_KIND_K) + offset;
        const unsigned char *v = block_rows(block, shape, head, FORMAT_KIND_V) + offset;
        if (!equal_head(k, v, shape, rows, head)) return false;
    }
    return true;
}

bool block_values_equal(const unsigned char *const *values, const struct block_shape *shape,
                        size_t first, const struct given_rows *rows)
{
    assert(first + rows->count <= FORMAT_SEGMENT_TOKENS);
    size_t offset = first * shape->row_bytes;
    for (uint32_t head = 0; head < shape->heads; head++) {
        const unsigned char *k = values[head] + offset, *v = values[shape->heads + head] + offset;
        if (!equal_head(k, v, shape, rows, head)) return false;
    }
    return true;
}

static unsigned char *value_of(const struct block *block, const struct block_shape *shape,
                               uint32_t head, enum format_kind kind)
{
    return block_rows(block, shape, head, kind) - FORMAT_HEADER_BYTES;
}

void block_seal(struct block *block, const struct block_shape *shape, uint64_t position,
                bool has_ids)
{
    assert(position % FORMAT_SEGMENT_TOKENS == 0);
    struct value_header header = {
        .dtype = (uint8_t)shape->dtype,
        .tokens = FORMAT_SEGMENT_TOKENS,
        .head_dim = (uint16_t)shape->head_dim,
        .heads = 1,
        .payload_bytes = FORMAT_SEGMENT_TOKENS * shape->row_bytes,
        .position = position,
        .model_hash = shape->model_hash,
    };
    for (uint32_t head = 0; head < shape->heads; head++) {
        header.kind = FORMAT_KIND_K;
        format_seal(&header, value_of(block, shape, head, FORMAT_KIND_K));
        header.kind = FORMAT_KIND_V;
        format_seal(&header, value_of(block, shape, head, FORMAT_KIND_V));
    }
    header.head_dim = header.heads = 0;
    if (has_ids) {
        header.kind = FORMAT_KIND_IDS;
        header.dtype = DTYPE_U32;
        header.payload_bytes = FORMAT_SEGMENT_TOKENS * sizeof(uint32_t);
        format_seal(&header, value_of(block, shape, 0, FORMAT_KIND_IDS));
    }
    if (shape->columns.token_bytes > 0) {
        header.kind = FORMAT_KIND_COLUMNS;
        header.dtype = 0;
        header.payload_bytes = FORMAT_SEGMENT_TOKENS * shape->columns.token_bytes;
        format_seal(&header, value_of(block, shape, 0, FORMAT_KIND_COLUMNS));
    }
    block->sealed = true;
}

size_t block_value_bytes(const struct block_shape *shape, enum format_kind kind)
{
    size_t row_bytes = kind == FORMAT_KIND_IDS       ? sizeof(uint32_t)
                       : kind == FORMAT_KIND_COLUMNS ? shape->columns.token_bytes
                                                     : shape->row_bytes;
    return FORMAT_HEADER_BYTES + FORMAT_SEGMENT_TOKENS * row_bytes;
}

const unsigned char *block_value(const struct block *block, const struct block_shape *shape,
                                 uint32_t head, enum format_kind kind)
{
    assert(block->sealed);
    return value_of(block, shape, head, kind);
}

size_t block_tail_bytes(const struct block_shape *shape, size_t count, bool has_ids)
{
    return FORMAT_HEADER_BYTES +
           count * (block_stored_bytes(shape) + (has_ids ? sizeof(uint32_t) : 0));
}

/* (G, 1024, D) → (n, G, D). */
static unsigned char *gather(const struct block *block, const struct block_shape *shape,
                             size_t first, size_t count, enum format_kind kind, unsigned char *to)
{
    size_t row_bytes = shape->row_bytes;
    for (size_t i = first; i < first + count; i++) {
        for (uint32_t head = 0; head < shape->heads; head++) {
            memcpy(to, block_rows(block, shape, head, kind) + i * row_bytes, row_bytes);
            to += row_bytes;
        }
    }
    return to;
}

void block_tail_encode(const struct block *block, const struct block_shape *shape,
                       uint64_t position, size_t count, bool has_ids, unsigned char *ret_value)
{
    size_t first = position % FORMAT_SEGMENT_TOKENS;
    assert(count > 0 && first + count <= FORMAT_SEGMENT_TOKENS);
    unsigned char *to = ret_value + FORMAT_HEADER_BYTES;
    to = gather(block, shape, first, count, FORMAT_KIND_K, to);
    to = gather(block, shape, first, count, FORMAT_KIND_V, to);
    size_t ids_bytes = has_ids ? count * sizeof(uint32_t) : 0;
    if (has_ids) memcpy(to, block_ids(block, shape) + first, ids_bytes);
    size_t token_bytes = shape->columns.token_bytes;
    if (token_bytes > 0)
        memcpy(to + ids_bytes, block_columns(block, shape) + first * token_bytes,
               count * token_bytes);
    unsigned flags = (has_ids ? FORMAT_FLAG_IDS : 0u) |
                     (token_bytes > 0 ? FORMAT_FLAG_COLUMNS : 0u);
    struct value_header header = {
        .kind = FORMAT_KIND_TAIL,
        .dtype = (uint8_t)shape->dtype,
        .flags = (uint8_t)flags,
        .tokens = (uint32_t)count,
        .head_dim = (uint16_t)shape->head_dim,
        .heads = (uint16_t)shape->heads,
        .payload_bytes = block_tail_bytes(shape, count, has_ids) - FORMAT_HEADER_BYTES,
        .position = position,
        .model_hash = shape->model_hash,
    };
    format_seal(&header, ret_value);
}
