/* SPDX-License-Identifier: Apache-2.0 */
/* test_partial.c — partial.cu, emulated, against kernels/partial.c and float64.
 *
 * Every combination of dtypes, head dimension and 1 … 8 query rows is one launch with a run of each
 * length, 0 to 1025 rows, so that runs that have nothing to do with each other stand side by side
 * as in a step. Limits see everything, something or nothing. What is not crossed with everything is
 * paired with everything: no -inf with a dtype, no order of threads with a number of rows is left
 * out.
 */
#include <float.h>

#include "attention/kernels/partial.h"
#include "tests/simt/cases.h"

enum sight { SIGHT_ALL, SIGHT_SOME, SIGHT_NONE, SIGHTS };

struct fixture {
    struct partial_launch launch;
    struct partial_run runs[CASE_COUNTS];
    float *q, *o, *lse;
    uint64_t *limits;
    uint32_t rows; /* of queries and of results */
    char what[160];
};

struct shape {
    uint32_t k_dtype, v_dtype, head_dim, queries;
    enum fill fill;
    enum sight sight;
};

static uint64_t limit_of(enum sight sight, const struct partial_run *run, uint64_t *random)
{
    if (sight == SIGHT_ALL) return run->position + run->count;
    if (sight == SIGHT_NONE) return random_below(random, run->position + 1);
    return run->position + random_below(random, (uint64_t)run->count + 2);
}

static void make(struct fixture *fixture, const struct shape *shape, uint64_t *random)
{
    uint32_t dims = shape->head_dim;
    *fixture = (struct fixture){ .rows = CASE_COUNTS * shape->queries };
    fixture->q = case_queries(shape->fill, fixture->rows, dims, random);
    fixture->limits = checks_alloc(fixture->rows * sizeof *fixture->limits);
    fixture->o = case_results((size_t)fixture->rows * dims);
    fixture->lse = case_results(fixture->rows);
    for (uint32_t i = 0; i < CASE_COUNTS; i++) {
        struct partial_run *run = &fixture->runs[i];
        uint32_t count = case_counts[i];
        *run = (struct partial_run){
            .rows = { .k = case_rows(shape->fill, true, shape->k_dtype, count, dims, random),
                      .v = case_rows(shape->fill, false, shape->v_dtype, count, dims, random),
                      .k_stride_bytes = dims * (uint32_t)dtype_bytes(shape->k_dtype),
                      .v_stride_bytes = dims * (uint32_t)dtype_bytes(shape->v_dtype),
                      .k_dtype = shape->k_dtype, .v_dtype = shape->v_dtype },
            .count = count, .query = i * shape->queries, .queries = shape->queries,
            .result = (CASE_COUNTS - 1 - i) * shape->queries, .position = 1000 * (uint64_t)i };
        for (uint32_t m = 0; m < shape->queries; m++)
            fixture->limits[run->query + m] = limit_of(shape->sight, run, random);
    }
    fixture->launch = (struct partial_launch){
        .runs = fixture->runs, .count = CASE_COUNTS, .head_dim = dims, .q = fixture->q,
        .limits = fixture->limits, .o = fixture->o, .lse = fixture->lse };
    snprintf(fixture->what, sizeof fixture->what, "partial %s/%s D=%u queries=%u fill=%d sight=%d",
             dtype_name(shape->k_dtype), dtype_name(shape->v_dtype), dims, shape->queries,
             (int)shape->fill, (int)shape->sight);
}

static void end(struct fixture *fixture)
{
    for (uint32_t i = 0; i < CASE_COUNTS; i++) {
        free((void *)fixture->runs[i].rows.k);
        free((void *)fixture->runs[i].rows.v);
    }
    free(fixture->q);
    free(fixture->limits);
    free(fixture->o);
    free(fixture->lse);
}

static uint32_t visible(const struct fixture *fixture, const struct partial_run *run, uint32_t m)
{
    uint64_t limit = fixture->limits[run->query + m];
    if (limit <= run->position) return 0;
    uint64_t below = limit - run->position;
    return (uint32_t)(below < run->count ? below : run->count);
}

/* The run by partial_ref: o (queries, D), lse (queries) */
static void refer(const struct fixture *fixture, const struct partial_run *run, float *o,
                  float *lse)
{
    uint32_t dims = fixture->launch.head_dim, sees[LAUNCH_QUERIES];
    float max[LAUNCH_QUERIES], sum[LAUNCH_QUERIES];
    memset(o, 0, (size_t)run->queries * dims * sizeof *o);
    for (uint32_t m = 0; m < run->queries; m++) {
        max[m] = -INFINITY;
        sum[m] = 0.0F;
        sees[m] = visible(fixture, run, m);
    }
    partial_ref(&(struct partial_args){
        .q = fixture->q + (size_t)run->query * dims, .visible = sees, .queries = run->queries,
        .head_dim = dims, .k = run->rows.k, .v = run->rows.v,
        .k_stride_bytes = run->rows.k_stride_bytes, .v_stride_bytes = run->rows.v_stride_bytes,
        .tokens = run->count, .k_dtype = run->rows.k_dtype, .v_dtype = run->rows.v_dtype,
        .max = max, .sum = sum, .acc = o });
    partial_finish(max, sum, &(struct partial){ o, lse, run->queries, dims });
}

/* Query row m of a run in float64. keys, values (count, D) */
static void tell(const struct fixture *fixture, const struct partial_run *run, uint32_t m,
                 float *ret_o, float *ret_lse)
{
    uint32_t dims = fixture->launch.head_dim, count = visible(fixture, run, m);
    size_t floats = (size_t)run->count * dims;
    float *keys = checks_alloc(floats * sizeof *keys);
    float *values = checks_alloc(floats * sizeof *values);
    double *scores = checks_alloc(run->count * sizeof *scores);
    half_load(run->rows.k, run->rows.k_dtype, floats, keys);
    half_load(run->rows.v, run->rows.v_dtype, floats, values);
    const float *q = fixture->q + (size_t)(run->query + m) * dims;
    for (uint32_t row = 0; row < count; row++) {
        scores[row] = 0.0;
        for (uint32_t d = 0; d < dims; d++)
            scores[row] += (double)q[d] * (double)keys[(size_t)row * dims + d];
        if (scores[row] < -(double)FLT_MAX) scores[row] = -INFINITY; /* what fp32 makes of it */
    }
    truth_attend(&(struct truth_row){ scores, values, count, dims }, ret_o, ret_lse);
    free(keys);
    free(values);
    free(scores);
}

static void compare(struct checks *checks, const struct fixture *fixture, uint32_t v_dtype)
{
    uint32_t dims = fixture->launch.head_dim;
    const struct tolerance *tolerance = tolerance_of(v_dtype);
    float o[LAUNCH_QUERIES * LAUNCH_HEAD_DIM], lse[LAUNCH_QUERIES];
    for (uint32_t i = 0; i < CASE_COUNTS; i++) {
        const struct partial_run *run = &fixture->runs[i];
        const float *got = fixture->o + (size_t)run->result * dims;
        char what[200];
        snprintf(what, sizeof what, "%s rows=%u", fixture->what, run->count);
        refer(fixture, run, o, lse);
        checks_close(checks, what, got, o, (size_t)run->queries * dims, tolerance->kernel);
        checks_close(checks, what, fixture->lse + run->result, lse, run->queries,
                     tolerance->kernel);
        for (uint32_t m = 0; m < run->queries; m++)
            tell(fixture, run, m, o + (size_t)m * dims, &lse[m]);
        checks_close(checks, what, got, o, (size_t)run->queries * dims, tolerance->answer);
        checks_close(checks, what, fixture->lse + run->result, lse, run->queries,
                     (struct near){ tolerance->answer.atol, tolerance->kernel.rtol });
    }
}

static void check_shape(struct checks *checks, const struct shape *shape, enum simt_order order,
                        uint64_t *random)
{
    struct fixture fixture;
    make(&fixture, shape, random);
    simt_set_order(order, *random);
    case_launched(checks, fixture.what, partial_launch(&fixture.launch, NULL));
    compare(checks, &fixture, shape->v_dtype);
    end(&fixture);
}

static void check_all(struct checks *checks, uint64_t *random)
{
    static struct case_pairs pairs = {
        .names = { "dtypes", "head_dim", "queries", "fill", "sight", "order" },
        .values = { CASE_DTYPES, CASE_DIMS, LAUNCH_QUERIES, FILLS, SIGHTS, SIMT_ORDERS },
    };
    uint64_t draw = 7; /* its own: the pairs do not depend on the seed */
    for (unsigned i = 0; i < CASE_DTYPES; i++)
        for (unsigned j = 0; j < CASE_DIMS; j++)
            for (unsigned m = 0; m < LAUNCH_QUERIES; m++) {
                unsigned turn = (i * CASE_DIMS + j) + m;
                unsigned values[CASE_AXES] = { i, j, m, turn % FILLS,
                                               (unsigned)random_below(&draw, SIGHTS),
                                               (unsigned)random_below(&draw, SIMT_ORDERS) };
                struct shape shape = { case_dtypes[i][0], case_dtypes[i][1], case_dims[j], m + 1,
                                       (enum fill)values[3], (enum sight)values[4] };
                case_meet(&pairs, values);
                check_shape(checks, &shape, (enum simt_order)values[5], random);
            }
    case_pairs_end(checks, &pairs);
}

/* One shape in all orders: the same bits, since each sum has one order whoever comes first. */
static void check_orders(struct checks *checks, uint64_t *random)
{
    struct fixture fixture;
    struct shape shape = { DTYPE_FP16, DTYPE_FP16, 128, 4, FILL_NORMAL, SIGHT_SOME };
    make(&fixture, &shape, random);
    size_t floats = (size_t)fixture.rows * shape.head_dim;
    float *first = case_results(floats);
    for (int order = 0; order < SIMT_ORDERS; order++) {
        simt_set_order((enum simt_order)order, 3);
        case_launched(checks, "orders", partial_launch(&fixture.launch, NULL));
        if (order == 0) memcpy(first, fixture.o, floats * sizeof *first);
        checks_close(checks, "orders", fixture.o, first, floats, (struct near){ 0.0F, 0.0F });
    }
    free(first);
    end(&fixture);
}

struct repeated {
    struct fixture fixture;
    float *right; /* (rows, D) */
};

static void launch_again(void *arg)
{
    struct repeated *repeated = arg;
    partial_launch(&repeated->fixture.launch, NULL);
}

static bool is_right(void *arg)
{
    const struct repeated *repeated = arg;
    size_t floats = (size_t)repeated->fixture.rows * repeated->fixture.launch.head_dim;
    return memcmp(repeated->right, repeated->fixture.o, floats * sizeof(float)) == 0;
}

static void check_barriers(struct checks *checks, uint64_t *random)
{
    struct repeated repeated;
    struct shape shape = { DTYPE_FP16, DTYPE_FP16, 64, 8, FILL_NORMAL, SIGHT_ALL };
    make(&repeated.fixture, &shape, random);
    size_t floats = (size_t)repeated.fixture.rows * shape.head_dim;
    simt_set_order(SIMT_UP, 1);
    launch_again(&repeated);
    repeated.right = checks_alloc(floats * sizeof(float));
    memcpy(repeated.right, repeated.fixture.o, floats * sizeof(float));
    case_barriers(checks, "partial", launch_again, is_right, &repeated);
    free(repeated.right);
    end(&repeated.fixture);
}

int main(void)
{
    struct checks checks = { 0 };
    uint64_t random = random_seed();
    check_all(&checks, &random);
    check_orders(&checks, &random);
    check_barriers(&checks, &random);
    return checks_end(&checks);
}
