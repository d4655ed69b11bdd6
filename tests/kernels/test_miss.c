/* SPDX-License-Identifier: Apache-2.0 */
/* test_miss.c — what a sample of clusters is off by (plane_miss), at every level, against sums in
 * double: elements within 1e-6 of the sum of what they are made of, squares within 1e-5.
 *
 * Rows of other queries lie between the values, and must not count; clusters go from none to all
 * of a sample. `means` near `output` is where digits are lost first.
 */
#include "index/backend.h"
#include "tests/kernels/checks.h"

enum { CLUSTERS_MAX = 64, ROWS = 3, HEAD_DIM_MAX = 1024 };

struct miss {
    struct checks *checks;
    const struct plane_backend *backend;
    size_t count, head_dim;
    float values[CLUSTERS_MAX * ROWS * HEAD_DIM_MAX]; /* (count, ROWS, D), row 1 is asked */
    float means[CLUSTERS_MAX * HEAD_DIM_MAX];         /* (count, D) */
    float output[HEAD_DIM_MAX], sum[HEAD_DIM_MAX + 1];
    float more[CLUSTERS_MAX], weight[CLUSTERS_MAX], square[CLUSTERS_MAX + 1];
};

static void within(const struct miss *at, const char *what, double value, double truth,
                   double bound)
{
    if (fabs(value - truth) <= bound) {
        at->checks->passed++;
        return;
    }
    if (at->checks->failed++ < CHECKS_SHOWN)
        printf("FAILED %s %s count=%zu D=%zu: %.9g, truth %.9g ± %.2g\n", at->backend->name, what,
               at->count, at->head_dim, value, truth, bound);
}

static void fill(struct miss *at, uint64_t *random)
{
    size_t values = at->count * ROWS * at->head_dim;
    for (size_t i = 0; i < values; i++) at->values[i] = checks_normal(random);
    for (size_t d = 0; d < at->head_dim; d++) at->output[d] = checks_normal(random);
    for (size_t i = 0; i < at->count; i++) {
        float apart = i % 2 == 0 ? 1.0F : 1e-3F;
        for (size_t d = 0; d < at->head_dim; d++)
            at->means[i * at->head_dim + d] = at->output[d] + apart * checks_normal(random);
        at->more[i] = 10.0F * checks_normal(random);
        at->weight[i] = 1.5F + random_float(random);
    }
}

/* Element d of what cluster i is off by; the size of its terms is added to *size. */
static double off_by(const struct miss *at, size_t i, size_t d, double *size)
{
    double value = (double)at->values[(i * ROWS + 1) * at->head_dim + d];
    double mean = (double)at->means[i * at->head_dim + d], output = (double)at->output[d];
    double more = (double)at->more[i];
    *size += (double)at->weight[i] * (fabs(value) + fabs(more * mean) + fabs(more * output));
    return value + more * (mean - output);
}

static void check(struct miss *at, uint64_t *random)
{
    fill(at, random);
    at->sum[at->head_dim] = at->square[at->count] = -12345.0F;
    at->backend->miss(&(struct plane_miss_args){
        .values = at->values + at->head_dim, .means = at->means, .output = at->output,
        .more = at->more, .weight = at->weight, .count = at->count,
        .stride = ROWS * at->head_dim, .head_dim = at->head_dim, .sum = at->sum,
        .square = at->square });
    for (size_t d = 0; d < at->head_dim; d++) {
        double sum = 0.0, size = 0.0;
        for (size_t i = 0; i < at->count; i++)
            sum += (double)at->weight[i] * off_by(at, i, d, &size);
        within(at, "sum", (double)at->sum[d], sum, 1e-6 * size);
    }
    for (size_t i = 0; i < at->count; i++) {
        double square = 0.0, size = 0.0;
        for (size_t d = 0; d < at->head_dim; d++) {
            double e = off_by(at, i, d, &size);
            square += e * e;
        }
        within(at, "square", (double)at->square[i], square, 1e-5 * square);
    }
    within(at, "guard", (double)at->sum[at->head_dim], -12345.0, 0.0);
    within(at, "guard", (double)at->square[at->count], -12345.0, 0.0);
}

int main(void)
{
    static const size_t dims[] = { 8, 16, 24, 40, 64, 96, 128, 256, 1024 };
    static const size_t counts[] = { 0, 1, 2, 7, 16, CLUSTERS_MAX };
    struct checks checks = { 0 };
    uint64_t random = random_seed();
    for (int level = 0; level < CPU_LEVELS; level++) {
        static struct miss at;
        at.checks = &checks;
        at.backend = plane_backend_for((enum cpu_level)level);
        if (at.backend == NULL) continue;
        size_t before = checks.passed;
        for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++)
            for (size_t j = 0; j < sizeof counts / sizeof counts[0]; j++) {
                at.head_dim = dims[i];
                at.count = counts[j];
                check(&at, &random);
            }
        printf("%s: %zu passed\n", at.backend->name, checks.passed - before);
    }
    return checks_end(&checks);
}
