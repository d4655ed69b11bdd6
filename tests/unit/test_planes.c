/* SPDX-License-Identifier: Apache-2.0 */
/* test_planes.c — what comes back from planes is within the steps that they state, for every
 * dtype, with and without rope and queries, and for rows that are hard to code; damage is found.
 */
#include "index/planes.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention/rope.h"
#include "attention/view.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/half.h"
#include "base/tensor.h"
#include "index/index.h"
#include "tests/random.h"

enum { DIM_MAX = 512, POSITION = 5000 };

struct fixture {
    struct arena arena;
    uint64_t random;
    struct planes_layout layout;
    struct planes planes;
    unsigned char *hi, *lo;
    unsigned char *stored_k, *stored_v; /* (1024, D) as stored */
    float *k, *v;                       /* (1024, D) as they are read, keys rotated */
    float query_square[DIM_MAX];
    struct view view;
};

static struct fixture it;

static int setup(void **state)
{
    (void)state;
    it.random = random_seed();
    arena_init(&it.arena, (size_t)16 << 20);
    planes_layout_init(DIM_MAX, &it.layout);
    size_t bytes = (size_t)PLANES_TOKENS * DIM_MAX * sizeof(float);
    it.hi = aligned_alloc(64, it.layout.hi_bytes);
    it.lo = aligned_alloc(64, it.layout.lo_bytes);
    it.stored_k = malloc(bytes);
    it.stored_v = malloc(bytes);
    it.k = malloc(bytes);
    it.v = malloc(bytes);
    return it.hi == NULL || it.lo == NULL || it.stored_k == NULL || it.stored_v == NULL
        || it.k == NULL || it.v == NULL;
}

static int teardown(void **state)
{
    (void)state;
    arena_fini(&it.arena);
    free(it.hi);
    free(it.lo);
    free(it.stored_k);
    free(it.stored_v);
    free(it.k);
    free(it.v);
    return 0;
}

/* Numbers like those of models: outlier channels, means, rows of different length. */
static void draw(size_t head_dim)
{
    for (size_t row = 0; row < PLANES_TOKENS; row++) {
        float length = 0.5F + (float)(row % 7);
        for (size_t d = 0; d < head_dim; d++) {
            size_t at = row * head_dim + d;
            it.k[at] = 3.0F * (float)(d % 3) + length * random_float(&it.random)
                * (d % 29 == 4 ? 40.0F : 1.0F);
            it.v[at] = length * random_float(&it.random) - 0.25F;
        }
    }
}

static void draw_queries(size_t head_dim)
{
    for (size_t d = 0; d < head_dim; d++)
        it.query_square[d] = d % 11 == 3 ? 0.0F : (float)(1 + d % 5) * 0.1F;
}

/* Store k and v as `dtype`; afterwards they hold what is read back. */
static void store(size_t head_dim, uint32_t dtype, const struct rope *rope)
{
    size_t count = PLANES_TOKENS * head_dim;
    half_store(it.k, count, dtype, it.stored_k);
    half_store(it.v, count, dtype, it.stored_v);
    half_load(it.stored_k, dtype, count, it.k);
    half_load(it.stored_v, dtype, count, it.v);
    for (size_t row = 0; rope != NULL && row < PLANES_TOKENS; row++) {
        float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
        rope_angles(rope, POSITION + row, cos, sin);
        rope_apply(rope, cos, sin, it.k + row * head_dim, 1);
    }
    size_t stride_bytes = head_dim * dtype_bytes(dtype);
    it.view = (struct view){ .k = it.stored_k, .v = it.stored_v, .k_stride_bytes = stride_bytes,
                             .v_stride_bytes = stride_bytes, .tokens = PLANES_TOKENS,
                             .position = POSITION, .dtype = dtype };
    planes_layout_init(head_dim, &it.layout);
}

static int encode(const struct rope *rope, bool queries, struct error *err)
{
    struct planes_source source = { .view = &it.view, .rope = rope,
                                    .query_square = queries ? it.query_square : NULL,
                                    .queries = queries ? 100 : 0 };
    memset(it.hi, 0xa5, it.layout.hi_bytes);
    memset(it.lo, 0xa5, it.layout.lo_bytes);
    int rc = planes_encode(&it.layout, &source, &it.arena, it.hi, it.lo, err);
    arena_reset(&it.arena);
    if (rc == 0) assert_int_equal(planes_open(&it.layout, it.hi, it.lo, &it.planes, NULL), 0);
    return rc;
}

static double distance(const float *a, const float *b, const float *factor, size_t head_dim)
{
    double sum = 0.0;
    for (size_t d = 0; d < head_dim; d++) {
        double away = ((double)a[d] - (double)b[d]) * (factor == NULL ? 1.0 : (double)factor[d]);
        sum += away * away;
    }
    return sqrt(sum);
}

/* Every value lies within half a step of its code, so a row within √D / 2 steps. */
static void check_place(size_t place, int level, double part)
{
    const size_t head_dim = it.layout.head_dim, row = it.planes.rows[place];
    float k[DIM_MAX], v[DIM_MAX];
    planes_decode(&it.layout, &it.planes, place, level, k, v);
    double bound = 0.5 * sqrt((double)head_dim) * part * 1.001;
    double key_step = (double)half_from_fp16(it.planes.key_scale[place]);
    double value_step = (double)half_from_fp16(it.planes.value_scale[place]);
    double key_off = distance(k, it.k + row * head_dim, it.planes.balance, head_dim);
    double value_off = distance(v, it.v + row * head_dim, NULL, head_dim);
    double key_norm = 0.0, value_norm = 0.0; /* of fp32's own rounding */
    for (size_t d = 0; d < head_dim; d++) {
        key_norm += fabs((double)it.k[row * head_dim + d]) * (double)it.planes.balance[d];
        value_norm += fabs((double)it.v[row * head_dim + d]);
    }
    if (!(key_off <= bound * key_step + 1e-6 * key_norm))
        fail_msg("D %zu place %zu level %d: key is %g off, allowed %g", head_dim, place, level,
                 key_off, bound * key_step);
    if (!(value_off <= bound * value_step + 1e-6 * value_norm))
        fail_msg("D %zu place %zu level %d: value is %g off, allowed %g", head_dim, place, level,
                 value_off, bound * value_step);
}

/* Steps are no wider than the longest deviation from the mean needs. */
static void check_steps(void)
{
    const size_t head_dim = it.layout.head_dim;
    for (size_t place = 0; place < PLANES_TOKENS; place++) {
        const float *row = it.k + it.planes.rows[place] * head_dim;
        double length = distance(row, it.planes.key_mean, it.planes.balance, head_dim);
        double step = (double)half_from_fp16(it.planes.key_scale[place]);
        if (!(step <= length / 8.0 * 1.002 + 6e-8))
            fail_msg("place %zu: step %g for length %g", place, step, length);
    }
}

static void check_clusters(void)
{
    const size_t head_dim = it.layout.head_dim;
    for (size_t cluster = 0; cluster < PLANES_CLUSTERS; cluster++) {
        float k[DIM_MAX], v[DIM_MAX], weight[DIM_MAX];
        size_t place = cluster * PLANES_CLUSTER;
        planes_decode(&it.layout, &it.planes, place, INDEX_CLUSTERS, k, v);
        for (size_t d = 0; d < head_dim; d++)
            weight[d] = it.planes.queries > 0 ? sqrtf(it.planes.query_square[d]) : 1.0F;
        double key_spread = 0.0, value_spread = 0.0, mean[2 * DIM_MAX] = { 0 };
        for (size_t i = 0; i < PLANES_CLUSTER; i++) {
            size_t row = it.planes.rows[place + i];
            double away = distance(k, it.k + row * head_dim, weight, head_dim);
            key_spread += away * away / PLANES_CLUSTER;
            away = distance(v, it.v + row * head_dim, NULL, head_dim);
            value_spread += away * away / PLANES_CLUSTER;
            for (size_t d = 0; d < head_dim; d++) {
                mean[d] += (double)it.k[row * head_dim + d] / PLANES_CLUSTER;
                mean[DIM_MAX + d] += (double)it.v[row * head_dim + d] / PLANES_CLUSTER;
            }
        }
        assert_true(fabs(key_spread - (double)it.planes.key_spread[cluster])
                    <= 1e-3 * key_spread + 1e-9);
        assert_true(fabs(value_spread - (double)it.planes.value_spread[cluster])
                    <= 1e-3 * value_spread + 1e-9);
        double key_off = 0.0, value_off = 0.0;
        for (size_t d = 0; d < head_dim; d++) {
            key_off += pow(((double)k[d] - mean[d]) * (double)it.planes.balance[d], 2.0);
            value_off += pow((double)v[d] - mean[DIM_MAX + d], 2.0);
        }
        double half = 0.5 * sqrt((double)head_dim);
        half *= 1.01;
        assert_true(sqrt(key_off) <= half * (double)it.planes.centroid_scale[cluster] + 1e-2);
        assert_true(sqrt(value_off) <= half * (double)it.planes.mean_scale[cluster] + 1e-5);
    }
}

static void check_all(void)
{
    for (size_t place = 0; place < PLANES_TOKENS; place++) {
        check_place(place, INDEX_HI, 1.0);
        check_place(place, INDEX_LO, 1.0 / 16.0);
    }
    check_steps();
    check_clusters();
}

static void test_round_trip(void **state)
{
    (void)state;
    const size_t dims[] = { 8, 24, 64, 96, 128, 200, 256, 512 };
    const uint32_t dtypes[] = { DTYPE_FP16, DTYPE_BF16, DTYPE_FP32 };
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        draw(dims[i]);
        draw_queries(dims[i]);
        store(dims[i], dtypes[i % 3], NULL);
        assert_int_equal(encode(NULL, i % 2 == 0, NULL), 0);
        assert_int_equal(it.planes.queries, i % 2 == 0 ? 100 : 0);
        for (size_t d = 0; d < dims[i]; d++)
            assert_true(it.planes.query_square[d] == (i % 2 == 0 ? it.query_square[d] : 0.0F));
        check_all();
    }
}

static void test_rope(void **state)
{
    (void)state;
    for (uint32_t pairing = 0; pairing < 2; pairing++) {
        struct rope rope;
        struct rope_config config = { .theta = 1e4, .pairing = pairing, .rotary_dims = 32 };
        assert_int_equal(rope_init(&config, 64, &rope, NULL), 0);
        draw(64);
        draw_queries(64);
        store(64, DTYPE_FP16, &rope);
        assert_int_equal(encode(&rope, true, NULL), 0);
        check_all();
    }
}

/* The same rows give the same bytes, gaps included. */
static void test_repeatable(void **state)
{
    (void)state;
    draw(72);
    store(72, DTYPE_FP32, NULL);
    assert_int_equal(encode(NULL, false, NULL), 0);
    unsigned char *first = malloc(it.layout.hi_bytes);
    assert_non_null(first);
    memcpy(first, it.hi, it.layout.hi_bytes);
    assert_int_equal(encode(NULL, false, NULL), 0);
    assert_memory_equal(first, it.hi, it.layout.hi_bytes);
    free(first);
}

static void test_all_equal(void **state)
{
    (void)state;
    for (size_t at = 0; at < (size_t)PLANES_TOKENS * 64; at++) {
        it.k[at] = (float)(at % 64) - 7.5F;
        it.v[at] = 0.125F * (float)(at % 64);
    }
    draw_queries(64);
    store(64, DTYPE_FP16, NULL);
    for (int queries = 0; queries < 2; queries++) {
        assert_int_equal(encode(NULL, queries != 0, NULL), 0);
        check_all();
        for (size_t place = 0; place < PLANES_TOKENS; place++) {
            assert_int_equal(it.planes.rows[place], place);
            assert_int_equal(it.planes.key_scale[place], 0);
        }
    }
}

static void test_zero(void **state)
{
    (void)state;
    memset(it.k, 0, (size_t)PLANES_TOKENS * 64 * sizeof(float));
    memset(it.v, 0, (size_t)PLANES_TOKENS * 64 * sizeof(float));
    memset(it.query_square, 0, sizeof it.query_square);
    store(64, DTYPE_BF16, NULL);
    assert_int_equal(encode(NULL, true, NULL), 0);
    for (size_t place = 0; place < PLANES_TOKENS; place++) {
        float k[64], v[64];
        planes_decode(&it.layout, &it.planes, place, INDEX_LO, k, v);
        for (size_t d = 0; d < 64; d++) assert_true(k[d] == 0.0F && v[d] == 0.0F);
    }
}

/* Channels of 1e4 beside channels of 1, in keys and in values. */
static void test_outlier(void **state)
{
    (void)state;
    draw(128);
    for (size_t row = 0; row < PLANES_TOKENS; row++) {
        it.k[row * 128 + 17] = 1e4F * random_float(&it.random);
        it.v[row * 128 + 90] = row == 5 ? 1e4F : 0.0F;
    }
    draw_queries(128);
    store(128, DTYPE_BF16, NULL);
    for (int queries = 0; queries < 2; queries++) {
        assert_int_equal(encode(NULL, queries != 0, NULL), 0);
        check_all();
    }
}

/* Keys of any norm; values as far as their steps go, then a refusal. */
static void test_norms(void **state)
{
    (void)state;
    const float keys[] = { 1e-6F, 1.0F, 1e4F, 1e12F }, values[] = { 1e-3F, 1.0F, 1e4F, 1e5F };
    for (size_t i = 0; i < 4; i++) {
        draw(64);
        for (size_t at = 0; at < (size_t)PLANES_TOKENS * 64; at++) {
            it.k[at] *= keys[i] * 0.01F;
            it.v[at] *= values[i] * 0.1F;
        }
        store(64, DTYPE_FP32, NULL);
        assert_int_equal(encode(NULL, false, NULL), 0);
        for (size_t place = 0; place < PLANES_TOKENS; place++) {
            check_place(place, INDEX_HI, 1.0);
            check_place(place, INDEX_LO, 1.0 / 16.0);
        }
    }
    const struct {
        float key, value;
    } refused[] = { { 1.0F, 1e7F }, { 1e30F, 1.0F }, { 3e38F, 3e38F } };
    for (size_t i = 0; i < 3; i++) {
        draw(64);
        for (size_t at = 0; at < (size_t)PLANES_TOKENS * 64; at++) {
            it.k[at] = fmaxf(fminf(it.k[at], 1.0F), -1.0F) * refused[i].key;
            it.v[at] = fmaxf(fminf(it.v[at], 1.0F), -1.0F) * refused[i].value;
        }
        store(64, DTYPE_FP32, NULL);
        struct error err = { 0 };
        assert_int_equal(encode(NULL, false, &err), MEMD_EUNSUPPORTED);
        assert_true(strlen(err.text) > 0);
    }
}

static void test_no_memory(void **state)
{
    (void)state;
    draw(64);
    store(64, DTYPE_FP16, NULL);
    struct planes_source source = { .view = &it.view };
    for (size_t limit = 4096; limit < (size_t)1 << 18; limit *= 4) {
        struct arena small;
        arena_init(&small, limit);
        assert_int_equal(planes_encode(&it.layout, &source, &small, it.hi, it.lo, NULL),
                         MEMD_ENOMEM);
        arena_fini(&small);
    }
}

static void refuse(size_t offset, const void *bytes, size_t count, int code)
{
    unsigned char kept[8];
    memcpy(kept, it.hi + offset, count);
    memcpy(it.hi + offset, bytes, count);
    struct planes planes = { .queries = 12345 };
    struct error err = { 0 };
    int rc = planes_open(&it.layout, it.hi, it.lo, &planes, &err);
    if (rc != code) fail_msg("damage at %zu gave %d, not %d", offset, rc, code);
    assert_true(strlen(err.text) > 0);
    assert_int_equal(planes.queries, 12345);
    memcpy(it.hi + offset, kept, count);
    assert_int_equal(planes_open(&it.layout, it.hi, NULL, &planes, NULL), 0);
    assert_null(planes.lo);
}

static void test_damage(void **state)
{
    (void)state;
    draw(64);
    store(64, DTYPE_FP16, NULL);
    assert_int_equal(encode(NULL, false, NULL), 0);
    const struct planes_layout *l = &it.layout;
    refuse(0, "\0", 1, MEMD_ECORRUPT);
    refuse(4, "\x01", 1, MEMD_EVERSION); /* without checksums */
    refuse(4, "\x03", 1, MEMD_EVERSION);
    refuse(6, "\x48", 1, MEMD_ECORRUPT);
    const float bad[] = { NAN, INFINITY, -INFINITY, -1.0F };
    const size_t numbers[] = { l->balance, l->query_square, l->centroid_scale, l->key_spread,
                               l->mean_scale, l->value_spread };
    for (size_t i = 0; i < 6; i++)
        for (size_t j = 0; j < 4; j++)
            refuse(numbers[i] + 8, bad + j, sizeof bad[j], MEMD_ECORRUPT);
    for (size_t j = 0; j < 3; j++)
        refuse(l->key_mean + 252, bad + j, sizeof bad[j], MEMD_ECORRUPT);
    refuse(l->balance, "\0\0\0\0", 4, MEMD_ECORRUPT);
    const uint16_t steps[] = { 0x7c00, 0x7e01, 0x8001 };
    for (size_t j = 0; j < 3; j++) {
        refuse(l->key_scale + 2046, steps + j, 2, MEMD_ECORRUPT);
        refuse(l->value_scale, steps + j, 2, MEMD_ECORRUPT);
    }
    uint16_t row = PLANES_TOKENS;
    refuse(l->rows + 100, &row, 2, MEMD_ECORRUPT);
    refuse(l->rows + 100, it.hi + l->rows + 102, 2, MEMD_ECORRUPT);
}

/* Offsets as FORMAT.md states them, worked out by hand for D = 64. */
static void test_layout(void **state)
{
    (void)state;
    struct planes_layout l;
    planes_layout_init(64, &l);
    const size_t offsets[] = { l.balance, l.query_square, l.key_mean, l.rows, l.centroid_scale,
                               l.key_spread, l.mean_scale, l.value_spread, l.centroids, l.means,
                               l.key_scale, l.value_scale, l.key_hi, l.value_hi, l.checks,
                               l.hi_bytes, l.lo_bytes };
    const size_t truth[] = { 64, 320, 576, 832, 2880, 3136, 3392, 3648, 3904, 8000, 12096, 14144,
                             16192, 48960, 81728, 83264, 65536 };
    for (size_t i = 0; i < 17; i++) assert_int_equal(offsets[i], truth[i]);
    for (size_t head_dim = 8; head_dim <= 1024; head_dim += 8) {
        planes_layout_init(head_dim, &l);
        assert_int_equal(l.query_square % 64 + l.rows % 64 + l.key_hi % 64 + l.hi_bytes % 64, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),     cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_rope),       cmocka_unit_test(test_repeatable),
        cmocka_unit_test(test_all_equal),  cmocka_unit_test(test_zero),
        cmocka_unit_test(test_outlier),    cmocka_unit_test(test_norms),
        cmocka_unit_test(test_no_memory),  cmocka_unit_test(test_damage),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
