/* SPDX-License-Identifier: Apache-2.0 */
/* test_infllm.c — representatives by mass, logits and mean, chosen blocks, places and answers
 * against float64 written from the paper's description; what was read is compared token by token
 * through the plan. */
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

enum { BLOCK, LOCAL, SINKS, TOPK, REPR, REPR_TOKENS, SHARE, EXECUTION, POSITIONS, OPTIONS };
enum { MASS, LOGIT, MEAN };
enum { HEADS, NONE };
enum { AUTO, CONSTANT, ORIGINAL };
enum { H = 4, D = 32 };

static const double defaults[OPTIONS] = { [BLOCK] = 10, [LOCAL] = 40, [SINKS] = 6, [TOPK] = 3,
                                          [REPR_TOKENS] = 4, [EXECUTION] = 512 };

/* (T, H) what tokens have received: nothing is known of every seventh token and of those of block
 * 4, those of block 5 received nothing. */
struct masses {
    float *values;
};

static const float *mass_at(void *arg, uint64_t position)
{
    const struct masses *masses = arg;
    static const float nothing[H] = { 0 };
    if (position >= 56 && position < 66) return nothing;
    bool unknown = position % 7 == 3 || (position >= 46 && position < 56);
    return unknown ? NULL : masses->values + position * H;
}

static void make(struct folded *folded, size_t tokens, size_t queries, bool rotates,
                 struct masses *masses, uint64_t *random)
{
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_BF16, DTYPE_FP16 };
    folded->method = &method_infllm;
    folded->past = (struct past){ .query_heads = H, .kv_heads = tokens % 2 == 0 ? 2 : 1,
                                  .head_dim = D, .tokens = tokens, .queries = queries,
                                  .dtype = dtypes[tokens % 3] };
    folded_make(folded, rotates, random);
    masses->values = past_alloc(tokens * H, sizeof *masses->values);
    for (size_t i = 0; i < tokens * H; i++) /* few values: ties */
        masses->values[i] = (float)random_below(random, 6) / 4.0F;
    folded->source.mass = mass_at;
    folded->source.mass_arg = masses;
}

/* What token t is chosen by to represent its block to head h. */
static double worth(const struct folded *folded, size_t h, size_t t)
{
    if (folded->options[REPR] == MASS) {
        const float *mass = mass_at(folded->source.mass_arg, t);
        return mass == NULL ? 0.0 : (double)mass[h];
    }
    double q[D], k[D], sum = 0.0;
    folded_turn(folded, (double)t, folded_key(folded, h, t), k);
    for (size_t j = 1; (double)j <= folded->options[LOCAL]; j++) {
        folded_turn(folded, (double)(t + j), folded->queries + ((t + j) * H + h) * D, q);
        for (size_t d = 0; d < D; d++) sum += q[d] * k[d] / folded->options[LOCAL];
    }
    return sum;
}

/* (D) of a block */
static void representative(const struct folded *folded, size_t h, size_t block, double *ret_r)
{
    size_t size = (size_t)folded->options[BLOCK], count = (size_t)folded->options[REPR_TOKENS];
    size_t begin = (size_t)folded->options[SINKS] + block * size;
    struct ranked *hits = past_alloc(size, sizeof *hits);
    bool known = folded->options[REPR] == LOGIT;
    for (size_t t = 0; t < size && folded->options[REPR] != MEAN; t++) {
        hits[t] = (struct ranked){ worth(folded, h, begin + t), begin + t };
        const float *mass = mass_at(folded->source.mass_arg, begin + t);
        for (size_t head = 0; head < H; head++) known = known || (mass != NULL && mass[head] > 0);
    }
    if (known) qsort(hits, size, sizeof *hits, better_first);
    for (size_t t = 0; t < size && !known; t++) hits[t].id = begin + t;
    if (!known || count > size) count = size;
    for (size_t d = 0; d < D; d++) {
        ret_r[d] = 0.0;
        for (size_t j = 0; j < count; j++)
            ret_r[d] += (double)folded_key(folded, h, hits[j].id)[d] / (double)count;
    }
    free(hits);
}

static size_t formed(const struct folded *folded, double tokens)
{
    double behind = tokens - folded->options[LOCAL] - folded->options[SINKS];
    return behind < 0 ? 0 : (size_t)floor(behind / folded->options[BLOCK]);
}

/* Product of the mean query of queries first … end-1, turned by n_local - 1, and a block. */
static double product(const struct folded *folded, size_t first, size_t end, size_t h, size_t block)
{
    double q[D], r[D], sum = 0.0;
    representative(folded, h, block, r);
    for (size_t i = first; i < end; i++) {
        folded_turn(folded, folded->options[LOCAL] - 1, folded->past.q + (i * H + h) * D, q);
        for (size_t d = 0; d < D; d++) sum += q[d] * r[d] / (double)(end - first);
    }
    return sum;
}

/* Blocks that query i, head h reads, marked; how many were there. */
static size_t choose(const struct folded *folded, size_t i, size_t h, bool *ret_chosen)
{
    const struct past *past = &folded->past;
    size_t execution = (size_t)folded->options[EXECUTION], first = i / execution * execution;
    size_t end = first + execution < past->queries ? first + execution : past->queries;
    double least = (double)past->tokens;
    for (size_t j = first; j < end; j++)
        least = fmin(least, fmin((double)past->limits[j], (double)past->positions[j]));
    size_t blocks = formed(folded, least);
    struct ranked *hits = past_alloc(blocks, sizeof *hits);
    for (size_t b = 0; b < blocks; b++) {
        ret_chosen[b] = (double)blocks <= folded->options[TOPK];
        hits[b] = (struct ranked){ 0.0, b };
        for (size_t head = 0; head < H; head++)
            if (head == h || folded->options[SHARE] == HEADS)
                hits[b].score += product(folded, first, end, head, b);
    }
    qsort(hits, blocks, sizeof *hits, better_first);
    for (size_t j = 0; j < blocks && (double)j < folded->options[TOPK]; j++)
        ret_chosen[hits[j].id] = true;
    free(hits);
    return blocks;
}

/* Tokens that are read, where they are; how many. */
static size_t read_by(const struct folded *folded, size_t i, size_t h,
                      struct folded_token *ret_tokens)
{
    const struct past *past = &folded->past;
    bool chosen[200] = { false };
    size_t blocks = choose(folded, i, h, chosen), count = 0;
    double local = folded->options[LOCAL], position = (double)past->positions[i];
    for (size_t t = 0; t < past->limits[i]; t++) {
        double place = (double)t - folded->options[SINKS];
        size_t block = place < 0 ? blocks : (size_t)(place / folded->options[BLOCK]);
        if (block < blocks && !chosen[block]) continue;
        bool far = position - (double)t >= local && folded->options[POSITIONS] != ORIGINAL;
        ret_tokens[count++] = (struct folded_token){ t, far ? 0.0 : (double)t,
                                                     far ? local - 1 : position };
    }
    return count;
}

static void expect(const struct folded *folded)
{
    const struct past *past = &folded->past;
    struct folded_token *tokens = past_alloc(past->tokens, sizeof *tokens);
    for (size_t row = 0; row < past->queries * H; row++) {
        size_t count = read_by(folded, row / H, row % H, tokens);
        assert_true(folded_equals(folded, row / H, row % H, tokens, count));
        float mass = folded->reply.quality.mass[row * INDEX_LEVELS + INDEX_EXACT];
        bool shared = folded->options[SHARE] == HEADS;
        if (shared && count == past->limits[row / H]) assert_true(mass == 1.0F);
        if (count < past->limits[row / H]) assert_true(isnan(mass));
    }
    free(tokens);
}

static void fini(struct folded *folded, struct masses *masses)
{
    free(masses->values);
    folded_fini(folded);
}

static void test_representatives(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t turn = 0; turn < 9; turn++) {
        struct folded folded = { 0 };
        struct masses masses;
        memcpy(folded.options, defaults, sizeof defaults);
        folded.options[REPR] = (double)(turn % 3);
        if (turn / 3 == 1) folded.options[BLOCK] = 50;
        if (turn / 3 == 2) folded.options[REPR_TOKENS] = 11;
        make(&folded, 200 + turn, 1, turn / 3 != 1, &masses, &random);
        if (turn == 1) assert_int_equal(pool_open(2, &folded.source.pool, NULL), 0);
        folded_fold(&folded, 1000);
        struct blocks *blocks = (struct blocks *)(void *)folded.fold;
        assert_int_equal(blocks->count, formed(&folded, (double)(200 + turn)));
        assert_int_equal(blocks->lacking, turn == 0 || turn == 6 ? 2 : 0);
        double r[D];
        for (size_t i = 0; i < blocks->count * H; i++) {
            representative(&folded, i % H, i / H, r);
            for (size_t d = 0; d < D; d++)
                if (fabs((double)blocks->vectors[i * D + d] - r[d]) > 1e-6)
                    fail_msg("turn %zu block %zu head %zu: %g, expected %g", turn, i / H, i % H,
                             (double)blocks->vectors[i * D + d], r[d]);
        }
        float *once = past_alloc(blocks->count * H * D, sizeof *once);
        memcpy(once, blocks->vectors, blocks->count * H * D * sizeof *once);
        past_cut(&folded.past, 7, &random); /* other views, other steps: the same bits */
        folded_views(&folded);
        folded_fold(&folded, 3);
        blocks = (struct blocks *)(void *)folded.fold;
        assert_memory_equal(blocks->vectors, once, blocks->count * H * D * sizeof *once);
        free(once);
        pool_close(folded.source.pool);
        fini(&folded, &masses);
    }
}

/* As many representing tokens as a block has, by mass: the plain mean, to the bit. */
static void test_all_represent(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    float *plain = NULL;
    for (size_t turn = 0; turn < 2; turn++) {
        uint64_t same = random;
        struct folded folded = { 0 };
        struct masses masses;
        memcpy(folded.options, defaults, sizeof defaults);
        folded.options[REPR] = turn == 0 ? MEAN : MASS;
        folded.options[REPR_TOKENS] = folded.options[BLOCK];
        make(&folded, 160, 1, true, &masses, &same);
        folded_fold(&folded, 160);
        const struct blocks *blocks = (const void *)folded.fold;
        size_t bytes = blocks->count * H * D * sizeof(float);
        if (turn == 0) plain = memcpy(past_alloc(bytes, 1), blocks->vectors, bytes);
        else assert_memory_equal(plain, blocks->vectors, bytes);
        fini(&folded, &masses);
    }
    free(plain);
}

/* One query and execution blocks, limits and positions all over. */
static void test_answers(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const size_t tokens[] = { 0, 1, 40, 46, 56, 61, 150, 201 };
    static const int behind[] = { 0, -1, 17, -30 };
    for (size_t turn = 0; turn < 64; turn++) {
        struct folded folded = { 0 };
        struct masses masses;
        size_t many = tokens[(turn + turn / 8) % 8];
        memcpy(folded.options, defaults, sizeof defaults);
        folded.options[REPR] = (double)(turn % 3);
        folded.options[SHARE] = (double)(turn % 2);
        folded.options[POSITIONS] = turn % 5 == 4 ? ORIGINAL : (double)(turn % 2);
        folded.options[EXECUTION] = turn % 3 == 2 ? 2 : 512;
        if (turn % 7 == 6) folded.options[TOPK] = 0;
        if (turn % 9 == 8) folded.options[SINKS] = 0;
        if (turn % 11 == 10) folded.options[LOCAL] = 1;
        bool rotates = folded.options[POSITIONS] != ORIGINAL || turn % 2 == 0;
        make(&folded, many, turn % 4 == 1 ? 1 : 5, rotates, &masses, &random);
        for (size_t i = 0; i < folded.past.queries; i++) {
            if (turn % 3 != 1) folded.past.limits[i] = many - (i * 3 < many ? i * 3 : many);
            int64_t position = (int64_t)folded.past.limits[i] + behind[(i + turn) % 4];
            folded.past.positions[i] = position < 0 ? 0 : (uint64_t)position;
        }
        folded_fold(&folded, turn + 1);
        assert_int_equal(folded_ask(&folded), 0);
        expect(&folded);
        fini(&folded, &masses);
    }
}

/* A past no longer than the window: plain causal attention. */
static void test_all_in_the_window(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct folded folded = { 0 };
    struct masses masses;
    memcpy(folded.options, defaults, sizeof defaults);
    make(&folded, 40, 40, true, &masses, &random);
    for (size_t i = 0; i < 40; i++) {
        folded.past.positions[i] = i;
        folded.past.limits[i] = i + 1;
    }
    folded_fold(&folded, 40);
    assert_int_equal(folded_ask(&folded), 0);
    struct folded_token tokens[40];
    for (size_t row = 0; row < 40 * H; row++) {
        for (size_t t = 0; t < 40; t++)
            tokens[t] = (struct folded_token){ t, (double)t, (double)(size_t)(row / H) };
        assert_true(folded_equals(&folded, row / H, row % H, tokens, row / H + 1));
        assert_true(folded.reply.quality.mass[row * INDEX_LEVELS + INDEX_EXACT] == 1.0F);
    }
    fini(&folded, &masses);
}

/* As many blocks as there are: everything is read, what is far at distance n_local - 1. */
static void test_all_blocks(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t turn = 0; turn < 2; turn++) {
        struct folded folded = { 0 };
        struct masses masses;
        memcpy(folded.options, defaults, sizeof defaults);
        folded.options[TOPK] = 12;
        folded.options[SHARE] = (double)turn;
        make(&folded, 170, 1, true, &masses, &random);
        folded_fold(&folded, 170);
        assert_int_equal(((const struct blocks *)(const void *)folded.fold)->count, 12);
        assert_int_equal(folded_ask(&folded), 0);
        struct folded_token tokens[170];
        for (size_t t = 0; t < 170; t++)
            tokens[t] = (struct folded_token){ t, t <= 130 ? 0.0 : (double)t,
                                               t <= 130 ? 39.0 : 170.0 };
        for (size_t h = 0; h < H; h++) {
            assert_true(folded_equals(&folded, 0, h, tokens, 170));
            assert_true(folded.reply.quality.mass[h * INDEX_LEVELS + INDEX_EXACT] == 1.0F);
        }
        fini(&folded, &masses);
    }
}

static void test_search(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct folded folded = { 0 };
    struct masses masses;
    memcpy(folded.options, defaults, sizeof defaults);
    make(&folded, 200, 2, true, &masses, &random);
    folded.past.limits[1] = 190;
    folded_fold(&folded, 200);
    enum { K = 200 };
    struct index_hits hits = { past_alloc(2 * H * K, 8), past_alloc(2 * H * K, 4), K };
    struct reading reading = folded_reading(&folded);
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(folded.method->search(folded.method, &reading, &arena, &hits,
                                           &folded.reply.quality, NULL), 0);
    arena_fini(&arena);
    struct folded_token tokens[200];
    for (size_t row = 0; row < 2 * H; row++) {
        size_t count = read_by(&folded, row / H, row % H, tokens), found = 0;
        for (size_t j = 0; j < K; j++) {
            if (hits.ids[row * K + j] == INDEX_NONE) continue;
            if (j > 0) assert_true(hits.scores[row * K + j] <= hits.scores[row * K + j - 1]);
            for (size_t t = 0; t < count; t++) found += tokens[t].token == hits.ids[row * K + j];
        }
        assert_int_equal(found, count);
    }
    free(hits.ids);
    free(hits.scores);
    fini(&folded, &masses);
}

static void test_models(void **state)
{
    (void)state;
    struct error err = { 0 };
    struct model rotates = { .has_rope = true }, comes = { .has_rope = true, .rotated = true };
    double options[OPTIONS];
    assert_int_equal(method_parse(&method_infllm, NULL, 0, options, NULL), 0);
    static const double published[OPTIONS] = { 128, 4096, 128, 16, MASS, 4, HEADS, 512, AUTO };
    assert_memory_equal(options, published, sizeof published);
    for (int choice = AUTO; choice <= ORIGINAL; choice++) {
        options[POSITIONS] = (double)choice;
        assert_int_equal(method_check(&method_infllm, &rotates, options, &err), 0);
        assert_int_equal(method_check(&method_infllm, &comes, options, &err),
                         choice == CONSTANT ? MEMD_EUNSUPPORTED : 0);
    }
    assert_int_equal(method_infllm.columns(options), COLUMNS_NONE);
    options[REPR] = LOGIT;
    assert_int_equal(method_infllm.columns(options), COLUMNS_QUERIES);
}

/* What is described comes back with the bytes. */
static void test_saved(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct folded folded = { 0 };
    struct masses masses;
    memcpy(folded.options, defaults, sizeof defaults);
    make(&folded, 180, 1, true, &masses, &random);
    folded_fold(&folded, 180);
    const struct fold_type *type = method_infllm.fold;
    size_t bytes = type->save(folded.fold, NULL);
    unsigned char *data = past_alloc(bytes, 1);
    assert_int_equal(type->save(folded.fold, data), bytes);
    struct fold *loaded = NULL;
    assert_int_equal(type->load(&folded.source, data, bytes, &loaded, NULL), 0);
    struct fold_fact facts[FOLD_FACTS_MAX];
    assert_int_equal(type->describe(loaded, facts), 2);
    assert_true(facts[0].value == 13 && facts[1].value == 2);
    type->free(loaded);
    free(data);
    fini(&folded, &masses);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_representatives),   cmocka_unit_test(test_all_represent),
        cmocka_unit_test(test_answers),           cmocka_unit_test(test_all_in_the_window),
        cmocka_unit_test(test_all_blocks),        cmocka_unit_test(test_search),
        cmocka_unit_test(test_models),            cmocka_unit_test(test_saved),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
