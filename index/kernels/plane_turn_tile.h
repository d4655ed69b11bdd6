/* SPDX-License-Identifier: Apache-2.0 */
/* plane_turn_tile.h — plane_turn over the vectors of encode_turn_tile.h: what belongs to the
 * segment (reciprocals, signs) is made once, then every row in two passes, before and after its
 * rotation.
 */
#ifndef MEMD_INDEX_KERNELS_PLANE_TURN_TILE_H
#define MEMD_INDEX_KERNELS_PLANE_TURN_TILE_H

#include "index/kernels/encode_turn_tile.h"
#include "index/kernels/plane.h"

typedef uint8_t eight_bytes __attribute__((vector_size(8)));

/* What all rows share. */
struct turning {
    struct turn turn;
    float inverse[DIM_MAX]; /* 1 / balance */
    float weight[DIM_MAX];  /* 1 / query_square, bounded */
};

static inline float sum_lanes(wide a)
{
    return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]));
}

static void turning_init(const struct plane_turn_args *args, struct turning *ret_turning)
{
    const size_t head_dim = args->head_dim;
    turn_init(args->signs, head_dim, &ret_turning->turn);
    for (size_t d = 0; d < head_dim; d += LANES)
        store(ret_turning->inverse + d, 1.0F / load(args->balance + d));
    if (args->query_square == NULL) {
        for (size_t d = 0; d < head_dim; d += LANES)
            store(ret_turning->weight + d, fill(1.0F));
        return;
    }
    wide sum = fill(0.0F);
    for (size_t d = 0; d < head_dim; d += LANES) sum += load(args->query_square + d);
    float least = args->floor * sum_lanes(sum) / (float)head_dim + 1e-30F;
    for (size_t d = 0; d < head_dim; d++) {
        float square = args->query_square[d];
        ret_turning->weight[d] = square > least ? square : least;
    }
    for (size_t d = 0; d < head_dim; d += LANES)
        store(ret_turning->weight + d, 1.0F / load(ret_turning->weight + d));
}

/* Codes of row m, which is turned. */
static inline void turn_round(const struct plane_turn_args *args, size_t m)
{
    const size_t head_dim = args->head_dim;
    const float *turned = args->turned + m * head_dim;
    const float whole = 12582912.0F; /* 1.5 * 2^23: adding it rounds to whole numbers */
    float most = largest(turned, head_dim), inverse = most > 0.0F ? 127.0F / most : 0.0F;
    wide square = fill(0.0F);
    wide_int sum = { 0 };
    for (size_t d = 0; d < head_dim; d += LANES) {
        wide x = load(turned + d), y = x * inverse + whole;
        wide_int code;
        wide_bytes bytes;
        memcpy(&code, &y, sizeof code);
        memcpy(&bytes, &y, sizeof bytes); /* the lowest of each number is its code */
        code -= 0x4B400000; /* the bits of `whole` */
        eight_bytes codes = __builtin_shufflevector(bytes, bytes, 0, 4, 8, 12, 16, 20, 24, 28);
        memcpy(args->q8 + m * head_dim + d, &codes, sizeof codes);
        square += x * x;
        sum += code;
    }
    args->scale[m] = most / 127.0F;
    args->square[m] = sum_lanes(square);
    args->sum[m] = 0;
    for (size_t i = 0; i < LANES; i++) args->sum[m] += sum[i];
}

static void turn_queries(const struct plane_turn_args *args)
{
    struct turning turning;
    turning_init(args, &turning);
    const size_t head_dim = args->head_dim;
    for (size_t m = 0; m < args->queries; m++) {
        float *turned = args->turned + m * head_dim;
        wide offset = fill(0.0F), ratio = fill(0.0F);
        for (size_t d = 0; d < head_dim; d += LANES) {
            wide q = load(args->q + m * head_dim + d);
            offset += q * load(args->key_mean + d);
            ratio += q * q * load(turning.weight + d);
            store(turned + d, q * load(turning.inverse + d));
        }
        args->offset[m] = sum_lanes(offset);
        args->deviation[m] = __builtin_sqrtf(sum_lanes(ratio) / (float)head_dim);
        turn_row(&turning.turn, head_dim, turned);
        turn_round(args, m);
    }
}

#endif
