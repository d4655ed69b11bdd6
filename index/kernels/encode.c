/* SPDX-License-Identifier: Apache-2.0 */
/* encode.c — reference and oracle of the twins encode_<isa>.c: one value after the other. */
#include "index/kernels/encode.h"

#include <math.h>
#include <string.h>

#include "base/half.h"

uint16_t encode_step(float value)
{
    if (!(value <= 65504.0F)) return 0x7c00;
    uint16_t bits = half_to_fp16(value);
    return half_from_fp16(bits) < value ? (uint16_t)(bits + 1) : bits;
}

static size_t power_of_two(size_t head_dim)
{
    size_t power = 1;
    while (power * 2 <= head_dim) power *= 2;
    return power;
}

/* x (size) ← H x / √size */
static void hadamard(float *x, size_t size)
{
    for (size_t half = 1; half < size; half *= 2)
        for (size_t i = 0; i < size; i++) {
            if ((i & half) != 0) continue;
            float a = x[i], b = x[i + half];
            x[i] = a + b;
            x[i + half] = a - b;
        }
    float scale = 1.0F / sqrtf((float)size);
    for (size_t i = 0; i < size; i++) x[i] *= scale;
}

static void flip(float *x, size_t size, const uint8_t *signs)
{
    for (size_t i = 0; i < size; i++)
        if ((signs[i / 8] >> (i % 8) & 1) != 0) x[i] = -x[i];
}

void encode_rotate_ref(const struct encode_rotate_args *args)
{
    size_t size = power_of_two(args->head_dim), rest = args->head_dim - size;
    for (size_t row = 0; row < args->count; row++) {
        float *first = args->rows + row * args->head_dim, *second = first + rest;
        if (!args->invert) {
            flip(first, size, args->signs[0]);
            hadamard(first, size);
        }
        if (rest > 0 && !args->invert) flip(second, size, args->signs[1]);
        if (rest > 0) hadamard(second, size);
        if (rest > 0 && args->invert) flip(second, size, args->signs[1]);
        if (args->invert) {
            hadamard(first, size);
            flip(first, size, args->signs[0]);
        }
    }
}

void encode_project_ref(const struct encode_rows *rows, const float *direction, float *ret_dots)
{
    for (size_t i = 0; i < rows->count; i++) {
        const float *row = rows->rows + rows->order[i] * rows->head_dim;
        double sum = 0.0;
        for (size_t d = 0; d < rows->head_dim; d++) sum += (double)row[d] * (double)direction[d];
        ret_dots[i] = (float)sum;
    }
}

void encode_combine_ref(const struct encode_rows *rows, const float *factors, float *ret_sum)
{
    for (size_t d = 0; d < rows->head_dim; d++) {
        double sum = 0.0;
        for (size_t i = 0; i < rows->count; i++)
            sum += (double)factors[i] * (double)rows->rows[rows->order[i] * rows->head_dim + d];
        ret_sum[d] = (float)sum;
    }
}

void encode_load_ref(const struct encode_load_args *args)
{
    const size_t head_dim = args->head_dim;
    for (size_t i = 0; i < args->count && args->rows != args->out; i++)
        half_load((const char *)args->rows + i * args->stride_bytes, args->dtype, head_dim,
                  args->out + i * head_dim);
    for (size_t d = 0; d < head_dim; d++) {
        double sum = (double)args->sum[d];
        for (size_t i = 0; i < args->count; i++) sum += (double)args->out[i * head_dim + d];
        args->sum[d] = (float)sum;
    }
}

static float largest(const float *x, size_t head_dim)
{
    float most = 0.0F;
    for (size_t d = 0; d < head_dim; d++) most = fmaxf(most, fabsf(x[d]));
    return most;
}

void encode_steer_ref(const struct encode_rows *rows, float *dots, float *direction)
{
    double mean = 0.0;
    encode_project_ref(rows, direction, dots);
    for (size_t i = 0; i < rows->count; i++) mean += (double)dots[i] / (double)rows->count;
    for (size_t i = 0; i < rows->count; i++) dots[i] = (float)((double)dots[i] - mean);
    float most = largest(dots, rows->count);
    for (size_t i = 0; i < rows->count; i++) dots[i] = most > 0.0F ? dots[i] / most : 0.0F;
    encode_combine_ref(rows, dots, direction);
}

struct dot {
    int32_t key;
    uint16_t row;
    bool small;
};

/* Order of floats as order of integers, without the lower 10 bits. */
static int32_t key_of(float dot)
{
    int32_t bits;
    memcpy(&bits, &dot, sizeof bits);
    if (bits < 0) bits ^= INT32_MAX;
    return bits & ~INT32_C(1023);
}

static bool is_before(const struct dot *a, const struct dot *b)
{
    return a->key != b->key ? a->key < b->key : a->row < b->row;
}

void encode_split_ref(float *dots, uint16_t *order, size_t count)
{
    struct dot all[1024];
    for (size_t i = 0; i < count; i++) all[i] = (struct dot){ key_of(dots[i]), order[i], false };
    for (size_t i = 0; i < count; i++) {
        size_t before = 0;
        for (size_t j = 0; j < count; j++) before += is_before(all + j, all + i);
        all[i].small = before < count / 2;
    }
    size_t at = 0;
    for (size_t i = 0; i < count; i++)
        if (all[i].small) order[at++] = all[i].row;
    for (size_t i = 0; i < count; i++)
        if (!all[i].small) order[at++] = all[i].row;
}

void encode_centre_ref(const struct encode_centre_args *args)
{
    for (size_t d = 0; d < args->head_dim; d++) {
        double square = 0.0;
        for (size_t row = 0; row < args->count; row++) {
            float *at = args->rows + row * args->head_dim + d;
            float centred = *at - args->mean[d];
            square += (double)centred * (double)centred;
            *at = centred * args->factor[d];
        }
        args->square[d] = (float)square;
    }
}

/* codes (D): x ≈ s (code - 127.5). Returns the step of hi, 16 s. x (D) */
static uint16_t code_row(const float *x, size_t head_dim, uint8_t *codes)
{
    uint16_t step = encode_step(largest(x, head_dim) * 0.125F);
    float wide = half_from_fp16(step), inverse = wide > 0.0F ? 16.0F / wide : 0.0F;
    for (size_t d = 0; d < head_dim; d++)
        codes[d] = (uint8_t)fminf(fmaxf(floorf(x[d] * inverse + 128.0F), 0.0F), 255.0F);
    return step;
}

static void put_nibble(uint8_t *byte, bool high, unsigned value)
{
    *byte = (uint8_t)(high ? (*byte & 0x0f) | value << 4 : (*byte & 0xf0) | value);
}

static void put_lo(const uint8_t *codes, size_t head_dim, uint8_t *lo)
{
    for (size_t d = 0; d < head_dim; d++) put_nibble(lo + d / 2, d % 2 == 1, codes[d] & 15U);
}

/* The mean of 16 rows. rows (16, D), ret_mean (D) */
static void mean_of(const float *rows, size_t head_dim, float *ret_mean)
{
    for (size_t d = 0; d < head_dim; d++) {
        double sum = 0.0;
        for (size_t i = 0; i < ENCODE_ROWS; i++) sum += (double)rows[i * head_dim + d];
        ret_mean[d] = (float)(sum / ENCODE_ROWS);
    }
}

/* 7 bits; the decoded centroid goes back to x. x (D) */
static float code_centroid(float *x, size_t head_dim, uint8_t *ret_codes)
{
    float scale = largest(x, head_dim) / 64.0F, inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
    for (size_t d = 0; d < head_dim; d++) {
        float code = fminf(fmaxf(floorf(x[d] * inverse + 64.0F), 0.0F), 127.0F);
        ret_codes[d] = (uint8_t)code;
        x[d] = scale * (code - 63.5F);
    }
    return scale;
}

/* 8 bits, two's complement; the decoded mean goes back to x. x (D) */
static float code_mean(float *x, size_t head_dim, int8_t *ret_codes)
{
    float scale = largest(x, head_dim) / 127.0F, inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
    for (size_t d = 0; d < head_dim; d++) {
        float code = fminf(fmaxf(rintf(x[d] * inverse), -127.0F), 127.0F);
        ret_codes[d] = (int8_t)code;
        x[d] = scale * code;
    }
    return scale;
}

static void code_keys(const struct encode_keys_args *args, size_t place)
{
    const size_t head_dim = args->head_dim, index = place / ENCODE_ROWS;
    const struct encode_tile *tile = &args->tile;
    const uint16_t *order = args->order + place;
    float *x = args->scratch, *centroid = x + ENCODE_ROWS * head_dim; /* (16, D), (D) */
    for (size_t i = 0; i < ENCODE_ROWS; i++)
        for (size_t d = 0; d < head_dim; d++)
            x[i * head_dim + d] = args->rows[order[i] * head_dim + d] * args->factor[d];
    struct encode_rotate_args rotate = { .rows = x, .count = ENCODE_ROWS, .head_dim = head_dim,
                                         .signs = { args->signs[0], args->signs[1] } };
    encode_rotate_ref(&rotate);
    mean_of(x, head_dim, centroid);
    tile->mean_scale[index] = code_centroid(centroid, head_dim,
                                            (uint8_t *)tile->mean + index * head_dim);
    uint8_t *hi = tile->hi + place * head_dim / 2;
    for (size_t i = 0; i < ENCODE_ROWS; i++) {
        uint8_t codes[1024];
        tile->step[place + i] = code_row(x + i * head_dim, head_dim, codes);
        for (size_t d = 0; d < head_dim; d++)
            put_nibble(hi + d / 8 * 64 + 4 * i + d % 4, d % 8 >= 4, codes[d] >> 4);
        put_lo(codes, head_dim, tile->lo + (place + i) * tile->lo_stride_bytes);
    }
    rotate.rows = centroid;
    rotate.count = 1;
    rotate.invert = true;
    encode_rotate_ref(&rotate);
    double spread = 0.0;
    for (size_t i = 0; i < ENCODE_ROWS; i++)
        for (size_t d = 0; d < head_dim; d++) {
            double away = (double)args->rows[order[i] * head_dim + d] -
                          (double)centroid[d] / (double)args->factor[d];
            spread += away * away * (double)args->weight[d];
        }
    tile->spread[index] = (float)(spread / ENCODE_ROWS);
}

void encode_keys_ref(const struct encode_keys_args *args)
{
    for (size_t place = 0; place < args->count; place += ENCODE_ROWS) code_keys(args, place);
}

static void code_values(const struct encode_values_args *args, size_t place)
{
    const size_t head_dim = args->head_dim, index = place / ENCODE_ROWS;
    const struct encode_tile *tile = &args->tile;
    float *x = args->scratch, *mean = x + ENCODE_ROWS * head_dim; /* (16, D), (D) */
    for (size_t i = 0; i < ENCODE_ROWS; i++)
        half_load((const char *)args->rows + args->order[place + i] * args->stride_bytes,
                  args->dtype, head_dim, x + i * head_dim);
    encode_rotate_ref(&(struct encode_rotate_args){ .rows = x, .count = ENCODE_ROWS,
        .head_dim = head_dim, .signs = { args->signs[0], args->signs[1] } });
    mean_of(x, head_dim, mean);
    tile->mean_scale[index] = code_mean(mean, head_dim, (int8_t *)tile->mean + index * head_dim);
    uint8_t *hi = tile->hi + place * head_dim / 2;
    double spread = 0.0;
    for (size_t i = 0; i < ENCODE_ROWS; i++) {
        float *row = x + i * head_dim; /* (D) */
        for (size_t d = 0; d < head_dim; d++) {
            row[d] -= mean[d];
            spread += (double)row[d] * (double)row[d];
        }
        uint8_t codes[1024];
        tile->step[place + i] = code_row(row, head_dim, codes);
        for (size_t d = 0; d < head_dim; d++)
            put_nibble(hi + (i / 8 * head_dim + d) * 4 + i % 4, i % 8 >= 4, codes[d] >> 4);
        put_lo(codes, head_dim, tile->lo + (place + i) * tile->lo_stride_bytes);
    }
    tile->spread[index] = (float)(spread / ENCODE_ROWS);
}

void encode_values_ref(const struct encode_values_args *args)
{
    for (size_t place = 0; place < args->count; place += ENCODE_ROWS) code_values(args, place);
}
