/* SPDX-License-Identifier: Apache-2.0 */
/* bench_encode.c — how many tokens of one KV head (K and V) are coded per second on one core, and
 * where the time goes.
 *
 * Eight segments in turn, so that rows come from memory or the last-level cache as they do in a
 * daemon. Clusters, codes of keys and codes of values are timed alone too, in cluster order; what
 * is missing to the whole is loading, centring and checking. encode_pairs_per_s is the whole
 * without the clusters. Each figure is the best of --rounds.
 * Prints a JSON array, one line per case.
 *
 *     bench_encode [--rounds N] [--dim D]
 */
#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention/view.h"
#include "base/arena.h"
#include "base/clock.h"
#include "base/half.h"
#include "base/tensor.h"
#include "index/bisect.h"
#include "index/encode_backend.h"
#include "index/planes.h"
#include "index/rotation.h"

enum { SEGMENTS = 8, DIM_MAX = 512 };
#define ARENA_BYTES ((size_t)64 << 20)

struct data {
    uint16_t *k, *v; /* (SEGMENTS, 1024, D) fp16 */
    float *rows;     /* (1024, D) */
    float *scratch;
    float query_square[DIM_MAX];
    uint16_t order[PLANES_TOKENS];
    unsigned char *hi, *lo;
    struct planes_layout layout;
    struct arena arena;
};

static void *need(size_t bytes)
{
    void *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (memory != NULL) return memory;
    fprintf(stderr, "bench_encode: out of memory\n");
    exit(1);
}

static float normal(uint64_t *state)
{
    float sum = 0.0F;
    for (int i = 0; i < 4; i++) {
        *state = *state * 6364136223846793005U + 1442695040888963407U;
        sum += (float)(*state >> 33) / 2147483648.0F - 0.5F;
    }
    return sum * 1.7320508F;
}

static void fill(struct data *data, size_t head_dim)
{
    uint64_t state = 1;
    for (size_t i = 0; i < (size_t)SEGMENTS * PLANES_TOKENS * head_dim; i++) {
        data->k[i] = half_to_fp16(normal(&state) * (i % head_dim == 7 ? 12.0F : 1.0F));
        data->v[i] = half_to_fp16(normal(&state));
    }
    for (size_t d = 0; d < head_dim; d++) data->query_square[d] = 0.2F + (float)(d % 5);
    half_load(data->k, DTYPE_FP16, PLANES_TOKENS * head_dim, data->rows);
}

/* The steps; those that are timed alone take the first segment. */
static void encode(struct data *data, size_t segment)
{
    size_t head_dim = data->layout.head_dim, at = segment * PLANES_TOKENS * head_dim;
    struct view view = { .k = data->k + at, .v = data->v + at, .k_stride_bytes = 2 * head_dim,
                         .v_stride_bytes = 2 * head_dim, .tokens = PLANES_TOKENS,
                         .position = segment * PLANES_TOKENS, .dtype = DTYPE_FP16 };
    struct planes_source source = { .view = &view, .query_square = data->query_square,
                                    .queries = 100 };
    if (planes_encode(&data->layout, &source, &data->arena, data->hi, data->lo, NULL) < 0) exit(1);
    arena_reset(&data->arena);
}

static void cluster(struct data *data, size_t segment)
{
    (void)segment;
    if (bisect_rows(data->rows, PLANES_TOKENS, data->layout.head_dim, &data->arena, data->order)
        < 0)
        exit(1);
    arena_reset(&data->arena);
}

static struct encode_tile tiles_of(struct data *data)
{
    static float numbers[PLANES_CLUSTERS];
    return (struct encode_tile){ .hi = data->hi + data->layout.key_hi,
                                 .step = (uint16_t *)(void *)(data->hi + data->layout.key_scale),
                                 .lo = data->lo,
                                 .lo_stride_bytes = data->layout.head_dim,
                                 .mean = data->hi + data->layout.means,
                                 .mean_scale = numbers,
                                 .spread = numbers };
}

static void keys(struct data *data, size_t segment)
{
    (void)segment;
    encode_backend_get()->keys(
        &(struct encode_keys_args){ .rows = data->rows,
                                    .order = data->order,
                                    .count = PLANES_TOKENS,
                                    .factor = data->query_square,
                                    .weight = data->query_square,
                                    .signs = { rotation_signs(0), rotation_signs(1) },
                                    .head_dim = data->layout.head_dim,
                                    .scratch = data->scratch,
                                    .tile = tiles_of(data) });
}

static void values(struct data *data, size_t segment)
{
    size_t head_dim = data->layout.head_dim;
    encode_backend_get()->values(
        &(struct encode_values_args){ .rows = data->v + segment * PLANES_TOKENS * head_dim,
                                      .stride_bytes = 2 * head_dim,
                                      .dtype = DTYPE_FP16,
                                      .order = data->order,
                                      .count = PLANES_TOKENS,
                                      .signs = { rotation_signs(0), rotation_signs(1) },
                                      .head_dim = head_dim,
                                      .scratch = data->scratch,
                                      .tile = tiles_of(data) });
}

enum { WHOLE, CLUSTERS, KEYS, VALUES, STEPS };

/* Steps take turns, so that a noisy minute hits all of them. ret_best (STEPS) seconds */
static void measure(struct data *data, size_t rounds, double *ret_best)
{
    void (*const steps[STEPS])(struct data *, size_t) = { encode, cluster, keys, values };
    for (size_t step = 0; step < STEPS; step++) ret_best[step] = INFINITY;
    for (size_t i = 0; i < rounds * STEPS * SEGMENTS; i++) {
        size_t step = i / SEGMENTS % STEPS;
        uint64_t start = clock_monotonic_ns();
        steps[step](data, i % SEGMENTS);
        double seconds = (double)(clock_monotonic_ns() - start) * 1e-9;
        ret_best[step] = fmin(ret_best[step], seconds);
    }
}

static void run_case(struct data *data, size_t head_dim, size_t rounds, const char *separator)
{
    planes_layout_init(head_dim, &data->layout);
    fill(data, head_dim);
    cluster(data, 0); /* an order for the steps that need one */
    double best[STEPS];
    measure(data, rounds, best);
    double whole = best[WHOLE], clusters = best[CLUSTERS];
    printf("%s{\"case\":\"encode-%zu\",\"kernel\":\"%s\",\"segment_us\":%.1f,"
           "\"pairs_per_s\":%.0f,\"encode_pairs_per_s\":%.0f,\"cluster_pairs_per_s\":%.0f,"
           "\"clusters\":%.2f,\"keys\":%.2f,\"values\":%.2f,\"rest\":%.2f}",
           separator, head_dim, encode_backend_get()->name, whole * 1e6, PLANES_TOKENS / whole,
           PLANES_TOKENS / (whole - clusters), PLANES_TOKENS / clusters, clusters / whole,
           best[KEYS] / whole, best[VALUES] / whole,
           1.0 - (clusters + best[KEYS] + best[VALUES]) / whole);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static const size_t dims[] = { 64, 80, 96, 128, 192, 256, 512 };
    size_t rounds = 25, only = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        size_t number = strtoul(argv[i + 1], NULL, 10);
        if (strcmp(argv[i], "--rounds") == 0 && number > 0) rounds = number;
        else if (strcmp(argv[i], "--dim") == 0) only = number;
    }
    mallopt(M_MMAP_THRESHOLD, 32 << 20); /* as the daemon: scratch is not given back in between */
    mallopt(M_TRIM_THRESHOLD, 256 << 20);
    static struct data data;
    arena_init(&data.arena, ARENA_BYTES);
    planes_layout_init(DIM_MAX, &data.layout);
    size_t elements = (size_t)SEGMENTS * PLANES_TOKENS * DIM_MAX;
    data.k = need(elements * sizeof *data.k);
    data.v = need(elements * sizeof *data.v);
    data.rows = need((size_t)PLANES_TOKENS * DIM_MAX * sizeof *data.rows);
    data.scratch = need((size_t)(18 * DIM_MAX) * sizeof *data.scratch);
    data.hi = need(data.layout.hi_bytes);
    data.lo = need(data.layout.lo_bytes);
    const char *separator = "[";
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        if (only != 0 && only != dims[i]) continue;
        run_case(&data, dims[i], rounds, separator);
        separator = ",\n ";
    }
    printf("]\n");
    arena_fini(&data.arena);
    free(data.k);
    free(data.v);
    free(data.rows);
    free(data.scratch);
    free(data.hi);
    free(data.lo);
    return 0;
}
