/* SPDX-License-Identifier: Apache-2.0 */
/* plane_weigh_vnni.c — plane_weigh in AVX-512 with VNNI: as plane_weigh_avx2.c with sums of 32 bits
 * from the start, 32, 16 or (the last 8 of a head_dim, in half a register) 8 dimensions at once.
 *
 * All tiles of a batch go over the same dimensions before the next ones are taken: the sums of the
 * query rows stay in registers meanwhile, where loading and storing them for every tile took half
 * of the time.
 */
#include "index/kernels/plane_weigh_tile.h"

#include "index/kernels/plane_round_avx2.h"

enum {
    WIDE = 16,
    PAIR = 2,
    MANY = 8, /* sums of a row or two that stay in registers */
};

/* Nibbles of 16 dimensions from d, four tokens of each in a lane. */
INLINE void load_wide(const struct weighing *w, size_t d, __m512i nibbles[QUADS])
{
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i left = _mm512_loadu_si512(w->codes + 4 * d);
    __m512i right = _mm512_loadu_si512(w->codes + 4 * (w->head_dim + d));
    __builtin_prefetch(w->soon + 8 * d, 0, 2);
    __builtin_prefetch(w->soon + 8 * d + 64, 0, 2);
    nibbles[0] = _mm512_and_si512(left, nibble);
    nibbles[1] = _mm512_and_si512(_mm512_srli_epi16(left, 4), nibble);
    nibbles[2] = _mm512_and_si512(right, nibble);
    nibbles[3] = _mm512_and_si512(_mm512_srli_epi16(right, 4), nibble);
}

/* Dimensions d … d + 16 pairs - 1 of all tiles; `pairs` ≤ 2 and `rows` are constants. */
INLINE void weigh_wide(const struct weighing *batch, size_t count, size_t d, size_t pairs,
                       size_t rows)
{
    __m512 acc[WEIGH_ROWS][PAIR];
    for (size_t m = 0; m < rows; m++)
        for (size_t i = 0; i < pairs; i++)
            acc[m][i] = _mm512_loadu_ps(batch->acc[m] + d + i * WIDE);
    for (size_t tile = 0; tile < count; tile++) {
        const struct weighing *w = &batch[tile];
        __m512i nibbles[PAIR][QUADS];
        for (size_t i = 0; i < pairs; i++) load_wide(w, d + i * WIDE, nibbles[i]);
        for (size_t m = 0; m < rows; m++) {
            __m512i sums[PAIR] = { _mm512_setzero_si512(), _mm512_setzero_si512() };
            for (size_t quad = 0; quad < QUADS; quad++) {
                const __m512i weights = _mm512_set1_epi32(w->weights[m].quads[quad]);
                for (size_t i = 0; i < pairs; i++)
                    sums[i] = _mm512_dpbusd_epi32(sums[i], weights, nibbles[i][quad]);
            }
            const __m512 unit = _mm512_set1_ps(w->weights[m].unit);
            for (size_t i = 0; i < pairs; i++)
                acc[m][i] = _mm512_fmadd_ps(unit, _mm512_cvtepi32_ps(sums[i]), acc[m][i]);
        }
    }
    for (size_t m = 0; m < rows; m++)
        for (size_t i = 0; i < pairs; i++)
            _mm512_storeu_ps(batch->acc[m] + d + i * WIDE, acc[m][i]);
}

/* Dimensions d … d + 16 MANY - 1 of one or two rows: a tile is read from its beginning to its end,
 * which memory is best at. */
INLINE void weigh_many(const struct weighing *batch, size_t count, size_t d, size_t rows)
{
    __m512 acc[PAIR][MANY];
    for (size_t m = 0; m < rows; m++)
        for (size_t i = 0; i < MANY; i++)
            acc[m][i] = _mm512_loadu_ps(batch->acc[m] + d + i * WIDE);
    for (size_t tile = 0; tile < count; tile++) {
        const struct weighing *w = &batch[tile];
        for (size_t i = 0; i < MANY; i++) {
            __m512i nibbles[QUADS];
            load_wide(w, d + i * WIDE, nibbles);
            for (size_t m = 0; m < rows; m++) {
                __m512i sums = _mm512_setzero_si512();
                for (size_t quad = 0; quad < QUADS; quad++)
                    sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi32(w->weights[m].quads[quad]),
                                               nibbles[quad]);
                acc[m][i] = _mm512_fmadd_ps(_mm512_set1_ps(w->weights[m].unit),
                                            _mm512_cvtepi32_ps(sums), acc[m][i]);
            }
        }
    }
    for (size_t m = 0; m < rows; m++)
        for (size_t i = 0; i < MANY; i++)
            _mm512_storeu_ps(batch->acc[m] + d + i * WIDE, acc[m][i]);
}

/* The last 8 dimensions of one tile. */
INLINE void weigh_eight(const struct weighing *w, size_t d, size_t rows)
{
    const __m256i nibble = _mm256_set1_epi8(15);
    const uint8_t *at = w->codes + 4 * d;
    __m256i left = _mm256_loadu_si256((const __m256i *)(const void *)at);
    __m256i right = _mm256_loadu_si256((const __m256i *)(const void *)(at + 4 * w->head_dim));
    __m256i nibbles[QUADS] = { _mm256_and_si256(left, nibble),
                               _mm256_and_si256(_mm256_srli_epi16(left, 4), nibble),
                               _mm256_and_si256(right, nibble),
                               _mm256_and_si256(_mm256_srli_epi16(right, 4), nibble) };
    for (size_t m = 0; m < rows; m++) {
        __m256i sums = _mm256_setzero_si256();
        for (size_t quad = 0; quad < QUADS; quad++)
            sums = _mm256_dpbusd_epi32(sums, _mm256_set1_epi32(w->weights[m].quads[quad]),
                                       nibbles[quad]);
        float *acc = w->acc[m] + d;
        _mm256_storeu_ps(acc, _mm256_fmadd_ps(_mm256_set1_ps(w->weights[m].unit),
                                              _mm256_cvtepi32_ps(sums), _mm256_loadu_ps(acc)));
    }
}

INLINE void weigh_all(const struct weighing *batch, size_t count, size_t rows)
{
    size_t d = 0;
    for (; rows <= PAIR && d + MANY * WIDE <= batch->head_dim; d += MANY * WIDE)
        weigh_many(batch, count, d, rows);
    for (; d + PAIR * WIDE <= batch->head_dim; d += PAIR * WIDE)
        weigh_wide(batch, count, d, PAIR, rows);
    for (; d + WIDE <= batch->head_dim; d += WIDE) weigh_wide(batch, count, d, 1, rows);
    for (size_t tile = 0; d < batch->head_dim && tile < count; tile++)
        weigh_eight(&batch[tile], d, rows);
}

/* A query row that is alone waits for memory, and loads of 32 bytes get more of it than those of
 * 64: 3.0 against 3.6 ns per token (docs/decisions/0049). */
void plane_weigh_vnni(const struct plane_weigh_args *args)
{
    const struct weigh_isa isa = { round_weights, weigh_all };
    if (args->queries == 1) plane_weigh_avx2(args);
    else weigh_tiles(&isa, args);
}
