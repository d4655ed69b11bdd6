/* SPDX-License-Identifier: Apache-2.0 */
/* test_clusters.c — what the clusters of a segment may hold (plane_rank, plane_estimate), at every
 * level, against libm in double: logarithms up to 100 within 2e-5, so what they are logarithms of
 * within 4e-5; priorities against the function that stands for exp there.
 *
 * Spreads go from none to far beyond what counts, scores over 100 nats.
 */
#include "attention/kernels/exp_roughly.h"
#include "index/backend.h"
#include "tests/kernels/checks.h"

enum { ROWS_MAX = 16, COUNT = ROWS_MAX * PLANE_TILES };

struct clusters {
    struct checks *checks;
    const struct plane_backend *backend;
    struct plane_reach reach;
    size_t rows;
    float centre[COUNT], mass[COUNT], priority[COUNT]; /* (M, 64) */
    float key_spread[PLANE_TILES], value_spread[PLANE_TILES];
    float deviation[ROWS_MAX], tops[2][ROWS_MAX]; /* of mass, of priority */
};

static void within(const struct clusters *at, const char *what, double value, double truth,
                   double bound)
{
    if (fabs(value - truth) <= bound) {
        at->checks->passed++;
        return;
    }
    if (at->checks->failed++ < CHECKS_SHOWN)
        printf("FAILED %s %s rows=%zu: %.9g, truth %.9g ± %.2g\n", at->backend->name, what,
               at->rows, value, truth, bound);
}

/* The logarithm of mass (0) or priority (1) of cluster i % 64 for row i / 64. */
static double log_truth(const struct clusters *at, size_t i, int which)
{
    double s = (double)at->deviation[i / PLANE_TILES] *
               sqrt((double)at->key_spread[i % PLANE_TILES]);
    double most = which == 0 ? (double)at->reach.spread_most : (double)at->reach.above_most;
    double above = which == 0 ? fmin(s * s, most) / 2.0
                              : fmin((double)at->reach.deviations * s, most);
    return (double)at->centre[i] + above;
}

static void check_rank(struct clusters *at)
{
    at->backend->rank(&(struct plane_rank_args){
        .reach = at->reach, .centre = at->centre, .deviation = at->deviation,
        .key_spread = at->key_spread, .queries = at->rows, .mass_top = at->tops[0],
        .priority_top = at->tops[1] });
    for (size_t m = 0; m < at->rows; m++)
        for (int which = 0; which < 2; which++) {
            double most = -INFINITY;
            for (size_t i = m * PLANE_TILES; i < (m + 1) * PLANE_TILES; i++)
                most = fmax(most, log_truth(at, i, which));
            within(at, "top", (double)at->tops[which][m], most, 2e-5);
        }
}

/* Mass (0) or priority (1) of row m, and the sum and the largest that were returned. */
static void check_row(const struct clusters *at, size_t m, int which, double got_sum,
                      double got_top)
{
    const float *got = (which == 0 ? at->mass : at->priority) + m * PLANE_TILES;
    double sum = 0.0, top = 0.0;
    for (size_t c = 0; c < PLANE_TILES; c++) {
        double root = which == 0 ? 1.0 : sqrt((double)at->value_spread[c]);
        double log = log_truth(at, m * PLANE_TILES + c, which);
        double over = log - (double)at->tops[which][m];
        double truth = which == 0 ? exp(over) : (double)exp_roughly((float)fmax(over, -87.0));
        within(at, which == 0 ? "mass" : "priority", (double)got[c], truth * root,
               4e-5 * truth * root + 1e-36); /* masses below e^-88 are 0 */
        sum += (double)got[c];
        top = fmax(top, (double)got[c]);
    }
    within(at, "sum", got_sum, sum, 1e-6 * sum);
    if (which == 1) within(at, "top", got_top, top, 0.0);
}

static void check_estimate(struct clusters *at)
{
    float sums[2][ROWS_MAX], top[ROWS_MAX];
    at->backend->estimate(&(struct plane_estimate_args){
        .reach = at->reach, .centre = at->centre, .deviation = at->deviation,
        .key_spread = at->key_spread, .value_spread = at->value_spread,
        .mass_shift = at->tops[0], .priority_shift = at->tops[1], .queries = at->rows,
        .mass = at->mass, .priority = at->priority, .mass_sum = sums[0], .priority_sum = sums[1],
        .priority_top = top });
    for (size_t m = 0; m < at->rows; m++)
        for (int which = 0; which < 2; which++)
            check_row(at, m, which, (double)sums[which][m], (double)top[m]);
}

/* The same where the masses take the place of the centroids' scores. */
static void check_in_place(struct clusters *at)
{
    float in_place[COUNT], priority[COUNT], sums[2][ROWS_MAX], top[ROWS_MAX];
    size_t count = at->rows * PLANE_TILES;
    memcpy(in_place, at->centre, sizeof in_place);
    at->backend->estimate(&(struct plane_estimate_args){
        .reach = at->reach, .centre = in_place, .deviation = at->deviation,
        .key_spread = at->key_spread, .value_spread = at->value_spread,
        .mass_shift = at->tops[0], .priority_shift = at->tops[1], .queries = at->rows,
        .mass = in_place, .priority = priority, .mass_sum = sums[0], .priority_sum = sums[1],
        .priority_top = top });
    bool same = memcmp(in_place, at->mass, count * sizeof *in_place) == 0 &&
                memcmp(priority, at->priority, count * sizeof *priority) == 0;
    within(at, "in place", same ? 1.0 : 0.0, 1.0, 0.0);
}

static void check_clusters(struct clusters *at, uint64_t *random)
{
    for (size_t i = 0; i < COUNT; i++) at->centre[i] = 20.0F * checks_normal(random);
    for (size_t c = 0; c < PLANE_TILES; c++) {
        at->key_spread[c] = c == 0 ? 0.0F : exp2f((float)(c % 11) - 7.0F);
        at->value_spread[c] = c == 1 ? 0.0F : 1.5F + random_float(random);
    }
    for (size_t m = 0; m < ROWS_MAX; m++) at->deviation[m] = 1.5F + random_float(random);
    check_rank(at);
    check_estimate(at);
    check_in_place(at);
}

/* exp_roughly is within 3.1 % of exp, and grows. */
static void check_roughly(struct checks *checks)
{
    struct clusters at = { .checks = checks, .backend = plane_backend_for(CPU_REF) };
    float before = 0.0F;
    for (int i = 0; i <= 87 * 1024; i++) {
        float a = (float)i / 1024.0F - 87.0F, value = exp_roughly(a);
        double truth = exp((double)a);
        within(&at, "roughly", (double)value, truth, 0.031 * truth);
        within(&at, "growing", value >= before ? 1.0 : 0.0, 1.0, 0.0);
        before = value;
    }
}

int main(void)
{
    struct checks checks = { 0 };
    check_roughly(&checks);
    uint64_t random = random_seed();
    for (int level = 0; level < CPU_LEVELS; level++) {
        static struct clusters at;
        at = (struct clusters){ .checks = &checks, .reach = { 4.0F, 3.0F, 16.0F },
                                .backend = plane_backend_for((enum cpu_level)level) };
        if (at.backend == NULL) continue;
        size_t before = checks.passed;
        for (at.rows = 1; at.rows <= ROWS_MAX; at.rows++) check_clusters(&at, &random);
        printf("%s: %zu passed\n", at.backend->name, checks.passed - before);
    }
    return checks_end(&checks);
}
