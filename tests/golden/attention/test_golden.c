/* SPDX-License-Identifier: Apache-2.0 */
/* test_golden.c — RoPE and attention against float64 NumPy (vectors.py), over views cut in any way.
 *
 *     test_golden FILE
 *
 * The file holds parameters and results; inputs are drawn here from the same integers. Every
 * attention case is asked twice: over one view, and over views of random sizes with gaps between
 * rows, on two threads.
 */
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention/attend.h"
#include "attention/rope.h"
#include "base/arena.h"
#include "base/bytes.h"
#include "base/half.h"
#include "base/pool.h"
#include "tests/kernels/tolerance.h"
#include "tests/random.h"

enum { VERSION = 1, STRIDE = 7, ROPES_MAX = 32, QUERIES_MAX = 16, VIEWS_MAX = 600 };

static const uint64_t positions[] = { 0, 1, 17, 4095, 131071, 1000003 };

struct golden {
    unsigned char *data;
    struct bytes_reader in;
    uint32_t seed, rope_count, case_count;
    struct rope ropes[ROPES_MAX];
};

struct shape {
    uint32_t kv_heads, group, head_dim, dtype, tokens, queries, rope, realistic;
    uint64_t limits[QUERIES_MAX];
};

static float get_f32(struct bytes_reader *in)
{
    uint32_t bits = bytes_get_le32(in);
    float value = 0;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* As draw() of vectors.py. */
static float *draw(uint64_t seed, size_t count)
{
    float *values = malloc(count * sizeof *values + 1);
    assert_non_null(values);
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = random_u64(&seed);
        uint64_t total = (bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24 & 255);
        values[i] = ((float)total - 510.0F) / 128.0F;
    }
    return values;
}

static void make_outliers(float *values, size_t rows, size_t head_dim)
{
    for (size_t row = 0; row < rows; row++) {
        values[row * head_dim + 3] *= 8.0F;
        values[row * head_dim + 10] = values[row * head_dim + 10] * 2.0F + 6.0F;
    }
}

static void test_header(void **state)
{
    struct golden *golden = *state;
    const unsigned char *magic = bytes_get(&golden->in, 8);
    assert_non_null(magic);
    assert_memory_equal(magic, "MEMDGOLD", 8);
    assert_int_equal(bytes_get_le32(&golden->in), VERSION);
    golden->seed = bytes_get_le32(&golden->in);
    golden->rope_count = bytes_get_le32(&golden->in);
    golden->case_count = bytes_get_le32(&golden->in);
    assert_in_range(golden->rope_count, 1, ROPES_MAX);
}

static void check_rope(const struct rope *rope, struct bytes_reader *in)
{
    size_t pairs = rope->rotary_dims / 2;
    double magnitude = bytes_get_f64(in);
    assert_true(fabs(rope->magnitude - magnitude) <= 1e-14);
    for (size_t i = 0; i < pairs; i++) {
        double inv_freq = bytes_get_f64(in);
        if (fabs(rope->inv_freq[i] - inv_freq) > 1e-13 * inv_freq)
            fail_msg("inv_freq[%zu] is %.17g, expected %.17g", i, rope->inv_freq[i], inv_freq);
    }
    for (size_t p = 0; p < sizeof positions / sizeof positions[0]; p++) {
        float table[2][ROPE_PAIRS_MAX];
        rope_angles(rope, positions[p], table[0], table[1]);
        for (size_t i = 0; i < 2 * pairs; i++) {
            double truth = bytes_get_f64(in);
            float value = table[i / pairs][i % pairs];
            if (!close_to(value, truth, (struct near){ 2e-7F, 0.0F }))
                fail_msg("position %" PRIu64 ", pair %zu: %.9g, expected %.9g", positions[p],
                         i % pairs, (double)value, truth);
        }
    }
}

static void test_ropes(void **state)
{
    struct golden *golden = *state;
    struct bytes_reader *in = &golden->in;
    for (uint32_t i = 0; i < golden->rope_count; i++) {
        struct rope_config config = { .theta = bytes_get_f64(in), .factor = bytes_get_f64(in) };
        config.low_freq_factor = bytes_get_f64(in);
        config.high_freq_factor = bytes_get_f64(in);
        config.beta_fast = bytes_get_f64(in);
        config.beta_slow = bytes_get_f64(in);
        config.attention_factor = bytes_get_f64(in);
        size_t head_dim = (size_t)bytes_get_le64(in);
        config.pairing = (uint32_t)bytes_get_le64(in);
        config.scaling = (uint32_t)bytes_get_le64(in);
        config.rotary_dims = (uint32_t)bytes_get_le64(in);
        config.original_context = bytes_get_le64(in);
        assert_false(in->bad);
        assert_int_equal(rope_init(&config, head_dim, &golden->ropes[i], NULL), 0);
        check_rope(&golden->ropes[i], in);
    }
}

static struct shape read_shape(struct bytes_reader *in)
{
    struct shape shape = { .kv_heads = bytes_get_le32(in) };
    shape.group = bytes_get_le32(in);
    shape.head_dim = bytes_get_le32(in);
    shape.dtype = bytes_get_le32(in);
    shape.tokens = bytes_get_le32(in);
    shape.queries = bytes_get_le32(in);
    shape.rope = bytes_get_le32(in);
    shape.realistic = bytes_get_le32(in);
    assert_in_range(shape.queries, 1, QUERIES_MAX);
    for (uint32_t i = 0; i < shape.queries; i++) shape.limits[i] = bytes_get_le64(in);
    assert_false(in->bad);
    return shape;
}

/* Stored rows (T, G, D) with a gap after each token, as a tail chunk would hold them. */
static unsigned char *store_rows(const struct shape *shape, const float *values, size_t stride)
{
    size_t row = (size_t)shape->kv_heads * shape->head_dim;
    unsigned char *rows = malloc(shape->tokens * stride);
    assert_non_null(rows);
    memset(rows, 0xFF, shape->tokens * stride);
    for (size_t t = 0; t < shape->tokens; t++)
        half_store(values + t * row, row, shape->dtype, rows + t * stride);
    return rows;
}

/* Where the tokens are cut into views: at[0] = 0 < at[1] < … < at[count] = tokens. */
struct cuts {
    size_t at[VIEWS_MAX + 1];
    size_t count;
};

static struct cuts cut(const struct shape *shape, size_t longest, uint64_t *random)
{
    struct cuts cuts = { .count = 0 };
    while (cuts.at[cuts.count] < shape->tokens) {
        size_t left = shape->tokens - cuts.at[cuts.count];
        if (left > longest) left = longest;
        size_t step = longest >= shape->tokens ? left : (size_t)random_below(random, left) + 1;
        cuts.at[cuts.count + 1] = cuts.at[cuts.count] + step;
        cuts.count++;
        assert_true(cuts.count <= VIEWS_MAX);
    }
    return cuts;
}

/* lse (n, H) and every STRIDE-th element of o (n, H, D) */
static double compare(const struct shape *shape, const struct partial *out, const float *truth)
{
    struct near near = tolerance_of(shape->dtype)->answer, near_lse = { 1e-5F, 1e-6F };
    double worst = 0.0;
    for (size_t row = 0; row < out->rows; row++) {
        if (!close_to(out->lse[row], (double)truth[row], near_lse))
            fail_msg("lse[%zu] is %.9g, expected %.9g", row, (double)out->lse[row],
                     (double)truth[row]);
    }
    for (size_t i = 0; i * STRIDE < out->rows * out->head_dim; i++) {
        float value = out->o[i * STRIDE];
        double expected = (double)truth[out->rows + i];
        worst = fmax(worst, fabs((double)value - expected));
        if (!close_to(value, expected, near))
            fail_msg("o[%zu] is %.9g, expected %.9g", i * STRIDE, (double)value, expected);
    }
    return worst;
}

struct inputs {
    float *q, *k, *v;
    unsigned char *rows[2];
    size_t stride;
};

static struct inputs make_inputs(const struct shape *shape, uint64_t seed)
{
    size_t heads = (size_t)shape->kv_heads * shape->group;
    size_t kv_count = (size_t)shape->tokens * shape->kv_heads * shape->head_dim;
    struct inputs inputs = { .q = draw(seed, shape->queries * heads * shape->head_dim),
                             .k = draw(seed + 1, kv_count), .v = draw(seed + 2, kv_count) };
    if (shape->realistic) {
        make_outliers(inputs.q, shape->queries * heads, shape->head_dim);
        make_outliers(inputs.k, (size_t)shape->tokens * shape->kv_heads, shape->head_dim);
    }
    inputs.stride = (size_t)shape->kv_heads * shape->head_dim * dtype_bytes(shape->dtype) + 10;
    inputs.rows[0] = store_rows(shape, inputs.k, inputs.stride);
    inputs.rows[1] = store_rows(shape, inputs.v, inputs.stride);
    return inputs;
}

static void make_views(const struct shape *shape, const struct inputs *inputs,
                       const struct cuts *cuts, struct view *views)
{
    size_t head_bytes = shape->head_dim * dtype_bytes(shape->dtype);
    for (size_t i = 0; i < shape->kv_heads * cuts->count; i++) {
        size_t g = i / cuts->count, first = cuts->at[i % cuts->count];
        size_t offset = first * inputs->stride + g * head_bytes;
        views[i] = (struct view){
            .k = inputs->rows[0] + offset, .v = inputs->rows[1] + offset,
            .k_stride_bytes = inputs->stride, .v_stride_bytes = inputs->stride,
            .tokens = cuts->at[i % cuts->count + 1] - first, .position = first,
            .dtype = shape->dtype };
    }
}

static void free_inputs(struct inputs *inputs)
{
    free(inputs->q);
    free(inputs->k);
    free(inputs->v);
    free(inputs->rows[0]);
    free(inputs->rows[1]);
}

/* Ask over views cut at `cuts` on `pool`; the largest error. */
static double ask(const struct rope *rope, const struct shape *shape, const struct inputs *inputs,
                  const struct cuts *cuts, struct pool *pool, const float *truth)
{
    size_t heads = (size_t)shape->kv_heads * shape->group;
    uint64_t at[QUERIES_MAX];
    for (size_t i = 0; i < shape->queries; i++) at[i] = shape->tokens + i;
    struct view *views = calloc(shape->kv_heads * cuts->count, sizeof *views);
    assert_non_null(views);
    make_views(shape, inputs, cuts, views);
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    struct partial out = { .rows = shape->queries * heads, .head_dim = shape->head_dim };
    out.o = arena_alloc(&arena, out.rows * out.head_dim * sizeof *out.o);
    out.lse = arena_alloc(&arena, out.rows * sizeof *out.lse);
    struct attend_args args = {
        .q = { .data = inputs->q, .dtype = DTYPE_FP32, .dims = 3,
               .shape = { shape->queries, heads, shape->head_dim } },
        .positions = at, .limits = shape->limits, .scale = 1.0F / sqrtf((float)shape->head_dim),
        .rope = rope, .views = views,
        .kv_heads = shape->kv_heads, .view_count = cuts->count, .pool = pool };
    assert_int_equal(attend(&args, &arena, &out, NULL), 0);
    double worst = compare(shape, &out, truth);
    arena_fini(&arena);
    free(views);
    return worst;
}

static void test_attention(void **state)
{
    struct golden *golden = *state;
    uint64_t random = random_seed();
    struct pool *pool = NULL;
    assert_int_equal(pool_open(2, &pool, NULL), 0);
    double worst[4] = { 0 };
    for (uint32_t number = 0; number < golden->case_count; number++) {
        struct shape shape = read_shape(&golden->in);
        size_t rows = (size_t)shape.queries * shape.kv_heads * shape.group;
        size_t count = rows + (rows * shape.head_dim + STRIDE - 1) / STRIDE;
        float *truth = malloc((count + 1) * sizeof *truth);
        assert_non_null(truth);
        for (size_t i = 0; i < count; i++) truth[i] = get_f32(&golden->in);
        assert_false(golden->in.bad);
        struct inputs inputs = make_inputs(&shape, golden->seed + (uint64_t)1000 * number);
        const struct rope *rope = shape.rope == 0 ? NULL : &golden->ropes[shape.rope - 1];
        struct cuts whole = cut(&shape, shape.tokens, &random), pieces = cut(&shape, 70, &random);
        double error = ask(rope, &shape, &inputs, &whole, NULL, truth);
        error = fmax(error, ask(rope, &shape, &inputs, &pieces, pool, truth));
        worst[shape.dtype] = fmax(worst[shape.dtype], error);
        free_inputs(&inputs);
        free(truth);
    }
    pool_close(pool);
    assert_true(bytes_done(&golden->in));
    print_message("largest error: fp32 %.2e, fp16 %.2e, bf16 %.2e\n", worst[DTYPE_FP32],
                  worst[DTYPE_FP16], worst[DTYPE_BF16]);
}

int main(int argc, char **argv)
{
    static struct golden golden;
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (file == NULL) {
        fprintf(stderr, "usage: test_golden FILE\n");
        return 2;
    }
    enum { FILE_BYTES_MAX = 1 << 20 };
    golden.data = malloc(FILE_BYTES_MAX);
    if (golden.data == NULL) return 1;
    golden.in = bytes_reader(golden.data, fread(golden.data, 1, FILE_BYTES_MAX, file));
    fclose(file);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_header, &golden),
        cmocka_unit_test_prestate(test_ropes, &golden),
        cmocka_unit_test_prestate(test_attention, &golden),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(golden.data);
    return failed;
}
