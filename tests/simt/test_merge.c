/* SPDX-License-Identifier: Apache-2.0 */
/* test_merge.c — merge.cu, emulated, against merge.c and attention over everything at once.
 *
 * The truth that does not know of merging: tokens are dealt out to parts, each part's (o, lse) is
 * computed in float64, and the merge has to be float64 attention over all tokens. Then lists of all
 * lengths, of parts with any lse, against the algebra in float64.
 */
#include "tests/simt/cases.h"

enum { TOKENS = 96, PARTS = 8, ROWS = 24 };

struct fixture {
    struct merge_launch launch;
    uint32_t begin[ROWS + 1], parts[ROWS * PARTS];
    float *o, *lse;         /* (ROWS * PARTS, D), (ROWS * PARTS) */
    float *ret_o, *ret_lse; /* (ROWS, D), (ROWS) */
    float *truth, *truth_lse;
};

static void make(struct fixture *fixture, uint32_t dims)
{
    *fixture = (struct fixture){ .o = case_results((size_t)ROWS * PARTS * dims),
                                 .lse = case_results(ROWS * PARTS),
                                 .ret_o = case_results((size_t)ROWS * dims),
                                 .ret_lse = case_results(ROWS),
                                 .truth = case_results((size_t)ROWS * dims),
                                 .truth_lse = case_results(ROWS) };
    fixture->launch = (struct merge_launch){
        .begin = fixture->begin, .parts = fixture->parts, .count = ROWS, .head_dim = dims,
        .o = fixture->o, .lse = fixture->lse, .ret_o = fixture->ret_o,
        .ret_lse = fixture->ret_lse };
}

static void end(struct fixture *fixture)
{
    float *all[] = { fixture->o, fixture->lse, fixture->ret_o, fixture->ret_lse, fixture->truth,
                     fixture->truth_lse };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

/* Score t of TOKENS. Where they are far apart each is 32 at least from the others: one token has
 * all the weight of a part, and of the part's lse nothing is lost when it becomes a float. */
static double some_score(double spread, uint32_t t, uint64_t *random)
{
    double score = spread * (double)checks_normal(random);
    return spread < 1e3 ? score : 32.0 * (TOKENS * floor(score / (32.0 * TOKENS)) + t);
}

/* Row `row` of the answer: `tokens` tokens over some of its parts, the others empty. */
static void make_row(struct fixture *fixture, uint32_t row, uint32_t tokens, double spread,
                     uint64_t *random)
{
    uint32_t dims = fixture->launch.head_dim, part_of[TOKENS];
    double scores[TOKENS], own[TOKENS];
    float *values = checks_alloc((size_t)TOKENS * dims * sizeof *values);
    for (uint32_t t = 0; t < tokens; t++) {
        scores[t] = some_score(spread, t, random);
        part_of[t] = (uint32_t)random_below(random, PARTS - 1); /* the last one stays empty */
        for (uint32_t d = 0; d < dims; d++) values[t * dims + d] = checks_normal(random);
    }
    fixture->begin[row + 1] = fixture->begin[row] + PARTS;
    for (uint32_t part = 0; part < PARTS; part++) {
        uint32_t at = part * ROWS + (ROWS - 1 - row); /* of the pool, in an order of its own */
        fixture->parts[fixture->begin[row] + part] = at;
        for (uint32_t t = 0; t < tokens; t++) own[t] = part_of[t] == part ? scores[t] : -INFINITY;
        truth_attend(&(struct truth_row){ own, values, tokens, dims },
                     fixture->o + (size_t)at * dims, &fixture->lse[at]);
        for (uint32_t d = 0; fixture->lse[at] == -INFINITY && d < dims; d++)
            fixture->o[(size_t)at * dims + d] = NAN; /* of an empty part nobody reads it */
    }
    truth_attend(&(struct truth_row){ scores, values, tokens, dims },
                 fixture->truth + (size_t)row * dims, &fixture->truth_lse[row]);
    free(values);
}

static void check_dims(struct checks *checks, uint32_t dims, double spread, uint64_t *random)
{
    struct fixture fixture;
    char what[64];
    make(&fixture, dims);
    for (uint32_t row = 0; row < ROWS; row++)
        make_row(&fixture, row, row % 5 == 0 ? 0 : TOKENS - row, spread, random);
    fixture.begin[ROWS] = fixture.begin[ROWS - 1]; /* the last row: of no parts at all */
    memset(fixture.truth + (size_t)(ROWS - 1) * dims, 0, dims * sizeof(float));
    fixture.truth_lse[ROWS - 1] = -INFINITY;
    snprintf(what, sizeof what, "merge D=%u spread=%g", dims, spread);
    case_launched(checks, what, merge_launch(&fixture.launch, NULL));
    struct near near = { 4e-6F, 4e-6F };
    checks_close(checks, what, fixture.ret_o, fixture.truth, (size_t)ROWS * dims, near);
    checks_close(checks, what, fixture.ret_lse, fixture.truth_lse, ROWS, near);
    struct merge_launch refer = fixture.launch;
    refer.ret_o = fixture.truth;
    refer.ret_lse = fixture.truth_lse;
    merge_ref(&refer);
    near = tolerances[0].kernel;
    checks_close(checks, what, fixture.ret_o, fixture.truth, (size_t)ROWS * dims, near);
    checks_close(checks, what, fixture.ret_lse, fixture.truth_lse, ROWS, near);
    end(&fixture);
}

/* `rows` answers of `parts` parts each, out of one pool: huge and empty ones among them. */
static void check_lists(struct checks *checks, uint32_t dims, uint32_t rows, uint32_t parts,
                        uint64_t *random)
{
    enum { POOL = 64 };
    float *o = checks_alloc(sizeof *o * POOL * dims), lse[POOL];
    uint32_t *begin = checks_alloc((rows + 1) * sizeof *begin);
    uint32_t *list = checks_alloc(((size_t)rows * parts + 1) * sizeof *list);
    float *ret_o = case_results((size_t)rows * dims), *ret_lse = case_results(rows);
    float *truth = case_results((size_t)rows * dims), *truth_lse = case_results(rows);
    for (size_t i = 0; i < (size_t)POOL * dims; i++) o[i] = checks_normal(random);
    for (size_t i = 0; i < POOL; i++)
        lse[i] = i % 8 == 0 ? -INFINITY : checks_normal(random) * (i % 8 == 1 ? 1e30F : 3.0F);
    for (uint32_t row = 0; row <= rows; row++) begin[row] = row * parts;
    for (size_t i = 0; i < (size_t)rows * parts; i++)
        list[i] = (uint32_t)random_below(random, POOL);
    for (uint32_t row = 0; row < rows; row++) {
        double top = -INFINITY, sum = 0.0;
        const uint32_t *mine = list + begin[row];
        for (uint32_t i = 0; i < parts; i++) top = fmax(top, (double)lse[mine[i]]);
        for (uint32_t i = 0; top > -INFINITY && i < parts; i++)
            sum += exp((double)lse[mine[i]] - top);
        for (uint32_t d = 0; d < dims; d++) {
            double value = 0.0;
            for (uint32_t i = 0; sum > 0.0 && i < parts; i++)
                value += exp((double)lse[mine[i]] - top) / sum * (double)o[mine[i] * dims + d];
            truth[(size_t)row * dims + d] = (float)value;
        }
        truth_lse[row] = sum > 0.0 ? (float)(top + log(sum)) : -INFINITY;
    }
    struct merge_launch launch = { .begin = begin, .parts = list, .count = rows, .head_dim = dims,
                                   .o = o, .lse = lse, .ret_o = ret_o, .ret_lse = ret_lse };
    char what[64];
    snprintf(what, sizeof what, "merge D=%u rows=%u parts=%u", dims, rows, parts);
    case_launched(checks, what, merge_launch(&launch, NULL));
    checks_close(checks, what, ret_o, truth, (size_t)rows * dims, (struct near){ 4e-6F, 4e-6F });
    checks_close(checks, what, ret_lse, truth_lse, rows, (struct near){ 4e-6F, 4e-6F });
    void *all[] = { o, begin, list, ret_o, ret_lse, truth, truth_lse };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

int main(void)
{
    struct checks checks = { 0 };
    uint64_t random = random_seed();
    for (unsigned i = 0; i < CASE_DIMS; i++) {
        simt_set_order((enum simt_order)(i % SIMT_ORDERS), random);
        check_dims(&checks, case_dims[i], 1.0, &random);
        check_dims(&checks, case_dims[i], 1e4, &random);
    }
    for (unsigned i = 0; i < CASE_COUNTS; i++)
        for (unsigned j = 0; j < CASE_COUNTS; j++) {
            bool large = case_counts[i] > 100 && case_counts[j] > 1;
            simt_set_order((enum simt_order)((i + j) % SIMT_ORDERS), random);
            if (!large)
                check_lists(&checks, case_dims[(i + j) % CASE_DIMS], case_counts[i],
                            case_counts[j], &random);
        }
    return checks_end(&checks);
}
