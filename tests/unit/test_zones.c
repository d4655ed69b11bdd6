/* SPDX-License-Identifier: Apache-2.0 */
/* test_zones.c — RetroInfer's zones: against NumPy (scripts/zones_truth.py), against the formula in
 * double over the clusters of a version, and against exact attention when everything is read. */
#include "index/zones.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "attention/rope.h"
#include "base/pool.h"
#include "tests/unit/subset.h"

static const double published[ZONES_OPTIONS] = { 1.8, 23.2, 4, 64, 10 };

static struct layer_source source_of(const struct past *past, const struct view *views,
                                     size_t view_count, const double *options)
{
    const struct view *last = &views[view_count - 1];
    return (struct layer_source){ .views = views, .view_count = view_count,
                                  .kv_heads = past->kv_heads,
                                  .tokens = last->position + last->tokens,
                                  .query_heads = past->query_heads, .head_dim = past->head_dim,
                                  .scale = 1.0F / sqrtf((float)past->head_dim),
                                  .options = options };
}

/* A version over the first `tokens` tokens, after `before`. */
static struct layer_index *build(const struct past *past, uint64_t tokens, const double *options,
                                 const struct layer_index *before)
{
    struct view views[8];
    size_t row_bytes = past->head_dim * dtype_bytes(past->dtype);
    for (size_t g = 0; g < past->kv_heads; g++)
        views[g] = (struct view){ .k = past->k_rows + g * past->tokens * row_bytes,
                                  .v = past->v_rows + g * past->tokens * row_bytes,
                                  .k_stride_bytes = row_bytes, .v_stride_bytes = row_bytes,
                                  .tokens = (size_t)tokens, .dtype = past->dtype };
    struct layer_source source = source_of(past, views, 1, options);
    struct pool *pool = NULL;
    assert_int_equal(pool_open(2, &pool, NULL), 0);
    source.pool = pool;
    struct layer_index *version = NULL;
    assert_int_equal(zones_type.build(&source, before, &version, NULL), 0);
    pool_close(pool);
    assert_int_equal(zones_type.validate(version, NULL), 0);
    return version;
}

static const struct zones *zones_of(const struct layer_index *version)
{
    return (const struct zones *)(const void *)version;
}

/* ---- golden: NumPy's numbers for the same draws ---- */

static const char golden_labels[] =
    "----bggkfjgfaffkfdcjigfdcljgfkiefklffchfehafclclcckacjhejdjehdldecafbkjklkdeeebkhfbkgkjg"
    "akbagfegjhhgiadjehghhlgbkdeaglbiajkbchhafgagekcelbehcdkcebikcagkcaldjidjegifilafelckcbfk"
    "accljlceciiccjalblgjjdhl";
static const double golden_lse[2] = { 5.531796213, 5.487281874 };
static const double golden_o[2][8] = {
    { 0.21261251, -0.31496333, -0.10529236, 0.07541017, -0.17432150, -0.01794857, 0.45130722,
      0.33120181 },
    { -0.06825459, -0.12394512, -0.08782790, 0.00138701, -0.16548763, -0.17806586, 0.10605545,
      0.17827499 } };

static void test_golden(void **state)
{
    (void)state;
    struct past past = { .query_heads = 2, .kv_heads = 1, .head_dim = 8, .tokens = 200,
                         .queries = 1, .dtype = DTYPE_FP32 };
    uint64_t random = 7;
    past_make(&past, &random);
    double options[ZONES_OPTIONS] = { 20, 30, 4, 8, 10 };
    struct layer_index *version = build(&past, 200, options, NULL);
    const struct zones *zones = zones_of(version);
    assert_int_equal(zones->clusters, 12);
    for (size_t c = 0; c < zones->clusters; c++)
        for (size_t i = zones->begin[c]; i < zones->begin[c + 1]; i++)
            assert_int_equal(golden_labels[zones->members[i]], 'a' + (int)c);
    struct index_args args = { .attend = past_args(&past) };
    struct reply reply;
    reply_init(&reply, &past);
    assert_int_equal(reply_ask(&zones_type, version, &args, options, &reply), 0);
    for (size_t h = 0; h < 2; h++) {
        assert_true(fabs((double)reply.answer.partial.lse[h] - golden_lse[h]) < 1e-5);
        for (size_t d = 0; d < 8; d++)
            assert_true(fabs((double)reply.answer.partial.o[h * 8 + d] - golden_o[h][d]) < 1e-5);
    }
    reply_fini(&reply);
    layer_index_put(version);
    past_free(&past);
}

/* ---- the formula in double over the clusters of a version ---- */

/* One KV head and query in the making. */
struct truth {
    const struct past *past;
    const struct zones *zones;
    const double *options;
    size_t g, i, group;
    uint64_t begin; /* positions sinks … begin-1 are for clusters, behind them all is exact */
    double *ranking;    /* (C) */
    size_t *order;      /* (C) best first */
    size_t read, ranked; /* clusters in the retrieval zone; in both */
    uint64_t rows; /* exact */
};

static size_t size_of(const struct truth *truth, size_t c)
{
    const struct zones *zones = truth->zones;
    const uint32_t *begin = zones->begin + truth->g * (zones->clusters + 1);
    size_t count = 0;
    for (size_t i = begin[c]; i < begin[c + 1]; i++)
        count += zones->members[truth->g * zones_covered(zones) + i] < truth->begin;
    return count;
}

static double centroid_score(const struct truth *truth, size_t c, size_t h)
{
    const struct past *past = truth->past;
    const struct zones *zones = truth->zones;
    const float *q = past->q + (truth->i * past->query_heads + h) * past->head_dim;
    const uint16_t *at = zones->centroids + (truth->g * zones->clusters + c) * past->head_dim;
    double sum = 0.0;
    for (size_t d = 0; d < past->head_dim; d++)
        sum += (double)q[d] * (double)half_from_fp16(at[d]);
    return sum / sqrt((double)past->head_dim);
}

static void rank(struct truth *truth)
{
    size_t clusters = truth->zones->clusters, there = 0;
    for (size_t c = 0; c < clusters; c++) truth->ranking[c] = 0.0;
    for (size_t j = 0; j < truth->group; j++) {
        double sum = 0.0;
        for (size_t c = 0; c < clusters; c++)
            if (size_of(truth, c) > 0)
                sum += exp(centroid_score(truth, c, truth->g * truth->group + j));
        for (size_t c = 0; c < clusters; c++)
            truth->ranking[c] += exp(centroid_score(truth, c, truth->g * truth->group + j)) / sum;
    }
    for (size_t c = 0; c < clusters; c++) {
        if (size_of(truth, c) == 0) continue;
        size_t at = there++;
        for (; at > 0 && truth->ranking[truth->order[at - 1]] < truth->ranking[c]; at--)
            truth->order[at] = truth->order[at - 1];
        truth->order[at] = c;
    }
    double share = truth->options[ZONES_RETRIEVAL], both = share + truth->options[ZONES_ESTIMATION];
    truth->read = (size_t)ceil(share / 100 * (double)clusters);
    truth->ranked = (size_t)ceil(both / 100 * (double)clusters);
    if (truth->read > there) truth->read = there;
    if (truth->ranked > there) truth->ranked = there;
}

/* Which tokens are read exactly. */
static void choose(struct truth *truth, bool *chosen)
{
    const struct zones *zones = truth->zones;
    uint64_t limit = truth->past->limits[truth->i];
    for (uint64_t t = 0; t < truth->past->tokens; t++)
        chosen[t] = t < limit && (t < zones->sinks || t >= truth->begin);
    const uint32_t *begin = zones->begin + truth->g * (zones->clusters + 1);
    const uint32_t *members = zones->members + truth->g * zones_covered(zones);
    for (size_t j = 0; j < truth->read; j++)
        for (size_t i = begin[truth->order[j]]; i < begin[truth->order[j] + 1]; i++)
            if (members[i] < truth->begin) chosen[members[i]] = true;
    for (uint64_t t = 0; t < truth->past->tokens; t++) truth->rows += 2 * chosen[t];
}

/* o (D) and lse of head h. */
static double zones_truth(const struct truth *truth, size_t h, const bool *chosen, double *ret_o)
{
    size_t head_dim = truth->past->head_dim;
    double lse = subset_truth(truth->past, truth->i, h, chosen, ret_o), mass = exp(lse), add = 0.0;
    for (size_t d = 0; d < head_dim; d++) ret_o[d] *= mass;
    for (size_t j = truth->read; j < truth->ranked; j++) {
        size_t c = truth->order[j];
        double weight = (double)size_of(truth, c) * exp(centroid_score(truth, c, h));
        const uint16_t *mean = truth->zones->means +
                               (truth->g * truth->zones->clusters + c) * head_dim;
        for (size_t d = 0; d < head_dim; d++)
            ret_o[d] += weight * (double)half_from_bf16(mean[d]);
        add += weight;
    }
    for (size_t d = 0; d < head_dim; d++) ret_o[d] /= mass + add > 0.0 ? mass + add : 1.0;
    return log(mass + add);
}

/* Shares of head h by level. */
static void check_mass(const struct truth *truth, size_t h, const bool *chosen,
                       const struct reply *reply)
{
    double o[256], exact = exp(subset_truth(truth->past, truth->i, h, chosen, o));
    double estimated = 0.0, all = exact;
    for (size_t c = 0; c < truth->zones->clusters; c++) {
        size_t place = 0;
        while (place < truth->ranked && truth->order[place] != c) place++;
        if (place < truth->read) continue;
        double weight = (double)size_of(truth, c) * exp(centroid_score(truth, c, h));
        if (place < truth->ranked) estimated += weight;
        all += weight;
    }
    const float *mass = reply->quality.mass +
                        (truth->i * truth->past->query_heads + h) * INDEX_LEVELS;
    if (all == 0.0) return;
    assert_true(fabs((double)mass[INDEX_EXACT] - exact / all) < 1e-5);
    assert_true(fabs((double)mass[INDEX_CLUSTERS] - estimated / all) < 1e-5);
}

static void check_head(struct truth *truth, const struct reply *reply, bool *chosen)
{
    const struct past *past = truth->past;
    uint64_t limit = past->limits[truth->i], local = (uint64_t)truth->options[ZONES_LOCAL];
    truth->begin = limit > local ? limit - local : 0;
    if (truth->begin > truth->zones->base.tokens) truth->begin = truth->zones->base.tokens;
    truth->ranked = truth->read = 0;
    if (truth->begin > truth->zones->sinks) rank(truth);
    choose(truth, chosen);
    for (size_t j = 0; j < truth->group; j++) {
        double o[256], worst = 0.0;
        size_t h = truth->g * truth->group + j, row = truth->i * past->query_heads + h;
        double lse = zones_truth(truth, h, chosen, o);
        double got = (double)reply->answer.partial.lse[row];
        const float *answer = reply->answer.partial.o + row * past->head_dim;
        for (size_t d = 0; d < past->head_dim; d++)
            worst = fmax(worst, fabs(o[d] - (double)answer[d]));
        if (!((lse == got || fabs(lse - got) < 2e-5) && worst < 2e-5))
            fail_msg("query %zu head %zu: lse %.9g, expected %.9g; o differs by %.3g", truth->i, h,
                     got, lse, worst);
        check_mass(truth, h, chosen, reply);
    }
}

static void check_formula(const struct past *past, const struct layer_index *version,
                          const double *options)
{
    struct index_args args = { .attend = past_args(past) };
    struct reply reply;
    reply_init(&reply, past);
    assert_int_equal(reply_ask(&zones_type, version, &args, options, &reply), 0);
    const struct zones *zones = zones_of(version);
    struct truth truth = { .past = past, .zones = zones, .options = options,
                           .group = past->query_heads / past->kv_heads,
                           .ranking = past_alloc(zones->clusters, sizeof(double)),
                           .order = past_alloc(zones->clusters, sizeof(size_t)) };
    bool *chosen = past_alloc(past->tokens, sizeof *chosen);
    uint64_t centroids = 0;
    for (truth.g = 0; truth.g < past->kv_heads; truth.g++)
        for (truth.i = 0; truth.i < past->queries; truth.i++) {
            check_head(&truth, &reply, chosen);
            if (truth.begin > zones->sinks && truth.ranked > 0)
                centroids += zones->clusters;
            if (truth.begin > zones->sinks && zones->clusters > truth.read)
                centroids += truth.ranked - truth.read;
        }
    assert_true(reply.quality.rows[INDEX_EXACT] == truth.rows);
    assert_true(reply.quality.bytes[INDEX_EXACT] ==
                truth.rows * past->head_dim * dtype_bytes(past->dtype));
    assert_true(reply.quality.rows[INDEX_CLUSTERS] <= centroids);
    assert_true(reply.quality.bytes[INDEX_CLUSTERS] >=
                reply.quality.rows[INDEX_CLUSTERS] * past->head_dim * 2);
    free(truth.ranking);
    free(truth.order);
    free(chosen);
    reply_fini(&reply);
}

static struct past make(size_t turn, size_t tokens, uint64_t *random)
{
    static const uint32_t dtypes[] = { DTYPE_FP16, DTYPE_FP32, DTYPE_BF16 };
    struct past past = { .kv_heads = turn % 2 + 1, .head_dim = turn % 3 == 2 ? 40 : 64,
                         .tokens = tokens, .queries = turn % 4 + 1, .dtype = dtypes[turn % 3] };
    past.query_heads = past.kv_heads * (turn % 3 + 1);
    past_make(&past, random);
    past_cut(&past, 300, random);
    return past;
}

static void test_formula(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const double settings[][ZONES_OPTIONS] = {
        { 1.8, 23.2, 4, 64, 10 }, { 10, 0, 0, 30, 3 }, { 0, 50, 16, 0, 1 }, { 30, 70, 4, 64, 2 } };
    for (size_t turn = 0; turn < 12; turn++) {
        struct past past = make(turn, turn % 3 == 0 ? 1100 : 500, &random);
        struct layer_index *version = build(&past, past.tokens - turn % 2 * 100,
                                            settings[turn % 4], NULL);
        check_formula(&past, version, settings[turn % 4]);
        layer_index_put(version);
        past_free(&past);
    }
}

/* ---- what a version holds ---- */

/* Means of the members in double against what is stored; keys are already rotated in past->k. */
static void check_means(const struct past *past, const struct zones *zones)
{
    for (size_t g = 0; g < past->kv_heads; g++) {
        const uint32_t *begin = zones->begin + g * (zones->clusters + 1);
        const uint32_t *members = zones->members + g * zones_covered(zones);
        for (size_t c = 0; c < zones->clusters; c++) {
            size_t at = (g * zones->clusters + c) * past->head_dim, size = begin[c + 1] - begin[c];
            for (size_t d = 0; size > 0 && d < past->head_dim; d++) {
                double k = 0.0, v = 0.0;
                for (size_t i = begin[c]; i < begin[c + 1]; i++) {
                    size_t row = (g * past->tokens + members[i]) * past->head_dim + d;
                    k += (double)past->k[row] / (double)size;
                    v += (double)past->v[row] / (double)size;
                }
                assert_true(fabs((double)half_from_fp16(zones->centroids[at + d]) - k) < 1e-3);
                assert_true(fabs((double)half_from_bf16(zones->means[at + d]) - v) < 8e-3);
            }
        }
    }
}

static void test_long_prompt(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 2, .kv_heads = 2, .head_dim = 8, .tokens = 13000,
                         .queries = 2, .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    past_cut(&past, 1024, &random);
    double options[ZONES_OPTIONS] = { 1.8, 23.2, 4, 64, 2 };
    struct rope rope;
    struct rope_config config = { .theta = 1e4 };
    assert_int_equal(rope_init(&config, 8, &rope, NULL), 0);
    struct layer_source source = source_of(&past, past.views, past.view_count, options);
    source.rope = &rope;
    struct layer_index *version = NULL;
    assert_int_equal(zones_type.build(&source, NULL, &version, NULL), 0);
    assert_int_equal(zones_type.validate(version, NULL), 0);
    const struct zones *zones = zones_of(version);
    assert_int_equal(zones->clusters, 2 * (12996 / 2 / 16)); /* two segments */
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    for (size_t t = 0; t < past.kv_heads * past.tokens; t++) {
        rope_angles(&rope, t % past.tokens, cos, sin);
        rope_apply(&rope, cos, sin, past.k + t * past.head_dim, 1);
    }
    check_means(&past, zones);
    layer_index_put(version);
    past_free(&past);
}

static void test_all_is_exact(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t turn = 0; turn < 8; turn++) {
        struct past past = make(turn, turn < 6 ? 700 : 3, &random);
        double options[ZONES_OPTIONS] = { 100, 0, 4, 64, 2 };
        if (turn % 2 == 0) options[ZONES_ESTIMATION] = 100;
        struct layer_index *version = build(&past, past.tokens - (turn == 4 ? 150 : 0), options,
                                            NULL);
        struct index_args args = { .attend = past_args(&past) };
        bool *chosen = past_alloc(past.tokens, sizeof *chosen);
        for (size_t with = 0; with < 2; with++) { /* without a version everything is exact too */
            struct reply reply;
            reply_init(&reply, &past);
            assert_int_equal(reply_ask(&zones_type, with ? version : NULL, &args, options, &reply),
                             0);
            for (size_t row = 0; row < past.queries * past.query_heads; row++) {
                for (size_t t = 0; t < past.tokens; t++)
                    chosen[t] = t < past.limits[row / past.query_heads];
                assert_true(subset_equals(&past, &reply, row / past.query_heads,
                                          row % past.query_heads, chosen));
                assert_true(reply.quality.mass[row * INDEX_LEVELS + INDEX_EXACT] == 1.0F);
                assert_true(reply.quality.predicted_error[row] == 0.0F);
            }
            reply_fini(&reply);
        }
        free(chosen);
        layer_index_put(version);
        past_free(&past);
    }
}

static void test_growth(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 3, .kv_heads = 1, .head_dim = 16, .tokens = 9000,
                         .queries = 2, .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    past.limits[1] = 8000;
    struct layer_index *first = build(&past, 4000, published, NULL);
    struct layer_index *second = build(&past, 6100, published, first);
    assert_true(first->tokens == 4000 && second->tokens == 4000 + 2048);
    const struct zones *old = zones_of(first), *new = zones_of(second);
    assert_int_equal(old->clusters, 3996 / 16);
    assert_int_equal(new->clusters, 3996 / 16 + 128);
    assert_memory_equal(old->members, new->members, 3996 * sizeof *old->members);
    assert_memory_equal(old->centroids, new->centroids, old->clusters * 16 * 2);
    assert_int_equal(new->begin[old->clusters + 64], 3996 + 1024); /* 64 clusters to each 1,024 */
    check_means(&past, new);
    check_formula(&past, second, published);
    struct layer_index *third = build(&past, 9000, published, second);
    assert_true(third->tokens == 9000); /* more than twice the prompt: clustered anew */
    assert_int_equal(zones_of(third)->clusters, 8996 / 16);
    struct layer_index *fresh = build(&past, 9000, published, NULL);
    assert_memory_equal(zones_of(third)->members, zones_of(fresh)->members,
                        8996 * sizeof *new->members);
    layer_index_put(first);
    layer_index_put(second);
    layer_index_put(third);
    layer_index_put(fresh);
    past_free(&past);
}

static void test_search(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = make(1, 900, &random);
    struct index_args args = { .attend = past_args(&past) };
    size_t rows = past.queries * past.query_heads, k = 20;
    struct index_found found = { { past_alloc(rows * k, 8), past_alloc(rows * k, 4), k }, NULL };
    double options[ZONES_OPTIONS] = { 100, 0, 4, 64, 2 };
    struct layer_index *version = build(&past, 800, options, NULL);
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(zones_type.search(version, &args, options, &arena, &found, NULL), 0);
    arena_fini(&arena);
    for (size_t row = 0; row < rows; row++) {
        size_t i = row / past.query_heads, h = row % past.query_heads, better = 0;
        size_t visible = (size_t)past.limits[i], last = visible < k ? visible : k;
        if (last == 0) continue;
        double worst = (double)found.hits.scores[row * k + last - 1];
        for (size_t t = 0; t < visible; t++) better += past_score(&past, i, h, t) > worst + 1e-6;
        assert_true(better < k); /* nothing better than the last of the list was missed */
        for (size_t j = 0; j < last; j++) {
            uint64_t id = found.hits.ids[row * k + j];
            assert_true(id < visible);
            assert_true(fabs(past_score(&past, i, h, (size_t)id) -
                             (double)found.hits.scores[row * k + j]) < 1e-5);
        }
    }
    layer_index_put(version);
    free(found.hits.ids);
    free(found.hits.scores);
    past_free(&past);
}

/* ---- bytes ---- */

static void test_bytes(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = make(1, 600, &random);
    struct layer_index *version = build(&past, 600, published, NULL), *again = NULL;
    struct layer_source shape = source_of(&past, past.views, past.view_count, published);
    size_t bytes = zones_type.save(version, NULL);
    unsigned char *data = past_alloc(bytes, 1), *more = past_alloc(bytes, 1);
    assert_int_equal(zones_type.save(version, data), bytes);
    assert_int_equal(zones_type.load(&shape, data, bytes, &again, NULL), 0);
    assert_int_equal(zones_type.save(again, more), bytes);
    assert_memory_equal(data, more, bytes);
    assert_true(again->tokens == 600 && again->bytes == version->bytes);
    check_formula(&past, again, published);
    layer_index_put(again);
    for (size_t cut = 0; cut < bytes; cut += cut < 100 ? 1 : 997)
        assert_int_equal(zones_type.load(&shape, data, cut, &again, NULL), MEMD_ECORRUPT);
    size_t members = 48 + 4 * 2 * (zones_of(version)->clusters + 1);
    static const size_t words[] = { 0, 4, 40, 44, 48, 52 };
    for (size_t i = 0; i < 6; i++) { /* header and begin, then a member that is there twice */
        memcpy(more, data, bytes);
        more[words[i]] ^= 1;
        assert_int_equal(zones_type.load(&shape, more, bytes, &again, NULL), MEMD_ECORRUPT);
    }
    memcpy(more, data, bytes);
    memcpy(more + members, more + members + 4, 4);
    assert_int_equal(zones_type.load(&shape, more, bytes, &again, NULL), MEMD_ECORRUPT);
    memcpy(more, data, bytes); /* position 4, the first there is, in two clusters */
    size_t other = zones_of(version)->members[0] == 4 ? zones_of(version)->begin[1] : 0;
    memcpy(more + members + 4 * other, &(uint32_t){ 4 }, 4);
    assert_int_equal(zones_type.load(&shape, more, bytes, &again, NULL), MEMD_ECORRUPT);
    memcpy(more, data, bytes);
    more[bytes - 1] = 0x7f; /* infinity in a mean */
    more[bytes - 2] = 0x80;
    assert_int_equal(zones_type.load(&shape, more, bytes, &again, NULL), MEMD_ECORRUPT);
    shape.head_dim *= 2;
    assert_int_equal(zones_type.load(&shape, data, bytes, &again, NULL), MEMD_ECORRUPT);
    free(data);
    free(more);
    layer_index_put(version);
    past_free(&past);
}

static int refuse(void *arg)
{
    return --*(int *)arg < 0 ? MEMD_ECANCELLED : 0;
}

static void test_stop(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = make(0, 300, &random);
    struct layer_source source = source_of(&past, past.views, past.view_count, published);
    struct layer_index *version = NULL;
    for (int calls = 0; calls < 11; calls++) { /* in each pass, and between the rounds */
        int left = calls;
        source.stop = refuse;
        source.stop_arg = &left;
        assert_int_equal(zones_type.build(&source, NULL, &version, NULL), MEMD_ECANCELLED);
        assert_null(version);
    }
    past_free(&past);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_formula),
        cmocka_unit_test(test_long_prompt),
        cmocka_unit_test(test_all_is_exact),
        cmocka_unit_test(test_growth),
        cmocka_unit_test(test_search),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
