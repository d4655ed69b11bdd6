/* SPDX-License-Identifier: Apache-2.0 */
/* planes.cu — the kernels of planes_launch.h.
 *
 * Grid     a block per run; `choose` a block per query row
 * Block    128 threads. Where scores are made a lane is a token, half a warp is a tile of 16, and
 *          tokens of a tile are compared by shuffles inside that half. Where values are summed a
 *          thread owns dimensions thread and thread + 128
 * Shared   score: queries (8, D) fp32, their codes (8, D) int8, centroids' scores (8, 64): 12.1 KB
 *          at D = 256. weigh: (8, D) fp32 and weights of 32 tokens: 10.2 KB
 * Integers dp4a multiplies four codes at a time: nibbles and 7-bit codes are signed bytes that are
 *          not negative. Byte j of a word of K-hi holds dimension 8v+j low, 8v+4+j high, so that a
 *          word masked, and shifted and masked, meets two consecutive words of a query's codes
 * Choosing is one thread over 1,024 bins, readable and slow; not yet measured on a GPU
 *
 * Shapes: planes_launch.h. reference: planes.c, which calls the references of the CPU's kernels
 */
#include "attention/cuda/simt.h"
#include "index/kernels/planes.cuh"
#include "index/kernels/planes_launch.h"

/* ---- score ---- */

struct score_shared {
    float *turned;     /* (8, D) q' */
    float *centre;     /* (8, 64) */
    float *scale, *offset, *sum; /* (8) */
    uint32_t *codes;   /* (8, D / 4) four int8 each */
};

static inline size_t score_bytes(uint32_t head_dim)
{
    return LAUNCH_QUERIES * (head_dim + PLANES_CLUSTERS + 3 + head_dim / 4) * sizeof(float);
}

/* The codes of a query row and what goes with them: by the warp that owns it. */
SIMT_DEVICE void round_queries(const struct planes_launch *args, const struct planes_run *run,
                               const struct score_shared *shared)
{
    uint32_t dims = args->head_dim;
    unsigned lane = threadIdx.x % SIMT_WARP;
    const float *mean = floats_at(run, args->layout.key_mean);
    for (unsigned m = threadIdx.x / SIMT_WARP; m < run->queries; m += RUN_WARPS) {
        const float *q = args->q + (size_t)(run->query + m) * dims;
        const float *turned = shared->turned + m * dims;
        int8_t *codes = (int8_t *)(void *)(shared->codes + m * (dims / 4));
        float most = 0.0F, square = 0.0F, offset = 0.0F, sum = 0.0F;
        for (unsigned d = lane; d < dims; d += SIMT_WARP) {
            most = fmaxf(most, fabsf(turned[d]));
            square += turned[d] * turned[d];
            offset += q[d] * mean[d];
        }
        most = simt_warp_max(most);
        float inverse = most > 0.0F ? 127.0F / most : 0.0F;
        for (unsigned d = lane; d < dims; d += SIMT_WARP) {
            long code = lrintf(turned[d] * inverse);
            codes[d] = (int8_t)code;
            sum += (float)code;
        }
        square = simt_warp_sum(square);
        offset = simt_warp_sum(offset);
        sum = simt_warp_sum(sum);
        if (lane != 0) continue;
        shared->scale[m] = most / 127.0F;
        shared->offset[m] = offset;
        shared->sum[m] = sum;
        args->square[blockIdx.x * LAUNCH_QUERIES + m] = square;
    }
}

SIMT_DEVICE void score_centroids(const struct planes_launch *args, const struct planes_run *run,
                                 const struct score_shared *shared)
{
    uint32_t words = args->head_dim / 4;
    const float *scale = floats_at(run, args->layout.centroid_scale);
    for (unsigned i = threadIdx.x; i < run->queries * PLANES_CLUSTERS; i += RUN_THREADS) {
        unsigned m = i / PLANES_CLUSTERS, c = i % PLANES_CLUSTERS;
        const unsigned char *tile =
            run->hi + args->layout.centroids + (size_t)(c / HALF) * HALF * args->head_dim;
        int dot = 0;
        for (uint32_t w = 0; w < words; w++)
            dot = __dp4a((int)word_at(tile, w * HALF + c % HALF),
                         (int)shared->codes[m * words + w], dot);
        shared->centre[i] = shared->scale[m] * scale[c] * ((float)dot - 63.5F * shared->sum[m]) +
                            shared->offset[m];
    }
}

/* The token of this lane for all query rows, with the mean of its tile moved to the centroid's:
 * each by its share of step² (progressive_scan.c). */
SIMT_DEVICE void score_token(const struct planes_launch *args, const struct planes_run *run,
                             const struct score_shared *shared, unsigned place)
{
    uint32_t words = args->head_dim / 4;
    unsigned c = place / HALF;
    const unsigned char *tile =
        run->hi + args->layout.key_hi + (size_t)c * HALF * args->head_dim / 2;
    float step = step_of(run, args->layout.key_scale, place);
    float *scores = args->scores + (size_t)blockIdx.x * LAUNCH_QUERIES * PLANES_TOKENS + place;
    int dots[LAUNCH_QUERIES];
    SIMT_UNROLL
    for (unsigned m = 0; m < LAUNCH_QUERIES; m++) dots[m] = 0;
    for (uint32_t v = 0; v < words / 2; v++) {
        uint32_t word = word_at(tile, v * HALF + place % HALF);
        SIMT_UNROLL
        for (unsigned m = 0; m < LAUNCH_QUERIES; m++) {
            if (m >= run->queries) continue;
            const uint32_t *codes = shared->codes + m * words + 2 * v;
            dots[m] = __dp4a((int)(word & NIBBLES), (int)codes[0], dots[m]);
            dots[m] = __dp4a((int)(word >> 4 & NIBBLES), (int)codes[1], dots[m]);
        }
    }
    float squares = tile_sum(step * step);
    float share = squares > 0.0F ? step * step / squares : 0.0F;
    SIMT_UNROLL
    for (unsigned m = 0; m < LAUNCH_QUERIES; m++) {
        if (m >= run->queries) continue;
        float score = shared->scale[m] * step * ((float)dots[m] - 7.5F * shared->sum[m]) +
                      shared->offset[m];
        float excess = tile_sum(score) - (float)HALF * shared->centre[m * PLANES_CLUSTERS + c];
        scores[(size_t)m * PLANES_TOKENS] = score - excess * share;
    }
}

SIMT_KERNEL(planes_score, struct planes_launch)
{
    SIMT_SHARED(float, memory);
    const struct planes_run *run = &args.runs[blockIdx.x];
    uint32_t dims = args.head_dim;
    struct score_shared shared;
    shared.turned = memory;
    shared.centre = shared.turned + LAUNCH_QUERIES * dims;
    shared.scale = shared.centre + LAUNCH_QUERIES * PLANES_CLUSTERS;
    shared.offset = shared.scale + LAUNCH_QUERIES;
    shared.sum = shared.offset + LAUNCH_QUERIES;
    shared.codes = (uint32_t *)(void *)(shared.sum + LAUNCH_QUERIES);
    const float *balance = floats_at(run, args.layout.balance);
    for (unsigned i = threadIdx.x; i < run->queries * dims; i += RUN_THREADS)
        shared.turned[i] = args.q[(size_t)run->query * dims + i] / balance[i % dims];
    size_t bins = (size_t)args.queries * PLANES_BINS; /* of all blocks together: begin at 0 */
    for (size_t i = (size_t)blockIdx.x * RUN_THREADS + threadIdx.x; i < bins;
         i += (size_t)gridDim.x * RUN_THREADS)
        args.histogram[i] = 0;
    if (threadIdx.x == 0) args.picked[blockIdx.x] = 0;
    __syncthreads();
    rotate_rows(&args, shared.turned, run->queries, false);
    round_queries(&args, run, &shared);
    __syncthreads();
    score_centroids(&args, run, &shared);
    __syncthreads();
    for (unsigned place = threadIdx.x; place < PLANES_TOKENS; place += RUN_THREADS) {
        score_token(&args, run, &shared, place);
        args.levels[(size_t)blockIdx.x * PLANES_TOKENS + place] = PLANES_AT_HI;
    }
}

/* ---- weigh ---- */

struct weigh_shared {
    float *rows;   /* (8, D): sums of values, at the end */
    float *fine;   /* (8, 32) what a weight has over the least of its tile, times the step */
    float *mass;   /* (8, 2) of a tile */
    float *inverse; /* (8) */
};

static inline size_t weigh_bytes(uint32_t head_dim)
{
    return LAUNCH_QUERIES * (head_dim + SIMT_WARP + 2 + 1) * sizeof(float);
}

/* Largest score of the tokens that stay at hi. */
SIMT_DEVICE float largest_score(const float *scores, const uint8_t *levels)
{
    float most = -INFINITY;
    for (unsigned place = threadIdx.x % SIMT_WARP; place < PLANES_TOKENS; place += SIMT_WARP)
        if (levels[place] == PLANES_AT_HI) most = fmaxf(most, scores[place]);
    return simt_warp_max(most);
}

/* Two tiles, from token `first` on: dimension d of all query rows. acc (8) */
SIMT_DEVICE void weigh_tiles(const struct planes_launch *args, const struct planes_run *run,
                             const struct weigh_shared *shared, unsigned first, unsigned d,
                             float *acc)
{
    uint32_t dims = args->head_dim;
    const float *scale = floats_at(run, args->layout.mean_scale);
    for (unsigned half = 0; half < 2; half++) {
        unsigned c = first / HALF + half;
        const int8_t *means = (const int8_t *)(const void *)(run->hi + args->layout.means);
        const unsigned char *tile = run->hi + args->layout.value_hi + (size_t)c * HALF * dims / 2;
        float mean = scale[c] * (float)means[c * dims + d];
        SIMT_UNROLL
        for (unsigned m = 0; m < LAUNCH_QUERIES; m++)
            if (m < run->queries) acc[m] += shared->mass[m * 2 + half] * mean;
        for (unsigned i = 0; i < HALF; i++) {
            uint32_t word = word_at(tile, (size_t)(i / 8) * dims + d);
            unsigned shift = 8 * (i % 4) + (i % 8 < 4 ? 0 : 4);
            float code = (float)(word >> shift & 15U) - 7.5F;
            SIMT_UNROLL
            for (unsigned m = 0; m < LAUNCH_QUERIES; m++)
                if (m < run->queries)
                    acc[m] += shared->fine[m * SIMT_WARP + half * HALF + i] * code;
        }
    }
}

SIMT_KERNEL(planes_weigh, struct planes_launch)
{
    SIMT_SHARED(float, memory);
    const struct planes_run *run = &args.runs[blockIdx.x];
    if (args.again != 0 && args.picked[blockIdx.x] == 0) return; /* as it was */
    uint32_t dims = args.head_dim;
    unsigned lane = threadIdx.x % SIMT_WARP, warp = threadIdx.x / SIMT_WARP;
    struct weigh_shared shared;
    shared.rows = memory;
    shared.fine = shared.rows + LAUNCH_QUERIES * dims;
    shared.mass = shared.fine + LAUNCH_QUERIES * SIMT_WARP;
    shared.inverse = shared.mass + LAUNCH_QUERIES * 2;
    const uint8_t *levels = args.levels + (size_t)blockIdx.x * PLANES_TOKENS;
    const float *scores = args.scores + (size_t)blockIdx.x * LAUNCH_QUERIES * PLANES_TOKENS;
    float max[RUN_OWNED], sum[RUN_OWNED], acc[RUN_DIMS][LAUNCH_QUERIES];
    SIMT_UNROLL
    for (unsigned i = 0; i < RUN_OWNED; i++) {
        unsigned m = warp + i * RUN_WARPS;
        sum[i] = 0.0F;
        max[i] = -INFINITY;
        if (m < run->queries) max[i] = largest_score(scores + m * PLANES_TOKENS, levels);
    }
    SIMT_UNROLL
    for (unsigned i = 0; i < RUN_DIMS; i++) {
        SIMT_UNROLL
        for (unsigned m = 0; m < LAUNCH_QUERIES; m++) acc[i][m] = 0.0F;
    }
    for (unsigned first = 0; first < PLANES_TOKENS; first += SIMT_WARP) {
        float step = step_of(run, args.layout.value_scale, first + lane);
        SIMT_UNROLL
        for (unsigned i = 0; i < RUN_OWNED; i++) {
            unsigned m = warp + i * RUN_WARPS;
            if (m >= run->queries) break;
            float weight = levels[first + lane] != PLANES_AT_HI
                               ? 0.0F
                               : expf(scores[m * PLANES_TOKENS + first + lane] - max[i]);
            float mass = tile_sum(weight);
            shared.fine[m * SIMT_WARP + lane] = (weight - tile_least(weight)) * step;
            if (lane % HALF == 0) shared.mass[m * 2 + lane / HALF] = mass;
            sum[i] += mass;
        }
        __syncthreads();
        SIMT_UNROLL
        for (unsigned i = 0; i < RUN_DIMS; i++) {
            unsigned d = threadIdx.x + i * RUN_THREADS;
            if (d < dims) weigh_tiles(&args, run, &shared, first, d, acc[i]);
        }
        __syncthreads();
    }
    SIMT_UNROLL
    for (unsigned i = 0; i < RUN_OWNED; i++) {
        unsigned m = warp + i * RUN_WARPS;
        if (m >= run->queries) break;
        /* A lane has summed the tiles of its half. */
        float whole = sum[i] + __shfl_xor_sync(SIMT_ALL, sum[i], HALF);
        if (lane != 0) continue;
        shared.inverse[m] = whole > 0.0F ? 1.0F / whole : 0.0F;
        args.lse[run->result + m] = whole > 0.0F ? max[i] + logf(whole) : -INFINITY;
    }
    SIMT_UNROLL
    for (unsigned i = 0; i < RUN_DIMS; i++) {
        unsigned d = threadIdx.x + i * RUN_THREADS;
        SIMT_UNROLL
        for (unsigned m = 0; m < LAUNCH_QUERIES; m++)
            if (d < dims && m < run->queries) shared.rows[m * dims + d] = acc[i][m];
    }
    rotate_rows(&args, shared.rows, run->queries, true);
    for (unsigned i = threadIdx.x; i < run->queries * dims; i += RUN_THREADS)
        args.o[(size_t)run->result * dims + i] = shared.rows[i] * shared.inverse[i / dims];
}

/* ---- judge and pick ---- */

/* The answers so far, rotated (8, D), and their squares (8), in shared memory. */
SIMT_DEVICE void bring_totals(const struct planes_launch *args, const struct planes_run *run,
                              float *rows, float *squares)
{
    uint32_t dims = args->head_dim;
    for (unsigned i = threadIdx.x; i < run->queries * dims; i += RUN_THREADS)
        rows[i] = args->total_o[(size_t)run->query * dims + i];
    __syncthreads();
    rotate_rows(args, rows, run->queries, false);
    for (unsigned m = threadIdx.x / SIMT_WARP; m < run->queries; m += RUN_WARPS) {
        float square = 0.0F;
        for (unsigned d = threadIdx.x % SIMT_WARP; d < dims; d += SIMT_WARP)
            square += rows[m * dims + d] * rows[m * dims + d];
        square = simt_warp_sum(square);
        if (threadIdx.x % SIMT_WARP == 0) squares[m] = square;
    }
    __syncthreads();
}

/* e² of the token of this lane for query row m: what its codes move the answer by, squared and over
 * |o|² (progressive_refine.c). All lanes of the warp take part. */
SIMT_DEVICE float token_error(const struct planes_launch *args, const struct planes_run *run,
                              const float *rows, const float *squares, unsigned place, unsigned m)
{
    uint32_t dims = args->head_dim;
    unsigned c = place / HALF;
    const int8_t *means = (const int8_t *)(const void *)(run->hi + args->layout.means);
    float scale = floats_at(run, args->layout.mean_scale)[c], distance = 0.0F;
    for (unsigned d = place % HALF; d < dims; d += HALF) {
        float e = scale * (float)means[c * dims + d] - rows[m * dims + d];
        distance += e * e;
    }
    distance = tile_sum(distance) + floats_at(run, args->layout.value_spread)[c];
    size_t at = ((size_t)blockIdx.x * LAUNCH_QUERIES + m) * PLANES_TOKENS + place;
    float lse = args->total_lse[run->query + m];
    float share = lse > -INFINITY ? expf(args->scores[at] - lse) : 0.0F;
    float uneven = share - tile_least(share);
    float key = step_of(run, args->layout.key_scale, place);
    float value = step_of(run, args->layout.value_scale, place);
    float moved = share * share * args->square[blockIdx.x * LAUNCH_QUERIES + m] * key * key *
                      distance +
                  uneven * uneven * (float)dims * value * value;
    return squares[m] > 0.0F ? moved / (12.0F * squares[m]) : 0.0F;
}

/* Below this no threshold ever is: all such tokens together are a tenth of the target. */
SIMT_DEVICE float quiet_error(const struct planes_launch *args)
{
    return 0.1F * args->target * args->target / ((float)args->count * (float)PLANES_TOKENS);
}

SIMT_DEVICE unsigned bin_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits >> 21;
}

SIMT_DEVICE float least_of_bin(unsigned bin)
{
    uint32_t bits = bin << 21;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

SIMT_KERNEL(planes_judge, struct planes_launch)
{
    SIMT_SHARED(float, memory); /* (8, D), (8) */
    const struct planes_run *run = &args.runs[blockIdx.x];
    float *squares = memory + LAUNCH_QUERIES * args.head_dim;
    bring_totals(&args, run, memory, squares);
    for (unsigned m = 0; m < run->queries; m++) {
        unsigned long long *bins = args.histogram + (size_t)(run->query + m) * PLANES_BINS;
        for (unsigned place = threadIdx.x; place < PLANES_TOKENS; place += RUN_THREADS) {
            float error = token_error(&args, run, memory, squares, place, m);
            if (error >= quiet_error(&args)) atomicAdd(bins + bin_of(error), 1);
        }
    }
}

SIMT_KERNEL(planes_choose, struct planes_launch)
{
    const unsigned long long *bins = args.histogram + (size_t)blockIdx.x * PLANES_BINS;
    if (threadIdx.x != 0) return;
    float budget = 0.9F * args.target * args.target, all = 0.0F, coded = 0.0F, below = 0.0F;
    unsigned exact = 0, lo = 0;
    /* A bin counts with its middle. */
    for (unsigned bin = 0; bin < PLANES_BINS; bin++)
        all += bins[bin] == 0 ? 0.0F : (float)bins[bin] * 1.125F * least_of_bin(bin);
    for (; exact < PLANES_BINS; exact++) {
        float more = bins[exact] == 0 ? 0.0F : (float)bins[exact] * 1.125F * least_of_bin(exact);
        if (coded + more > 0.5F * budget / LO_SHARE) break;
        coded += more;
    }
    for (; lo < exact; lo++) {
        float more = bins[lo] == 0 ? 0.0F : (float)bins[lo] * 1.125F * least_of_bin(lo);
        if (below + more + (coded - below - more) * LO_SHARE > budget) break;
        below += more;
    }
    bool enough = all <= budget;
    args.thresholds[2 * blockIdx.x] = enough ? INFINITY : least_of_bin(lo);
    args.thresholds[2 * blockIdx.x + 1] =
        enough || exact == PLANES_BINS ? INFINITY : least_of_bin(exact);
}

/* Levels -> the lists of tokens at 8 bits and of exact rows, in the order of places. */
SIMT_DEVICE void list_tokens(const struct planes_launch *args, const struct planes_run *run,
                             uint8_t *levels)
{
    size_t at = blockIdx.x;
    const uint16_t *rows = (const uint16_t *)(const void *)(run->hi + args->layout.rows);
    uint32_t lo = 0, exact = 0;
    for (unsigned place = 0; place < PLANES_TOKENS; place++) {
        if (levels[place] == PLANES_AT_LO && (run->lo == NULL || lo == PLANES_LO_ROWS))
            levels[place] = PLANES_AT_EXACT;
        if (levels[place] == PLANES_AT_EXACT && run->rows.k == NULL)
            levels[place] = run->lo != NULL && lo < PLANES_LO_ROWS ? PLANES_AT_LO : PLANES_AT_HI;
        if (levels[place] == PLANES_AT_LO)
            args->lo_places[at * PLANES_LO_ROWS + lo++] = (uint16_t)place;
        if (levels[place] != PLANES_AT_EXACT) continue;
        args->exact_ids[at * PLANES_TOKENS + exact] = rows[place];
        args->exact_positions[at * PLANES_TOKENS + exact++] = run->position + rows[place];
    }
    args->picked[at] = lo + exact;
    struct partial_run *coded = &args->lo_runs[at];
    coded->rows.k = lo == 0 ? NULL : args->decoded + at * PLANES_LO_ROWS * 2 * args->head_dim;
    coded->rows.v = lo == 0 ? NULL : (const float *)coded->rows.k + args->head_dim;
    coded->rows.k_stride_bytes = coded->rows.v_stride_bytes =
        2 * args->head_dim * (uint32_t)sizeof(float);
    coded->rows.k_dtype = coded->rows.v_dtype = DTYPE_FP32;
    coded->count = lo;
    coded->query = run->query;
    coded->queries = run->queries;
    coded->result = run->result + run->queries;
    coded->position = run->position; /* of a segment that is seen whole */
    struct gather_run *stored = &args->exact_runs[at];
    stored->rows = run->rows;
    stored->ids = args->exact_ids + at * PLANES_TOKENS;
    stored->positions = args->exact_positions + at * PLANES_TOKENS;
    stored->count = exact;
    stored->query = run->query;
    stored->queries = run->queries;
    stored->result = run->result + 2 * run->queries;
}

SIMT_KERNEL(planes_pick, struct planes_launch)
{
    SIMT_SHARED(float, memory); /* (8, D), (8), (8, 4) */
    const struct planes_run *run = &args.runs[blockIdx.x];
    float *squares = memory + LAUNCH_QUERIES * args.head_dim, *sums = squares + LAUNCH_QUERIES;
    uint8_t *levels = args.levels + (size_t)blockIdx.x * PLANES_TOKENS;
    bring_totals(&args, run, memory, squares);
    for (unsigned place = threadIdx.x; place < PLANES_TOKENS; place += RUN_THREADS) {
        unsigned level = PLANES_AT_HI;
        for (unsigned m = 0; m < run->queries; m++) {
            const float *thresholds = args.thresholds + 2 * (size_t)(run->query + m);
            float error = token_error(&args, run, memory, squares, place, m);
            if (error >= thresholds[1]) level = PLANES_AT_EXACT;
            else if (error >= thresholds[0] && level == PLANES_AT_HI) level = PLANES_AT_LO;
        }
        levels[place] = (uint8_t)level;
    }
    __syncthreads();
    if (threadIdx.x == 0) list_tokens(&args, run, levels);
    __syncthreads();
    for (unsigned m = 0; m < run->queries; m++) {
        float left = 0.0F;
        for (unsigned place = threadIdx.x; place < PLANES_TOKENS; place += RUN_THREADS) {
            float error = token_error(&args, run, memory, squares, place, m);
            if (levels[place] == PLANES_AT_HI) left += error;
            if (levels[place] == PLANES_AT_LO) left += LO_SHARE * error;
        }
        left = simt_warp_sum(left);
        if (threadIdx.x % SIMT_WARP == 0) sums[m * RUN_WARPS + threadIdx.x / SIMT_WARP] = left;
    }
    __syncthreads();
    for (unsigned m = threadIdx.x; m < run->queries; m += RUN_THREADS) {
        float left = 0.0F;
        for (unsigned warp = 0; warp < RUN_WARPS; warp++) left += sums[m * RUN_WARPS + warp];
        args.left[blockIdx.x * LAUNCH_QUERIES + m] = left;
    }
}

/* ---- decode ---- */

/* A 4-bit code of HI and one of LO, as one of 8 bits around its middle. */
SIMT_DEVICE float code_of(unsigned high, unsigned low)
{
    return (float)(16 * (high & 15U) + (low & 15U)) - 127.5F;
}

SIMT_KERNEL(planes_decode, struct planes_launch)
{
    SIMT_SHARED(float, rows); /* (2, D): K, V */
    const struct planes_run *run = &args.runs[blockIdx.x];
    uint32_t dims = args.head_dim, count = args.lo_runs[blockIdx.x].count;
    const float *balance = floats_at(run, args.layout.balance);
    const float *key_mean = floats_at(run, args.layout.key_mean);
    const float *mean_scale = floats_at(run, args.layout.mean_scale);
    const int8_t *means = (const int8_t *)(const void *)(run->hi + args.layout.means);
    for (uint32_t row = 0; row < count; row++) {
        unsigned place = args.lo_places[(size_t)blockIdx.x * PLANES_LO_ROWS + row];
        unsigned c = place / HALF, i = place % HALF;
        const unsigned char *key = run->hi + args.layout.key_hi + (size_t)c * HALF * dims / 2;
        const unsigned char *value = run->hi + args.layout.value_hi + (size_t)c * HALF * dims / 2;
        const unsigned char *low = run->lo + (size_t)place * dims;
        float key_step = step_of(run, args.layout.key_scale, place) / 16.0F;
        float value_step = step_of(run, args.layout.value_scale, place) / 16.0F;
        for (unsigned d = threadIdx.x; d < dims; d += RUN_THREADS) {
            unsigned shift = d % 2 * 4;
            unsigned k_low = low[d / 2], v_low = low[dims / 2 + d / 2];
            unsigned k = key[d / 8 * 64 + 4 * i + d % 4], v = value[(i / 8 * dims + d) * 4 + i % 4];
            rows[d] = key_step * code_of(d % 8 < 4 ? k : k >> 4, k_low >> shift);
            rows[dims + d] =
                value_step * code_of(i % 8 < 4 ? v : v >> 4, v_low >> shift) +
                mean_scale[c] * (float)means[c * dims + d];
        }
        rotate_rows(&args, rows, 2, true); /* begins and ends with a barrier */
        float *to = args.decoded + ((size_t)blockIdx.x * PLANES_LO_ROWS + row) * 2 * dims;
        for (unsigned d = threadIdx.x; d < dims; d += RUN_THREADS) {
            to[d] = rows[d] / balance[d] + key_mean[d];
            to[dims + d] = rows[dims + d];
        }
    }
}

/* ---- launchers ---- */

SIMT_LAUNCHER int planes_score_launch(const struct planes_launch *args, void *stream)
{
    if (args->count == 0) return 0;
    return SIMT_LAUNCH(planes_score, args->count, RUN_THREADS, score_bytes(args->head_dim), stream,
                       *args);
}

SIMT_LAUNCHER int planes_weigh_launch(const struct planes_launch *args, void *stream)
{
    if (args->count == 0) return 0;
    return SIMT_LAUNCH(planes_weigh, args->count, RUN_THREADS, weigh_bytes(args->head_dim), stream,
                       *args);
}

static inline size_t totals_bytes(uint32_t head_dim)
{
    return LAUNCH_QUERIES * (head_dim + 1 + RUN_WARPS) * sizeof(float);
}

SIMT_LAUNCHER int planes_judge_launch(const struct planes_launch *args, void *stream)
{
    if (args->count == 0) return 0;
    return SIMT_LAUNCH(planes_judge, args->count, RUN_THREADS, totals_bytes(args->head_dim), stream,
                       *args);
}

SIMT_LAUNCHER int planes_choose_launch(const struct planes_launch *args, void *stream)
{
    if (args->queries == 0) return 0;
    return SIMT_LAUNCH(planes_choose, args->queries, SIMT_WARP, 0, stream, *args);
}

SIMT_LAUNCHER int planes_pick_launch(const struct planes_launch *args, void *stream)
{
    if (args->count == 0) return 0;
    return SIMT_LAUNCH(planes_pick, args->count, RUN_THREADS, totals_bytes(args->head_dim), stream,
                       *args);
}

SIMT_LAUNCHER int planes_decode_launch(const struct planes_launch *args, void *stream)
{
    if (args->count == 0) return 0;
    return SIMT_LAUNCH(planes_decode, args->count, RUN_THREADS, 2 * args->head_dim * sizeof(float),
                       stream, *args);
}
