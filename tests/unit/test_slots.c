/* SPDX-License-Identifier: Apache-2.0 */
/* test_slots.c — CAMELoT's slots: the worked example, a plain re-telling in double that keeps the
 * tokens, and the limits where slots are something simpler. */
#include "index/slots.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention/view.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/half.h"
#include "base/tensor.h"
#include "tests/random.h"

enum { TOKENS = 500, DIM_MAX = 136, GROUPS = 24, SLOTS_MOST = 40 };

/* Tokens of one KV head as an engine sends them. */
struct past {
    size_t tokens, head_dim, stride; /* elements from row to row */
    uint32_t dtype;
    unsigned char *k, *v;
    float *wide_k, *wide_v; /* (tokens, D) the same numbers */
};

static void *need(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    assert_non_null(memory);
    memset(memory, 0, bytes);
    return memory;
}

static void past_free(struct past *past)
{
    free(past->k);
    free(past->v);
    free(past->wide_k);
    free(past->wide_v);
}

static void put_row(const struct past *past, unsigned char *rows, float *wide, size_t row,
                    const float *values)
{
    size_t width = dtype_bytes(past->dtype);
    half_store(values, past->head_dim, past->dtype, rows + row * past->stride * width);
    half_load(rows + row * past->stride * width, past->dtype, past->head_dim,
              wide + row * past->head_dim);
}

static struct past past_new(size_t tokens, size_t head_dim, uint32_t dtype)
{
    struct past past = { .tokens = tokens, .head_dim = head_dim, .stride = 3 * head_dim,
                         .dtype = dtype };
    past.k = need(tokens * past.stride * 4);
    past.v = need(tokens * past.stride * 4);
    past.wide_k = need(tokens * head_dim * sizeof(float));
    past.wide_v = need(tokens * head_dim * sizeof(float));
    return past;
}

/* Tokens around a few directions, at different distances, so that some are familiar. */
static struct past draw(size_t head_dim, uint32_t dtype, uint64_t *random)
{
    struct past past = past_new(TOKENS, head_dim, dtype);
    float centres[GROUPS][DIM_MAX], k[DIM_MAX], v[DIM_MAX];
    for (size_t i = 0; i < GROUPS; i++)
        for (size_t d = 0; d < head_dim; d++) centres[i][d] = random_float(random);
    for (size_t i = 0; i < TOKENS; i++) {
        const float *centre = centres[random_below(random, GROUPS)];
        float spread = 0.05F + 0.75F * fabsf(random_float(random));
        for (size_t d = 0; d < head_dim; d++) {
            k[d] = 3.0F * (centre[d] + spread * random_float(random));
            v[d] = random_float(random);
        }
        put_row(&past, past.k, past.wide_k, i, k);
        put_row(&past, past.v, past.wide_v, i, v);
    }
    return past;
}

static struct view view_of(const struct past *past, size_t first, size_t count)
{
    size_t stride = past->stride * dtype_bytes(past->dtype);
    return (struct view){ .k = past->k + first * stride, .v = past->v + first * stride,
                          .k_stride_bytes = stride, .v_stride_bytes = stride, .tokens = count,
                          .dtype = past->dtype };
}

static struct slots *slots_of(size_t count, size_t head_dim, double novelty)
{
    struct slots *slots = NULL;
    struct slots_shape shape = { count, head_dim, novelty };
    assert_int_equal(slots_new(&shape, &slots, NULL), 0);
    return slots;
}

static void write_all(struct slots *slots, const struct past *past, size_t first, size_t count,
                      uint32_t *ret_slots)
{
    CLEANUP(free_ptr) float *scratch = need(slots_scratch_floats(&slots->shape) * sizeof(float));
    struct view view = view_of(past, first, count);
    slots_write(slots, &view, scratch, ret_slots);
}

/* ---- the worked example: M = 2, R = 0.9, two dimensions and zeros ---- */

static void expect_slot(const struct slots *slots, size_t slot, const double *numbers)
{
    const float *k = slots->k + slot * slots->shape.head_dim;
    assert_true(fabs((double)k[0] - numbers[0]) < 1e-5 && fabs((double)k[1] - numbers[1]) < 1e-5);
    assert_true(fabs((double)slots->v[slot * slots->shape.head_dim] - numbers[2]) < 1e-5);
    assert_true((double)slots->counts[slot] == numbers[3]);
    uint64_t age = slots->written - slots->updated[slot];
    assert_true(slots->counts[slot] == 0 || (double)age == numbers[4]);
}

static void test_example(void **state)
{
    (void)state;
    static const float tokens[5][3] = { { 1, 0, 1 }, { 0, 1, 2 }, { 0.96F, 0.28F, 3 },
                                        { -1, 0, 4 }, { 0.98F, 0.14F, 5 } };
    static const uint32_t expected[5] = { 0, 1, 0, 1, 0 };
    static const double after[5][2][5] = { /* K, V, count, age of both slots */
        { { 1, 0, 1, 1, 0 }, { 0, 0, 0, 0, 0 } },
        { { 1, 0, 1, 1, 1 }, { 0, 1, 2, 1, 0 } },
        { { 0.98, 0.14, 2, 2, 0 }, { 0, 1, 2, 1, 1 } },
        { { 0.98, 0.14, 2, 2, 1 }, { -1, 0, 4, 1, 0 } },
        { { 0.98, 0.14, 3, 3, 0 }, { -1, 0, 4, 1, 1 } },
    };
    CLEANUP(past_free) struct past past = past_new(5, 8, DTYPE_FP32);
    for (size_t i = 0; i < 5; i++) {
        float k[8] = { tokens[i][0], tokens[i][1] }, v[8] = { tokens[i][2] };
        put_row(&past, past.k, past.wide_k, i, k);
        put_row(&past, past.v, past.wide_v, i, v);
    }
    CLEANUP(slots_freep) struct slots *slots = slots_of(2, 8, 0.9);
    for (size_t i = 0; i < 5; i++) {
        uint32_t slot = UINT32_MAX;
        write_all(slots, &past, i, 1, &slot);
        assert_int_equal(slot, expected[i]);
        for (size_t s = 0; s < 2; s++) expect_slot(slots, s, after[i][s]);
    }
    assert_true(slots->written == 5 && slots->merged == 2);
    assert_true(slots->replaced == 1 && slots->lost == 1);
}

/* ---- a plain re-telling: which tokens each slot stands for, everything else from them ---- */

struct plain {
    size_t slots;
    double novelty;
    const struct past *past;
    size_t holds[TOKENS];                        /* the slot that token i is in, or NOWHERE */
    size_t counts[SLOTS_MOST], ages[SLOTS_MOST]; /* tokens since the last */
    size_t written;
};
#define NOWHERE SIZE_MAX

static void plain_mean(const struct plain *plain, const float *rows, size_t slot, double *ret_mean)
{
    size_t head_dim = plain->past->head_dim;
    for (size_t d = 0; d < head_dim; d++) ret_mean[d] = 0.0;
    for (size_t i = 0; i < plain->written; i++)
        for (size_t d = 0; plain->holds[i] == slot && d < head_dim; d++)
            ret_mean[d] += (double)rows[i * head_dim + d] / (double)plain->counts[slot];
}

static double plain_cosine(const double *a, const float *b, size_t head_dim)
{
    double ab = 0.0, aa = 0.0, bb = 0.0;
    for (size_t d = 0; d < head_dim; d++) {
        ab += a[d] * (double)b[d];
        aa += a[d] * a[d];
        bb += (double)b[d] * (double)b[d];
    }
    return aa > 0.0 && bb > 0.0 ? ab / sqrt(aa * bb) : 0.0;
}

/* The nearest used slot of a key, or NOWHERE. */
static size_t plain_nearest(const struct plain *plain, const float *key, double *ret_cosine)
{
    size_t nearest = NOWHERE;
    for (size_t slot = 0; slot < plain->slots; slot++) {
        double mean[DIM_MAX];
        if (plain->counts[slot] == 0) continue;
        plain_mean(plain, plain->past->wide_k, slot, mean);
        double cosine = plain_cosine(mean, key, plain->past->head_dim);
        if (nearest != NOWHERE && cosine <= *ret_cosine) continue;
        nearest = slot;
        *ret_cosine = cosine;
    }
    return nearest;
}

static size_t plain_oldest(const struct plain *plain)
{
    size_t found = 0;
    for (size_t slot = 0; slot < plain->slots; slot++) {
        if (plain->counts[slot] == 0) return slot;
        if (plain->ages[slot] > plain->ages[found]) found = slot;
    }
    return found;
}

static size_t plain_write(struct plain *plain)
{
    double cosine = -2.0;
    size_t token = plain->written;
    const float *key = plain->past->wide_k + token * plain->past->head_dim;
    size_t slot = plain_nearest(plain, key, &cosine);
    if (slot == NOWHERE || !(cosine > plain->novelty)) {
        slot = plain_oldest(plain);
        for (size_t i = 0; i < token; i++)
            if (plain->holds[i] == slot) plain->holds[i] = NOWHERE;
        plain->counts[slot] = 0;
    }
    for (size_t i = 0; i < plain->slots; i++) plain->ages[i]++;
    plain->holds[token] = slot;
    plain->counts[slot]++;
    plain->ages[slot] = 0;
    plain->written++;
    return slot;
}

static void expect_means(const struct slots *slots, const struct plain *plain, size_t slot)
{
    double k[DIM_MAX], v[DIM_MAX];
    size_t head_dim = slots->shape.head_dim;
    plain_mean(plain, plain->past->wide_k, slot, k);
    plain_mean(plain, plain->past->wide_v, slot, v);
    for (size_t d = 0; d < head_dim; d++) {
        assert_true(fabs((double)slots->k[slot * head_dim + d] - k[d]) < 1e-5);
        assert_true(fabs((double)slots->v[slot * head_dim + d] - v[d]) < 1e-5);
    }
}

static void expect_same(const struct slots *slots, const struct plain *plain)
{
    uint64_t held = 0, used = 0;
    for (size_t slot = 0; slot < plain->slots; slot++) {
        assert_int_equal(slots->counts[slot], plain->counts[slot]);
        held += plain->counts[slot];
        used += plain->counts[slot] > 0;
        if (plain->counts[slot] == 0) continue;
        assert_int_equal(slots->written - slots->updated[slot], plain->ages[slot]);
        expect_means(slots, plain, slot);
    }
    assert_int_equal(slots->used, used);
    assert_int_equal(slots->written, plain->written);
    assert_int_equal(held + slots->lost, plain->written);
    assert_int_equal(slots->merged + slots->replaced + used, plain->written);
}

static void compare(size_t head_dim, uint32_t dtype, size_t count, double novelty, uint64_t *random)
{
    CLEANUP(past_free) struct past past = draw(head_dim, dtype, random);
    CLEANUP(slots_freep) struct slots *slots = slots_of(count, head_dim, novelty);
    struct plain plain = { .slots = count, .novelty = novelty, .past = &past };
    uint32_t went[TOKENS];
    write_all(slots, &past, 0, TOKENS, went);
    for (size_t i = 0; i < TOKENS; i++) assert_int_equal(went[i], plain_write(&plain));
    expect_same(slots, &plain);
}

static void test_plain(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    static const size_t dims[] = { 8, 72, 128, 136 }, counts[] = { 1, 7, 17, SLOTS_MOST };
    static const double novelties[] = { 0.5, 0.8, 0.9, 0.0, -0.5, 0.97 };
    for (size_t i = 0; i < 12; i++)
        compare(dims[i % 4], dtypes[i % 3], counts[(i + i / 4) % 4], novelties[i % 6], &random);
}

/* ---- limits ---- */

static void test_novel_is_a_token_store(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    CLEANUP(past_free) struct past past = draw(64, DTYPE_FP16, &random);
    CLEANUP(slots_freep) struct slots *all = slots_of(TOKENS, 64, 1.5);
    CLEANUP(slots_freep) struct slots *newest = slots_of(33, 64, 1.0);
    write_all(all, &past, 0, TOKENS, NULL);
    write_all(newest, &past, 0, TOKENS, NULL);
    assert_true(all->merged == 0 && all->replaced == 0 && all->used == TOKENS);
    assert_memory_equal(all->k, past.wide_k, TOKENS * 64 * sizeof(float));
    assert_memory_equal(all->v, past.wide_v, TOKENS * 64 * sizeof(float));
    for (size_t i = TOKENS - 33; i < TOKENS; i++) {
        assert_memory_equal(newest->k + i % 33 * 64, past.wide_k + i * 64, 64 * sizeof(float));
        assert_int_equal(newest->updated[i % 33], i + 1);
    }
}

static void test_familiar_is_one_mean(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    CLEANUP(past_free) struct past past = draw(8, DTYPE_FP32, &random);
    CLEANUP(slots_freep) struct slots *slots = slots_of(5, 8, -1.5);
    write_all(slots, &past, 0, TOKENS, NULL);
    assert_true(slots->used == 1 && slots->counts[0] == TOKENS && slots->lost == 0);
    for (size_t d = 0; d < 8; d++) {
        double sum = 0.0;
        for (size_t i = 0; i < TOKENS; i++) sum += (double)past.wide_k[i * 8 + d];
        assert_true(fabs((double)slots->k[d] - sum / TOKENS) < 1e-5);
    }
}

static void expect_equal(const struct slots *a, const struct slots *b)
{
    size_t count = a->shape.slots, bytes = count * a->shape.head_dim * sizeof(float);
    assert_memory_equal(a->k, b->k, bytes);
    assert_memory_equal(a->v, b->v, bytes);
    assert_memory_equal(a->unit, b->unit, bytes);
    assert_memory_equal(a->counts, b->counts, count * sizeof *a->counts);
    assert_memory_equal(a->updated, b->updated, count * sizeof *a->updated);
    assert_true(a->used == b->used && a->written == b->written && a->merged == b->merged);
    assert_true(a->replaced == b->replaced && a->lost == b->lost);
}

/* One write, many writes, and token by token: the same to the bit. */
static void test_splitting(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const size_t dims[] = { 8, 64, 128, 136 }, counts[] = { 3, 17, 20, 13 };
    size_t both = 0; /* turns with merges and replacements */
    for (size_t turn = 0; turn < 8; turn++) {
        size_t head_dim = dims[turn % 4], count = counts[(turn + turn / 4) % 4];
        double novelty = turn < 4 ? 0.8 : 0.9;
        CLEANUP(past_free) struct past past = draw(head_dim, DTYPE_BF16, &random);
        CLEANUP(slots_freep) struct slots *whole = slots_of(count, head_dim, novelty);
        CLEANUP(slots_freep) struct slots *parts = slots_of(count, head_dim, novelty);
        CLEANUP(slots_freep) struct slots *single = slots_of(count, head_dim, novelty);
        write_all(whole, &past, 0, TOKENS, NULL);
        for (size_t i = 0; i < TOKENS; i++) write_all(single, &past, i, 1, NULL);
        for (size_t done = 0; done < TOKENS;) {
            size_t part = (size_t)random_below(&random, 70);
            if (part > TOKENS - done) part = TOKENS - done;
            write_all(parts, &past, done, part, NULL);
            done += part;
        }
        both += whole->merged > 50 && whole->replaced > 50;
        expect_equal(whole, parts);
        expect_equal(whole, single);
    }
    assert_true(both >= 4);
}

/* ---- reading ---- */

static void test_read(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    CLEANUP(past_free) struct past past = draw(72, DTYPE_FP16, &random);
    CLEANUP(slots_freep) struct slots *slots = slots_of(31, 72, 0.8);
    CLEANUP(free_ptr) float *scratch = need(slots_scratch_floats(&slots->shape) * sizeof(float));
    uint32_t found[TOKENS];
    struct view window = view_of(&past, 400, 100);
    struct plain plain = { .slots = 31, .novelty = 0.8, .past = &past };
    write_all(slots, &past, 0, 400, NULL);
    while (plain.written < 400) plain_write(&plain);
    bool read[31] = { false };
    size_t count = 0;
    slots_nearest(slots, &window, scratch, found);
    for (size_t i = 0; i < 100; i++) {
        double cosine = -2.0;
        assert_int_equal(found[i], plain_nearest(&plain, past.wide_k + (400 + i) * 72, &cosine));
        count += !read[found[i]];
        read[found[i]] = true;
    }
    assert_true(count > 1 && count < 31);
}

/* Equal keys in several slots: the lowest is read. */
static void test_read_ties(void **state)
{
    (void)state;
    CLEANUP(past_free) struct past past = past_new(20, 8, DTYPE_FP32);
    for (size_t i = 0; i < 20; i++) {
        float k[8] = { i % 2 == 0 ? 1.0F : -1.0F, 0.5F };
        put_row(&past, past.k, past.wide_k, i, k);
    }
    CLEANUP(slots_freep) struct slots *slots = slots_of(20, 8, 2.0);
    CLEANUP(free_ptr) float *scratch = need(slots_scratch_floats(&slots->shape) * sizeof(float));
    write_all(slots, &past, 0, 20, NULL);
    uint32_t found[20];
    struct view window = view_of(&past, 0, 20);
    slots_nearest(slots, &window, scratch, found);
    for (uint32_t i = 0; i < 20; i++) assert_int_equal(found[i], i % 2);
}

/* ---- odd numbers ---- */

static void test_odd_lengths(void **state)
{
    (void)state;
    CLEANUP(past_free) struct past past = past_new(6, 8, DTYPE_FP32);
    static const float firsts[6] = { 0.0F, 3e38F, 2e38F, 1e-30F, -0.0F, -3e38F };
    for (size_t i = 0; i < 6; i++) {
        float k[8] = { firsts[i] };
        put_row(&past, past.k, past.wide_k, i, k);
        put_row(&past, past.v, past.wide_v, i, k);
    }
    CLEANUP(slots_freep) struct slots *slots = slots_of(4, 8, 0.5);
    uint32_t went[6];
    write_all(slots, &past, 0, 6, went);
    /* Zero is like nothing, not even like zero; the length of a key does not matter. */
    static const uint32_t expected[6] = { 0, 1, 1, 1, 2, 3 };
    for (size_t i = 0; i < 6; i++) assert_int_equal(went[i], expected[i]);
    for (size_t i = 0; i < 4 * 8; i++)
        assert_true(isfinite(slots->k[i]) && isfinite(slots->v[i]) && isfinite(slots->unit[i]));
}

static void test_copy(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    CLEANUP(past_free) struct past past = draw(64, DTYPE_FP32, &random);
    CLEANUP(slots_freep) struct slots *slots = slots_of(21, 64, 0.8);
    CLEANUP(slots_freep) struct slots *fork = slots_of(21, 64, 0.8);
    write_all(slots, &past, 0, 300, NULL);
    slots_copy(fork, slots);
    expect_equal(fork, slots);
    write_all(slots, &past, 300, 200, NULL);
    assert_int_equal(fork->written, 300);
    write_all(fork, &past, 300, 200, NULL);
    expect_equal(fork, slots);
}

/* Bytes turn into the same slots, which go on as those that they were made of. */
static void test_bytes(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const size_t lengths[] = { 0, 1, 3, 40, 400 };
    CLEANUP(past_free) struct past past = draw(64, DTYPE_FP16, &random);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        CLEANUP(slots_freep) struct slots *slots = slots_of(21, 64, 0.8);
        CLEANUP(slots_freep) struct slots *again = slots_of(21, 64, 0.8);
        write_all(slots, &past, 0, lengths[i], NULL);
        size_t bytes = slots_bytes(slots);
        CLEANUP(free_ptr) unsigned char *data = need(bytes);
        slots_encode(slots, data);
        assert_int_equal(slots_decode(again, data, bytes, NULL), 0);
        expect_equal(slots, again);
        assert_int_equal(slots_decode(again, data, bytes - 1, NULL), MEMD_ECORRUPT);
        for (size_t at = 0; at < 24; at++) { /* version, M, D, used, R */
            data[at] ^= 1;
            assert_int_equal(slots_decode(again, data, bytes, NULL), MEMD_ECORRUPT);
            data[at] ^= 1;
        }
        data[24] ^= 1; /* more or fewer were written than there are and were lost */
        assert_int_equal(slots_decode(again, data, bytes, NULL), MEMD_ECORRUPT);
        expect_equal(slots, again); /* it is as before */
        write_all(slots, &past, lengths[i], 100, NULL);
        write_all(again, &past, lengths[i], 100, NULL);
        expect_equal(slots, again);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_example),
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_novel_is_a_token_store),
        cmocka_unit_test(test_familiar_is_one_mean),
        cmocka_unit_test(test_splitting),
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_read_ties),
        cmocka_unit_test(test_odd_lengths),
        cmocka_unit_test(test_copy),
        cmocka_unit_test(test_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
