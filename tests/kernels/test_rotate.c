/* SPDX-License-Identifier: Apache-2.0 */
/* test_rotate.c — every level of `rotate` against the reference: runs long enough to start afresh,
 * rows that are not neighbours, late positions, both pairings, partial rotation, yarn's magnitude.
 */
#include "attention/rope.h"
#include "tests/kernels/checks.h"

struct shape {
    uint32_t dtype;
    size_t head_dim, count, gap_bytes;
    uint64_t position;
    uint32_t pairing, rotary_dims;
    bool yarn, scattered, plain; /* rows are not neighbours; are not turned */
};

static struct rope make_rope(const struct shape *shape)
{
    struct rope rope;
    struct rope_config config = { .theta = 10000.0, .pairing = shape->pairing,
                                  .rotary_dims = shape->rotary_dims };
    if (shape->yarn) {
        config.scaling = ROPE_SCALE_YARN;
        config.factor = 8.0;
        config.original_context = 4096;
    }
    if (rope_init(&config, shape->head_dim, &rope, NULL) == 0) return rope;
    printf("rope_init failed\n");
    exit(1);
}

static void check_shape(struct checks *checks, const struct backend *backend,
                        const struct shape *shape, uint64_t *random)
{
    struct rope rope = make_rope(shape);
    size_t element = dtype_bytes(shape->dtype);
    size_t stride = shape->head_dim * element + shape->gap_bytes;
    size_t count = shape->count * shape->head_dim;
    unsigned char *rows = checks_alloc(shape->count * stride + 1);
    float *truth = checks_alloc((count + 1) * sizeof *truth);
    float *out = checks_alloc((count + 1) * sizeof *out);
    memset(rows, 0xFF, shape->count * stride + 1);
    for (size_t i = 0; i < count; i++) {
        float value = checks_normal(random);
        size_t row = i / shape->head_dim, d = i % shape->head_dim;
        half_store(&value, 1, shape->dtype, rows + 1 + row * stride + d * element);
    }
    truth[count] = out[count] = 12345.0F; /* guard */
    uint64_t *positions = checks_alloc((shape->count + 1) * sizeof *positions);
    for (size_t i = 0, at = shape->position; i < shape->count; i++) {
        static const uint64_t gaps[] = { 1, 3, 0, 4095, 700, 1, 1, 1048575, 64, 1048576 };
        positions[i] = i % 17 == 5 ? at / 2 : at;
        at += gaps[random_below(random, 10)];
    }
    struct rotate_args args = { .rope = shape->plain ? NULL : &rope,
                                .head_dim = shape->plain ? shape->head_dim : 0,
                                .rows = rows + 1, .stride_bytes = stride,
                                .dtype = shape->dtype, .count = shape->count,
                                .position = shape->position, .out = truth,
                                .positions = shape->scattered ? positions : NULL };
    rotate_ref(&args);
    args.out = out;
    backend->rotate(&args);
    char what[160];
    snprintf(what, sizeof what, "%s %s D=%zu rows=%zu position=%llu pairing=%u R=%u gap=%zu%s",
             backend->name, dtype_name(shape->dtype), shape->head_dim, shape->count,
             (unsigned long long)shape->position, (unsigned)shape->pairing,
             (unsigned)shape->rotary_dims, shape->gap_bytes,
             shape->scattered ? " scattered" : shape->plain ? " plain" : "");
    checks_close(checks, what, out, truth, count + 1, (struct near){ 1e-6F, 0.0F });
    free(rows);
    free(positions);
    free(truth);
    free(out);
}

static void check_level(struct checks *checks, const struct backend *backend, uint64_t *random)
{
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    static const size_t dims[] = { 8, 64, 80, 128, 136, 256, 1024 };
    static const size_t counts[] = { 1, 7, 64, 130 };
    static const uint64_t positions[] = { 0, 1000, 131071, 16000000 };
    size_t turn = 0;
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        for (size_t j = 0; j < sizeof dims / sizeof dims[0]; j++)
            for (size_t t = 0; t < sizeof counts / sizeof counts[0]; t++, turn++) {
                struct shape shape = { dtypes[i], dims[j], counts[t], turn % 3 == 0 ? 6 : 0,
                                       positions[turn / 2 % 4], turn % 2,
                                       turn % 5 == 0 ? 6 : 0, turn % 4 == 0, false, false };
                check_shape(checks, backend, &shape, random);
                shape.scattered = true;
                check_shape(checks, backend, &shape, random);
                shape.plain = true;
                check_shape(checks, backend, &shape, random);
            }
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
