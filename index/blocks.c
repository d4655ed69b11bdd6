/* SPDX-License-Identifier: Apache-2.0 */
/* blocks.c — one growing array, block after block, all heads of a block together: what is appended
 * is written once, and a scan of one head strides over the others.
 *
 * Rejected: an array for each head (growing moves all of them), chunks that never move (grown.h:
 * 256 blocks of 32 heads are 4 MiB, also where there is one; readers never run beside a writer).
 */
#include "index/blocks.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "attention/backend.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/pool.h"
#include "base/tensor.h"
#include "index/topk.h"

#define MAGIC UINT32_C(0x4b4c4c42) /* "BLLK" */

enum {
    VERSION = 1,
    HEADER_BYTES = 2 * 4 + 7 * 8,
    WAVE = 64, /* blocks that room is made for at once */
};

uint64_t blocks_complete(const struct blocks_shape *shape, uint64_t tokens)
{
    return tokens < shape->first ? 0 : (tokens - shape->first) / shape->tokens;
}

uint64_t blocks_begin(const struct blocks_shape *shape, uint64_t block)
{
    return shape->first + block * shape->tokens;
}

/* Rows that so many blocks are made from. */
static uint64_t rows_of(const struct blocks_shape *shape, uint64_t count)
{
    return count == 0 ? 0 : blocks_begin(shape, count) + shape->ahead;
}

uint64_t blocks_reach(const struct blocks_shape *shape, uint64_t behind, uint64_t tokens)
{
    assert(behind >= shape->ahead);
    return rows_of(shape, tokens < behind ? 0 : blocks_complete(shape, tokens - behind));
}

static size_t block_floats(const struct blocks_shape *shape)
{
    return shape->heads * shape->head_dim;
}

const struct blocks *blocks_of(const struct fold *fold)
{
    assert(fold->type->free == blocks_free);
    return (const struct blocks *)(const void *)fold;
}

static int open_blocks(const struct fold_type *type, const struct blocks_shape *shape,
                       struct blocks **ret_blocks, struct error *err)
{
    assert(shape->tokens >= 1 && shape->heads >= 1);
    assert(shape->head_dim >= 8 && shape->head_dim % 8 == 0);
    struct blocks *blocks = malloc(sizeof *blocks);
    if (blocks == NULL) return error_set(err, MEMD_ENOMEM, "no memory for blocks");
    *blocks = (struct blocks){ .base = { .type = type, .bytes = sizeof *blocks }, .shape = *shape };
    *ret_blocks = blocks;
    return 0;
}

int blocks_open(const struct fold_type *type, const struct blocks_shape *shape,
                struct fold **ret_fold, struct error *err)
{
    struct blocks *blocks = NULL;
    int rc = open_blocks(type, shape, &blocks, err);
    if (rc == 0) *ret_fold = &blocks->base;
    return rc;
}

void blocks_free(struct fold *fold)
{
    if (fold == NULL) return;
    free(((struct blocks *)(void *)fold)->vectors);
    free(fold);
}

static void free_blocks(struct blocks **blocks)
{
    blocks_free(*blocks == NULL ? NULL : &(*blocks)->base);
}

static int grow(struct blocks *blocks, size_t count, struct error *err)
{
    if (count <= blocks->room) return 0;
    size_t room = blocks->room * 2 > count ? blocks->room * 2 : count;
    size_t bytes = room * block_floats(&blocks->shape) * sizeof *blocks->vectors;
    float *vectors = realloc(blocks->vectors, bytes);
    if (vectors == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for the vectors of %zu blocks", room);
    blocks->vectors = vectors;
    blocks->room = room;
    blocks->base.bytes = sizeof *blocks + bytes;
    return 0;
}

/* Some blocks that are made at a time. */
struct wave {
    const struct blocks *blocks;
    const struct fold_source *source;
    blocks_represent *represent;
    struct {
        int code;
        struct error error;
    } outcomes[WAVE];
};

static void make(void *arg, size_t i)
{
    struct wave *wave = arg;
    const struct blocks *blocks = wave->blocks;
    const struct fold_source *source = wave->source;
    struct error *err = &wave->outcomes[i].error;
    int rc = source->stop == NULL ? 0 : source->stop(source->stop_arg);
    if (rc < 0) {
        wave->outcomes[i].code = error_set(err, rc, "%s while making blocks", error_text(rc));
        return;
    }
    size_t block = blocks->count + i;
    float *vectors = blocks->vectors + block * block_floats(&blocks->shape);
    wave->outcomes[i].code = wave->represent(source, &blocks->shape,
                                             blocks_begin(&blocks->shape, block), vectors, err);
}

static int make_wave(struct blocks *blocks, struct wave *wave, size_t count, struct error *err)
{
    int rc = grow(blocks, blocks->count + count, err);
    if (rc < 0) return rc;
    pool_for(wave->source->pool, count, make, wave);
    for (size_t i = 0; i < count; i++) {
        if (wave->outcomes[i].code < 0)
            return error_set(err, wave->outcomes[i].code, "%s", wave->outcomes[i].error.text);
        blocks->lacking += wave->outcomes[i].code > 0;
        blocks->count++;
        blocks->base.tokens = rows_of(&blocks->shape, blocks->count);
    }
    return 0;
}

int blocks_advance(struct fold *fold, const struct fold_source *source, uint64_t end,
                   blocks_represent *represent, struct error *err)
{
    struct blocks *blocks = (struct blocks *)(void *)fold;
    uint64_t ahead = blocks->shape.ahead;
    uint64_t wanted = end < ahead ? 0 : blocks_complete(&blocks->shape, end - ahead);
    assert(end >= blocks->base.tokens && end == rows_of(&blocks->shape, wanted));
    CLEANUP(free_ptr) struct wave *wave = malloc(sizeof *wave);
    if (wave == NULL) return error_set(err, MEMD_ENOMEM, "no memory for making blocks");
    *wave = (struct wave){ .blocks = blocks, .source = source, .represent = represent };
    while (blocks->count < wanted) {
        size_t left = (size_t)(wanted - blocks->count);
        int rc = make_wave(blocks, wave, left < WAVE ? left : WAVE, err);
        if (rc < 0) return rc;
    }
    return 0;
}

size_t blocks_save(const struct fold *fold, unsigned char *ret_data)
{
    const struct blocks *blocks = blocks_of(fold);
    const struct blocks_shape *shape = &blocks->shape;
    size_t floats = blocks->count * block_floats(shape);
    size_t bytes = HEADER_BYTES + floats * sizeof(float);
    if (ret_data == NULL) return bytes;
    struct bytes_writer out = bytes_writer(ret_data, bytes);
    bytes_put_le32(&out, MAGIC);
    bytes_put_le32(&out, VERSION);
    bytes_put_le64(&out, shape->first);
    bytes_put_le64(&out, shape->tokens);
    bytes_put_le64(&out, shape->ahead);
    bytes_put_le64(&out, shape->heads);
    bytes_put_le64(&out, shape->head_dim);
    bytes_put_le64(&out, blocks->count);
    bytes_put_le64(&out, blocks->lacking);
    for (size_t i = 0; i < floats; i++) {
        uint32_t bits;
        memcpy(&bits, &blocks->vectors[i], sizeof bits);
        bytes_put_le32(&out, bits);
    }
    assert(!out.bad);
    return bytes;
}

static bool header_fits(struct bytes_reader *in, const struct blocks_shape *shape)
{
    bool fits = bytes_get_le32(in) == MAGIC && bytes_get_le32(in) == VERSION;
    fits = bytes_get_le64(in) == shape->first && fits;
    fits = bytes_get_le64(in) == shape->tokens && fits;
    fits = bytes_get_le64(in) == shape->ahead && fits;
    fits = bytes_get_le64(in) == shape->heads && fits;
    return bytes_get_le64(in) == shape->head_dim && fits && !in->bad;
}

int blocks_load(const struct fold_type *type, const struct blocks_shape *shape, const void *data,
                size_t bytes, struct fold **ret_fold, struct error *err)
{
    struct bytes_reader in = bytes_reader(data, bytes);
    bool fits = header_fits(&in, shape);
    uint64_t count = bytes_get_le64(&in), lacking = bytes_get_le64(&in);
    size_t each = block_floats(shape) * sizeof(float);
    if (!fits || in.bad || count != (bytes - HEADER_BYTES) / each ||
        (bytes - HEADER_BYTES) % each != 0 || lacking > count)
        return error_set(err, MEMD_ECORRUPT, "%zu bytes are not the blocks of %" PRIu64
                         " tokens with %zu vectors of %zu dimensions", bytes, shape->tokens,
                         shape->heads, shape->head_dim);
    CLEANUP(free_blocks) struct blocks *blocks = NULL;
    int rc = open_blocks(type, shape, &blocks, err);
    if (rc == 0) rc = grow(blocks, (size_t)count, err);
    if (rc < 0) return rc;
    size_t floats = (size_t)count * block_floats(shape);
    for (size_t i = 0; blocks->vectors != NULL && i < floats; i++) {
        uint32_t bits = bytes_get_le32(&in);
        memcpy(&blocks->vectors[i], &bits, sizeof bits);
    }
    blocks->count = (size_t)count;
    blocks->lacking = (size_t)lacking;
    blocks->base.tokens = rows_of(shape, count);
    *ret_fold = &TAKE(blocks)->base;
    return 0;
}

void blocks_scores(const struct blocks *blocks, size_t head, const float *q, size_t queries,
                   size_t count, float *ret_scores)
{
    assert(head < blocks->shape.heads && count <= blocks->count);
    if (count == 0) return;
    backend_get()->score(&(struct score_args){
        .q = q, .queries = queries, .head_dim = blocks->shape.head_dim,
        .k = blocks->vectors + head * blocks->shape.head_dim,
        .k_stride_bytes = block_floats(&blocks->shape) * sizeof(float), .tokens = count,
        .dtype = DTYPE_FP32, .scores = ret_scores });
}

void blocks_scores_shared(const struct blocks *blocks, const float *q, size_t count,
                          float *scratch, float *ret_scores)
{
    for (size_t i = 0; i < count; i++) ret_scores[i] = 0.0F;
    for (size_t head = 0; head < blocks->shape.heads; head++) {
        blocks_scores(blocks, head, q + head * blocks->shape.head_dim, 1, count, scratch);
        for (size_t i = 0; i < count; i++) ret_scores[i] += scratch[i];
    }
}

static int ascending(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

size_t blocks_choose(const float *scores, size_t count, const struct blocks_wanted *wanted,
                     float *scratch, uint64_t *ret_ids)
{
    size_t chosen = wanted->first + wanted->best + wanted->last;
    if (count <= chosen) {
        for (size_t i = 0; i < count; i++) ret_ids[i] = i;
        return count;
    }
    for (size_t i = 0; i < wanted->first; i++) ret_ids[i] = i;
    struct topk top = { ret_ids + wanted->first, scratch, wanted->best };
    if (wanted->best > 0) {
        topk_clear(&top);
        for (size_t i = wanted->first; i < count - wanted->last; i++)
            topk_offer(&top, isnan(scores[i]) ? -INFINITY : scores[i], i);
        qsort(top.ids, top.k, sizeof *top.ids, ascending);
    }
    for (size_t i = 0; i < wanted->last; i++)
        ret_ids[chosen - wanted->last + i] = count - wanted->last + i;
    return chosen;
}
