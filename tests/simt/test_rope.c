/* SPDX-License-Identifier: Apache-2.0 */
/* test_rope.c — rope.cu, emulated, against rope.c and against angles in long double.
 *
 * How far a rotation may be off is said in float64: 3e-7 of the pair's length, at positions up to
 * ten million, where an angle formed in float would be off by more than half a radian.
 */
#include "tests/simt/cases.h"

enum { ROWS_MAX = 1025, POSITIONS = 10000000, GAP = 3 /* floats between rows of the result */ };

struct shape {
    uint32_t dtype, head_dim, rotary_dims, pairing, scaling, rows;
};

/* x (D) turned in long double. */
static void tell(const struct rope *rope, uint64_t position, double scale, const float *x,
                 float *ret_x)
{
    size_t pairs = rope->rotary_dims / 2;
    for (size_t d = 0; d < rope->head_dim; d++) ret_x[d] = (float)(scale * (double)x[d]);
    for (size_t i = 0; i < pairs; i++) {
        bool half = rope->pairing == ROPE_PAIR_HALF;
        size_t a = half ? i : 2 * i, b = half ? i + pairs : 2 * i + 1;
        long double angle = (long double)position * (long double)rope->inv_freq[i];
        double c = (double)cosl(angle) * rope->magnitude * scale;
        double s = (double)sinl(angle) * rope->magnitude * scale;
        ret_x[a] = (float)((double)x[a] * c - (double)x[b] * s);
        ret_x[b] = (float)((double)x[b] * c + (double)x[a] * s);
    }
}

static void check_shape(struct checks *checks, const struct shape *shape, uint64_t *random)
{
    uint32_t dims = shape->head_dim, count = shape->rows;
    struct rope_config config = { .theta = 1e4, .pairing = shape->pairing,
                                  .scaling = shape->scaling, .factor = 8.0,
                                  .original_context = 4096, .low_freq_factor = 1.0,
                                  .high_freq_factor = 4.0, .rotary_dims = shape->rotary_dims };
    struct rope rope;
    uint64_t turns[ROPE_PAIRS_MAX], positions[ROWS_MAX];
    if (rope_init(&config, dims, &rope, NULL) < 0) exit(1);
    void *rows = case_rows(FILL_NORMAL, false, shape->dtype, count, dims, random);
    float *x = checks_alloc((size_t)count * dims * sizeof *x);
    half_load(rows, shape->dtype, (size_t)count * dims, x);
    for (size_t t = 0; t < count; t++) positions[t] = random_below(random, POSITIONS);
    if (count > 0) positions[0] = 0;
    struct rope_launch launch = {
        .rows = rows, .stride_bytes = dims * (uint32_t)dtype_bytes(shape->dtype),
        .dtype = shape->dtype, .positions = positions, .count = count, .head_dim = dims,
        .rope = case_rope(&rope, turns), .scale = 0.125F,
        .out = case_results((size_t)count * (dims + GAP)), .out_stride = dims + GAP };
    struct rope_launch refer = launch;
    refer.out = case_results((size_t)count * (dims + GAP));
    char what[96];
    snprintf(what, sizeof what, "rope %s D=%u R=%u pairing=%u scaling=%u rows=%u",
             dtype_name(shape->dtype), dims, shape->rotary_dims, shape->pairing, shape->scaling,
             count);
    case_launched(checks, what, rope_launch(&launch, NULL));
    rope_ref(&refer);
    struct near near = { 3e-7F, 0.0F }; /* rows of length 1 to 2, an eighth of it */
    for (size_t t = 0; t < count; t++) {
        const float *got = launch.out + t * (dims + GAP);
        float truth[LAUNCH_HEAD_DIM];
        checks_close(checks, what, got, refer.out + t * (dims + GAP), dims, near);
        tell(&rope, positions[t], 0.125, x + t * dims, truth);
        checks_close(checks, what, got, truth, dims, near);
        if (isnan(got[dims])) checks->passed++;
        else checks->failed++;
    }
    free(rows);
    free(x);
    free(launch.out);
    free(refer.out);
}

int main(void)
{
    static struct case_pairs pairs = {
        .names = { "head_dim", "scaling", "pairing", "rows", "dtype", "order" },
        .values = { CASE_DIMS, 3, 2, CASE_COUNTS, 3, SIMT_ORDERS },
    };
    struct checks checks = { 0 };
    uint64_t random = random_seed();
    static const uint32_t scalings[] = { ROPE_SCALE_NONE, ROPE_SCALE_LLAMA3, ROPE_SCALE_YARN };
    for (unsigned turn = 0; turn < CASE_DIMS * CASE_COUNTS * 6; turn++) {
        unsigned i = turn % CASE_DIMS, rows = turn / CASE_DIMS % CASE_COUNTS, rest = turn / 25;
        unsigned values[CASE_AXES] = { i, rest % 3, rest / 3, rows, (rest + rows + i / 3) % 3,
                                       (rest + i + rows / 2) % SIMT_ORDERS };
        struct shape shape = { case_dtypes[values[4]][0], case_dims[i],
                               values[2] == 0 ? 0 : case_dims[i] / 4, values[2],
                               scalings[values[1]], case_counts[rows] };
        case_meet(&pairs, values);
        simt_set_order((enum simt_order)values[5], random);
        check_shape(&checks, &shape, &random);
    }
    case_pairs_end(&checks, &pairs);
    return checks_end(&checks);
}
