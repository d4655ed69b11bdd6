/* SPDX-License-Identifier: Apache-2.0 */
/* test_faiss.c — FAISS as an index: flat and a fully probed IVF are exact top-k, HNSW nearly;
 * growing versions, limits, counts, other efforts at the same time. */
#include "index/faiss.h"

#include <math.h>
#include <pthread.h>
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

enum { FLAT, IVF, HNSW };

/* k, sinks, window; nlist, nprobe or m, ef_construction, ef_search */
static const double options_of[3][FAISS_HNSW_OPTIONS] = {
    { 20, 4, 50 }, { 20, 4, 50, 0, 1 << 20 }, { 20, 4, 50, 16, 100, 400 } };

static struct layer_source source_of(const struct past *past, const struct view *views,
                                     const double *options)
{
    return (struct layer_source){ .views = views, .view_count = 1, .kv_heads = past->kv_heads,
                                  .tokens = views[0].tokens, .query_heads = past->query_heads,
                                  .head_dim = past->head_dim,
                                  .scale = 1.0F / sqrtf((float)past->head_dim),
                                  .options = options };
}

static int build_from(const struct layer_index_type *type, const struct past *past, uint64_t tokens,
                      const double *options, const struct layer_index *before,
                      struct layer_index **ret_version)
{
    struct view views[8];
    size_t row_bytes = past->head_dim * dtype_bytes(past->dtype);
    for (size_t g = 0; g < past->kv_heads; g++)
        views[g] = (struct view){ .k = past->k_rows + g * past->tokens * row_bytes,
                                  .v = past->v_rows + g * past->tokens * row_bytes,
                                  .k_stride_bytes = row_bytes, .v_stride_bytes = row_bytes,
                                  .tokens = (size_t)tokens, .dtype = past->dtype };
    struct layer_source source = source_of(past, views, options);
    struct error err = { 0 };
    int rc = type->build(&source, before, ret_version, &err);
    assert_int_equal(rc, err.code);
    return rc;
}

static struct layer_index *build(size_t kind, const struct past *past, uint64_t tokens,
                                 const struct layer_index *before)
{
    struct layer_index *version = NULL;
    assert_int_equal(build_from(faiss_types[kind], past, tokens, options_of[kind], before,
                                &version), 0);
    assert_true(version->tokens == tokens);
    return version;
}

/* Sinks, window, what the version does not cover, and the best k of the rest. Returns how many rows
 * those are without the k. */
static size_t choose(const struct past *past, size_t i, size_t h, uint64_t covered, bool *chosen)
{
    struct ranked *hits = past_alloc(past->tokens, sizeof *hits);
    uint64_t limit = past->limits[i], begin = limit > 50 ? limit - 50 : 0;
    size_t count = 0, steady = 0;
    if (begin > covered) begin = covered;
    for (size_t t = 0; t < past->tokens; t++) {
        chosen[t] = t < limit && (t < 4 || t >= begin);
        steady += chosen[t];
        if (t < limit && !chosen[t])
            hits[count++] = (struct ranked){ past_score(past, i, h, t), t };
    }
    qsort(hits, count, sizeof *hits, better_first);
    for (size_t j = 0; j < 20 && j < count; j++) chosen[hits[j].id] = true;
    free(hits);
    return steady;
}

static struct past make(size_t turn, uint64_t *random)
{
    static const uint32_t dtypes[] = { DTYPE_FP16, DTYPE_FP32, DTYPE_BF16 };
    struct past past = { .kv_heads = turn % 2 + 1, .head_dim = turn % 3 == 2 ? 40 : 64,
                         .tokens = 900, .queries = turn % 4 + 1, .dtype = dtypes[turn % 3] };
    past.query_heads = past.kv_heads * (turn % 3 + 1);
    past_make(&past, random);
    past_cut(&past, 300, random);
    return past;
}

static void check_exact_topk(const struct past *past, size_t kind,
                             const struct layer_index *version, struct pool *pool)
{
    struct index_args args = { .attend = past_args(past) };
    args.attend.pool = pool;
    struct reply reply;
    reply_init(&reply, past);
    assert_int_equal(reply_ask(faiss_types[kind], version, &args, options_of[kind], &reply), 0);
    bool *chosen = past_alloc(past->tokens, sizeof *chosen);
    size_t group = past->query_heads / past->kv_heads;
    uint64_t read = 0, scanned = 0;
    for (size_t row = 0; row < past->queries * past->query_heads; row++) {
        size_t i = row / past->query_heads, h = row % past->query_heads, all = 0;
        size_t steady = choose(past, i, h, version->tokens, chosen);
        for (size_t t = 0; t < past->tokens; t++) all += chosen[t];
        assert_true(subset_equals(past, &reply, i, h, chosen));
        if (h % group == 0) read += 2 * steady; /* read once for the group */
        if (past->limits[i] <= all && h % group == 0) read += 2 * (all - steady);
        if (past->limits[i] <= all) continue;
        read += 2 * (all - steady);
        scanned += version->tokens;
        assert_true(isnan(reply.quality.mass[row * INDEX_LEVELS + INDEX_EXACT]));
        assert_true(isnan(reply.quality.predicted_error[row]));
    }
    assert_true(reply.quality.rows[INDEX_EXACT] == read + scanned);
    uint64_t bytes = read * past->head_dim * dtype_bytes(past->dtype);
    bytes += scanned * (4 * past->head_dim + (kind == IVF ? 8 : 0)); /* fp32, and ids */
    assert_true(reply.quality.bytes[INDEX_EXACT] == bytes);
    assert_true((reply.quality.rows[INDEX_CLUSTERS] > 0) == (kind == IVF && scanned > 0));
    free(chosen);
    reply_fini(&reply);
}

static void test_exact_kinds(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t turn = 0; turn < 12; turn++) {
        struct past past = make(turn, &random);
        struct pool *pool = NULL;
        if (turn % 2 == 0) assert_int_equal(pool_open(2, &pool, NULL), 0);
        for (size_t kind = FLAT; kind <= IVF; kind++) {
            struct layer_index *version = build(kind, &past, past.tokens - turn % 3 * 200, NULL);
            check_exact_topk(&past, kind, version, pool);
            layer_index_put(version);
        }
        pool_close(pool);
        past_free(&past);
    }
}

static void test_growth(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = make(3, &random);
    for (size_t kind = FLAT; kind <= IVF; kind++) {
        struct layer_index *first = build(kind, &past, 200, NULL);
        struct layer_index *second = build(kind, &past, 600, first);
        struct layer_index *third = build(kind, &past, 900, second); /* IVF: trained anew */
        check_exact_topk(&past, kind, first, NULL);
        check_exact_topk(&past, kind, second, NULL);
        assert_true(second->bytes > first->bytes);
        layer_index_put(first);
        layer_index_put(second);
        check_exact_topk(&past, kind, third, NULL);
        layer_index_put(third);
    }
    past_free(&past);
}

/* Share of the true best k that HNSW's search returns, and how many products it formed. */
static double recall(const struct past *past, const struct layer_index *version,
                     const double *options, uint64_t *ret_rows)
{
    struct index_args args = { .attend = past_args(past) };
    size_t rows = past->queries * past->query_heads, k = 10, found_count = 0, wanted = 0;
    struct index_quality quality = { 0 };
    struct index_found found = { { past_alloc(rows * k, 8), past_alloc(rows * k, 4), k },
                                 &quality };
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(faiss_types[HNSW]->search(version, &args, options, &arena, &found, NULL), 0);
    arena_fini(&arena);
    for (size_t row = 0; row < rows; row++) {
        size_t i = row / past->query_heads, h = row % past->query_heads;
        for (size_t j = 0; j < k && j < past->limits[i]; j++) {
            uint64_t id = found.hits.ids[row * k + j];
            size_t better = 0;
            double score = (double)found.hits.scores[row * k + j];
            wanted++;
            if (id == INDEX_NONE) continue; /* a graph need not reach every token */
            assert_true(id < past->limits[i]);
            assert_true(fabs(past_score(past, i, h, (size_t)id) - score) < 1e-5);
            for (size_t t = 0; t < past->limits[i]; t++)
                better += past_score(past, i, h, t) > score + 1e-6;
            found_count += better < k;
        }
    }
    free(found.hits.ids);
    free(found.hits.scores);
    *ret_rows = quality.rows[INDEX_EXACT];
    return (double)found_count / (double)wanted;
}

static void test_hnsw(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = make(3, &random);
    struct layer_index *first = build(HNSW, &past, 500, NULL);
    struct layer_index *version = build(HNSW, &past, 900, first); /* a copy, and more */
    double low[FAISS_HNSW_OPTIONS] = { 20, 0, 0, 16, 100, 1 }; /* ef_search below k: k counts */
    uint64_t many = 0, few = 0;
    double good = recall(&past, version, options_of[HNSW], &many);
    double poor = recall(&past, version, low, &few);
    assert_true(good > 0.95);
    assert_true(poor > 0.1 && poor <= good);
    assert_true(few > past.query_heads * 10 && few < many);
    assert_true(many <= past.queries * (past.query_heads * (900 + 10) + past.kv_heads * 54));
    layer_index_put(first);
    layer_index_put(version);
    past_free(&past);
}

static void test_rope(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 2, .kv_heads = 1, .head_dim = 64, .tokens = 700,
                         .queries = 2, .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    struct rope rope;
    struct rope_config config = { .theta = 1e4 };
    assert_int_equal(rope_init(&config, 64, &rope, NULL), 0);
    struct layer_source source = source_of(&past, past.views, options_of[FLAT]);
    source.rope = &rope;
    struct layer_index *version = NULL;
    assert_int_equal(faiss_types[FLAT]->build(&source, NULL, &version, NULL), 0);
    struct index_args args = { .attend = past_args(&past) };
    args.attend.rope = &rope;
    struct reply reply;
    reply_init(&reply, &past);
    assert_int_equal(reply_ask(faiss_types[FLAT], version, &args, options_of[FLAT], &reply), 0);
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    for (size_t t = 0; t < past.tokens; t++) {
        rope_angles(&rope, t, cos, sin);
        rope_apply(&rope, cos, sin, past.k + t * past.head_dim, 1);
    }
    for (size_t i = 0; i < past.queries; i++) {
        rope_angles(&rope, past.positions[i], cos, sin);
        rope_apply(&rope, cos, sin, past.q + i * 2 * 64, 2);
    }
    bool *chosen = past_alloc(past.tokens, sizeof *chosen);
    for (size_t row = 0; row < 4; row++) {
        choose(&past, row / 2, row % 2, 700, chosen);
        assert_true(subset_equals(&past, &reply, row / 2, row % 2, chosen));
    }
    free(chosen);
    reply_fini(&reply);
    layer_index_put(version);
    past_free(&past);
}

/* Two threads that want different nprobe from one version: each gets its own. */
struct asker {
    const struct past *past;
    const struct layer_index *version;
    double options[FAISS_IVF_OPTIONS];
    uint64_t exact_read; /* of the first answer */
    bool same;
};

static void *ask_often(void *arg)
{
    struct asker *asker = arg;
    struct index_args args = { .attend = past_args(asker->past) };
    struct reply reply;
    reply_init(&reply, asker->past);
    asker->same = true;
    for (size_t turn = 0; turn < 50; turn++) {
        if (reply_ask(faiss_types[IVF], asker->version, &args, asker->options, &reply) != 0)
            asker->same = false;
        if (turn == 0) asker->exact_read = reply.quality.rows[INDEX_EXACT];
        asker->same = asker->same && asker->exact_read == reply.quality.rows[INDEX_EXACT];
    }
    reply_fini(&reply);
    return NULL;
}

static void test_efforts_at_once(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = make(3, &random);
    struct layer_index *version = build(IVF, &past, 900, NULL);
    struct asker askers[2] = { { &past, version, { 20, 4, 50, 0, 2 }, 0, false },
                               { &past, version, { 20, 4, 50, 0, 40 }, 0, false } };
    pthread_t threads[2];
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, ask_often, &askers[i]), 0);
    for (size_t i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    assert_true(askers[0].same && askers[1].same);
    assert_true(askers[0].exact_read < askers[1].exact_read);
    layer_index_put(version);
    past_free(&past);
}

static int refuse(void *arg)
{
    (void)arg;
    return MEMD_ECANCELLED;
}

static void test_no_version_and_errors(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = make(1, &random);
    struct index_args args = { .attend = past_args(&past) };
    struct reply reply;
    reply_init(&reply, &past);
    bool *chosen = past_alloc(past.tokens, sizeof *chosen);
    for (size_t kind = FLAT; kind <= HNSW; kind++) {
        assert_int_equal(reply_ask(faiss_types[kind], NULL, &args, options_of[kind], &reply), 0);
        for (size_t row = 0; row < past.queries * past.query_heads; row++) {
            size_t i = row / past.query_heads;
            for (size_t t = 0; t < past.tokens; t++) chosen[t] = t < past.limits[i];
            assert_true(subset_equals(&past, &reply, i, row % past.query_heads, chosen));
            assert_true(reply.quality.mass[row * INDEX_LEVELS + INDEX_EXACT] == 1.0F);
        }
        struct layer_source source = source_of(&past, past.views, options_of[kind]);
        source.stop = refuse;
        struct layer_index *version = NULL;
        assert_int_equal(faiss_types[kind]->build(&source, NULL, &version, NULL), MEMD_ECANCELLED);
        assert_null(version);
    }
    memset(past.k_rows, 0xff, 64); /* NaN: memd refuses it, and so does FAISS */
    struct layer_index *version = NULL;
    assert_int_equal(build_from(faiss_types[IVF], &past, 900, options_of[IVF], NULL, &version),
                     MEMD_EIO);
    assert_null(version);
    free(chosen);
    reply_fini(&reply);
    past_free(&past);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact_kinds),
        cmocka_unit_test(test_growth),
        cmocka_unit_test(test_hnsw),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_efforts_at_once),
        cmocka_unit_test(test_no_version_and_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
