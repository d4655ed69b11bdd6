/* SPDX-License-Identifier: Apache-2.0 */
/* test_encode.c — every level of the encode kernels against the reference: sums and rotations
 * within a tolerance, codes within one, because another order of summing moves values across the
 * border between two cells.
 */
#include "index/encode_backend.h"

#include "index/rotation.h"
#include "tests/kernels/checks.h"

enum { ROWS = 64, DIM_MAX = 1024, TILES = 2, CODED = TILES * ENCODE_ROWS };

static const size_t dims[] = { 8, 16, 24, 32, 40, 64, 80, 96, 128, 192, 200, 256, 512, 1000, 1024 };

struct data {
    float *rows, *out, *truth;  /* (ROWS, DIM_MAX) */
    unsigned char *stored;      /* (ROWS, DIM_MAX) and a gap per row, unaligned */
    float a[DIM_MAX], b[DIM_MAX], one[DIM_MAX], two[DIM_MAX];
    uint16_t order[ROWS];
    uint64_t random;
};

static void draw(struct data *data, size_t head_dim)
{
    for (size_t i = 0; i < (size_t)ROWS * head_dim; i++)
        data->rows[i] = checks_normal(&data->random) * (i % head_dim == 3 ? 20.0F : 1.0F);
    for (size_t d = 0; d < head_dim; d++) {
        data->a[d] = checks_normal(&data->random);
        data->b[d] = 0.25F + fabsf(checks_normal(&data->random));
    }
    for (size_t i = 0; i < ROWS; i++) data->order[i] = (uint16_t)(i * 29 % ROWS);
}

static void check_rotate(struct checks *checks, const struct encode_backend *backend,
                         struct data *data, size_t head_dim)
{
    for (int invert = 0; invert < 2; invert++) {
        size_t count = 3 * head_dim;
        struct encode_rotate_args args = { .count = 3, .head_dim = head_dim, .invert = invert != 0,
                                           .signs = { rotation_signs(0), rotation_signs(1) } };
        memcpy(data->out, data->rows, count * sizeof(float));
        memcpy(data->truth, data->rows, count * sizeof(float));
        data->out[count] = data->truth[count] = 12345.0F; /* guard */
        args.rows = data->truth;
        encode_rotate_ref(&args);
        args.rows = data->out;
        backend->rotate(&args);
        char what[80];
        snprintf(what, sizeof what, "%s rotate D=%zu invert=%d", backend->name, head_dim, invert);
        checks_close(checks, what, data->out, data->truth, count + 1,
                     (struct near){ 2e-5F, 1e-6F });
    }
}

static void check_sums(struct checks *checks, const struct encode_backend *backend,
                       struct data *data, size_t head_dim)
{
    static const size_t counts[] = { 1, 7, 8, 32, 63 };
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        struct encode_rows rows = { data->rows, data->order, counts[i], head_dim };
        char what[80];
        snprintf(what, sizeof what, "%s sums D=%zu count=%zu", backend->name, head_dim, counts[i]);
        data->out[counts[i]] = data->truth[counts[i]] = 12345.0F;
        encode_project_ref(&rows, data->a, data->truth);
        backend->project(&rows, data->a, data->out);
        checks_close(checks, what, data->out, data->truth, counts[i] + 1,
                     (struct near){ 1e-4F, 1e-5F });
        data->out[head_dim] = data->truth[head_dim] = 12345.0F;
        encode_combine_ref(&rows, data->b, data->truth);
        backend->combine(&rows, data->b, data->out);
        checks_close(checks, what, data->out, data->truth, head_dim + 1,
                     (struct near){ 1e-4F, 1e-5F });
        data->out[head_dim] = data->truth[head_dim] = 12345.0F;
        memcpy(data->out, data->a, head_dim * sizeof(float));
        memcpy(data->truth, data->a, head_dim * sizeof(float));
        encode_steer_ref(&rows, data->one, data->truth);
        backend->steer(&rows, data->two, data->out);
        checks_close(checks, what, data->out, data->truth, head_dim + 1,
                     (struct near){ 1e-3F, 1e-4F });
        struct encode_centre_args args = { .count = counts[i], .head_dim = head_dim,
                                           .mean = data->a, .factor = data->b };
        size_t count = counts[i] * head_dim;
        memcpy(data->out, data->rows, (count + 1) * sizeof(float));
        memcpy(data->truth, data->rows, (count + 1) * sizeof(float));
        args.rows = data->truth;
        args.square = data->one;
        encode_centre_ref(&args);
        args.rows = data->out;
        args.square = data->two;
        backend->centre(&args);
        checks_close(checks, what, data->out, data->truth, count + 1,
                     (struct near){ 1e-6F, 1e-6F });
        checks_close(checks, what, data->two, data->one, head_dim, (struct near){ 1e-5F, 1e-5F });
    }
}

/* Every dtype, and fp32 in place. */
static void check_load(struct checks *checks, const struct encode_backend *backend,
                       struct data *data, size_t head_dim)
{
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16, DTYPE_FP32 };
    for (size_t i = 0; i < 4; i++) {
        size_t rows = 16 * i + 7, count = rows * head_dim;
        size_t stride = head_dim * dtype_bytes(dtypes[i]) + (i < 3 ? 6 * i : 0);
        for (size_t row = 0; row < rows; row++)
            half_store(data->rows + row * head_dim, head_dim, dtypes[i],
                       data->stored + 1 + row * stride);
        memcpy(data->one, data->a, sizeof data->a);
        memcpy(data->two, data->a, sizeof data->a);
        memcpy(data->out, data->rows, (count + 1) * sizeof(float));
        memcpy(data->truth, data->rows, (count + 1) * sizeof(float));
        struct encode_load_args args = { .stride_bytes = stride, .dtype = dtypes[i],
                                         .count = rows, .head_dim = head_dim };
        args.rows = i < 3 ? data->stored + 1 : (void *)data->truth;
        args.out = data->truth;
        args.sum = data->one;
        encode_load_ref(&args);
        args.rows = i < 3 ? data->stored + 1 : (void *)data->out;
        args.out = data->out;
        args.sum = data->two;
        backend->load(&args);
        char what[80];
        snprintf(what, sizeof what, "%s load %s D=%zu", backend->name, dtype_name(dtypes[i]),
                 head_dim);
        checks_close(checks, what, data->out, data->truth, count + 1, (struct near){ 0.0F, 0.0F });
        checks_close(checks, what, data->two, data->one, DIM_MAX, (struct near){ 1e-4F, 1e-5F });
    }
}

/* The same rows on both sides, to the last: splitting compares and adds nothing. Many ties. */
static void check_split(struct checks *checks, const struct encode_backend *backend,
                        struct data *data)
{
    for (size_t count = 32; count <= DIM_MAX; count *= 2)
        for (int kind = 0; kind < 4; kind++) {
            uint16_t out[DIM_MAX], truth[DIM_MAX];
            for (size_t i = 0; i < count; i++) {
                float normal = checks_normal(&data->random);
                const float kinds[] = { normal, rintf(normal), 1e30F * normal, 0.0F };
                data->one[i] = data->two[i] = kinds[kind];
                out[i] = truth[i] = (uint16_t)(1023 - i);
            }
            encode_split_ref(data->one, truth, count);
            backend->split(data->two, out, count);
            if (memcmp(out, truth, count * sizeof *out) == 0) checks->passed++;
            else if (checks->failed++ < CHECKS_SHOWN)
                printf("FAILED %s split count=%zu kind=%d\n", backend->name, count, kind);
        }
}

struct coded {
    uint8_t hi[TILES * 8 * DIM_MAX + 1], lo[CODED * DIM_MAX + 1], mean[TILES * DIM_MAX + 1];
    uint16_t step[CODED];
    float scale[TILES], spread[TILES];
};

static struct encode_tile tile_of(struct coded *coded, size_t head_dim)
{
    memset(coded, 0xa5, sizeof *coded);
    return (struct encode_tile){ .hi = coded->hi,
                                 .step = coded->step,
                                 .lo = coded->lo,
                                 .lo_stride_bytes = head_dim,
                                 .mean = coded->mean,
                                 .mean_scale = coded->scale,
                                 .spread = coded->spread };
}

static unsigned nibble(uint8_t byte, int high)
{
    return high ? byte >> 4 : byte & 15U;
}

/* Decoded rows, then scales, spreads and guards. ret_values (32 D + 70) */
static size_t decode(const struct coded *coded, size_t head_dim, int values, float *ret_values)
{
    size_t at = 0;
    for (size_t i = 0; i < CODED; i++)
        for (size_t d = 0; d < head_dim; d++) {
            size_t tile = i / ENCODE_ROWS, value = (i / 8 * head_dim + d) * 4 + i % 4;
            size_t key = tile * 8 * head_dim + d / 8 * 64 + 4 * (i % ENCODE_ROWS) + d % 4;
            unsigned hi = values ? nibble(coded->hi[value], i % 8 >= 4)
                                 : nibble(coded->hi[key], d % 8 >= 4);
            unsigned code = 16 * hi + nibble(coded->lo[i * head_dim + d / 2], d % 2 == 1);
            float x = half_from_fp16(coded->step[i]) * ((float)code - 127.5F) / 16.0F;
            if (values) x += coded->scale[tile] * (float)(int8_t)coded->mean[tile * head_dim + d];
            ret_values[at++] = x;
        }
    for (size_t i = 0; i < CODED; i++) {
        ret_values[at++] = half_from_fp16(coded->step[i]);
        ret_values[at++] = (float)coded->lo[i * head_dim + (head_dim >> 1)]; /* not its own */
    }
    for (size_t tile = 0; tile < TILES; tile++) {
        ret_values[at++] = coded->scale[tile];
        ret_values[at++] = coded->spread[tile];
    }
    ret_values[at++] = (float)coded->hi[TILES * 8 * head_dim];
    ret_values[at++] = (float)coded->mean[TILES * head_dim];
    return at;
}

static void compare(struct checks *checks, const char *what, struct data *data,
                    const struct coded coded[2], size_t head_dim)
{
    int values = strstr(what, "values") != NULL;
    size_t count = decode(coded, head_dim, values, data->truth);
    decode(coded + 1, head_dim, values, data->out);
    float widest = 0.0F; /* one code of the widest row */
    for (size_t i = 0; i < CODED; i++)
        widest = fmaxf(widest, half_from_fp16(coded[0].step[i]) / 16.0F);
    size_t codes = CODED * head_dim;
    checks_close(checks, what, data->out, data->truth, codes, (struct near){ 1.1F * widest, 0.0F });
    checks_close(checks, what, data->out + codes, data->truth + codes, count - codes,
                 (struct near){ 1e-6F, 2e-3F });
    size_t differ = 0;
    for (size_t i = 0; i < codes; i++)
        if (fabsf(data->out[i] - data->truth[i]) > 0.1F * widest) differ++;
    if (differ * 50 <= codes) checks->passed++;
    else if (checks->failed++ < CHECKS_SHOWN) printf("FAILED %s: %zu codes differ\n", what, differ);
}

static void check_keys(struct checks *checks, const struct encode_backend *backend,
                       struct data *data, size_t head_dim)
{
    static struct coded coded[2];
    struct encode_keys_args args = { .rows = data->rows,
                                     .order = data->order,
                                     .count = CODED,
                                     .factor = data->b,
                                     .weight = data->b,
                                     .head_dim = head_dim,
                                     .signs = { rotation_signs(0), rotation_signs(1) },
                                     .scratch = data->out };
    args.tile = tile_of(coded, head_dim);
    encode_keys_ref(&args);
    args.tile = tile_of(coded + 1, head_dim);
    backend->keys(&args);
    char what[80];
    snprintf(what, sizeof what, "%s keys D=%zu", backend->name, head_dim);
    compare(checks, what, data, coded, head_dim);
    for (size_t d = 0; d < TILES * head_dim; d++) {
        data->truth[d] = (float)coded[0].mean[d];
        data->out[d] = (float)coded[1].mean[d];
    }
    checks_close(checks, what, data->out, data->truth, TILES * head_dim,
                 (struct near){ 1.0F, 0.0F });
}

static void check_values(struct checks *checks, const struct encode_backend *backend,
                         struct data *data, size_t head_dim)
{
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    static struct coded coded[2];
    for (size_t i = 0; i < 3; i++) {
        size_t stride = head_dim * dtype_bytes(dtypes[i]) + 6 * i;
        for (size_t row = 0; row < ROWS; row++)
            half_store(data->rows + row * head_dim, head_dim, dtypes[i],
                       data->stored + 1 + row * stride);
        struct encode_values_args args = { .rows = data->stored + 1,
                                           .stride_bytes = stride,
                                           .dtype = dtypes[i],
                                           .order = data->order,
                                           .count = CODED,
                                           .signs = { rotation_signs(0), rotation_signs(1) },
                                           .head_dim = head_dim,
                                           .scratch = data->out };
        args.tile = tile_of(coded, head_dim);
        encode_values_ref(&args);
        args.tile = tile_of(coded + 1, head_dim);
        backend->values(&args);
        char what[80];
        snprintf(what, sizeof what, "%s values %s D=%zu", backend->name, dtype_name(dtypes[i]),
                 head_dim);
        compare(checks, what, data, coded, head_dim);
    }
}

/* Rows of zeros, of the smallest fp16, and beyond its range. */
static void check_edges(struct checks *checks, const struct encode_backend *backend,
                        struct data *data)
{
    static const float edges[] = { 0.0F, 6e-8F, 1e-5F, 4.9e-4F, 500000.0F, 530000.0F, 1e30F };
    static struct coded coded[2];
    for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++) {
        for (size_t at = 0; at < (size_t)ROWS * 8; at++)
            data->rows[at] = edges[i] * (at % 3 == 0 ? 0.3F : 0.1F) * (at % 16 < 8 ? 1.0F : -1.0F);
        struct encode_values_args args = { .rows = data->rows,
                                           .stride_bytes = 32,
                                           .dtype = DTYPE_FP32,
                                           .order = data->order,
                                           .count = CODED,
                                           .signs = { rotation_signs(0), rotation_signs(1) },
                                           .head_dim = 8,
                                           .scratch = data->out };
        args.tile = tile_of(coded, 8);
        encode_values_ref(&args);
        args.tile = tile_of(coded + 1, 8);
        backend->values(&args);
        for (size_t row = 0; row < CODED; row++)
            if (abs(coded[0].step[row] - coded[1].step[row]) <= 1) checks->passed++;
            else if (checks->failed++ < CHECKS_SHOWN)
                printf("FAILED %s edge %g: step %04x, reference %04x\n", backend->name,
                       (double)edges[i], coded[1].step[row], coded[0].step[row]);
    }
}

/* The smallest fp16 that is not below, for numbers between any two of them. */
static void check_step(struct checks *checks)
{
    for (uint32_t bits = 0; bits < 0x7bff; bits++) {
        float low = half_from_fp16((uint16_t)bits), high = half_from_fp16((uint16_t)(bits + 1));
        float between = low + (high - low) * (bits % 3 == 0 ? 0.01F : 0.75F);
        if (encode_step(low) == bits && encode_step(between) == bits + 1) checks->passed++;
        else if (checks->failed++ < CHECKS_SHOWN)
            printf("FAILED step of %.9g and %.9g: %04x and %04x\n", (double)low, (double)between,
                   encode_step(low), encode_step(between));
    }
    if (encode_step(65505.0F) == 0x7c00 && encode_step(NAN) == 0x7c00) checks->passed++;
    else if (checks->failed++ < CHECKS_SHOWN) printf("FAILED step out of range\n");
}

int main(void)
{
    struct checks checks = { 0, 0 };
    struct data data = { .random = random_seed() };
    size_t floats = ((size_t)ROWS * DIM_MAX + 64) * sizeof(float);
    data.rows = checks_alloc(floats);
    data.out = checks_alloc(floats);
    data.truth = checks_alloc(floats);
    data.stored = checks_alloc(floats + (size_t)ROWS * 16);
    check_step(&checks);
    for (int level = 0; level < CPU_LEVELS; level++) {
        const struct encode_backend *backend = encode_backend_for((enum cpu_level)level);
        if (backend == NULL) continue;
        for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
            draw(&data, dims[i]);
            check_rotate(&checks, backend, &data, dims[i]);
            check_load(&checks, backend, &data, dims[i]);
            check_sums(&checks, backend, &data, dims[i]);
            check_keys(&checks, backend, &data, dims[i]);
            check_values(&checks, backend, &data, dims[i]);
        }
        check_split(&checks, backend, &data);
        check_edges(&checks, backend, &data);
    }
    free(data.rows);
    free(data.out);
    free(data.truth);
    free(data.stored);
    return checks_end(&checks);
}
