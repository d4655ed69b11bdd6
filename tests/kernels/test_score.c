/* SPDX-License-Identifier: Apache-2.0 */
/* test_score.c — every level of `score` against the reference; what lies around the scores must
 * stay. */
#include "tests/kernels/checks.h"

enum { QUERIES_MAX = 9, GUARD_FLOATS = 16 };

static const float guard = -12345.0F;

struct shape {
    uint32_t dtype;
    size_t head_dim, tokens, queries, gap_bytes;
};

static void fill(const struct shape *shape, unsigned char *k, float *q, uint64_t *random)
{
    size_t element = dtype_bytes(shape->dtype);
    size_t stride = shape->head_dim * element + shape->gap_bytes;
    memset(k, 0xFF, shape->tokens * stride);
    for (size_t i = 0; i < shape->tokens * shape->head_dim; i++) {
        float value = checks_normal(random);
        size_t row = i / shape->head_dim, d = i % shape->head_dim;
        half_store(&value, 1, shape->dtype, k + row * stride + d * element);
    }
    for (size_t i = 0; i < shape->queries * shape->head_dim; i++)
        q[i] = checks_normal(random) / sqrtf((float)shape->head_dim);
}

static void check_guard(struct checks *checks, const char *what, const float *at)
{
    float expected[GUARD_FLOATS];
    for (size_t i = 0; i < GUARD_FLOATS; i++) expected[i] = guard;
    checks_close(checks, what, at, expected, GUARD_FLOATS, (struct near){ 0.0F, 0.0F });
}

static void check_shape(struct checks *checks, const struct backend *backend,
                        const struct shape *shape, uint64_t *random)
{
    size_t stride = shape->head_dim * dtype_bytes(shape->dtype) + shape->gap_bytes;
    size_t count = shape->queries * shape->tokens;
    unsigned char *k = checks_alloc(shape->tokens * stride + 1);
    float *q = checks_alloc(shape->queries * shape->head_dim * sizeof *q);
    float *truth = checks_alloc(count * sizeof *truth);
    float *scores = checks_alloc((count + 2 * GUARD_FLOATS) * sizeof *scores);
    fill(shape, k + 1, q, random); /* one byte off any alignment */
    for (size_t i = 0; i < count + 2 * GUARD_FLOATS; i++) scores[i] = guard;
    struct score_args args = { .q = q, .queries = shape->queries, .head_dim = shape->head_dim,
                               .k = k + 1, .k_stride_bytes = stride, .tokens = shape->tokens,
                               .dtype = shape->dtype, .scores = truth };
    score_ref(&args);
    args.scores = scores + GUARD_FLOATS;
    backend->score(&args);
    char what[128];
    snprintf(what, sizeof what, "%s %s D=%zu tokens=%zu queries=%zu gap=%zu", backend->name,
             dtype_name(shape->dtype), shape->head_dim, shape->tokens, shape->queries,
             shape->gap_bytes);
    checks_close(checks, what, args.scores, truth, count, tolerance_of(shape->dtype)->kernel);
    check_guard(checks, what, scores);
    check_guard(checks, what, scores + GUARD_FLOATS + count);
    free(k);
    free(q);
    free(truth);
    free(scores);
}

/* What a query gets does not depend on how many are asked with it: the same bits alone. */
static void check_alone(struct checks *checks, const struct backend *backend, uint64_t *random)
{
    enum { DIM = 128, TOKENS = 37 };
    struct shape shape = { DTYPE_FP32, DIM, TOKENS, QUERIES_MAX, 0 };
    float k[TOKENS * DIM], q[QUERIES_MAX * DIM], all[QUERIES_MAX * TOKENS], alone[TOKENS];
    fill(&shape, (unsigned char *)k, q, random);
    struct score_args args = { .q = q, .head_dim = DIM, .k = k, .tokens = TOKENS,
                               .k_stride_bytes = DIM * sizeof *k, .dtype = DTYPE_FP32,
                               .scores = all };
    for (size_t queries = 1; queries <= QUERIES_MAX; queries++) {
        args.queries = queries;
        args.q = q;
        args.scores = all;
        backend->score(&args);
        args.queries = 1;
        args.scores = alone;
        for (size_t i = 0; i < queries; i++) {
            char what[128];
            args.q = q + i * DIM;
            backend->score(&args);
            snprintf(what, sizeof what, "%s query %zu of %zu alone", backend->name, i, queries);
            checks_close(checks, what, alone, all + i * TOKENS, TOKENS,
                         (struct near){ 0.0F, 0.0F });
        }
    }
}

static void check_level(struct checks *checks, const struct backend *backend, uint64_t *random)
{
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    static const size_t dims[] = { 8, 24, 64, 80, 96, 128, 136, 256, 1024 };
    static const size_t tokens[] = { 1, 2, 7, 33, 145, 1025 };
    size_t turn = 0;
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        for (size_t j = 0; j < sizeof dims / sizeof dims[0]; j++)
            for (size_t t = 0; t < sizeof tokens / sizeof tokens[0]; t++, turn++) {
                struct shape shape = { dtypes[i], dims[j], tokens[t], turn % QUERIES_MAX + 1,
                                       turn % 5 == 0 ? 6 : 0 };
                check_shape(checks, backend, &shape, random);
            }
    check_alone(checks, backend, random);
}

int main(void)
{
    struct checks checks = { 0 };
    uint64_t random = random_seed();
    for (int level = 0; level < CPU_LEVELS; level++) {
        const struct backend *backend = backend_for((enum cpu_level)level);
        if (backend == NULL) continue;
        size_t before = checks.passed;
        check_level(&checks, backend, &random);
        printf("%s: %zu passed\n", backend->name, checks.passed - before);
    }
    return checks_end(&checks);
}
