/* SPDX-License-Identifier: Apache-2.0 */
/* test_centroid_table.c — an entry against the centroids that planes_decode gives: where they lie
 * in the table's space, each within half of a step of its code; what fp16 steps cannot say gets no
 * entry.
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

/* Mean values are copied as they are. */
static void expect_values(const struct planes *planes, const struct planes *source, size_t head_dim)
{
    size_t bytes = PLANES_CLUSTERS * sizeof(float);
    assert_ptr_not_equal(planes->means, source->means);
    assert_memory_equal(planes->means, source->means, PLANES_CLUSTERS * head_dim);
    assert_memory_equal(planes->mean_scale, source->mean_scale, bytes);
    assert_memory_equal(planes->value_spread, source->value_spread, bytes);
}

/* Centroid c at 4 bits, within half of a step of x (D). */
static void expect_codes(const struct planes_entry *entry, size_t head_dim, size_t c,
                         const float *x)
{
    const uint8_t *tile = entry->codes + c / CENTROIDS * CENTROIDS * head_dim / 2;
    float step = half_from_fp16(entry->steps[c]);
    for (size_t d = 0; d < head_dim; d++) {
        uint8_t code = tile[64 * (d / 8) + 4 * (c % CENTROIDS) + d % 4];
        code = d % 8 < 4 ? code & 15 : code >> 4;
        float known = step * ((float)code - 7.5F);
        if (!(fabsf(x[d] - known) <= 0.501F * step))
            fail_msg("D %zu cluster %zu dimension %zu: %g, not %g, step %g", head_dim, c, d,
                     (double)known, (double)x[d], (double)step);
    }
}

/* The codes of cluster c, row by row, are those of its planes. */
static void expect_row(const struct planes *planes, size_t head_dim, size_t c)
{
    const uint8_t *tile = planes->centroids + c / CENTROIDS * CENTROIDS * head_dim;
    for (size_t d = 0; d < head_dim; d++)
        assert_int_equal(planes->entry.rows[c * head_dim + d],
                         tile[64 * (d / 4) + 4 * (c % CENTROIDS) + d % 4]);
    assert_memory_equal(&planes->entry.row_scale[c], &planes->centroid_scale[c], sizeof(float));
}

static void expect_entry(const struct planes *planes, size_t head_dim)
{
    const struct planes_space *space = planes->entry.space;
    struct planes_layout layout;
    planes_layout_init(head_dim, &layout);
    float k[256], v[256];
    for (size_t c = 0; c < PLANES_CLUSTERS; c++) {
        planes_decode(&layout, planes, c * PLANES_CLUSTER, INDEX_CLUSTERS, k, v);
        for (size_t d = 0; d < head_dim; d++)
            k[d] = (k[d] - space->key_mean[d]) * space->balance[d];
        rotation_apply(k, 1, head_dim);
        expect_codes(&planes->entry, head_dim, c, k);
        expect_row(planes, head_dim, c);
    }
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
            assert_ptr_equal(coded.planes[n].entry.space,
                             coded.planes[n / SEGMENTS * SEGMENTS].entry.space);
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

/* What 4 bits of centroid c add to the variance of scores. */
static float rounding_of(const struct planes_entry *entry, size_t c)
{
    float step = half_from_fp16(entry->steps[c]), square = 0.0F;
    for (size_t d = 0; d < 64; d++)
        square += entry->space->query_square[d] /
                  (entry->space->balance[d] * entry->space->balance[d]);
    return square * step * step / 12.0F;
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
            twos[d] = d % 2 == 0 ? 2.0F : 1e-4F; /* some that queries do not use */
            eights[d] = 4.0F * twos[d];
        }
        struct planes first = coded.planes[0], second = coded.planes[1];
        first.query_square = twos;
        first.queries = 10;
        second.query_square = eights;
        second.queries = 5 + 10 * more;
        centroid_table_put(table, 0, 0, &first);
        centroid_table_put(table, 0, 1, &second);
        for (size_t c = 0; c < PLANES_CLUSTERS; c++) {
            float own = first.entry.key_spread[c] - rounding_of(&first.entry, c);
            float moved = second.entry.key_spread[c] - rounding_of(&second.entry, c);
            assert_true(fabsf(own - first.key_spread[c]) <= 1e-5F * own);
            assert_true(fabsf(moved - 0.25F * second.key_spread[c]) <= 1e-5F * moved);
        }
        centroid_table_free(table);
    }
    coded_free(&coded);
}

/* A space that makes keys larger than a step can be: read where their planes are. */
static void test_far(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct coded coded = make(64, false, &random);
    struct centroid_table *table = centroid_table_new(64, 1);
    assert_non_null(table);
    float balance[64];
    for (size_t d = 0; d < 64; d++) balance[d] = 1e9F * coded.planes[0].balance[d];
    struct planes first = coded.planes[0], second = coded.planes[1];
    const int8_t *means = second.means;
    first.balance = balance;
    centroid_table_put(table, 0, 0, &first);
    centroid_table_put(table, 0, 1, &second);
    assert_null(second.entry.space);
    assert_ptr_equal(second.means, means);
    centroid_table_free(table);
    coded_free(&coded);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_entries),
        cmocka_unit_test(test_spread),
        cmocka_unit_test(test_far),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
