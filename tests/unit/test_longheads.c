/* SPDX-License-Identifier: Apache-2.0 */
/* test_longheads.c — representatives, chosen chunks, places and answers against float64 written
 * from the paper's description; what was read is compared token by token through the plan. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/pool.h"
#include "index/blocks.h"
#include "tests/unit/folded.h"

enum { CHUNK, ATTENTION, POSITIONS };
enum { AUTO, CONTIGUOUS, ORIGINAL };

static void make(struct folded *folded, size_t tokens, size_t queries, bool rotates,
                 const double *options, uint64_t *random)
{
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_BF16, DTYPE_FP16 };
    *folded = (struct folded){ .method = &method_longheads, .past = {
        .query_heads = 4, .kv_heads = tokens % 2 == 0 ? 2 : 1, .head_dim = 32, .tokens = tokens,
        .queries = queries, .dtype = dtypes[tokens % 3] } };
    memcpy(folded->options, options, 3 * sizeof *options);
    folded_make(folded, rotates, random);
}

/* softmax(q K) K for one query over a chunk, everything turned already. k (w, D) */
static void chunk_attend(const double *q, const double *k, size_t tokens, size_t dim, double *ret_o)
{
    double *weights = past_alloc(tokens, sizeof *weights), max = -INFINITY, sum = 0.0;
    for (size_t t = 0; t < tokens; t++) {
        for (size_t d = 0; d < dim; d++) weights[t] += q[d] * k[t * dim + d];
        weights[t] /= sqrt((double)dim);
        max = fmax(max, weights[t]);
    }
    for (size_t t = 0; t < tokens; t++) sum += weights[t] = exp(weights[t] - max);
    for (size_t d = 0; d < dim; d++) {
        ret_o[d] = 0.0;
        for (size_t t = 0; t < tokens; t++) ret_o[d] += weights[t] / sum * k[t * dim + d];
    }
    free(weights);
}

/* c (D) of a chunk, as published */
static void representative(const struct folded *folded, size_t h, size_t chunk, double *ret_c)
{
    const struct past *past = &folded->past;
    size_t w = (size_t)folded->options[CHUNK], dim = past->head_dim;
    double *k = past_alloc(w * dim, sizeof *k), *q = past_alloc(dim, sizeof *q);
    double *o = past_alloc(dim, sizeof *o), *mean = past_alloc(dim, sizeof *mean);
    for (size_t t = 0; t < w; t++)
        folded_turn(folded, (double)t, folded_key(folded, h, chunk * w + t), k + t * dim);
    for (size_t t = 0; t < w; t++) {
        const float *row = folded->queries + ((chunk * w + t) * past->query_heads + h) * dim;
        folded_turn(folded, (double)t, row, q);
        chunk_attend(q, k, w, dim, o);
        for (size_t d = 0; d < dim; d++) mean[d] += o[d] / (double)w;
    }
    chunk_attend(mean, k, w, dim, ret_c);
    free(k);
    free(q);
    free(o);
    free(mean);
}

/* Chunks that query i, head h reads of the first `chunks`, marked. */
static void choose(const struct folded *folded, size_t i, size_t h, size_t chunks, bool *ret_chosen)
{
    const struct past *past = &folded->past;
    size_t budget = (size_t)folded->options[ATTENTION] / (size_t)folded->options[CHUNK];
    struct ranked *hits = past_alloc(chunks, sizeof *hits);
    double *c = past_alloc(past->head_dim, sizeof *c);
    const float *q = past->q + (i * past->query_heads + h) * past->head_dim;
    for (size_t j = 0; j < chunks; j++) {
        ret_chosen[j] = j == 0 || j + 1 == chunks;
        representative(folded, h, j, c);
        hits[j] = (struct ranked){ 0.0, j };
        for (size_t d = 0; d < past->head_dim; d++) hits[j].score += c[d] * (double)q[d];
    }
    if (chunks > 2) qsort(hits + 1, chunks - 2, sizeof *hits, better_first);
    for (size_t j = 1; j + 1 < chunks && j <= budget - 3; j++) ret_chosen[hits[j].id] = true;
    free(hits);
    free(c);
}

/* Tokens that are read, where they are; how many. */
static size_t read_by(const struct folded *folded, size_t i, size_t h,
                      struct folded_token *ret_tokens)
{
    const struct past *past = &folded->past;
    size_t w = (size_t)folded->options[CHUNK], limit = past->limits[i], count = 0, before = 0;
    size_t chunks = past->queries > 1 && limit > 0 ? (limit - 1) / w : limit / w;
    bool *chosen = past_alloc(chunks, sizeof *chosen);
    bool all = (double)limit < folded->options[ATTENTION];
    if (!all) choose(folded, i, h, chunks, chosen);
    for (size_t t = 0; t < limit; t++) {
        if (!all && t < chunks * w && !chosen[t / w]) continue;
        ret_tokens[count] = (struct folded_token){ .token = t, .key = (double)count };
        before += t < past->positions[i];
        count++;
    }
    if (past->positions[i] > limit) before += past->positions[i] - limit;
    for (size_t j = 0; j < count; j++) {
        ret_tokens[j].query = (double)before;
        if (folded->options[POSITIONS] != ORIGINAL) continue;
        ret_tokens[j].query = (double)past->positions[i];
        ret_tokens[j].key = (double)ret_tokens[j].token;
    }
    free(chosen);
    return count;
}

static void expect(const struct folded *folded)
{
    const struct past *past = &folded->past;
    struct folded_token *tokens = past_alloc(past->tokens, sizeof *tokens);
    for (size_t row = 0; row < past->queries * past->query_heads; row++) {
        size_t i = row / past->query_heads, h = row % past->query_heads;
        size_t count = read_by(folded, i, h, tokens);
        assert_true(folded_equals(folded, i, h, tokens, count));
        float mass = folded->reply.quality.mass[row * INDEX_LEVELS + INDEX_EXACT];
        if (past->kv_heads == 2 && count == past->limits[i]) assert_true(mass == 1.0F);
        if (count < past->limits[i]) assert_true(isnan(mass));
    }
    free(tokens);
}

static void test_representatives(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t turn = 0; turn < 6; turn++) {
        struct folded folded;
        double options[] = { turn < 3 ? 16 : 5, 64, turn % 2 == 0 ? AUTO : ORIGINAL };
        make(&folded, 100 + turn, 1, turn % 2 == 0, options, &random);
        if (turn == 1) assert_int_equal(pool_open(2, &folded.source.pool, NULL), 0);
        folded_fold(&folded, 1000);
        struct blocks *blocks = (struct blocks *)(void *)folded.fold;
        assert_int_equal(blocks->count, (100 + turn) / (size_t)options[CHUNK]);
        double c[32];
        for (size_t i = 0; i < blocks->count * 4; i++) {
            representative(&folded, i % 4, i / 4, c);
            for (size_t d = 0; d < 32; d++)
                if (fabs((double)blocks->vectors[i * 32 + d] - c[d]) > 2e-6)
                    fail_msg("turn %zu chunk %zu head %zu: %g, expected %g", turn, i / 4, i % 4,
                             (double)blocks->vectors[i * 32 + d], c[d]);
        }
        float *once = past_alloc(blocks->count * 4 * 32, sizeof *once);
        memcpy(once, blocks->vectors, blocks->count * 4 * 32 * sizeof *once);
        past_cut(&folded.past, 7, &random); /* other views, other steps: the same bits */
        folded_views(&folded);
        folded_fold(&folded, 3);
        blocks = (struct blocks *)(void *)folded.fold;
        assert_memory_equal(blocks->vectors, once, blocks->count * 4 * 32 * sizeof *once);
        free(once);
        pool_close(folded.source.pool);
        folded_fini(&folded);
    }
}

/* Keys of a chunk that are the same once rotated: the representative is that key, whatever the
 * queries were. */
static void test_one_key(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct folded folded;
    double options[] = { 16, 64, AUTO }, turned[32];
    make(&folded, 96, 1, true, options, &random);
    assert_true(folded.past.dtype == DTYPE_FP32);
    for (size_t row = 0; row < 2 * 96; row++) {
        float *first = folded.past.k + row / 16 * 16 * 32, *k = folded.past.k + row * 32;
        folded_turn(&folded, -(double)(row % 16), first, turned);
        for (size_t d = 0; d < 32; d++) k[d] = (float)turned[d];
    }
    half_store(folded.past.k, 2 * 96 * 32, DTYPE_FP32, folded.past.k_rows);
    folded_fold(&folded, 96);
    struct blocks *blocks = (struct blocks *)(void *)folded.fold;
    for (size_t i = 0; i < 6 * 4 * 32; i++) {
        size_t chunk = i / (4 * 32), g = i / 32 % 4 / 2;
        float key = folded.past.k[(g * 96 + chunk * 16) * 32 + i % 32];
        assert_true(fabs((double)blocks->vectors[i] - (double)key) < 2e-6);
    }
    folded_fini(&folded);
}

/* Decoding and prefill, limits around whole chunks, queries before, at and behind their limit. */
static void test_answers(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const size_t tokens[] = { 0, 1, 63, 64, 65, 80, 200, 255 };
    static const int behind[] = { 0, -1, 30, -40 };
    for (size_t turn = 0; turn < 48; turn++) {
        struct folded folded;
        double options[] = { turn % 5 == 4 ? 7 : 16, turn % 7 == 6 ? 100 : 64,
                             (double)(turn % 3) };
        if (turn % 11 == 10) options[ATTENTION] = 3 * options[CHUNK];
        bool rotates = options[POSITIONS] != ORIGINAL || turn % 2 == 0;
        size_t many = tokens[turn % 8];
        make(&folded, many, turn % 4 == 1 ? 5 : 1, rotates, options, &random);
        for (size_t i = 1; i < folded.past.queries; i++)
            folded.past.limits[i] = many - (many / 16 * i < many ? many / 16 * i : many);
        for (size_t i = 0; i < folded.past.queries; i++) {
            int64_t position = (int64_t)folded.past.limits[i] + behind[(i + turn) % 4];
            folded.past.positions[i] = position < 0 ? 0 : (uint64_t)position;
        }
        folded_fold(&folded, turn + 1);
        assert_int_equal(folded_ask(&folded), 0);
        expect(&folded);
        folded_fini(&folded);
    }
}

/* As many chunks as there are: attention over everything, which is at contiguous positions. */
static void test_budget_for_all(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct folded folded;
    double options[] = { 16, 96, AUTO };
    make(&folded, 96, 2, true, options, &random);
    folded.past.limits[1] = 96;
    folded.past.positions[1] = 95;
    folded_fold(&folded, 10);
    assert_int_equal(folded_ask(&folded), 0);
    struct folded_token tokens[96];
    for (size_t row = 0; row < 8; row++) {
        double place = row < 4 ? 96 : 95;
        for (size_t t = 0; t < 96; t++)
            tokens[t] = (struct folded_token){ t, (double)t, place };
        assert_true(folded_equals(&folded, row / 4, row % 4, tokens, 96));
        assert_true(folded.reply.quality.mass[row * INDEX_LEVELS + INDEX_EXACT] == 1.0F);
    }
    folded_fini(&folded);
}

/* search: the tokens that attend reads, by their scores at their places. */
static void test_search(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct folded folded;
    double options[] = { 16, 64, AUTO };
    make(&folded, 200, 2, true, options, &random);
    folded_fold(&folded, 200);
    enum { K = 90 };
    struct index_hits hits = { past_alloc(8 * K, 8), past_alloc(8 * K, 4), K };
    struct reading reading = folded_reading(&folded);
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(folded.method->search(folded.method, &reading, &arena, &hits,
                                           &folded.reply.quality, NULL), 0);
    arena_fini(&arena);
    struct folded_token tokens[200];
    double o[32];
    for (size_t row = 0; row < 8; row++) {
        size_t count = read_by(&folded, row / 4, row % 4, tokens), found = 0;
        struct ranked truth[200];
        for (size_t j = 0; j < count; j++)
            truth[j] = (struct ranked){ folded_attend(&folded, row / 4, row % 4, &tokens[j], 1, o),
                                        tokens[j].token };
        qsort(truth, count, sizeof *truth, better_first);
        for (size_t j = 0; j < K; j++) {
            if (hits.ids[row * K + j] == INDEX_NONE) continue;
            assert_true(hits.ids[row * K + j] == truth[j].id);
            assert_true(fabs((double)hits.scores[row * K + j] - truth[j].score) < 1e-5);
            found++;
        }
        assert_int_equal(found, count < K ? count : K);
    }
    free(hits.ids);
    free(hits.scores);
    folded_fini(&folded);
}

static void test_models(void **state)
{
    (void)state;
    struct error err = { 0 };
    struct model rotates = { .has_rope = true }, comes = { .has_rope = true, .rotated = true };
    for (int choice = AUTO; choice <= ORIGINAL; choice++) {
        double options[] = { 256, 4096, (double)choice };
        assert_int_equal(method_check(&method_longheads, &rotates, options, &err), 0);
        assert_int_equal(method_check(&method_longheads, &comes, options, &err),
                         choice == ORIGINAL ? 0 : MEMD_EUNSUPPORTED);
    }
    assert_non_null(strstr(err.text, "With positions = original they stay"));
    double options[] = { 256, 700, AUTO };
    assert_int_equal(method_check(&method_longheads, &rotates, options, &err), MEMD_EINVAL);
    assert_int_equal(method_parse(&method_longheads, NULL, 0, options, NULL), 0);
    assert_true(options[CHUNK] == 256 && options[ATTENTION] == 4096 && options[POSITIONS] == AUTO);
    assert_int_equal(method_longheads.columns(options), COLUMNS_QUERIES);
}

/* A fold from bytes goes on as the one that was saved. */
static void test_saved(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct folded folded;
    double options[] = { 16, 64, AUTO };
    make(&folded, 180, 1, true, options, &random);
    const struct fold_type *type = method_longheads.fold;
    struct fold *half = NULL, *loaded = NULL;
    assert_int_equal(type->open(&folded.source, &half, NULL), 0);
    assert_int_equal(type->advance(half, &folded.source, 80, NULL), 0);
    size_t bytes = type->save(half, NULL);
    unsigned char *data = past_alloc(bytes, 1);
    assert_int_equal(type->save(half, data), bytes);
    assert_int_equal(type->load(&folded.source, data, bytes, &loaded, NULL), 0);
    assert_int_equal(type->advance(loaded, &folded.source, 176, NULL), 0);
    folded_fold(&folded, 180);
    const struct blocks *a = (const void *)loaded, *b = (const void *)folded.fold;
    assert_int_equal(a->count, b->count);
    assert_memory_equal(a->vectors, b->vectors, a->count * 4 * 32 * sizeof(float));
    struct fold_fact facts[FOLD_FACTS_MAX];
    assert_int_equal(type->describe(loaded, facts), 1);
    assert_true(facts[0].value == 11);
    free(data);
    type->free(half);
    type->free(loaded);
    folded_fini(&folded);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_representatives), cmocka_unit_test(test_one_key),
        cmocka_unit_test(test_answers),         cmocka_unit_test(test_budget_for_all),
        cmocka_unit_test(test_search),          cmocka_unit_test(test_models),
        cmocka_unit_test(test_saved),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
