/* SPDX-License-Identifier: Apache-2.0 */
/* test_plane.c — every level of the kernels over planes, each within the bound of its own rounding.
 *
 * Planes are packed here, byte by byte as index/planes.h says, from codes that the test keeps; the
 * truth is computed from those codes and not by the reference, which is tested like the others.
 *
 *     turn             the rotation 1e-6 of the row's length, codes half a step, sums 1e-5
 *     above            the bits of the reference
 *     score, centroid  exact integers, then a few roundings of fp32: 2^-22 of the two terms
 *     soften           2e-7 of exp and the rounding of score - shift
 *     weigh            half a unit of 8 bits of the tile's largest weight, times |h - 7.5|, summed
 *                      (the reference: fp32 only)
 *     means, row       fp32
 *
 * Lists are whole, odd or a single tile; rows have gaps that must stay as they are. FILL_FULL has
 * every code, query and weight at its end, where sums of 16 bits would overflow first.
 */
#include "index/backend.h"
#include "index/rotation.h"
#include "tests/kernels/checks.h"

enum { TOKENS = PLANE_TILE * PLANE_TILES, QUERIES_MAX = 16 };
enum fill { FILL_RANDOM, FILL_FULL, FILL_PEAK, FILLS };

static const float guard = -12345.0F;

struct shape {
    size_t head_dim, queries, count; /* count: tiles of the list */
    bool listed;
    enum fill fill;
};

struct data {
    uint8_t *key, *value;      /* (1024, D) codes n = 16 hi + lo */
    uint8_t *centroid;         /* (64, D) codes */
    uint8_t *key_hi, *value_hi, *lo, *centroids;
    int8_t *means, *q8;        /* (64, D), (M, D) */
    uint16_t *key_scale, *value_scale, *tiles; /* (1024), (1024), (count) */
    float *centroid_scale, *mean_scale, *mass; /* (64), (64), (M, 64) */
    float *scores, *weights, *acc; /* (M, stride), (M, stride), (M, D) */
    float scale[QUERIES_MAX], offset[QUERIES_MAX];
    int32_t sum[QUERIES_MAX];
    size_t stride;
    struct plane_queries queries;
};

struct bench {
    struct checks *checks;
    const struct plane_backend *backend;
    const struct shape *shape;
    const struct data *data;
};

static void *aligned(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (memory != NULL) return memory;
    printf("out of memory\n");
    exit(1);
}

static void data_alloc(const struct shape *shape, struct data *data)
{
    const size_t d = shape->head_dim, m = shape->queries;
    data->stride = shape->count * PLANE_TILE + PLANE_TILE;
    data->key = aligned(TOKENS * d);
    data->value = aligned(TOKENS * d);
    data->centroid = aligned(PLANE_TILES * d);
    data->key_hi = aligned(TOKENS * d / 2);
    data->value_hi = aligned(TOKENS * d / 2);
    data->lo = aligned(TOKENS * d);
    data->centroids = aligned(PLANE_TILES * d);
    data->means = aligned(PLANE_TILES * d);
    data->q8 = aligned(m * d);
    data->key_scale = aligned(TOKENS * sizeof *data->key_scale);
    data->value_scale = aligned(TOKENS * sizeof *data->value_scale);
    data->tiles = aligned(shape->count * sizeof *data->tiles);
    data->centroid_scale = aligned(PLANE_TILES * sizeof(float));
    data->mean_scale = aligned(PLANE_TILES * sizeof(float));
    data->mass = aligned(m * PLANE_TILES * sizeof(float));
    data->scores = aligned(m * data->stride * sizeof(float));
    data->weights = aligned(m * data->stride * sizeof(float));
    data->acc = aligned(m * d * sizeof(float));
}

static void data_free(struct data *data)
{
    void *all[] = { data->key, data->value, data->centroid, data->key_hi, data->value_hi, data->lo,
                    data->centroids, data->means, data->q8, data->key_scale, data->value_scale,
                    data->tiles, data->centroid_scale, data->mean_scale, data->mass, data->scores,
                    data->weights, data->acc };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

/* The bytes of planes.h, "Layout". */
static void pack(size_t head_dim, struct data *data)
{
    memset(data->key_hi, 0, TOKENS * head_dim / 2);
    memset(data->value_hi, 0, TOKENS * head_dim / 2);
    memset(data->lo, 0, TOKENS * head_dim);
    for (size_t p = 0; p < TOKENS; p++) {
        size_t tile = p / 16 * 8 * head_dim, t = p % 16, o = t / 8;
        for (size_t d = 0; d < head_dim; d++) {
            int k = data->key[p * head_dim + d], v = data->value[p * head_dim + d];
            size_t k_at = tile + 64 * (d / 8) + 4 * t + d % 4;
            size_t v_at = tile + (o * head_dim + d) * 4 + t % 4;
            size_t lo_at = p * head_dim + d / 2;
            data->key_hi[k_at] |= (uint8_t)(k / 16 << (d % 8 < 4 ? 0 : 4));
            data->value_hi[v_at] |= (uint8_t)(v / 16 << (t % 8 < 4 ? 0 : 4));
            data->lo[lo_at] |= (uint8_t)(k % 16 << (d % 2 == 0 ? 0 : 4));
            data->lo[lo_at + head_dim / 2] |= (uint8_t)(v % 16 << (d % 2 == 0 ? 0 : 4));
        }
    }
    for (size_t c = 0; c < PLANE_TILES; c++)
        for (size_t d = 0; d < head_dim; d++)
            data->centroids[c / 16 * 16 * head_dim + d / 4 * 64 + c % 16 * 4 + d % 4] =
                data->centroid[c * head_dim + d];
}

static void fill_codes(const struct shape *shape, struct data *data, uint64_t *random)
{
    const size_t d = shape->head_dim;
    const bool full = shape->fill == FILL_FULL;
    for (size_t i = 0; i < TOKENS * d; i++) {
        data->key[i] = full ? 255 : (uint8_t)random_u64(random);
        data->value[i] = full ? 255 : (uint8_t)random_u64(random);
    }
    for (size_t i = 0; i < PLANE_TILES * d; i++) {
        data->centroid[i] = full ? 127 : (uint8_t)(random_u64(random) & 127);
        data->means[i] = full ? -127 : (int8_t)((int)random_below(random, 255) - 127);
    }
    for (size_t i = 0; i < TOKENS; i++) {
        data->key_scale[i] = half_to_fp16(0.05F * (1.5F + random_float(random)));
        data->value_scale[i] = full ? half_to_fp16(0.25F)
                                    : half_to_fp16(0.05F * (1.5F + random_float(random)));
    }
    for (size_t i = 0; i < PLANE_TILES; i++) {
        data->centroid_scale[i] = 0.02F * (1.5F + random_float(random));
        data->mean_scale[i] = 0.02F * (1.5F + random_float(random));
    }
}

/* A weight: between 0 and 1; in FILL_FULL all the same; in FILL_PEAK most tiles have none and one
 * token has nearly all. */
static float weight_value(const struct shape *shape, size_t m, size_t p, uint64_t *random)
{
    float even = 0.5F * (1.0F + random_float(random));
    if (shape->fill == FILL_FULL) return 0.75F;
    if (shape->fill == FILL_RANDOM) return even;
    if ((p / PLANE_TILE + m) % 3 != 0) return 0.0F;
    return p % 41 == 0 ? 1.0F : 1e-3F * even;
}

static void fill_rows(const struct shape *shape, struct data *data, uint64_t *random)
{
    const size_t d = shape->head_dim;
    for (size_t m = 0; m < shape->queries; m++) {
        data->sum[m] = 0;
        for (size_t i = 0; i < d; i++) {
            int code = (int)random_below(random, 255) - 127;
            if (shape->fill == FILL_FULL) code = m % 2 == 0 ? 127 : -127;
            data->q8[m * d + i] = (int8_t)code;
            data->sum[m] += code;
        }
        data->scale[m] = 1e-3F * (1.5F + random_float(random));
        data->offset[m] = 3.0F * random_float(random);
        for (size_t c = 0; c < PLANE_TILES; c++)
            data->mass[m * PLANE_TILES + c] =
                random_below(random, 3) == 0 ? 0.0F : 2.0F * random_float(random);
        for (size_t p = 0; p < data->stride; p++) {
            bool inside = p < shape->count * PLANE_TILE;
            data->scores[m * data->stride + p] = inside ? 6.0F * checks_normal(random) : guard;
            data->weights[m * data->stride + p] =
                inside ? weight_value(shape, m, p, random) : guard;
        }
        for (size_t i = 0; i < d; i++) data->acc[m * d + i] = checks_normal(random);
    }
    for (size_t i = 0; i < shape->count; i++) /* ascending, with gaps where there is room */
        data->tiles[i] = (uint16_t)(i * PLANE_TILES / shape->count +
                                    random_below(random, PLANE_TILES / shape->count));
    data->queries = (struct plane_queries){ data->q8, data->scale, data->offset, data->sum,
                                            shape->queries, d };
}

static size_t place_of(const struct bench *bench, size_t at, size_t i)
{
    return (bench->shape->listed ? bench->data->tiles[at] : at) * PLANE_TILE + i;
}

/* `values` against `truth`, each within its own bound. */
static void within(const struct bench *bench, const char *what, const float *values,
                   const double *truth, const double *bound, size_t count)
{
    size_t at = 0;
    while (at < count && fabs((double)values[at] - truth[at]) <= bound[at]) at++;
    if (at == count) {
        bench->checks->passed++;
        return;
    }
    if (bench->checks->failed++ < CHECKS_SHOWN)
        printf("FAILED %s %s D=%zu queries=%zu count=%zu listed=%d fill=%d: [%zu] is %.9g, truth "
               "%.9g ± %.2g\n", bench->backend->name, what, bench->shape->head_dim,
               bench->shape->queries, bench->shape->count, bench->shape->listed,
               (int)bench->shape->fill, at, (double)values[at], truth[at], bound[at]);
}

static const double two_roundings = 1.0 / (1 << 22);

/* One pass of rotation.h over x (P), P a power of two: signs, then Hadamard, entry by entry. */
static void rotate_truth(double *x, size_t size, const uint8_t *signs)
{
    double *from = aligned(size * sizeof *from);
    for (size_t i = 0; i < size; i++) from[i] = (signs[i / 8] >> i % 8 & 1) != 0 ? -x[i] : x[i];
    for (size_t i = 0; i < size; i++) {
        double sum = 0.0;
        for (size_t j = 0; j < size; j++)
            sum += __builtin_parityll(i & j) != 0 ? -from[j] : from[j];
        x[i] = sum / sqrt((double)size);
    }
    free(from);
}

/* Queries (M, D) from acc, channels of a segment from other random numbers of the data. */
struct turn_case {
    float *balance, *key_mean, *query_square, *turned; /* (D), (D), (D), (M, D) */
    int8_t *q8;                                        /* (M, D) */
    float scale[QUERIES_MAX], offset[QUERIES_MAX], deviation[QUERIES_MAX], square[QUERIES_MAX];
    int32_t sum[QUERIES_MAX];
    bool observed;
};

static const float turn_floor = 0.05F;

/* Truth of row m: turned (D), offset, deviation. */
static void turn_truth(const struct bench *bench, const struct turn_case *at, size_t m,
                       double *ret_turned, double *ret_offset, double *ret_deviation)
{
    const size_t d = bench->shape->head_dim;
    const float *q = bench->data->acc + m * d;
    size_t size = 8;
    double mean = 0.0, ratio = 0.0;
    *ret_offset = 0.0;
    for (size_t i = 0; i < d; i++) mean += (double)at->query_square[i] / (double)d;
    for (size_t i = 0; i < d; i++) {
        double least = (double)turn_floor * mean, square = (double)at->query_square[i];
        double weight = at->observed ? 1.0 / fmax(square, least) : 1.0;
        ratio += (double)q[i] * (double)q[i] * weight;
        *ret_offset += (double)q[i] * (double)at->key_mean[i];
        ret_turned[i] = (double)q[i] / (double)at->balance[i];
    }
    *ret_deviation = sqrt(ratio / (double)d);
    while (2 * size <= d) size *= 2;
    rotate_truth(ret_turned, size, rotation_signs(0));
    if (size < d) rotate_truth(ret_turned + d - size, size, rotation_signs(1));
}

static void check_turned(const struct bench *bench, const struct turn_case *at, size_t m)
{
    const size_t d = bench->shape->head_dim;
    double *truth = aligned(d * sizeof *truth), *bound = aligned(d * sizeof *bound);
    double offset = 0.0, deviation = 0.0, square = 0.0, length = 0.0, sum = 0.0;
    float *codes = aligned(d * sizeof *codes);
    turn_truth(bench, at, m, truth, &offset, &deviation);
    for (size_t i = 0; i < d; i++) {
        square += truth[i] * truth[i];
        length += fabs((double)bench->data->acc[m * d + i] * (double)at->key_mean[i]);
        sum += at->q8[m * d + i];
        codes[i] = at->scale[m] * (float)at->q8[m * d + i];
    }
    for (size_t i = 0; i < d; i++) bound[i] = 1e-6 * sqrt(square);
    within(bench, "turned", at->turned + m * d, truth, bound, d);
    for (size_t i = 0; i < d; i++) bound[i] += 0.5001 * (double)at->scale[m];
    within(bench, "q8", codes, truth, bound, d);
    const float got[] = { at->offset[m], at->deviation[m], at->square[m], (float)at->sum[m] };
    const double want[] = { offset, deviation, square, sum };
    const double near[] = { 1e-5 * length, 1e-5 * deviation, 1e-5 * square, 0.0 };
    within(bench, "offset, deviation, square, sum", got, want, near, 4);
    free(truth);
    free(bound);
    free(codes);
}

static void check_turn(const struct bench *bench, uint64_t *random)
{
    const struct data *data = bench->data;
    const size_t d = bench->shape->head_dim, rows = bench->shape->queries;
    struct turn_case at = { .balance = aligned(d * sizeof(float)),
                            .key_mean = aligned(d * sizeof(float)),
                            .query_square = aligned(d * sizeof(float)),
                            .turned = aligned(rows * d * sizeof(float)), .q8 = aligned(rows * d),
                            .observed = bench->shape->fill != FILL_FULL };
    for (size_t i = 0; i < d; i++) {
        at.balance[i] = 1.5F + random_float(random);
        at.key_mean[i] = checks_normal(random);
        at.query_square[i] = i % 5 == 0 ? 1e-6F : 1.0F + random_float(random);
    }
    bench->backend->turn(&(struct plane_turn_args){
        .q = data->acc, .balance = at.balance, .key_mean = at.key_mean,
        .query_square = at.observed ? at.query_square : NULL, .floor = turn_floor,
        .signs = { rotation_signs(0), rotation_signs(1) }, .queries = rows, .head_dim = d,
        .turned = at.turned, .q8 = at.q8, .scale = at.scale, .offset = at.offset,
        .deviation = at.deviation, .square = at.square, .sum = at.sum });
    for (size_t m = 0; m < rows; m++) check_turned(bench, &at, m);
    void *all[] = { at.balance, at.key_mean, at.query_square, at.turned, at.q8 };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

static void check_score(const struct bench *bench)
{
    const struct data *data = bench->data;
    const size_t d = bench->shape->head_dim, stride = data->stride;
    float *scores = aligned(bench->shape->queries * stride * sizeof *scores);
    double *truth = aligned(stride * sizeof *truth), *bound = aligned(stride * sizeof *bound);
    for (size_t i = 0; i < bench->shape->queries * stride; i++) scores[i] = guard;
    bench->backend->score(&(struct plane_score_args){
        .queries = &data->queries, .key_hi = data->key_hi, .key_scale = data->key_scale,
        .tiles = bench->shape->listed ? data->tiles : NULL, .count = bench->shape->count,
        .stride = stride, .soon = bench->shape->queries % 2 == 0 ? data->value_hi : NULL,
        .scores = scores });
    for (size_t m = 0; m < bench->shape->queries; m++) {
        for (size_t p = 0; p < stride; p++) {
            truth[p] = (double)guard;
            bound[p] = 0.0;
            if (p >= bench->shape->count * PLANE_TILE) continue;
            size_t place = place_of(bench, p / PLANE_TILE, p % PLANE_TILE);
            double step = (double)half_from_fp16(data->key_scale[place]), dot = 0.0;
            for (size_t i = 0; i < d; i++)
                dot += ((data->key[place * d + i] >> 4) - 7.5) * data->q8[m * d + i];
            double term = (double)data->scale[m] * step * dot;
            truth[p] = term + (double)data->offset[m];
            bound[p] = two_roundings * (fabs(term) + fabs((double)data->offset[m]));
        }
        within(bench, "score", scores + m * stride, truth, bound, stride);
    }
    free(scores);
    free(truth);
    free(bound);
}

static void check_centroid(const struct bench *bench)
{
    const struct data *data = bench->data;
    const size_t d = bench->shape->head_dim;
    float *scores = aligned(bench->shape->queries * PLANE_TILES * sizeof *scores);
    double truth[PLANE_TILES], bound[PLANE_TILES];
    bench->backend->centroid(&(struct plane_centroid_args){
        .queries = &data->queries, .centroids = data->centroids, .scale = data->centroid_scale,
        .soon = bench->shape->queries % 2 == 0 ? data->centroids : NULL, .scores = scores });
    for (size_t m = 0; m < bench->shape->queries; m++) {
        for (size_t c = 0; c < PLANE_TILES; c++) {
            double dot = 0.0;
            for (size_t i = 0; i < d; i++)
                dot += (data->centroid[c * d + i] - 63.5) * data->q8[m * d + i];
            double term = (double)data->scale[m] * (double)data->centroid_scale[c] * dot;
            truth[c] = term + (double)data->offset[m];
            bound[c] = two_roundings * (fabs(term) + fabs((double)data->offset[m]));
        }
        within(bench, "centroid", scores + m * PLANE_TILES, truth, bound, PLANE_TILES);
    }
    free(scores);
}

/* Bit by bit what the reference does: one addition has one result. */
static void check_above(const struct bench *bench, uint64_t *random)
{
    size_t m = bench->shape->queries, all = m * PLANE_TILES;
    float *scores = aligned(all * sizeof *scores), *wanted = aligned(all * sizeof *wanted);
    float extra[PLANE_TILES], *least = aligned(m * sizeof *least);
    uint64_t *above = aligned(m * sizeof *above), *bits = aligned(m * sizeof *bits);
    for (size_t i = 0; i < all; i++) scores[i] = wanted[i] = random_float(random);
    for (size_t i = 0; i < PLANE_TILES; i++) extra[i] = random_float(random);
    for (size_t i = 0; i < m; i++) least[i] = i % 3 == 0 ? -INFINITY : random_float(random);
    least[0] = scores[5] + extra[5]; /* as good is good enough */
    plane_above_ref(&(struct plane_above_args){ wanted, extra, least, m, bits });
    bench->backend->above(&(struct plane_above_args){ scores, extra, least, m, above });
    bool same = memcmp(scores, wanted, all * sizeof *scores) == 0 &&
                memcmp(above, bits, m * sizeof *bits) == 0 && (above[0] >> 5 & 1) == 1;
    memset(above, 0, m * sizeof *above); /* nothing more is added: the same bits */
    bench->backend->above(&(struct plane_above_args){ scores, NULL, least, m, above });
    same = same && memcmp(scores, wanted, all * sizeof *scores) == 0 &&
           memcmp(above, bits, m * sizeof *bits) == 0;
    for (size_t i = 0; i < m; i++)
        for (size_t c = 0; c < PLANE_TILES; c++)
            same = same && (bits[i] >> c & 1) == (scores[i * PLANE_TILES + c] >= least[i]);
    double truth = 1.0, bound = 0.0;
    float result = same ? 1.0F : 0.0F;
    within(bench, "above", &result, &truth, &bound, 1);
    free(scores);
    free(wanted);
    free(least);
    free(above);
    free(bits);
}

/* Weights of a row, then its sums and squares tile by tile. Scores lie between 40 over and 120
 * under the shift, where weights are 0. */
static void check_soften(const struct bench *bench)
{
    const struct data *data = bench->data;
    const size_t stride = data->stride, count = bench->shape->count;
    const size_t m_count = bench->shape->queries;
    float *weights = aligned(m_count * stride * sizeof *weights);
    float *sums = aligned(m_count * count * sizeof *sums), shift[QUERIES_MAX];
    float *squares = aligned(m_count * count * sizeof *squares);
    double *truth = aligned(stride * sizeof *truth), *bound = aligned(stride * sizeof *bound);
    memcpy(weights, data->scores, m_count * stride * sizeof *weights);
    for (size_t m = 0; m < m_count; m++) shift[m] = 6.0F * (float)m;
    bench->backend->soften(&(struct plane_soften_args){
        .scores = weights, .shift = shift, .queries = m_count, .count = count, .stride = stride,
        .tile_sum = sums, .tile_square = squares });
    for (size_t m = 0; m < m_count; m++) {
        double tile[3][PLANE_TILES] = { { 0.0 } }, near[2][PLANE_TILES];
        for (size_t p = 0; p < stride; p++) {
            truth[p] = (double)guard;
            bound[p] = 0.0;
            if (p >= count * PLANE_TILE) continue;
            double x = (double)data->scores[m * stride + p] - (double)shift[m], w = exp(x);
            truth[p] = w;
            bound[p] = w * (2e-7 + 6e-8 * fabs(x)) + 1e-37;
            tile[0][p / PLANE_TILE] += w;
            tile[1][p / PLANE_TILE] += w * w;
            tile[2][p / PLANE_TILE] = fmax(tile[2][p / PLANE_TILE], 6e-8 * fabs(x));
        }
        for (size_t at = 0; at < count; at++) {
            near[0][at] = tile[0][at] * (1e-6 + tile[2][at]) + 1e-37;
            near[1][at] = tile[1][at] * (1e-6 + 2.0 * tile[2][at]) + 1e-37;
        }
        within(bench, "soften", weights + m * stride, truth, bound, stride);
        within(bench, "tile_sum", sums + m * count, tile[0], near[0], count);
        within(bench, "tile_square", squares + m * count, tile[1], near[1], count);
    }
    free(weights);
    free(sums);
    free(squares);
    free(truth);
    free(bound);
}

/* Truth and bound of acc[m][d]. */
static void weigh_truth(const struct bench *bench, size_t m, size_t d, double *ret_truth,
                        double *ret_bound)
{
    const struct data *data = bench->data;
    const double rounding = bench->backend->weigh == plane_weigh_ref ? 0.0 : 0.5001;
    const float *weights = data->weights + m * data->stride;
    double sum = (double)data->acc[m * bench->shape->head_dim + d], bound = 0.0, all = fabs(sum);
    for (size_t at = 0; at < bench->shape->count; at++) {
        double top = 0.0, spread = 0.0;
        for (size_t i = 0; i < PLANE_TILE; i++) {
            size_t place = place_of(bench, at, i);
            double h = (data->value[place * bench->shape->head_dim + d] >> 4) - 7.5;
            double weight = (double)weights[at * PLANE_TILE + i] *
                            (double)half_from_fp16(data->value_scale[place]);
            sum += weight * h;
            all += weight * 15.0;
            top = fmax(top, weight);
            spread += fabs(h);
        }
        bound += rounding * top / 255.0 * spread;
    }
    *ret_truth = sum;
    *ret_bound = bound + 1e-6 * all;
}

static void check_weigh(const struct bench *bench)
{
    const struct data *data = bench->data;
    const size_t head_dim = bench->shape->head_dim, m_count = bench->shape->queries;
    float *acc = aligned(m_count * head_dim * sizeof *acc);
    double *truth = aligned(head_dim * sizeof *truth), *bound = aligned(head_dim * sizeof *bound);
    memcpy(acc, data->acc, m_count * head_dim * sizeof *acc);
    bench->backend->weigh(&(struct plane_weigh_args){
        .weights = data->weights, .value_hi = data->value_hi, .value_scale = data->value_scale,
        .tiles = bench->shape->listed ? data->tiles : NULL, .queries = m_count,
        .head_dim = head_dim, .count = bench->shape->count, .stride = data->stride,
        .soon = m_count % 2 == 0 ? data->key_hi : NULL, .acc = acc });
    for (size_t m = 0; m < m_count; m++) {
        for (size_t d = 0; d < head_dim; d++) weigh_truth(bench, m, d, &truth[d], &bound[d]);
        within(bench, "weigh", acc + m * head_dim, truth, bound, head_dim);
    }
    free(acc);
    free(truth);
    free(bound);
}

static void check_means(const struct bench *bench)
{
    const struct data *data = bench->data;
    const size_t head_dim = bench->shape->head_dim, m_count = bench->shape->queries;
    float *acc = aligned(m_count * head_dim * sizeof *acc);
    double *truth = aligned(head_dim * sizeof *truth), *bound = aligned(head_dim * sizeof *bound);
    memcpy(acc, data->acc, m_count * head_dim * sizeof *acc);
    const uint64_t clusters = UINT64_C(0xfd00f7ffffff0bf1);
    bench->backend->means(&(struct plane_means_args){
        .clusters = clusters, .mass = data->mass, .means = data->means,
        .scale = data->mean_scale, .queries = m_count, .head_dim = head_dim, .acc = acc });
    for (size_t m = 0; m < m_count; m++) {
        for (size_t d = 0; d < head_dim; d++) {
            double sum = (double)data->acc[m * head_dim + d], all = fabs(sum);
            for (size_t c = 0; c < PLANE_TILES; c++) {
                if ((clusters >> c & 1) == 0) continue;
                double term = (double)data->mass[m * PLANE_TILES + c] *
                              (double)data->mean_scale[c] * data->means[c * head_dim + d];
                sum += term;
                all += fabs(term);
            }
            truth[d] = sum;
            bound[d] = 1e-6 * all;
        }
        within(bench, "means", acc + m * head_dim, truth, bound, head_dim);
    }
    free(acc);
    free(truth);
    free(bound);
}

static void check_row(const struct bench *bench, size_t place)
{
    const struct data *data = bench->data;
    const size_t head_dim = bench->shape->head_dim;
    float *rows = aligned(2 * head_dim * sizeof *rows);
    double *truth = aligned(2 * head_dim * sizeof *truth);
    double *bound = aligned(2 * head_dim * sizeof *bound);
    bench->backend->row(&(struct plane_row_args){
        .key_hi = data->key_hi, .value_hi = data->value_hi, .lo = data->lo,
        .key_scale = data->key_scale, .value_scale = data->value_scale, .place = place,
        .head_dim = head_dim, .k = rows, .v = rows + head_dim });
    for (size_t i = 0; i < 2 * head_dim; i++) {
        const uint8_t *codes = i < head_dim ? data->key : data->value;
        const uint16_t *scale = i < head_dim ? data->key_scale : data->value_scale;
        truth[i] = (double)half_from_fp16(scale[place]) / 16.0 *
                   (codes[place * head_dim + i % head_dim] - 127.5);
        bound[i] = two_roundings * fabs(truth[i]);
    }
    within(bench, "row", rows, truth, bound, 2 * head_dim);
    free(rows);
    free(truth);
    free(bound);
}

static void check_shape(const struct bench *base, const struct shape *shape, uint64_t *random)
{
    struct data data;
    data_alloc(shape, &data);
    fill_codes(shape, &data, random);
    fill_rows(shape, &data, random);
    pack(shape->head_dim, &data);
    struct bench bench = { base->checks, base->backend, shape, &data };
    if (shape->count == 1) check_turn(&bench, random); /* lists of tiles do not matter to it */
    check_score(&bench);
    check_centroid(&bench);
    check_above(&bench, random);
    check_soften(&bench);
    check_weigh(&bench);
    check_means(&bench);
    for (size_t i = 0; i < 17; i++) check_row(&bench, random_below(random, TOKENS));
    data_free(&data);
}

static void check_level(const struct bench *bench, uint64_t *random)
{
    static const size_t dims[] = { 8, 16, 24, 40, 64, 80, 96, 128, 192, 256, 512, 1024 };
    static const size_t counts[] = { 1, 2, 7, 13, 64 };
    size_t turn = 0;
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++)
        for (int fill = 0; fill < FILLS; fill++)
            for (size_t j = 0; j < sizeof counts / sizeof counts[0]; j++, turn++) {
                struct shape shape = { dims[i], turn % QUERIES_MAX + 1, counts[j],
                                       counts[j] < PLANE_TILES && turn % 3 != 0,
                                       (enum fill)fill };
                check_shape(bench, &shape, random);
            }
}

int main(void)
{
    struct checks checks = { 0 };
    uint64_t random = random_seed();
    for (int level = 0; level < CPU_LEVELS; level++) {
        struct bench bench = { .checks = &checks,
                               .backend = plane_backend_for((enum cpu_level)level) };
        if (bench.backend == NULL) continue;
        size_t before = checks.passed;
        check_level(&bench, &random);
        printf("%s: %zu passed\n", bench.backend->name, checks.passed - before);
    }
    return checks_end(&checks);
}
