/* SPDX-License-Identifier: Apache-2.0 */
/* test_partial.c — every level of `partial` against the reference, and exp against libm.
 *
 *     test_partial [--bench]
 *
 * Each case draws rows in memory that is one byte off any alignment (or strided, as the rows of a
 * tail chunk are), random limits and a random carried state, runs reference and twin on copies of
 * the state and compares (o, lse).
 */
#include <time.h>

#include "attention/softmax.h"
#include "tests/kernels/checks.h"

enum { QUERIES_MAX = 11, EXP_COUNT = 4096 };

enum fill { FILL_NORMAL, FILL_HUGE, FILL_VAST, FILL_INFINITE, FILLS };
enum sight { SIGHT_ALL, SIGHT_SOME, SIGHT_NONE, SIGHTS };

struct shape {
    uint32_t k_dtype, v_dtype;
    size_t head_dim, tokens, queries;
    enum fill fill;
    enum sight sight;
    size_t gap_bytes; /* between rows */
};

struct state {
    float *max, *sum, *acc;
};

static struct state state_new(const struct shape *shape)
{
    return (struct state){ checks_alloc(shape->queries * sizeof(float)),
                           checks_alloc(shape->queries * sizeof(float)),
                           checks_alloc(shape->queries * shape->head_dim * sizeof(float)) };
}

static void state_free(struct state *state)
{
    free(state->max);
    free(state->sum);
    free(state->acc);
}

/* Every other query comes with something seen before. */
static void state_start(struct state *state, const struct shape *shape)
{
    for (size_t m = 0; m < shape->queries; m++) {
        bool carried = m % 2 == 1 && shape->fill < FILL_VAST;
        state->max[m] = carried ? 0.5F * (float)m : -INFINITY;
        state->sum[m] = carried ? 1.5F : 0.0F;
        for (size_t d = 0; d < shape->head_dim; d++)
            state->acc[m * shape->head_dim + d] = carried ? 0.01F * (float)d : 0.0F;
    }
}

/* A key element. HUGE: whole numbers, whose scores are exact in any order and thousands apart.
 * VAST: scores of 0 and ±6e36. INFINITE: scores of 0 and, by overflow, -inf, which counts as not
 * visible. */
static float key_value(const struct shape *shape, size_t d, uint64_t *random)
{
    if (shape->fill == FILL_NORMAL) return checks_normal(random);
    if (shape->fill == FILL_HUGE) return (float)random_below(random, 5) - 2.0F;
    if (d != 0) return 0.0F;
    if (shape->fill == FILL_VAST) return ((float)random_below(random, 3) - 1.0F) * 6e4F;
    return random_below(random, 2) == 0 ? 0.0F : -6e4F;
}

static float query_value(const struct shape *shape, size_t d, uint64_t *random)
{
    if (shape->fill == FILL_NORMAL)
        return checks_normal(random) / sqrtf((float)shape->head_dim);
    if (shape->fill == FILL_HUGE) return ((float)random_below(random, 5) - 2.0F) * 1024.0F;
    if (d != 0) return 0.0F;
    return shape->fill == FILL_VAST ? 1e32F : 3e38F;
}

/* `tokens` rows, one byte off alignment. */
static unsigned char *rows_new(const struct shape *shape, uint32_t dtype, bool keys,
                               uint64_t *random)
{
    size_t element = dtype_bytes(dtype), stride = shape->head_dim * element + shape->gap_bytes;
    unsigned char *rows = checks_alloc(shape->tokens * stride + 1);
    memset(rows, 0xFF, shape->tokens * stride + 1); /* NaN between the rows */
    for (size_t row = 0; row < shape->tokens; row++) {
        for (size_t d = 0; d < shape->head_dim; d++) {
            float value = keys ? key_value(shape, d, random) : checks_normal(random);
            half_store(&value, 1, dtype, rows + 1 + row * stride + d * element);
        }
    }
    return rows;
}

static void see(const struct shape *shape, uint32_t *visible, uint64_t *random)
{
    for (size_t m = 0; m < shape->queries; m++) {
        if (shape->sight == SIGHT_ALL) visible[m] = (uint32_t)shape->tokens;
        if (shape->sight == SIGHT_NONE) visible[m] = 0;
        if (shape->sight == SIGHT_SOME)
            visible[m] = (uint32_t)random_below(random, shape->tokens + 1);
    }
}

static void run(partial_fn *partial, struct partial_args args, struct state *state, float *lse)
{
    args.max = state->max;
    args.sum = state->sum;
    args.acc = state->acc;
    partial(&args);
    struct partial out = { state->acc, lse, args.queries, args.head_dim };
    partial_finish(state->max, state->sum, &out);
}

static void compare(struct checks *checks, const struct backend *backend, const struct shape *shape,
                    const struct partial_args *args)
{
    struct state truth = state_new(shape), state = state_new(shape);
    float lse_truth[QUERIES_MAX], lse[QUERIES_MAX];
    state_start(&truth, shape);
    state_start(&state, shape);
    run(partial_ref, *args, &truth, lse_truth);
    run(backend->partial, *args, &state, lse);
    char what[160];
    snprintf(what, sizeof what, "%s %s/%s D=%zu tokens=%zu queries=%zu fill=%d sight=%d gap=%zu",
             backend->name, dtype_name(shape->k_dtype), dtype_name(shape->v_dtype), shape->head_dim,
             shape->tokens, shape->queries, (int)shape->fill, (int)shape->sight, shape->gap_bytes);
    struct near near = tolerance_of(shape->v_dtype)->kernel;
    checks_close(checks, what, state.acc, truth.acc, shape->queries * shape->head_dim, near);
    checks_close(checks, what, lse, lse_truth, shape->queries, near);
    state_free(&truth);
    state_free(&state);
}

static void check_shape(struct checks *checks, const struct backend *backend,
                        const struct shape *shape, uint64_t *random)
{
    unsigned char *k = rows_new(shape, shape->k_dtype, true, random);
    unsigned char *v = rows_new(shape, shape->v_dtype, false, random);
    float *q = checks_alloc(shape->queries * shape->head_dim * sizeof *q);
    for (size_t i = 0; i < shape->queries * shape->head_dim; i++)
        q[i] = query_value(shape, i % shape->head_dim, random);
    uint32_t visible[QUERIES_MAX];
    see(shape, visible, random);
    struct partial_args args = {
        .q = q, .visible = visible, .queries = shape->queries, .head_dim = shape->head_dim,
        .k = k + 1, .v = v + 1, .tokens = shape->tokens,
        .k_stride_bytes = shape->head_dim * dtype_bytes(shape->k_dtype) + shape->gap_bytes,
        .v_stride_bytes = shape->head_dim * dtype_bytes(shape->v_dtype) + shape->gap_bytes,
        .k_dtype = shape->k_dtype, .v_dtype = shape->v_dtype };
    compare(checks, backend, shape, &args);
    free(k);
    free(v);
    free(q);
}

static void check_level(struct checks *checks, const struct backend *backend, uint64_t *random)
{
    static const uint32_t dtypes[][2] = { { DTYPE_FP32, DTYPE_FP32 }, { DTYPE_FP16, DTYPE_FP16 },
                                          { DTYPE_BF16, DTYPE_BF16 }, { DTYPE_FP32, DTYPE_FP16 },
                                          { DTYPE_FP32, DTYPE_BF16 } };
    static const size_t dims[] = { 8, 24, 64, 80, 96, 128, 136, 256, 1024 };
    static const size_t tokens[] = { 1, 7, 33, 1025 };
    size_t turn = 0;
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        for (size_t j = 0; j < sizeof dims / sizeof dims[0]; j++)
            for (size_t t = 0; t < sizeof tokens / sizeof tokens[0]; t++)
                for (int sight = 0; sight < SIGHTS; sight++, turn++) {
                    struct shape shape = { dtypes[i][0], dtypes[i][1], dims[j], tokens[t],
                                           turn % QUERIES_MAX + 1, (enum fill)(turn / 2 % FILLS),
                                           (enum sight)sight, turn % 5 == 0 ? 6 : 0 };
                    if (shape.tokens > 1000 && shape.head_dim > 256) continue; /* slow reference */
                    check_shape(checks, backend, &shape, random);
                }
}

/* Two rows with scores 0 and x ≤ 0, values 0 and 1: the accumulator is exp(x) itself; far below it
 * is 0, not merely small. */
static void check_exp(struct checks *checks, const struct backend *backend)
{
    enum { D = 16, FAR = 4 };
    static const float far_below[FAR] = { -88.5F, -104.0F, -1e4F, -1e38F };
    static float q[EXP_COUNT * D], acc[EXP_COUNT * D], max[EXP_COUNT], sum[EXP_COUNT];
    static uint32_t visible[EXP_COUNT];
    float k[2 * D] = { 0 }, v[2 * D] = { 0 };
    k[D] = v[D] = 1.0F;
    memset(acc, 0, sizeof acc);
    for (size_t m = 0; m < EXP_COUNT; m++) {
        max[m] = -INFINITY;
        sum[m] = 0.0F;
        visible[m] = 2;
        q[m * D] = m < FAR ? far_below[m] : -87.0F * (float)(m - FAR) / (float)(EXP_COUNT - FAR);
    }
    backend->partial(&(struct partial_args){
        .q = q, .visible = visible, .queries = EXP_COUNT, .head_dim = D, .k = k, .v = v,
        .tokens = 2,
        .k_stride_bytes = sizeof k / 2, .v_stride_bytes = sizeof v / 2, .k_dtype = DTYPE_FP32,
        .v_dtype = DTYPE_FP32, .max = max, .sum = sum, .acc = acc });
    for (size_t m = 0; m < EXP_COUNT; m++) {
        char what[64];
        snprintf(what, sizeof what, "%s exp(%.9g)", backend->name, (double)q[m * D]);
        bool exact = m < FAR && backend != backend_for(CPU_REF); /* the reference has libm's exp */
        float truth = exact ? 0.0F : (float)exp((double)q[m * D]);
        checks_close(checks, what, &acc[m * D], &truth, 1, (struct near){ 0.0F, 2e-7F });
    }
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Rows in cache: what the arithmetic alone allows. */
static void bench_level(const struct backend *backend, uint64_t *random)
{
    static const size_t dims[] = { 64, 128, 256 };
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++)
        for (size_t queries = 1; queries <= 8; queries++) {
            struct shape shape = { DTYPE_FP16, DTYPE_FP16, dims[i], 32768 / dims[i], queries,
                                   FILL_NORMAL, SIGHT_ALL, 0 };
            unsigned char *k = rows_new(&shape, DTYPE_FP16, true, random);
            unsigned char *v = rows_new(&shape, DTYPE_FP16, false, random);
            struct state state = state_new(&shape);
            state_start(&state, &shape);
            float *q = checks_alloc(queries * dims[i] * sizeof *q);
            for (size_t d = 0; d < queries * dims[i]; d++) q[d] = query_value(&shape, d, random);
            uint32_t visible[QUERIES_MAX];
            see(&shape, visible, random);
            double best = INFINITY;
            for (int round = 0; round < 200; round++) {
                double start = seconds_now();
                backend->partial(&(struct partial_args){
                    .q = q, .visible = visible, .queries = queries, .head_dim = dims[i], .k = k + 1,
                    .v = v + 1, .k_stride_bytes = 2 * dims[i], .v_stride_bytes = 2 * dims[i],
                    .tokens = shape.tokens, .k_dtype = DTYPE_FP16, .v_dtype = DTYPE_FP16,
                    .max = state.max, .sum = state.sum, .acc = state.acc });
                best = fmin(best, seconds_now() - start);
            }
            printf("{\"kernel\":\"partial\",\"level\":\"%s\",\"head_dim\":%zu,\"queries\":%zu,"
                   "\"gb_s\":%.2f}\n", backend->name, dims[i], queries, 131072.0 / best * 1e-9);
            state_free(&state);
            free(k);
            free(v);
            free(q);
        }
}

int main(int argc, char **argv)
{
    bool bench = argc > 1 && strcmp(argv[1], "--bench") == 0;
    struct checks checks = { 0 };
    uint64_t random = random_seed();
    for (int level = 0; level < CPU_LEVELS; level++) {
        const struct backend *backend = backend_for((enum cpu_level)level);
        if (backend == NULL) continue;
        size_t before = checks.passed;
        if (bench) {
            if (level != CPU_REF) bench_level(backend, &random);
            continue;
        }
        check_level(&checks, backend, &random);
        check_exp(&checks, backend);
        printf("%s: %zu passed\n", backend->name, checks.passed - before);
    }
    return bench ? 0 : checks_end(&checks);
}
