/* SPDX-License-Identifier: Apache-2.0 */
/* test_gather_partial.c — gather_partial.cu, emulated, against its reference and against float64
 * with the angles of attention/rope.c.
 *
 * A launch has a run for each length; a run's ids jump about in 3,000 rows, the same one may come
 * twice, positions lie up to a million.
 */
#include <float.h>

#include "tests/simt/cases.h"

enum { BASE_ROWS = 3000, POSITIONS = 1 << 20 };

enum turning { TURN_NONE, TURN_HALF, TURN_PART, TURN_YARN, TURNINGS };

struct shape {
    uint32_t k_dtype, v_dtype, head_dim, queries;
    enum fill fill;
    enum turning turning;
    bool longest; /* a run of 1,025 rows, else of 257: the references form every angle */
};

struct fixture {
    struct gather_launch launch;
    struct gather_run runs[CASE_COUNTS];
    struct rope rope;
    uint64_t turns[ROPE_PAIRS_MAX];
    void *k, *v;
    float *q, *o, *lse, *right;
    uint64_t *limits;
    uint32_t rows; /* of queries and of results */
    char what[160];
};

static void make_rope(struct fixture *fixture, const struct shape *shape)
{
    struct rope_config config = { .theta = 5e5 };
    if (shape->turning == TURN_PART) {
        config.pairing = ROPE_PAIR_INTERLEAVED;
        config.rotary_dims = shape->head_dim / 2;
    }
    if (shape->turning == TURN_YARN) {
        config.scaling = ROPE_SCALE_YARN;
        config.factor = 4.0;
        config.original_context = 8192;
    }
    if (rope_init(&config, shape->head_dim, &fixture->rope, NULL) < 0) exit(1);
    if (shape->turning != TURN_NONE)
        fixture->launch.rope = case_rope(&fixture->rope, fixture->turns);
}

static void make_run(struct fixture *fixture, const struct shape *shape, uint32_t i,
                     uint64_t *random)
{
    uint32_t dims = shape->head_dim, count = case_counts[i];
    if (count > 1000 && !shape->longest) count = 257;
    uint32_t *ids = checks_alloc(count * sizeof *ids);
    uint64_t *positions = checks_alloc(count * sizeof *positions);
    for (uint32_t at = 0; at < count; at++) {
        ids[at] = (uint32_t)random_below(random, BASE_ROWS);
        positions[at] = random_below(random, POSITIONS);
    }
    fixture->runs[i] = (struct gather_run){
        .rows = { .k = fixture->k, .v = fixture->v,
                  .k_stride_bytes = dims * (uint32_t)dtype_bytes(shape->k_dtype),
                  .v_stride_bytes = dims * (uint32_t)dtype_bytes(shape->v_dtype),
                  .k_dtype = shape->k_dtype, .v_dtype = shape->v_dtype },
        .ids = ids, .positions = positions, .count = count, .query = i * shape->queries,
        .queries = shape->queries, .result = (CASE_COUNTS - 1 - i) * shape->queries };
}

static void make(struct fixture *fixture, const struct shape *shape, uint64_t *random)
{
    uint32_t dims = shape->head_dim;
    *fixture = (struct fixture){ .rows = CASE_COUNTS * shape->queries };
    fixture->k = case_rows(shape->fill, true, shape->k_dtype, BASE_ROWS, dims, random);
    fixture->v = case_rows(shape->fill, false, shape->v_dtype, BASE_ROWS, dims, random);
    fixture->q = case_queries(shape->fill, fixture->rows, dims, random);
    fixture->limits = checks_alloc(fixture->rows * sizeof *fixture->limits);
    fixture->o = case_results((size_t)fixture->rows * dims);
    fixture->right = case_results((size_t)fixture->rows * dims);
    fixture->lse = case_results(fixture->rows);
    for (uint32_t i = 0; i < CASE_COUNTS; i++) make_run(fixture, shape, i, random);
    for (uint32_t m = 0; m < fixture->rows; m++) /* everything, nothing, something */
        fixture->limits[m] = m % 3 == 0 ? POSITIONS : m % 3 == 1 ? 0 : POSITIONS / 2;
    fixture->launch = (struct gather_launch){
        .runs = fixture->runs, .count = CASE_COUNTS, .head_dim = dims, .q = fixture->q,
        .limits = fixture->limits, .o = fixture->o, .lse = fixture->lse };
    make_rope(fixture, shape);
    snprintf(fixture->what, sizeof fixture->what,
             "gather_partial %s/%s D=%u queries=%u fill=%d turning=%d", dtype_name(shape->k_dtype),
             dtype_name(shape->v_dtype), dims, shape->queries, (int)shape->fill,
             (int)shape->turning);
}

static void end(struct fixture *fixture)
{
    for (uint32_t i = 0; i < CASE_COUNTS; i++) {
        free((void *)fixture->runs[i].ids);
        free((void *)fixture->runs[i].positions);
    }
    void *all[] = { fixture->k, fixture->v, fixture->q, fixture->o, fixture->lse, fixture->right,
                    fixture->limits };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

static double score(const struct fixture *fixture, const struct gather_run *run, uint32_t m,
                    uint32_t at)
{
    uint32_t dims = fixture->launch.head_dim;
    float key[LAUNCH_HEAD_DIM], cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    const float *q = fixture->q + (size_t)(run->query + m) * dims;
    double sum = 0.0;
    if (run->positions[at] >= fixture->limits[run->query + m]) return -INFINITY;
    half_load((const unsigned char *)run->rows.k + (size_t)run->ids[at] * run->rows.k_stride_bytes,
              run->rows.k_dtype, dims, key);
    if (fixture->launch.rope.turns != NULL) {
        rope_angles(&fixture->rope, run->positions[at], cos, sin);
        rope_apply(&fixture->rope, cos, sin, key, 1);
    }
    for (uint32_t d = 0; d < dims; d++) sum += (double)q[d] * (double)key[d];
    return sum < -(double)FLT_MAX ? -INFINITY : sum; /* what fp32 makes of it */
}

/* Query row m of a run in float64, but for fp32 sines and cosines. */
static void tell(const struct fixture *fixture, const struct gather_run *run, uint32_t m,
                 float *ret_o, float *ret_lse)
{
    uint32_t dims = fixture->launch.head_dim;
    float *values = checks_alloc((size_t)run->count * dims * sizeof *values);
    double *scores = checks_alloc(run->count * sizeof *scores);
    for (uint32_t at = 0; at < run->count; at++) {
        scores[at] = score(fixture, run, m, at);
        half_load((const unsigned char *)run->rows.v +
                      (size_t)run->ids[at] * run->rows.v_stride_bytes,
                  run->rows.v_dtype, dims, values + (size_t)at * dims);
    }
    truth_attend(&(struct truth_row){ scores, values, run->count, dims }, ret_o, ret_lse);
    free(values);
    free(scores);
}

static void compare(struct checks *checks, struct fixture *fixture, uint32_t v_dtype)
{
    uint32_t dims = fixture->launch.head_dim;
    size_t floats = (size_t)fixture->rows * dims;
    const struct tolerance *tolerance = tolerance_of(v_dtype);
    struct near lse_near = { tolerance->answer.atol, tolerance->kernel.rtol };
    float *truth = checks_alloc(floats * sizeof *truth);
    float *lse = checks_alloc(fixture->rows * sizeof *lse);
    struct gather_launch refer = fixture->launch;
    refer.o = truth;
    refer.lse = lse;
    gather_partial_ref(&refer);
    checks_close(checks, fixture->what, fixture->o, truth, floats, tolerance->kernel);
    checks_close(checks, fixture->what, fixture->lse, lse, fixture->rows, tolerance->kernel);
    for (uint32_t i = 0; i < CASE_COUNTS; i++)
        for (uint32_t m = 0; m < fixture->runs[i].queries; m++) {
            uint32_t row = fixture->runs[i].result + m;
            tell(fixture, &fixture->runs[i], m, truth + (size_t)row * dims, &lse[row]);
        }
    checks_close(checks, fixture->what, fixture->o, truth, floats, tolerance->answer);
    checks_close(checks, fixture->what, fixture->lse, lse, fixture->rows, lse_near);
    free(truth);
    free(lse);
}

/* How a key is turned, and what is in it: rotated, 6e36 and -inf mix into NaN in the truth too. */
static void choose(unsigned pair, unsigned m, struct shape *shape, unsigned *values)
{
    unsigned turn = pair + m, half = turn / 2;
    shape->turning = turn % 2 == 0 ? TURN_NONE : (enum turning)(TURN_HALF + half % 3);
    shape->fill = turn % 2 == 0 ? (enum fill)(half % FILLS) : FILL_NORMAL;
    shape->longest = (pair / 2 + m) % 4 == 0;
    values[3] = turn % 2 == 0 ? half % FILLS : FILLS + half % 3;
    values[4] = shape->longest ? 1 : 0;
}

static void check_all(struct checks *checks, uint64_t *random)
{
    static struct case_pairs pairs = {
        .names = { "dtypes", "head_dim", "queries", "fill or turning", "1,025 rows", "order" },
        .values = { CASE_DTYPES, CASE_DIMS, LAUNCH_QUERIES, FILLS + TURNINGS - 1, 2, SIMT_ORDERS },
    };
    for (unsigned i = 0; i < CASE_DTYPES; i++)
        for (unsigned j = 0; j < CASE_DIMS; j++)
            for (unsigned m = 0; m < LAUNCH_QUERIES; m++) {
                unsigned pair = i * CASE_DIMS + j;
                unsigned values[CASE_AXES] = { i, j, m, 0, 0, (pair + m + m / 3) % SIMT_ORDERS };
                struct shape shape = { case_dtypes[i][0], case_dtypes[i][1], case_dims[j], m + 1,
                                       FILL_NORMAL, TURN_NONE, false };
                struct fixture fixture;
                choose(pair, m, &shape, values);
                case_meet(&pairs, values);
                make(&fixture, &shape, random);
                simt_set_order((enum simt_order)values[5], *random);
                case_launched(checks, fixture.what, gather_partial_launch(&fixture.launch, NULL));
                compare(checks, &fixture, shape.v_dtype);
                end(&fixture);
            }
    case_pairs_end(checks, &pairs);
}

static void launch_again(void *arg)
{
    gather_partial_launch(&((struct fixture *)arg)->launch, NULL);
}

static bool is_right(void *arg)
{
    const struct fixture *fixture = arg;
    size_t floats = (size_t)fixture->rows * fixture->launch.head_dim;
    return memcmp(fixture->right, fixture->o, floats * sizeof(float)) == 0;
}

static void check_barriers(struct checks *checks, uint64_t *random)
{
    struct fixture fixture;
    struct shape shape = { DTYPE_BF16, DTYPE_BF16, 96, 5, FILL_NORMAL, TURN_HALF, false };
    make(&fixture, &shape, random);
    simt_set_order(SIMT_UP, 1);
    launch_again(&fixture);
    memcpy(fixture.right, fixture.o, (size_t)fixture.rows * shape.head_dim * sizeof(float));
    case_barriers(checks, "gather_partial", launch_again, is_right, &fixture);
    end(&fixture);
}

int main(void)
{
    struct checks checks = { 0 };
    uint64_t random = random_seed();
    check_all(&checks, &random);
    check_barriers(&checks, &random);
    return checks_end(&checks);
}
