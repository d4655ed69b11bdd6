/* SPDX-License-Identifier: Apache-2.0 */
/* test_landmark.c — the method `landmark`: the worked cases of the grouped softmax and of stingy
 * positions, and random ones against float64 code that writes out every score of every key. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/pool.h"
#include "tests/unit/landmark_fixture.h"

/* ---- the worked cases ---- */

/* Nine tokens in blocks of three; q·k is the score, v the token's number. */
static void nine(struct setting *set, const float *scores, uint64_t position, uint64_t limit)
{
    uint64_t random = 1;
    *set = (struct setting){ .past = { .query_heads = 1,
                                       .kv_heads = 1,
                                       .head_dim = 8,
                                       .tokens = 9,
                                       .queries = 1,
                                       .dtype = DTYPE_FP32 },
                             .options = { [K] = 2 } };
    struct past *past = &set->past;
    past_make(past, &random);
    set->marks = past_alloc(9, 1);
    for (size_t t = 0; t < 9; t++) {
        set->marks[t] = t % 3 == 2 ? MARK_LANDMARK : 0;
        memset(past->k + t * 8, 0, 8 * sizeof(float));
        past->k[t * 8] = scores[t];
        for (size_t d = 0; d < 8; d++) past->v[t * 8 + d] = (float)t;
    }
    half_store(past->k, 72, DTYPE_FP32, past->k_rows);
    half_store(past->v, 72, DTYPE_FP32, past->v_rows);
    past->q[0] = 1.0F;
    past->positions[0] = position;
    past->limits[0] = limit;
    set_up(set, &random);
    set->reading.attend.scale = 1.0F;
}

/* Softmax over tokens begin … end-1, as the client would hold them. */
static void hold(struct setting *set, const float *scores, size_t begin, size_t end)
{
    double sum = 0.0, o = 0.0;
    for (size_t t = begin; t < end; t++) {
        sum += exp((double)scores[t]);
        o += exp((double)scores[t]) * (double)t;
    }
    for (size_t d = 0; d < 8; d++) set->local.answer.partial.o[d] = (float)(o / sum);
    set->local.answer.partial.lse[0] = (float)log(sum);
}

static void expect_number(const char *what, float got, double wanted)
{
    if (fabs((double)got - wanted) > 1e-5)
        fail_msg("%s is %.7g, not %.7g", what, (double)got, wanted);
}

static void test_grouped_softmax(void **state)
{
    (void)state;
    static const float ones[] = { 1, 1, 1, 1, 1, 1, 1, 1, 1 };
    static const float scores[] = { 1, 2, .5F, 0, 1, 1.5F, 1, .5F, 0 };
    struct setting set;
    struct error err = { 0 };
    nine(&set, ones, 6, 6); /* the paper's figure: 1/6 for each token of both blocks, 1/3 for 6 */
    assert_int_equal(ask(&set, &err), 0);
    hold(&set, ones, 6, 7);
    partial_merge(&set.reply.answer.partial, &set.local.answer.partial);
    expect_number("o at token 6", set.reply.answer.partial.o[0], (0 + 1 + 3 + 4) / 6.0 + 6 / 3.0);
    take_down(&set);
    for (uint64_t limit = 6; limit <= 7; limit++) { /* token 6 is the window's, or stored */
        nine(&set, scores, 7, limit);
        assert_int_equal(ask(&set, &err), 0);
        if (limit == 6) {
            expect_number("the memory's o", set.reply.answer.partial.o[0], 2.924234);
            expect_number("the memory's lse", set.reply.answer.partial.lse[0], 1.813262);
        }
        hold(&set, scores, limit, 8);
        if (limit == 6)
            expect_number("the window's lse", set.local.answer.partial.lse[0], 1.474077);
        partial_merge(&set.reply.answer.partial, &set.local.answer.partial);
        expect_number("o at token 7", set.reply.answer.partial.o[0], 4.360836);
        take_down(&set);
    }
}

/* The query is token 8, a landmark, and stored: its own landmark has no weight. */
static void test_own_landmark(void **state)
{
    (void)state;
    static const float scores[] = { 1, 2, .5F, 0, 1, 1.5F, 1, .5F, 9 };
    struct setting set;
    struct error err = { 0 };
    nine(&set, scores, 8, 9);
    assert_int_equal(ask(&set, &err), 0);
    expect_number("o at token 8", set.reply.answer.partial.o[0], 4.360836);
    take_down(&set);
}

/* Five blocks of three, k 2: which keys are put where. */
static void test_stingy_places(void **state)
{
    (void)state;
    static const struct {
        size_t chosen[2];
        uint64_t placed[2];
    } cases[] = { { { 1, 4 }, { 6, 12 } },
                  { { 0, 1 }, { 6, 9 } },
                  { { 3, 4 }, { 9, 12 } },
                  { { 2, 3 }, { 6, 12 } } };
    uint64_t random = random_seed();
    for (size_t i = 0; i < 4; i++) {
        struct setting set = { .past = { .query_heads = 1,
                                         .kv_heads = 1,
                                         .head_dim = 64,
                                         .tokens = 16,
                                         .queries = 1,
                                         .dtype = DTYPE_FP32 },
                               .options = { [K] = 2 },
                               .rotates = true };
        struct past *past = &set.past;
        past_make(past, &random);
        set.marks = past_alloc(16, 1);
        for (size_t t = 0; t < 15; t++) set.marks[t] = t % 3 == 2 ? MARK_LANDMARK : 0;
        past->positions[0] = 16;
        for (size_t d = 0; d < 64; d++) { /* slow dimensions only: turning changes little */
            bool slow = d % 32 > 24;
            past->q[d] = slow ? 9.0F : 0.0F;
            for (size_t b = 0; b < 5; b++)
                past->k[(3 * b + 2) * 64 + d] =
                    slow && (b == cases[i].chosen[0] || b == cases[i].chosen[1]) ? 1.0F : 0.0F;
        }
        half_store(past->k, 16 * 64, DTYPE_FP32, past->k_rows);
        set_up(&set, &random);
        struct arena arena;
        struct plan plan;
        arena_init(&arena, (size_t)64 << 20);
        assert_int_equal(plan_init(&plan, &arena, NULL), 0);
        set.reading.plan = &plan;
        assert_int_equal(
            landmark()->attend(landmark(), &set.reading, &arena, &set.reply.answer, NULL), 0);
        assert_int_equal(plan.run_count, 3); /* token 15, and the two blocks */
        assert_true(plan.runs[0].first == 15 && plan.runs[0].placed == 15);
        double whole = 0.0;
        for (size_t j = 0; j < 2; j++) {
            const struct plan_run *run = &plan.runs[j + 1];
            assert_true(plan.groups[run->group].merge == PLAN_GATED);
            whole += (double)plan.groups[run->group].weight;
            if (run->first != 3 * cases[i].chosen[j] || run->placed != cases[i].placed[j] ||
                run->count != 2 || run->query_placed != 16)
                fail_msg("case %zu: block at %zu was placed at %zu", i, (size_t)run->first,
                         (size_t)run->placed);
        }
        assert_true(whole > 0.5 && whole < 1.0 + 1e-6); /* the landmarks' scores are large */
        arena_fini(&arena);
        take_down(&set);
    }
}

/* ---- random cases, all written out ---- */

/* scale * q·k with q at position p and k at position t, in double. */
static double product(const struct setting *set, const float *q, double p, const float *k, double t)
{
    size_t dim = set->past.head_dim, half = dim / 2;
    double sum = 0.0;
    for (size_t d = 0; d < half; d++) {
        double angle = set->rotates ? (p - t) * pow(1e4, -(double)d / (double)half) : 0.0;
        double a = (double)q[d], b = (double)q[d + half];
        sum += (a * cos(angle) - b * sin(angle)) * (double)k[d];
        sum += (b * cos(angle) + a * sin(angle)) * (double)k[d + half];
    }
    return sum / sqrt((double)dim);
}

struct truth {
    size_t ids[64], count; /* blocks, ascending */
    double o[64], lse;
    bool missed;
};

/* What query i sees: blocks first … n-1 below its limit, its own rows from `begin` on. */
static void sees(const struct setting *set, size_t i, size_t *ret_first, size_t *ret_n,
                 size_t *ret_begin, size_t *ret_starts)
{
    size_t n = 0, most = (size_t)set->options[BLOCKS];
    ret_starts[0] = 0;
    for (size_t t = 0; t < set->past.limits[i]; t++)
        if (set->marks[t] != 0) ret_starts[++n] = t + 1;
    *ret_n = n;
    *ret_begin = ret_starts[n];
    *ret_first = most != 0 && n > most ? n - most : 0;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The share of each landmark of head h, after a softmax, as logarithms. */
static void shares_of(const struct setting *set, size_t i, size_t h, double *ret_shares)
{
    const struct past *past = &set->past;
    size_t first, n, begin, starts[400], g = h / (past->query_heads / past->kv_heads);
    sees(set, i, &first, &n, &begin, starts);
    size_t k = least((size_t)set->options[K], n - first);
    const float *q = past->q + (i * past->query_heads + h) * past->head_dim;
    double sum = 0.0;
    for (size_t b = first; b < n; b++) {
        size_t end = starts[b + 1] - 1, length = starts[b + 1] - starts[b];
        double place = (double)end;
        if (set->options[POSITIONS] != ORIGINAL && b < n - k)
            place = (double)begin - (double)((k + 1) * length) + (double)length - 1;
        ret_shares[b] = product(set, q, (double)past->positions[i],
                                past->k + (g * past->tokens + end) * past->head_dim, place);
        sum += exp(ret_shares[b]);
    }
    for (size_t b = first; b < n; b++) ret_shares[b] -= log(sum);
}

/* The blocks that head h of query i reads. */
static void choose(const struct setting *set, size_t i, size_t h, struct truth *truth)
{
    const struct past *past = &set->past;
    size_t first, n, begin, starts[400];
    double best[400], shares[400] = { 0 };
    sees(set, i, &first, &n, &begin, starts);
    for (size_t b = 0; b < n; b++) best[b] = -INFINITY;
    for (size_t j = 0; j < past->queries; j++)
        for (size_t m = 0; m < past->query_heads; m++) {
            bool asked = (j == i || set->options[SHARE] == LANDMARK_OVER_TOKENS) &&
                         (m == h || set->options[SHARE] == LANDMARK_OVER_HEADS);
            if (!asked) continue;
            shares_of(set, j, m, shares);
            for (size_t b = first; b < n; b++) best[b] = fmax(best[b], shares[b]);
        }
    truth->count = 0;
    for (size_t b = first; b < n; b++) {
        size_t better = 0;
        for (size_t c = first; c < n; c++)
            better += best[c] > best[b] || (best[c] == best[b] && c < b);
        if (better < (size_t)set->options[K]) truth->ids[truth->count++] = b;
    }
}

/* exp(score) of a key and its value into (sum, acc). */
static double add(const struct setting *set, size_t h, size_t t, double score, double *sum,
                  double *acc)
{
    const struct past *past = &set->past;
    size_t g = h / (past->query_heads / past->kv_heads);
    *sum += exp(score);
    for (size_t d = 0; d < past->head_dim; d++)
        acc[d] += exp(score) * (double)past->v[(g * past->tokens + t) * past->head_dim + d];
    return score;
}

/* Blocks of `truth` into (sum, acc), each weighed by its landmark. */
static void add_blocks(const struct setting *set, size_t i, size_t h, const struct truth *truth,
                       double *sum, double *acc)
{
    const struct past *past = &set->past;
    size_t first, n, begin, starts[400], g = h / (past->query_heads / past->kv_heads);
    sees(set, i, &first, &n, &begin, starts);
    const float *q = past->q + (i * past->query_heads + h) * past->head_dim;
    for (size_t j = 0; j < truth->count; j++) {
        size_t b = truth->ids[j], length = starts[b + 1] - starts[b];
        double shift = 0.0, block_sum = 0.0, block[64] = { 0 }, gate = 0.0;
        if (set->options[POSITIONS] != ORIGINAL)
            shift = (double)begin - (double)((truth->count + 1) * length) +
                    (double)((j + (b >= n - truth->count)) * length) - (double)starts[b];
        for (size_t t = starts[b]; t < starts[b + 1]; t++) {
            double score = product(set, q, (double)past->positions[i],
                                   past->k + (g * past->tokens + t) * past->head_dim,
                                   (double)t + shift);
            if (t + 1 < starts[b + 1]) add(set, h, t, score, &block_sum, block);
            gate = score;
        }
        *sum += exp(gate);
        for (size_t d = 0; d < past->head_dim; d++) acc[d] += exp(gate) * block[d] / block_sum;
    }
}

static void tell(const struct setting *set, size_t i, size_t h, struct truth *truth)
{
    const struct past *past = &set->past;
    size_t first, n, begin, starts[400], g = h / (past->query_heads / past->kv_heads);
    double sum = 0.0, acc[64] = { 0 }, memory = 0.0, mean[64] = { 0 };
    sees(set, i, &first, &n, &begin, starts);
    choose(set, i, h, truth);
    const float *q = past->q + (i * past->query_heads + h) * past->head_dim;
    double position = (double)past->positions[i];
    for (size_t t = begin; t < past->limits[i]; t++)
        add(set, h, t,
            product(set, q, position, past->k + (g * past->tokens + t) * past->head_dim, (double)t),
            &sum, acc);
    if (set->options[GATE_TOKEN] == 0) add_blocks(set, i, h, truth, &sum, acc);
    truth->missed = false;
    if (set->options[GATE_TOKEN] == 1 && truth->count > 0) {
        double place = -1.0, before = (double)least(n, (size_t)set->options[K] + 1);
        if (set->options[POSITIONS] != ORIGINAL)
            place += (double)begin - before * (double)(starts[n] - starts[n - 1]);
        double gate = exp(product(set, q, position, set->gate + g * past->head_dim, place));
        double window = exp((double)set->local.answer.partial.lse[i * past->query_heads + h]);
        truth->missed = gate / (gate + sum + window) < set->options[CUTOFF];
        add_blocks(set, i, h, truth, &memory, mean);
        for (size_t d = 0; d < past->head_dim && !truth->missed; d++)
            acc[d] += gate * mean[d] / memory;
        sum += gate;
    }
    for (size_t d = 0; d < past->head_dim; d++) truth->o[d] = sum > 0.0 ? acc[d] / sum : 0.0;
    truth->lse = log(sum);
}

static void expect(const struct setting *set, size_t i, size_t h)
{
    const struct past *past = &set->past;
    const struct partial *got = &set->reply.answer.partial;
    size_t row = i * past->query_heads + h;
    struct truth truth;
    tell(set, i, h, &truth);
    if (!(fabs((double)got->lse[row] - truth.lse) < 2e-5) &&
        !(got->lse[row] == -INFINITY && truth.lse == -INFINITY))
        fail_msg("query %zu head %zu: lse %.7g, not %.7g", i, h, (double)got->lse[row], truth.lse);
    for (size_t d = 0; d < past->head_dim; d++)
        if (!(fabs((double)got->o[row * past->head_dim + d] - truth.o[d]) < 2e-5))
            fail_msg("query %zu head %zu: o[%zu] %.7g, not %.7g", i, h, d,
                     (double)got->o[row * past->head_dim + d], truth.o[d]);
}

static void make(struct setting *set, size_t turn, uint64_t *random)
{
    static const size_t tokens[] = { 300, 5, 9, 157 };
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    *set = (struct setting){ .rotates = turn % 4 != 3,
                             .options = { [K] = (double)(turn % 5 + 1),
                                          [BLOCKS] = turn % 3 == 1 ? 6 : 0,
                                          [SHARE] = (double)(turn % 7 % 3),
                                          [POSITIONS] = turn % 4 == 2 ? ORIGINAL : 0,
                                          [GATE_TOKEN] = turn % 6 >= 4,
                                          [CUTOFF] = turn % 6 == 5 ? 0.3 : 0 } };
    struct past *past = &set->past;
    *past = (struct past){ .kv_heads = turn % 2 + 1,
                           .head_dim = turn % 3 == 0 ? 40 : 64,
                           .tokens = tokens[turn % 4],
                           .queries = turn % 3 + 1,
                           .dtype = dtypes[turn % 3] };
    past->query_heads = past->kv_heads * (turn % 3 + 1);
    if (!set->rotates) set->options[POSITIONS] = ORIGINAL;
    past_make(past, random);
    past_cut(past, 50, random);
    for (size_t i = 0; i < past->queries; i++) { /* a window between limit and query */
        if (set->options[SHARE] == LANDMARK_OVER_TOKENS) past->limits[i] = past->limits[0];
        past->positions[i] = past->limits[i] + (turn + i) % 3 * 7;
    }
    set->marks = past_alloc(past->tokens, 1);
    size_t length = turn % 3 + 5; /* of a block; with original positions any */
    for (size_t t = 0, open = 1; t < past->tokens; t++, open++) {
        size_t wanted = set->options[POSITIONS] == ORIGINAL ? 2 + random_below(random, 9) : length;
        if (open < wanted) continue;
        set->marks[t] = MARK_LANDMARK;
        open = 0;
    }
    set_up(set, random);
    for (size_t row = 0; row < past->queries * past->query_heads; row++)
        set->local.answer.partial.lse[row] = random_float(random);
    set->reading.local = &set->local.answer.partial;
}

static void test_answers(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    size_t missed = 0, read = 0;
    for (size_t turn = 0; turn < 168; turn++) {
        struct setting set;
        struct error err = { 0 };
        make(&set, turn, &random);
        struct pool *pool = NULL;
        if (turn % 2 == 0) assert_int_equal(pool_open(2, &pool, NULL), 0);
        set.reading.attend.pool = pool;
        if (ask(&set, &err) != 0) fail_msg("turn %zu: %s", turn, err.text);
        for (size_t row = 0; row < set.past.queries * set.past.query_heads; row++) {
            struct truth truth;
            size_t i = row / set.past.query_heads, h = row % set.past.query_heads;
            expect(&set, i, h);
            tell(&set, i, h, &truth);
            missed += truth.missed;
            read += truth.count > 0 && !truth.missed;
        }
        pool_close(pool);
        take_down(&set);
    }
    assert_true(missed > 10 && read > 300);
}

/* The rows that an attend would read, and nothing else. */
static void test_search(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t turn = 0; turn < 42; turn++) {
        struct setting set;
        make(&set, turn, &random);
        set.options[GATE_TOKEN] = 0;
        size_t rows = set.past.queries * set.past.query_heads, k = 400;
        struct index_hits hits = { past_alloc(rows * k, 8), past_alloc(rows * k, 4), k };
        struct arena arena;
        arena_init(&arena, (size_t)64 << 20);
        assert_int_equal(
            landmark()->search(landmark(), &set.reading, &arena, &hits, &set.reply.quality, NULL),
            0);
        for (size_t row = 0; row < rows; row++) {
            size_t i = row / set.past.query_heads, first, n, begin, starts[400], wanted = 0;
            struct truth truth;
            choose(&set, i, row % set.past.query_heads, &truth);
            sees(&set, i, &first, &n, &begin, starts);
            bool *read = past_alloc(set.past.tokens, sizeof *read);
            for (size_t t = begin; t < set.past.limits[i]; t++) read[t] = true;
            for (size_t j = 0; j < truth.count; j++)
                for (size_t t = starts[truth.ids[j]]; t + 1 < starts[truth.ids[j] + 1]; t++)
                    read[t] = true;
            for (size_t t = 0; t < set.past.tokens; t++) wanted += read[t];
            for (size_t j = 0; j < k; j++) {
                uint64_t id = hits.ids[row * k + j];
                assert_true(j < wanted ? id < set.past.tokens && read[id] : id == INDEX_NONE);
                assert_true(j == 0 || hits.scores[row * k + j] <= hits.scores[row * k + j - 1]);
            }
            free(read);
        }
        arena_fini(&arena);
        free(hits.ids);
        free(hits.scores);
        take_down(&set);
    }
}

/* Weights of groups and of the rest are all of the softmax. */
static void test_weights(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t turn = 0; turn < 24; turn += 4) {
        struct setting set;
        struct plan plan;
        struct arena arena;
        make(&set, turn, &random);
        set.options[GATE_TOKEN] = set.options[CUTOFF] = 0;
        for (size_t i = 0; i < set.past.queries; i++) set.past.limits[i] -= set.past.limits[i] % 5;
        arena_init(&arena, (size_t)64 << 20);
        assert_int_equal(plan_init(&plan, &arena, NULL), 0);
        set.reading.plan = &plan;
        assert_int_equal(
            landmark()->attend(landmark(), &set.reading, &arena, &set.reply.answer, NULL), 0);
        for (size_t i = 0; i < set.past.queries; i++) {
            size_t first, n, begin, starts[400];
            sees(&set, i, &first, &n, &begin, starts);
            if (begin != set.past.limits[i] || n == 0) continue; /* nothing but blocks */
            for (size_t h = 0; h < set.past.query_heads; h++) {
                double whole = 0.0;
                for (size_t g = 1; g < plan.group_count; g++)
                    if (plan.groups[g].query == i && plan.groups[g].head == h)
                        whole += (double)plan.groups[g].weight;
                if (fabs(whole - 1.0) > 1e-5) fail_msg("turn %zu: weights of %g", turn, whole);
            }
        }
        arena_fini(&arena);
        take_down(&set);
    }
}

static void test_refused(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct setting set;
    struct error err = { 0 };
    make(&set, 0, &random);
    struct landmarks *landmarks = (struct landmarks *)(void *)set.fold;
    landmarks->even[landmarks->count - 1] = landmarks->count - 1; /* another length */
    assert_int_equal(ask(&set, &err), MEMD_EUNSUPPORTED);
    set.past.limits[0] = 20; /* not in sight */
    set.past.positions[0] = 20;
    assert_int_equal(ask(&set, &err), 0);
    set.past.positions[0] = 3;
    assert_int_equal(ask(&set, &err), MEMD_EINVAL);
    set.past.positions[0] = 20;
    set.options[GATE_TOKEN] = 1;
    set.params.count = 0;
    assert_int_equal(ask(&set, &err), MEMD_EUNSUPPORTED);
    take_down(&set);
    make(&set, 2, &random); /* two tokens that choose together behind other limits */
    set.options[SHARE] = LANDMARK_OVER_TOKENS;
    set.past.limits[0] = 9;
    set.past.limits[1] = 0;
    assert_int_equal(ask(&set, &err), MEMD_EINVAL);
    take_down(&set);
    struct model model = { .layers = 1,
                           .query_heads = 2,
                           .kv_heads = 1,
                           .head_dim = 64,
                           .dtype = DTYPE_FP16,
                           .has_rope = true,
                           .rotated = true };
    double options[OPTIONS_MAX] = { [K] = 1, [POSITIONS] = STINGY };
    assert_int_equal(method_check(landmark(), &model, options, &err), MEMD_EUNSUPPORTED);
    options[POSITIONS] = ORIGINAL;
    assert_int_equal(method_check(landmark(), &model, options, &err), 0);
    options[GATE_TOKEN] = 1;
    assert_int_equal(method_check(landmark(), &model, options, &err), MEMD_EUNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grouped_softmax), cmocka_unit_test(test_own_landmark),
        cmocka_unit_test(test_stingy_places),   cmocka_unit_test(test_answers),
        cmocka_unit_test(test_search),          cmocka_unit_test(test_weights),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
