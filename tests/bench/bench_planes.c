/* SPDX-License-Identifier: Apache-2.0 */
/* bench_planes.c — what the kernels over planes cost, beside merely reading their bytes and beside
 * exact attention over the fp16 rows that the planes stand for. One thread.
 *
 * One KV head of N tokens: planes in segments of 1,024 with random codes, rows in segments as well,
 * each in a buffer of 256 MiB or more, so that every run starts outside the caches (runs walk on
 * through the buffer; where N needs more, segments are read again, long after they left the
 * caches). What is timed takes turns piece by piece, 8,192 tokens each; of every piece the least of
 * --rounds runs counts, so that a busy machine spoils pieces and not the sum:
 *
 *     stream    sum the bytes of K-hi as integers       read      the bytes of K and V in fp16
 *     exact     attend over fp16 K and V
 *     centroid  scores of 64 centroids per segment      means     Σ mass * mean, all clusters
 *     score     K-hi, all tiles       soften  all       weigh     V-hi, all tiles
 *     score8, weigh8   one tile in 8, at random: time of a list
 *     flat      score, soften and weigh, one segment after the other: every tile has weight
 *     peaked    score, soften and weigh8: one tile in eight has
 *
 * Planes that are read whole are told what is read next (`soon`), lists are not. exact_to_hi
 * compares exact with flat, exact_to_hi_peaked with peaked.
 *
 * Prints a JSON array, one line per case, times in ns per token.
 *
 *     bench_planes [--rounds N] [--tokens N] [--dim D] [--queries M]
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention/attend.h"
#include "base/arena.h"
#include "base/clock.h"
#include "base/half.h"
#include "index/backend.h"
#include "index/planes.h"
#include "tests/bench/stream.h"

enum {
    QUERIES_MAX = 8,
    EIGHTH = PLANES_CLUSTERS / 8,
    SCORES_STRIDE = PLANES_TOKENS,
    PIECE = 8, /* segments */
};
#define BUFFER_BYTES ((size_t)256 << 20)
#define ARENA_BYTES ((size_t)1 << 30)

/* X(NAME) of what is timed, in the order of printing. */
#define PHASE_MAP(X) \
    X(stream) X(read) X(exact) X(centroid) X(means) X(score) X(soften) X(weigh) X(score8) \
    X(weigh8) X(flat) X(peaked)

enum phase {
#define X(name) PHASE_##name,
    PHASE_MAP(X)
#undef X
        PHASES,
};

static const char *const phase_names[PHASES] = {
#define X(name) [PHASE_##name] = #name,
    PHASE_MAP(X)
#undef X
};

struct options {
    size_t rounds, tokens, head_dim, queries; /* 0: all */
};

struct data {
    size_t head_dim, queries, segments; /* segments of N tokens */
    struct planes_layout layout;
    unsigned char *planes; /* (planes_count, hi_bytes) */
    unsigned char *rows;   /* (rows_count, 2, 1024, D) fp16 */
    size_t planes_count, rows_count, planes_next, rows_next; /* where the next run begins */
    struct view *views;    /* (PIECE) */
    struct arena arena;
    float *scores;         /* (M, 1024) */
    float *mass;           /* (M, 64) */
    float *q, *acc;        /* (M, D) */
    int8_t *q8;            /* (M, D) */
    float scale[QUERIES_MAX], offset[QUERIES_MAX], sums[QUERIES_MAX * PLANES_CLUSTERS];
    float squares[QUERIES_MAX * PLANES_CLUSTERS], lse[QUERIES_MAX];
    int32_t sum[QUERIES_MAX];
    uint16_t lists[64][EIGHTH];
    uint64_t check; /* keeps the compiler from skipping reads */
};

static void *need(size_t bytes)
{
    void *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (memory != NULL) return memory;
    fprintf(stderr, "bench_planes: out of memory\n");
    exit(1);
}

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005U + 1442695040888963407U;
    return *state >> 33;
}

static void fill_planes(struct data *data, uint64_t *random)
{
    const struct planes_layout *layout = &data->layout;
    unsigned char *first = data->planes;
    for (size_t i = 0; i < layout->hi_bytes; i++) first[i] = (unsigned char)next_random(random);
    for (size_t i = 0; i < PLANES_CLUSTERS * data->head_dim; i++)
        first[layout->centroids + i] &= 127;
    for (size_t i = 0; i < PLANES_CLUSTERS; i++) {
        float scale = 0.01F;
        memcpy(first + layout->centroid_scale + i * sizeof scale, &scale, sizeof scale);
        memcpy(first + layout->mean_scale + i * sizeof scale, &scale, sizeof scale);
    }
    for (size_t i = 0; i < PLANES_TOKENS; i++) {
        uint16_t step = half_to_fp16(0.1F + 0.001F * (float)(i % 64));
        memcpy(first + layout->key_scale + i * sizeof step, &step, sizeof step);
        memcpy(first + layout->value_scale + i * sizeof step, &step, sizeof step);
    }
    for (size_t i = 1; i < data->planes_count; i++)
        memcpy(data->planes + i * layout->hi_bytes, first, layout->hi_bytes);
    for (size_t list = 0; list < 64; list++) /* one of every eight */
        for (size_t i = 0; i < EIGHTH; i++)
            data->lists[list][i] = (uint16_t)(8 * i + next_random(random) % 8);
}

static void fill_rows(struct data *data, uint64_t *random)
{
    size_t segment_bytes = 4 * PLANES_TOKENS * data->head_dim;
    for (size_t i = 0; i < segment_bytes / 2; i++) {
        uint16_t bits = half_to_fp16((float)(next_random(random) % 4096) / 1024.0F - 2.0F);
        memcpy(data->rows + 2 * i, &bits, sizeof bits);
    }
    for (size_t i = 1; i < data->rows_count; i++)
        memcpy(data->rows + i * segment_bytes, data->rows, segment_bytes);
}

static void fill_queries(struct data *data, uint64_t *random)
{
    for (size_t m = 0; m < data->queries; m++) {
        data->sum[m] = 0;
        data->scale[m] = 1e-4F;
        data->offset[m] = 0.0F;
        for (size_t d = 0; d < data->head_dim; d++) {
            int code = (int)(next_random(random) % 255) - 127;
            data->q8[m * data->head_dim + d] = (int8_t)code;
            data->q[m * data->head_dim + d] = (float)code / 64.0F;
            data->sum[m] += code;
        }
        for (size_t c = 0; c < PLANES_CLUSTERS; c++)
            data->mass[m * PLANES_CLUSTERS + c] = (float)(1 + next_random(random) % 16);
    }
    memset(data->acc, 0, data->queries * data->head_dim * sizeof *data->acc);
}

static void data_open(struct data *data, size_t tokens, size_t head_dim, size_t queries)
{
    *data = (struct data){ .head_dim = head_dim, .queries = queries,
                           .segments = tokens / PLANES_TOKENS };
    planes_layout_init(head_dim, &data->layout);
    data->planes_count = (BUFFER_BYTES + data->layout.hi_bytes - 1) / data->layout.hi_bytes;
    data->rows_count = BUFFER_BYTES / (4 * PLANES_TOKENS * head_dim);
    data->planes = need(data->planes_count * data->layout.hi_bytes);
    data->rows = need(data->rows_count * 4 * PLANES_TOKENS * head_dim);
    data->views = need(PIECE * sizeof *data->views);
    arena_init(&data->arena, ARENA_BYTES);
    data->scores = need(queries * SCORES_STRIDE * sizeof(float));
    data->mass = need(queries * PLANES_CLUSTERS * sizeof(float));
    data->q = need(queries * head_dim * sizeof(float));
    data->acc = need(queries * head_dim * sizeof(float));
    data->q8 = need(queries * head_dim);
    uint64_t random = 1;
    fill_planes(data, &random);
    fill_rows(data, &random);
    fill_queries(data, &random);
}

static void data_close(struct data *data)
{
    free(data->planes);
    free(data->rows);
    free(data->views);
    free(data->scores);
    free(data->mass);
    free(data->q);
    free(data->acc);
    free(data->q8);
    arena_fini(&data->arena);
}

static void run_centroid(struct data *data, const unsigned char *hi,
                         const struct plane_queries *queries)
{
    plane_backend_get()->centroid(&(struct plane_centroid_args){
        .queries = queries, .centroids = hi + data->layout.centroids,
        .scale = (const float *)(const void *)(hi + data->layout.centroid_scale),
        .scores = data->scores });
}

static void run_means(struct data *data, const unsigned char *hi)
{
    plane_backend_get()->means(&(struct plane_means_args){
        .clusters = UINT64_MAX, .mass = data->mass,
        .means = (const int8_t *)(hi + data->layout.means),
        .scale = (const float *)(const void *)(hi + data->layout.mean_scale),
        .queries = data->queries, .head_dim = data->head_dim, .acc = data->acc });
}

static void run_score(struct data *data, const unsigned char *hi,
                      const struct plane_queries *queries, const uint16_t *list,
                      const unsigned char *soon)
{
    plane_backend_get()->score(&(struct plane_score_args){
        .queries = queries, .key_hi = hi + data->layout.key_hi,
        .key_scale = (const uint16_t *)(const void *)(hi + data->layout.key_scale),
        .tiles = list, .count = list == NULL ? PLANES_CLUSTERS : EIGHTH,
        .stride = SCORES_STRIDE, .soon = soon, .scores = data->scores });
}

static void run_soften(struct data *data)
{
    static const float shift[QUERIES_MAX] = { 0.0F };
    plane_backend_get()->soften(&(struct plane_soften_args){
        .scores = data->scores, .shift = shift, .queries = data->queries,
        .count = PLANES_CLUSTERS, .stride = SCORES_STRIDE, .tile_sum = data->sums,
        .tile_square = data->squares });
}

static void run_weigh(struct data *data, const unsigned char *hi, const uint16_t *list,
                      const unsigned char *soon)
{
    plane_backend_get()->weigh(&(struct plane_weigh_args){
        .weights = data->scores, .value_hi = hi + data->layout.value_hi,
        .value_scale = (const uint16_t *)(const void *)(hi + data->layout.value_scale),
        .tiles = list, .queries = data->queries, .head_dim = data->head_dim,
        .count = list == NULL ? PLANES_CLUSTERS : EIGHTH, .stride = SCORES_STRIDE, .soon = soon,
        .acc = data->acc });
}

/* K-hi of all tokens, then V-hi of those in `list`, or of all. */
static void run_both(struct data *data, const unsigned char *hi, const unsigned char *next,
                     const struct plane_queries *queries, const uint16_t *list)
{
    run_score(data, hi, queries, NULL, list == NULL ? hi + data->layout.value_hi : NULL);
    run_soften(data);
    run_weigh(data, hi, list, next + data->layout.key_hi);
}

/* The rows of the next PIECE segments. */
static const unsigned char *next_rows(struct data *data)
{
    return data->rows + data->rows_next++ % data->rows_count * 4 * PLANES_TOKENS * data->head_dim;
}

static void run_exact(struct data *data)
{
    const size_t row_bytes = 2 * data->head_dim, value_bytes = row_bytes * PLANES_TOKENS;
    for (size_t i = 0; i < PIECE; i++) {
        const unsigned char *k = next_rows(data);
        data->views[i] = (struct view){ .k = k, .v = k + value_bytes, .k_stride_bytes = row_bytes,
                                        .v_stride_bytes = row_bytes, .tokens = PLANES_TOKENS,
                                        .position = i * PLANES_TOKENS, .dtype = DTYPE_FP16 };
    }
    uint64_t limit = PIECE * PLANES_TOKENS;
    struct attend_args args = {
        .q = { .data = data->q, .dtype = DTYPE_FP32, .dims = 3,
               .shape = { 1, data->queries, data->head_dim } },
        .positions = &limit, .limits = &limit, .scale = 1.0F / sqrtf((float)data->head_dim),
        .kv_heads = 1, .views = data->views, .view_count = PIECE };
    struct partial out = { .o = data->acc, .lse = data->lse, .rows = data->queries,
                           .head_dim = data->head_dim };
    if (attend(&args, &data->arena, &out, NULL) < 0) exit(1);
    arena_reset(&data->arena);
}

static const unsigned char *planes_at(const struct data *data, size_t at)
{
    return data->planes + at % data->planes_count * data->layout.hi_bytes;
}

static void run_segment(struct data *data, enum phase phase, const struct plane_queries *queries)
{
    const struct planes_layout *layout = &data->layout;
    const unsigned char *hi = planes_at(data, data->planes_next);
    const unsigned char *next = planes_at(data, data->planes_next + 1);
    const uint16_t *list = data->lists[data->planes_next++ % 64];
    switch (phase) {
    case PHASE_stream:
        data->check += stream(hi + layout->key_hi, PLANES_TOKENS / 2 * data->head_dim);
        break;
    case PHASE_centroid: run_centroid(data, hi, queries); break;
    case PHASE_means: run_means(data, hi); break;
    case PHASE_score: run_score(data, hi, queries, NULL, next + layout->key_hi); break;
    case PHASE_soften: run_soften(data); break;
    case PHASE_weigh: run_weigh(data, hi, NULL, next + layout->value_hi); break;
    case PHASE_score8: run_score(data, hi, queries, list, NULL); break;
    case PHASE_weigh8: run_weigh(data, hi, list, NULL); break;
    case PHASE_flat: run_both(data, hi, next, queries, NULL); break;
    case PHASE_peaked: run_both(data, hi, next, queries, list); break;
    case PHASE_read:
        data->check += stream(next_rows(data), 4 * PLANES_TOKENS * data->head_dim);
        break;
    case PHASE_exact: case PHASES: break;
    }
}

/* Seconds of one piece. */
static double run(struct data *data, enum phase phase)
{
    struct plane_queries queries = { data->q8, data->scale, data->offset, data->sum, data->queries,
                                     data->head_dim };
    for (size_t i = 0; i < data->queries * SCORES_STRIDE; i++) /* weights, or their logarithms */
        data->scores[i] = phase == PHASE_soften ? -(float)(i % 16) : (float)(1 + i % 16) / 16.0F;
    uint64_t start = clock_monotonic_ns();
    if (phase == PHASE_exact) run_exact(data);
    for (size_t i = 0; phase != PHASE_exact && i < PIECE; i++) run_segment(data, phase, &queries);
    return (double)(clock_monotonic_ns() - start) * 1e-9;
}

/* ret_best (PHASES): seconds for all N tokens. */
static void measure(const struct options *options, struct data *data, double *ret_best)
{
    size_t pieces = data->segments / PIECE;
    double *best = need(pieces * PHASES * sizeof *best);
    for (size_t i = 0; i < pieces * PHASES; i++) best[i] = INFINITY;
    for (size_t i = 0; i < options->rounds * pieces * PHASES; i++) {
        size_t at = i % (pieces * PHASES);
        best[at] = fmin(best[at], run(data, (enum phase)(at % PHASES)));
    }
    for (size_t phase = 0; phase < PHASES; phase++) ret_best[phase] = 0.0;
    for (size_t i = 0; i < pieces * PHASES; i++) ret_best[i % PHASES] += best[i];
    free(best);
}

static void run_case(const struct options *options, const size_t shape[3], const char *separator)
{
    struct data data;
    data_open(&data, shape[0], shape[1], shape[2]);
    double best[PHASES];
    measure(options, &data, best);
    printf("%s{\"case\":\"n%zuk-d%zu-m%zu\",\"kernel\":\"%s\"", separator, shape[0] / 1024,
           shape[1], shape[2], plane_backend_get()->name);
    for (int phase = 0; phase < PHASES; phase++)
        printf(",\"%s\":%.3f", phase_names[phase], best[phase] * 1e9 / (double)shape[0]);
    double key_bytes = (double)(shape[0] * shape[1]) / 2.0;
    printf(",\"stream_gb_s\":%.2f,\"score_gb_s\":%.2f,\"exact_gb_s\":%.2f,\"exact_of_read\":%.2f,"
           "\"exact_to_hi\":%.2f,\"exact_to_hi_peaked\":%.2f}",
           key_bytes / best[PHASE_stream] * 1e-9, key_bytes / best[PHASE_score] * 1e-9,
           8.0 * key_bytes / best[PHASE_exact] * 1e-9, best[PHASE_read] / best[PHASE_exact],
           best[PHASE_exact] / best[PHASE_flat], best[PHASE_exact] / best[PHASE_peaked]);
    fflush(stdout);
    data_close(&data);
}

static struct options parse(int argc, char **argv)
{
    struct options options = { .rounds = 5 };
    for (int i = 1; i < argc; i += 2) {
        size_t number = i + 1 < argc ? strtoul(argv[i + 1], NULL, 10) : 0;
        if (number > 0 && strcmp(argv[i], "--rounds") == 0) options.rounds = number;
        else if (number > 0 && strcmp(argv[i], "--tokens") == 0) options.tokens = number;
        else if (number > 0 && strcmp(argv[i], "--dim") == 0) options.head_dim = number;
        else if (number > 0 && strcmp(argv[i], "--queries") == 0) options.queries = number;
        else {
            fprintf(stderr, "usage: bench_planes [--rounds N] [--tokens N] [--dim D] "
                            "[--queries M]\n");
            exit(2);
        }
    }
    return options;
}

int main(int argc, char **argv)
{
    static const size_t tokens[] = { 32 << 10, 128 << 10, 1 << 20 }, dims[] = { 64, 128, 256 };
    static const size_t queries[] = { 1, 4, 8 };
    struct options options = parse(argc, argv);
    const char *separator = "[";
    for (size_t i = 0; i < 27; i++) {
        size_t shape[3] = { tokens[i / 9], dims[i / 3 % 3], queries[i % 3] };
        if (options.tokens != 0 && options.tokens != shape[0]) continue;
        if (options.head_dim != 0 && options.head_dim != shape[1]) continue;
        if (options.queries != 0 && options.queries != shape[2]) continue;
        run_case(&options, shape, separator);
        separator = ",\n ";
    }
    printf("]\n");
    return 0;
}
