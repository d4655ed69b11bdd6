/* SPDX-License-Identifier: Apache-2.0 */
/* slots.c — a block of tokens is compared with all slots at once, and then corrected for what its
 * own tokens change.
 *
 * Token by token, a write would read all M unit keys for each token: half a megabyte at M 1,024
 * and D 128, more than the L1 cache holds. But a token changes one slot only. So the cosines of
 * SLOTS_BLOCK tokens with the slots as they are before the block come from one call of the score
 * kernel, which reads each unit key once for all of them; after each token the one slot that it
 * changed is scored again for the tokens behind it. The kernel sums a pair in the same order
 * whatever it is called with, so cosines, and with them all decisions, are those of writing token
 * by token (test_slots.c compares to the bit).
 *
 * Means are fp32 and are moved in double: mean + (x - mean) / count, rounded once per token. Of n
 * tokens the rounding errors add up to about sqrt(n / 3) halves of a last bit, and a slot with more
 * than 2^24 tokens hardly moves any more. Rejected: sums in double, divided when read, which would
 * double the state on disk for digits that its sources, mostly 16-bit numbers, do not have.
 *
 * Rejected: a list of slots by age. Finding the oldest by a scan costs 8 M bytes where the cosines
 * cost 4 M D.
 */
#include "index/slots.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "attention/backend.h"
#include "attention/view.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/tensor.h"

enum { ALIGN_BYTES = 64, LANES = 8 };

static size_t aligned_bytes(size_t bytes)
{
    return (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

int slots_new(const struct slots_shape *shape, struct slots **ret_slots, struct error *err)
{
    assert(shape->slots >= 1 && shape->slots <= SLOTS_MAX);
    assert(shape->head_dim >= 8 && shape->head_dim % 8 == 0);
    size_t matrix = aligned_bytes(shape->slots * shape->head_dim * sizeof(float));
    size_t numbers = aligned_bytes(shape->slots * sizeof(uint64_t));
    size_t head = aligned_bytes(sizeof(struct slots)), bytes = head + 3 * matrix + 2 * numbers;
    unsigned char *memory = aligned_alloc(ALIGN_BYTES, bytes);
    if (memory == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu slots of %zu dimensions",
                         shape->slots, shape->head_dim);
    memset(memory, 0, bytes);
    struct slots *slots = (struct slots *)(void *)memory;
    unsigned char *rows = memory + head, *counts = rows + 3 * matrix;
    *slots = (struct slots){
        .shape = *shape,
        .k = (float *)(void *)rows,
        .v = (float *)(void *)(rows + matrix),
        .unit = (float *)(void *)(rows + 2 * matrix),
        .counts = (uint64_t *)(void *)counts,
        .updated = (uint64_t *)(void *)(counts + numbers),
    };
    *ret_slots = slots;
    return 0;
}

void slots_free(struct slots *slots)
{
    free(slots);
}

void slots_freep(struct slots **slots)
{
    slots_free(*slots);
}

void slots_copy(struct slots *to, const struct slots *from)
{
    assert(to->shape.slots == from->shape.slots && to->shape.head_dim == from->shape.head_dim);
    struct slots copy = *from;
    copy.k = to->k;
    copy.v = to->v;
    copy.unit = to->unit;
    copy.counts = to->counts;
    copy.updated = to->updated;
    size_t count = from->shape.slots, elements = count * from->shape.head_dim;
    memcpy(to->k, from->k, elements * sizeof *to->k);
    memcpy(to->v, from->v, elements * sizeof *to->v);
    memcpy(to->unit, from->unit, elements * sizeof *to->unit);
    memcpy(to->counts, from->counts, count * sizeof *to->counts);
    memcpy(to->updated, from->updated, count * sizeof *to->updated);
    *to = copy;
}

/* The scratch of a call. */
struct block {
    float *unit;   /* (SLOTS_BLOCK, D) keys of its tokens at length 1 */
    float *scores; /* (tokens, columns) their cosines with slots 0 … columns-1 */
    float *again;  /* (SLOTS_BLOCK) cosines with the slot that was changed */
    float *k, *v;  /* (D) of a token */
    size_t tokens, columns;
};

size_t slots_scratch_floats(const struct slots_shape *shape)
{
    return SLOTS_BLOCK * (shape->head_dim + shape->slots + 1) + 2 * shape->head_dim;
}

static struct block block_of(const struct slots_shape *shape, float *scratch)
{
    struct block block = { .unit = scratch };
    block.k = block.unit + SLOTS_BLOCK * shape->head_dim;
    block.v = block.k + shape->head_dim;
    block.scores = block.v + shape->head_dim;
    block.again = block.scores + SLOTS_BLOCK * shape->slots;
    return block;
}

/* x at length 1, or zeros. (D) each. Squares of fp32 overflow in fp32, not in double. */
static void normalise(const float *x, size_t head_dim, float *ret_unit)
{
    double square = 0.0;
    for (size_t d = 0; d < head_dim; d++) square += (double)x[d] * (double)x[d];
    double scale = square > 0.0 ? 1.0 / sqrt(square) : 0.0;
    for (size_t d = 0; d < head_dim; d++) ret_unit[d] = (float)(scale * (double)x[d]);
}

static const void *row_of(const void *rows, size_t stride_bytes, size_t row)
{
    return (const unsigned char *)rows + row * stride_bytes;
}

/* Cosines of tokens first … first + block->tokens - 1 with slots 0 … block->columns - 1. */
static void score_block(const struct slots *slots, const struct view *tokens, size_t first,
                        struct block *block)
{
    size_t head_dim = slots->shape.head_dim;
    for (size_t i = 0; i < block->tokens; i++) {
        backend_widen(row_of(tokens->k, tokens->k_stride_bytes, first + i), tokens->dtype, 1,
                      head_dim, block->k);
        normalise(block->k, head_dim, block->unit + i * head_dim);
    }
    assert(block->tokens > 0 && block->columns > 0);
    backend_get()->score(&(struct score_args){
        .q = block->unit, .queries = block->tokens, .head_dim = head_dim, .k = slots->unit,
        .k_stride_bytes = head_dim * sizeof(float), .tokens = block->columns, .dtype = DTYPE_FP32,
        .scores = block->scores });
}

/* The first of the largest; count ≥ 1. Lanes, so that the compiler can make vectors of it. */
static size_t largest(const float *scores, size_t count)
{
    float best[LANES], most = scores[0];
    for (size_t lane = 0; lane < LANES; lane++) best[lane] = scores[0];
    size_t at = 0;
    for (; at + LANES <= count; at += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            best[lane] = scores[at + lane] > best[lane] ? scores[at + lane] : best[lane];
    for (size_t lane = 0; lane < LANES; lane++) most = best[lane] > most ? best[lane] : most;
    for (; at < count; at++) most = scores[at] > most ? scores[at] : most;
    size_t found = 0;
    while (scores[found] != most) found++;
    return found;
}

/* The slot that went longest without a token: the lowest unused one, else the smallest stamp (no
 * two are equal). */
static size_t oldest(const struct slots *slots)
{
    if (slots->used < slots->shape.slots) return slots->used;
    size_t found = 0;
    for (size_t i = 1; i < slots->shape.slots; i++)
        if (slots->updated[i] < slots->updated[found]) found = i;
    return found;
}

/* Which slot takes a token with these cosines; *ret_merge: it is familiar. */
static size_t choose(const struct slots *slots, const float *scores, bool *ret_merge)
{
    *ret_merge = false;
    if (slots->used > 0) {
        size_t nearest = largest(scores, slots->used);
        double cosine = fmax(-1.0, fmin(1.0, (double)scores[nearest]));
        *ret_merge = cosine > slots->shape.novelty;
        if (*ret_merge) return nearest;
    }
    return oldest(slots);
}

/* mean (D) of count - 1 vectors becomes that of count. */
static void move_mean(float *mean, const float *x, size_t head_dim, uint64_t count)
{
    double weight = 1.0 / (double)count;
    for (size_t d = 0; d < head_dim; d++)
        mean[d] = (float)((double)mean[d] + ((double)x[d] - (double)mean[d]) * weight);
}

/* k, v (D) of a token into a slot. */
static void take_in(struct slots *slots, size_t slot, bool merge, const struct block *block)
{
    size_t head_dim = slots->shape.head_dim;
    float *k = slots->k + slot * head_dim, *v = slots->v + slot * head_dim;
    slots->written++;
    slots->updated[slot] = slots->written;
    if (merge) {
        slots->merged++;
        slots->counts[slot]++;
        move_mean(k, block->k, head_dim, slots->counts[slot]);
        move_mean(v, block->v, head_dim, slots->counts[slot]);
    } else {
        slots->replaced += slot < slots->used;
        slots->lost += slots->counts[slot];
        slots->used += slot == slots->used;
        slots->counts[slot] = 1;
        memcpy(k, block->k, head_dim * sizeof *k);
        memcpy(v, block->v, head_dim * sizeof *v);
    }
    normalise(k, head_dim, slots->unit + slot * head_dim);
}

/* New cosines of a changed slot for the tokens of the block from `first` on. */
static void score_again(const struct slots *slots, size_t slot, size_t first,
                        const struct block *block)
{
    size_t head_dim = slots->shape.head_dim;
    if (first == block->tokens) return;
    backend_get()->score(&(struct score_args){
        .q = block->unit + first * head_dim, .queries = block->tokens - first,
        .head_dim = head_dim, .k = slots->unit + slot * head_dim,
        .k_stride_bytes = head_dim * sizeof(float), .tokens = 1, .dtype = DTYPE_FP32,
        .scores = block->again });
    for (size_t i = first; i < block->tokens; i++)
        block->scores[i * block->columns + slot] = block->again[i - first];
}

static size_t block_tokens(const struct view *tokens, size_t first)
{
    return tokens->tokens - first < SLOTS_BLOCK ? tokens->tokens - first : SLOTS_BLOCK;
}

void slots_write(struct slots *slots, const struct view *tokens, float *scratch,
                 uint32_t *ret_slots)
{
    struct block block = block_of(&slots->shape, scratch);
    size_t head_dim = slots->shape.head_dim;
    for (size_t first = 0; first < tokens->tokens; first += block.tokens) {
        block.tokens = block_tokens(tokens, first);
        /* Columns of slots that the block itself will bring into use: zeros until then. */
        size_t room = slots->used + block.tokens;
        block.columns = room < slots->shape.slots ? room : slots->shape.slots;
        score_block(slots, tokens, first, &block);
        for (size_t i = 0; i < block.tokens; i++) {
            bool merge = false;
            size_t slot = choose(slots, block.scores + i * block.columns, &merge);
            backend_widen(row_of(tokens->k, tokens->k_stride_bytes, first + i), tokens->dtype, 1,
                          head_dim, block.k);
            backend_widen(row_of(tokens->v, tokens->v_stride_bytes, first + i), tokens->dtype, 1,
                          head_dim, block.v);
            take_in(slots, slot, merge, &block);
            score_again(slots, slot, i + 1, &block);
            if (ret_slots != NULL) ret_slots[first + i] = (uint32_t)slot;
        }
    }
}

void slots_nearest(const struct slots *slots, const struct view *window, float *scratch,
                   uint32_t *ret_slots)
{
    struct block block = block_of(&slots->shape, scratch);
    assert(slots->used > 0);
    for (size_t first = 0; first < window->tokens; first += block.tokens) {
        block.tokens = block_tokens(window, first);
        block.columns = slots->used;
        score_block(slots, window, first, &block);
        for (size_t i = 0; i < block.tokens; i++)
            ret_slots[first + i] = (uint32_t)largest(block.scores + i * block.columns, slots->used);
    }
}

enum { ENCODED_VERSION = 1, ENCODED_HEAD = 4 * 4 + 8 + 4 * 8 };

static size_t slot_bytes(size_t head_dim)
{
    return 2 * head_dim * sizeof(float) + 2 * sizeof(uint64_t);
}

size_t slots_bytes(const struct slots *slots)
{
    return ENCODED_HEAD + slots->used * slot_bytes(slots->shape.head_dim);
}

static void put_floats(struct bytes_writer *out, const float *values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        bytes_put_le32(out, bits);
    }
}

static void get_floats(struct bytes_reader *in, float *ret_values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = bytes_get_le32(in);
        memcpy(&ret_values[i], &bits, sizeof bits);
    }
}

void slots_encode(const struct slots *slots, unsigned char *ret_data)
{
    struct bytes_writer out = bytes_writer(ret_data, slots_bytes(slots));
    size_t elements = slots->used * slots->shape.head_dim;
    bytes_put_le32(&out, ENCODED_VERSION);
    bytes_put_le32(&out, (uint32_t)slots->shape.slots);
    bytes_put_le32(&out, (uint32_t)slots->shape.head_dim);
    bytes_put_le32(&out, (uint32_t)slots->used);
    bytes_put_f64(&out, slots->shape.novelty);
    bytes_put_le64(&out, slots->written);
    bytes_put_le64(&out, slots->merged);
    bytes_put_le64(&out, slots->replaced);
    bytes_put_le64(&out, slots->lost);
    put_floats(&out, slots->k, elements);
    put_floats(&out, slots->v, elements);
    for (size_t i = 0; i < slots->used; i++) bytes_put_le64(&out, slots->counts[i]);
    for (size_t i = 0; i < slots->used; i++) bytes_put_le64(&out, slots->updated[i]);
    assert(!out.bad && out.offset == slots_bytes(slots));
}

/* What is read of a slot must be one that writing could have made: finite means of some tokens. */
static bool is_sound(const struct slots *slots)
{
    uint64_t tokens = slots->lost;
    bool sound = slots->merged <= slots->written && slots->replaced <= slots->written;
    size_t elements = slots->used * slots->shape.head_dim;
    for (size_t i = 0; i < slots->used; i++) {
        sound = sound && slots->counts[i] > 0 && slots->counts[i] <= slots->written &&
                slots->updated[i] > 0 && slots->updated[i] <= slots->written;
        tokens += slots->counts[i];
    }
    for (size_t i = 0; i < elements; i++)
        sound = sound && isfinite(slots->k[i]) && isfinite(slots->v[i]);
    return sound && tokens == slots->written;
}

/* The same shape was checked. */
static void read_slots(struct slots *slots, size_t used, struct bytes_reader *in)
{
    size_t head_dim = slots->shape.head_dim;
    slots->used = used;
    slots->written = bytes_get_le64(in);
    slots->merged = bytes_get_le64(in);
    slots->replaced = bytes_get_le64(in);
    slots->lost = bytes_get_le64(in);
    get_floats(in, slots->k, used * head_dim);
    get_floats(in, slots->v, used * head_dim);
    for (size_t i = 0; i < used; i++) slots->counts[i] = bytes_get_le64(in);
    for (size_t i = 0; i < used; i++) slots->updated[i] = bytes_get_le64(in);
    for (size_t i = 0; i < used; i++)
        normalise(slots->k + i * head_dim, head_dim, slots->unit + i * head_dim);
}

int slots_decode(struct slots *slots, const void *data, size_t bytes, struct error *err)
{
    struct bytes_reader in = bytes_reader(data, bytes);
    uint32_t version = bytes_get_le32(&in), count = bytes_get_le32(&in);
    uint32_t head_dim = bytes_get_le32(&in), used = bytes_get_le32(&in);
    double novelty = bytes_get_f64(&in);
    if (in.bad || version != ENCODED_VERSION || count != slots->shape.slots || used > count ||
        head_dim != slots->shape.head_dim || novelty != slots->shape.novelty ||
        bytes != ENCODED_HEAD + used * slot_bytes(head_dim))
        return error_set(err, MEMD_ECORRUPT, "%zu bytes are not %zu slots of version %d", bytes,
                         slots->shape.slots, ENCODED_VERSION);
    CLEANUP(slots_freep) struct slots *read = NULL;
    int rc = slots_new(&slots->shape, &read, err);
    if (rc < 0) return rc;
    read_slots(read, used, &in);
    assert(bytes_done(&in)); /* the length was checked */
    if (!is_sound(read))
        return error_set(err, MEMD_ECORRUPT, "the numbers of %u slots do not agree", used);
    slots_copy(slots, read);
    return 0;
}
