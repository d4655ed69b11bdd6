/* SPDX-License-Identifier: Apache-2.0 */
/* test_centroid_table.c — an entry against the centroids that planes_decode gives: where they lie
 * in the table's space, each within half of a step of its code.
 */
#include "index/centroid_table.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/half.h"
#include "index/index.h"
#include "index/rotation.h"
#include "tests/unit/coded.h"

enum { HEADS = 2, SEGMENTS = 3, CENTROIDS = 16 };

/* A past of whole segments; `observed` queries or none. */
static struct coded make(size_t head_dim, bool observed, uint64_t *random)
{
    struct coded coded = { .past = { .kv_heads = HEADS, .query_heads = 2 * HEADS, .queries = 2,
                                     .head_dim = head_dim, .tokens = SEGMENTS * PLANES_TOKENS,
                                     .dtype = DTYPE_FP16 } };
    past_make(&coded.past, random);
    code(&coded, 0, observed);
    return coded;
}

/* Codes of cluster c of an entry. ret_x (D) */
static void read_entry(const uint8_t *entry, size_t head_dim, size_t c, float *ret_x)
{
    const uint8_t *tile = entry + c / CENTROIDS * CENTROIDS * head_dim;
    float step = centroid_entry_scale(entry, head_dim)[c];
    for (size_t d = 0; d < head_dim; d++) {
        uint8_t code = tile[64 * (d / 4) + 4 * (c % CENTROIDS) + d % 4];
        ret_x[d] = step * ((float)code - 63.5F);
    }
}

/* Mean values are copied as they are. */
static void expect_values(const struct planes *planes, const struct planes *source, size_t head_dim)
{
    size_t bytes = PLANES_CLUSTERS * sizeof(float);
    assert_ptr_not_equal(planes->means, source->means);
    assert_memory_equal(planes->means, source->means, PLANES_CLUSTERS * head_dim);
    assert_memory_equal(planes->mean_scale, source->mean_scale, bytes);
    assert_memory_equal(planes->value_spread, source->value_spread, bytes);
}

/* Centroid c at 4 bits is that far from x (D) at most. Returns its step. */
static float expect_coarse(const struct planes_coarse *coarse, size_t head_dim, size_t c,
                           const float *x)
{
    const uint8_t *tile = coarse->codes + c / CENTROIDS * CENTROIDS * head_dim / 2;
    float step = half_from_fp16(coarse->steps[c]);
    for (size_t d = 0; d < head_dim; d++) {
        uint8_t code = tile[64 * (d / 8) + 4 * (c % CENTROIDS) + d % 4];
        code = d % 8 < 4 ? code & 15 : code >> 4;
        float known = step * ((float)code - 7.5F);
        if (!(fabsf(x[d] - known) <= 0.501F * step))
            fail_msg("D %zu cluster %zu dimension %zu: %g, not %g, step %g", head_dim, c, d,
                     (double)known, (double)x[d], (double)step);
    }
    assert_true(step <= coarse->rounding * sqrtf(12.0F) * 1.00001F);
    return step;
}

static void expect_entry(const struct planes *planes, size_t head_dim)
{
    float widest = 0.0F, spread = 0.0F;
    struct planes_layout layout;
    planes_layout_init(head_dim, &layout);
    float k[256], v[256], x[256];
    for (size_t c = 0; c < PLANES_CLUSTERS; c++) {
        planes_decode(&layout, planes, c * PLANES_CLUSTER, INDEX_CLUSTERS, k, v);
        for (size_t d = 0; d < head_dim; d++)
            k[d] = (k[d] - planes->space->key_mean[d]) * planes->space->balance[d];
        rotation_apply(k, 1, head_dim);
        read_entry(planes->table, head_dim, c, x);
        float step = centroid_entry_scale(planes->table, head_dim)[c];
        for (size_t d = 0; d < head_dim; d++)
            if (!(fabsf(x[d] - k[d]) <= 0.501F * step))
                fail_msg("D %zu cluster %zu dimension %zu: %g, not %g, step %g", head_dim, c, d,
                         (double)x[d], (double)k[d], (double)step);
        widest = fmaxf(widest, expect_coarse(planes->coarse, head_dim, c, k));
        spread = fmaxf(spread, centroid_entry_spread(planes->table, head_dim)[c]);
    }
    assert_true(fabsf(planes->coarse->rounding - widest / sqrtf(12.0F)) <= 1e-5F * widest);
    assert_true(fabsf(planes->coarse->root - sqrtf(spread)) <= 1e-5F * sqrtf(spread));
}

static void test_entries(void **state)
{
    (void)state;
    static const size_t dims[] = { 64, 128, 256, 40, 72 };
    uint64_t random = random_seed();
    for (size_t i = 0; i < 2 * sizeof dims / sizeof dims[0]; i++) {
        struct coded coded = make(dims[i / 2], i % 2 == 0, &random);
        struct centroid_table *table = centroid_table_new(dims[i / 2], HEADS);
        assert_non_null(table);
        assert_true(centroid_table_bytes(table) >= (size_t)HEADS * TABLE_SEGMENTS *
                                                       PLANES_CLUSTERS *
                                                       (2 * (dims[i / 2] + 8) + dims[i / 2] / 2));
        struct planes sources[HEADS * SEGMENTS];
        memcpy(sources, coded.planes, sizeof sources);
        for (size_t n = 0; n < (size_t)HEADS * SEGMENTS; n++)
            centroid_table_put(table, n / SEGMENTS, n % SEGMENTS * 63, &coded.planes[n]);
        for (size_t n = 0; n < (size_t)HEADS * SEGMENTS; n++) {
            expect_entry(&coded.planes[n], dims[i / 2]);
            expect_values(&coded.planes[n], &sources[n], dims[i / 2]);
            assert_ptr_equal(coded.planes[n].space, coded.planes[n / SEGMENTS * SEGMENTS].space);
        }
        /* A place that is used again. */
        centroid_table_put(table, 1, 0, &coded.planes[0]);
        expect_entry(&coded.planes[0], dims[i / 2]);
        expect_values(&coded.planes[0], &sources[0], dims[i / 2]);
        centroid_table_free(table);
        coded_free(&coded);
    }
    centroid_table_free(NULL);
}

/* Spreads are for queries of the table's space: of squares 2 there and 8 in the segment a quarter
 * is left of them, whichever of the two has seen more. */
static void test_spread(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct coded coded = make(64, true, &random);
    for (uint64_t more = 0; more < 2; more++) {
        struct centroid_table *table = centroid_table_new(64, 1);
        assert_non_null(table);
        float twos[64], eights[64];
        for (size_t d = 0; d < 64; d++) {
            twos[d] = 2.0F;
            eights[d] = 8.0F;
        }
        struct planes first = coded.planes[0], second = coded.planes[1];
        first.query_square = twos;
        first.queries = 10;
        second.query_square = eights;
        second.queries = 5 + 10 * more;
        centroid_table_put(table, 0, 0, &first);
        centroid_table_put(table, 0, 1, &second);
        for (size_t c = 0; c < PLANES_CLUSTERS; c++) {
            float own = centroid_entry_spread(first.table, 64)[c];
            float moved = centroid_entry_spread(second.table, 64)[c];
            assert_true(fabsf(own - first.key_spread[c]) <= 1e-5F * own);
            assert_true(fabsf(moved - 0.25F * second.key_spread[c]) <= 1e-5F * moved);
        }
        centroid_table_free(table);
    }
    coded_free(&coded);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_entries),
        cmocka_unit_test(test_spread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
