/* SPDX-License-Identifier: Apache-2.0 */
/* test_dot.c — scores of some centroids whose codes lie row by row (plane_dot), at every level,
 * against sums in double: within 1e-6 of the sum of what they are made of. What is not asked for
 * stays as it was.
 */
#include "index/backend.h"
#include "tests/kernels/checks.h"

enum { ROWS_MAX = 16, HEAD_DIM_MAX = 1024 };

static const float guard = -12345.0F;

struct dot {
    struct checks *checks;
    const struct plane_backend *backend;
    struct plane_queries queries;
    uint8_t codes[PLANE_TILES * HEAD_DIM_MAX]; /* (64, D) */
    int8_t q8[ROWS_MAX * HEAD_DIM_MAX];        /* (M, D) */
    float step[PLANE_TILES], scale[ROWS_MAX], offset[ROWS_MAX];
    int32_t sum[ROWS_MAX];
    float scores[(ROWS_MAX + 1) * PLANE_TILES]; /* (M + 1, 64) */
};

static void fill(struct dot *at, size_t head_dim, size_t rows, bool full, uint64_t *random)
{
    at->queries = (struct plane_queries){ .q8 = at->q8, .scale = at->scale, .offset = at->offset,
                                          .sum = at->sum, .count = rows, .head_dim = head_dim };
    for (size_t i = 0; i < PLANE_TILES * head_dim; i++)
        at->codes[i] = full ? 127 : (uint8_t)random_below(random, 128);
    for (size_t c = 0; c < PLANE_TILES; c++) at->step[c] = 0.01F * (1.5F + random_float(random));
    for (size_t m = 0; m < rows; m++) {
        at->scale[m] = 1.5F + random_float(random);
        at->offset[m] = checks_normal(random);
        at->sum[m] = 0;
        for (size_t d = 0; d < head_dim; d++) {
            int8_t code = full ? -127 : (int8_t)((int)random_below(random, 255) - 127);
            at->q8[m * head_dim + d] = code;
            at->sum[m] += code;
        }
    }
    for (size_t i = 0; i < (rows + 1) * PLANE_TILES; i++) at->scores[i] = guard;
}

/* Score (m, c) is the truth, or was left alone. */
static void check_score(struct dot *at, size_t m, size_t c, bool asked)
{
    size_t head_dim = at->queries.head_dim;
    double dot = 0.0, all = 0.0, value = (double)at->scores[m * PLANE_TILES + c];
    for (size_t d = 0; asked && d < head_dim; d++) {
        double term = (at->codes[c * head_dim + d] - 63.5) * at->q8[m * head_dim + d];
        dot += term;
        all += fabs(term);
    }
    double unit = asked ? (double)at->scale[m] * (double)at->step[c] : 0.0;
    double offset = asked ? (double)at->offset[m] : (double)guard;
    double bound = asked ? 1e-6 * (unit * all + fabs(offset)) : 0.0;
    if (fabs(value - (unit * dot + offset)) <= bound) {
        at->checks->passed++;
    } else if (at->checks->failed++ < CHECKS_SHOWN) {
        printf("FAILED %s D=%zu rows=%zu row %zu cluster %zu: %.9g, truth %.9g\n",
               at->backend->name, head_dim, at->queries.count, m, c, value, unit * dot + offset);
    }
}

static void check(struct dot *at, uint64_t clusters)
{
    at->backend->dot(&(struct plane_dot_args){ .queries = &at->queries, .clusters = clusters,
                                               .codes = at->codes, .scale = at->step,
                                               .scores = at->scores });
    for (size_t m = 0; m <= at->queries.count; m++)
        for (size_t c = 0; c < PLANE_TILES; c++)
            check_score(at, m, c, m < at->queries.count && (clusters >> c & 1) != 0);
}

int main(void)
{
    static const size_t dims[] = { 8, 16, 24, 40, 64, 96, 128, 256, 1024 };
    static const uint64_t clusters[] = { 0, 1, UINT64_C(1) << 63, UINT64_C(0xfd00f7ffffff0bf1),
                                         UINT64_MAX };
    struct checks checks = { 0 };
    uint64_t random = random_seed();
    for (int level = 0; level < CPU_LEVELS; level++) {
        static struct dot at;
        at.checks = &checks;
        at.backend = plane_backend_for((enum cpu_level)level);
        if (at.backend == NULL) continue;
        size_t before = checks.passed;
        for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++)
            for (size_t rows = 1; rows <= ROWS_MAX; rows++) {
                fill(&at, dims[i], rows, rows % 5 == 0, &random);
                check(&at, clusters[(i + rows) % (sizeof clusters / sizeof clusters[0])]);
            }
        printf("%s: %zu passed\n", at.backend->name, checks.passed - before);
    }
    return checks_end(&checks);
}
