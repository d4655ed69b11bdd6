/* SPDX-License-Identifier: Apache-2.0 */
/* test_rope.c — rope.cu, emulated, against rope.c and against angles in long double.
 *
 * How far a rotation may be off is said in float64: 3e-7 of the pair's length, at positions up to
 * ten million, where an angle formed in float would be off by more than half a radian.
 */
#include "tests/simt/cases.h"

enum { ROWS = 37, POSITIONS = 10000000, GAP = 3 /* floats between rows of the result */ };

struct shape {
    uint32_t dtype, head_dim, rotary_dims, pairing, scaling;
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
    uint32_t dims = shape->head_dim;
    struct rope_config config = { .theta = 1e4, .pairing = shape->pairing,
                                  .scaling = shape->scaling, .factor = 8.0,
                                  .original_context = 4096, .low_freq_factor = 1.0,
                                  .high_freq_factor = 4.0, .rotary_dims = shape->rotary_dims };
    struct rope rope;
    uint64_t turns[ROPE_PAIRS_MAX], positions[ROWS];
    if (rope_init(&config, dims, &rope, NULL) < 0) exit(1);
    void *rows = case_rows(FILL_NORMAL, false, shape->dtype, ROWS, dims, random);
    float *x = checks_alloc((size_t)ROWS * dims * sizeof *x);
    half_load(rows, shape->dtype, (size_t)ROWS * dims, x);
    for (size_t t = 0; t < ROWS; t++) positions[t] = random_below(random, POSITIONS);
    positions[0] = 0;
    struct rope_launch launch = {
        .rows = rows, .stride_bytes = dims * (uint32_t)dtype_bytes(shape->dtype),
        .dtype = shape->dtype, .positions = positions, .count = ROWS, .head_dim = dims,
        .rope = case_rope(&rope, turns), .scale = 0.125F,
        .out = case_results((size_t)ROWS * (dims + GAP)), .out_stride = dims + GAP };
    struct rope_launch refer = launch;
    refer.out = case_results((size_t)ROWS * (dims + GAP));
    char what[96];
    snprintf(what, sizeof what, "rope %s D=%u R=%u pairing=%u scaling=%u",
             dtype_name(shape->dtype), dims, shape->rotary_dims, shape->pairing, shape->scaling);
    case_launched(checks, what, rope_launch(&launch, NULL));
    rope_ref(&refer);
    struct near near = { 3e-7F, 0.0F }; /* rows of length 1 to 2, an eighth of it */
    for (size_t t = 0; t < ROWS; t++) {
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
    struct checks checks = { 0 };
    uint64_t random = random_seed();
    static const uint32_t scalings[] = { ROPE_SCALE_NONE, ROPE_SCALE_LLAMA3, ROPE_SCALE_YARN };
    for (unsigned i = 0; i < CASE_DIMS; i++)
        for (unsigned j = 0; j < sizeof scalings / sizeof scalings[0]; j++)
            for (uint32_t pairing = 0; pairing < 2; pairing++) {
                struct shape shape = { case_dtypes[j][0], case_dims[i],
                                       pairing == 0 ? 0 : case_dims[i] / 4, pairing, scalings[j] };
                simt_set_order((enum simt_order)(j % SIMT_ORDERS), random);
                check_shape(&checks, &shape, &random);
            }
    return checks_end(&checks);
}
