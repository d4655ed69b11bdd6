/* SPDX-License-Identifier: Apache-2.0 */
/* bench_attend.c — how close exact attention comes to merely reading the same bytes from memory.
 *
 * For each model shape: 32,768 tokens of K and V in segments of 1,024, in as many copies as it
 * takes to defeat every cache (256 MiB), on one thread. The floor is a loop that sums the same
 * bytes as integers (software prefetching makes it slower). Each figure is the best single copy of
 * --rounds sweeps. Prints a JSON array, one line per case.
 *
 *     bench_attend [--rounds N] [--queries N] [--threads N] [--case NAME]
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention/attend.h"
#include "attention/backend.h"
#include "attention/rope.h"
#include "base/arena.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/half.h"
#include "base/pool.h"
#include "tests/bench/stream.h"

enum { TOKENS = 32768, SEGMENT_TOKENS = 1024, SEGMENTS = TOKENS / SEGMENT_TOKENS };
#define COPIES_BYTES ((size_t)256 << 20)
#define ARENA_BYTES ((size_t)1 << 30)

struct shape {
    const char *name;
    size_t query_heads, kv_heads, head_dim;
    uint32_t dtype;
    int rotating; /* keys stored unrotated */
};

static const struct shape shapes[] = {
    { "gemma3-270m", 4, 1, 256, DTYPE_FP16, 0 },
    { "smollm2-135m", 9, 3, 64, DTYPE_FP16, 0 },
    { "llama3-8b", 32, 8, 128, DTYPE_FP16, 0 },
    { "llama3-8b-bf16", 32, 8, 128, DTYPE_BF16, 0 },
    { "gemma3-270m-fp32", 4, 1, 256, DTYPE_FP32, 0 },
    { "mha-16", 16, 16, 128, DTYPE_FP16, 0 },
    { "gqa-8", 32, 4, 128, DTYPE_FP16, 0 },
    { "gemma3-270m-rope", 4, 1, 256, DTYPE_FP16, 1 },
};

struct options {
    size_t rounds, queries, threads;
    const char *only;
};

struct data {
    unsigned char *kv; /* (copies, G, segments, 2, SEGMENT_TOKENS, D) */
    size_t copies, copy_bytes;
    float *q;           /* (n, H, D) */
    float *o, *lse;     /* (n, H, D), (n, H) */
    uint64_t *limits;   /* (n) */
    struct view *views; /* (copies, G, SEGMENTS) */
};

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005U + 1442695040888963407U;
    return *state >> 33;
}

/* About N(0, 1). */
static float normal(uint64_t *state)
{
    float sum = 0.0F;
    for (int i = 0; i < 4; i++) sum += (float)next_random(state) / 2147483648.0F - 0.5F;
    return sum * 1.7320508F;
}

static void fill(const struct shape *shape, const struct options *options, struct data *data)
{
    uint64_t state = 1;
    size_t element = dtype_bytes(shape->dtype);
    for (size_t i = 0; i < data->copy_bytes / element; i++) {
        float value = normal(&state);
        half_store(&value, 1, shape->dtype, data->kv + i * element);
    }
    for (size_t copy = 1; copy < data->copies; copy++)
        memcpy(data->kv + copy * data->copy_bytes, data->kv, data->copy_bytes);
    for (size_t i = 0; i < options->queries * shape->query_heads * shape->head_dim; i++)
        data->q[i] = normal(&state);
    for (size_t i = 0; i < options->queries; i++) data->limits[i] = TOKENS;
    size_t row_bytes = shape->head_dim * element, value_bytes = row_bytes * SEGMENT_TOKENS;
    for (size_t i = 0; i < data->copies * shape->kv_heads * SEGMENTS; i++) {
        const unsigned char *k = data->kv + i * 2 * value_bytes;
        data->views[i] = (struct view){ .k = k, .v = k + value_bytes, .k_stride_bytes = row_bytes,
                                        .v_stride_bytes = row_bytes, .tokens = SEGMENT_TOKENS,
                                        .position = i % SEGMENTS * SEGMENT_TOKENS,
                                        .dtype = shape->dtype };
    }
}

static void *need(void *memory)
{
    if (memory != NULL) return memory;
    fprintf(stderr, "bench_attend: out of memory\n");
    exit(1);
}

static void allocate(const struct shape *shape, const struct options *options, struct data *data)
{
    size_t q_count = options->queries * shape->query_heads * shape->head_dim;
    data->copy_bytes = 2 * TOKENS * shape->kv_heads * shape->head_dim * dtype_bytes(shape->dtype);
    data->copies = (COPIES_BYTES + data->copy_bytes - 1) / data->copy_bytes;
    data->kv = need(aligned_alloc(4096, data->copies * data->copy_bytes));
    data->q = need(malloc(q_count * sizeof *data->q));
    data->o = need(malloc(q_count * sizeof *data->o));
    data->lse = need(malloc(options->queries * shape->query_heads * sizeof *data->lse));
    data->limits = need(malloc(options->queries * sizeof *data->limits));
    data->views = need(calloc(data->copies * shape->kv_heads * SEGMENTS, sizeof *data->views));
}

static void release(struct data *data)
{
    free(data->kv);
    free(data->q);
    free(data->o);
    free(data->lse);
    free(data->limits);
    free(data->views);
}

static double seconds_since(uint64_t start_ns)
{
    return (double)(clock_monotonic_ns() - start_ns) * 1e-9;
}

/* The best copy of one sweep. */
static double stream_seconds(const struct data *data, uint64_t *ret_sum)
{
    double best = INFINITY;
    for (size_t copy = 0; copy < data->copies; copy++) {
        uint64_t start = clock_monotonic_ns();
        *ret_sum += stream(data->kv + copy * data->copy_bytes, data->copy_bytes);
        best = fmin(best, seconds_since(start));
    }
    return best;
}

static double attend_seconds(const struct shape *shape, const struct options *options,
                             const struct data *data, const struct attend_args *args)
{
    struct arena arena;
    arena_init(&arena, ARENA_BYTES);
    struct partial out = { .o = data->o, .lse = data->lse,
                           .rows = options->queries * shape->query_heads,
                           .head_dim = shape->head_dim };
    struct attend_args here = *args;
    double best = INFINITY;
    for (size_t copy = 0; copy < data->copies; copy++) {
        here.views = data->views + copy * shape->kv_heads * SEGMENTS;
        uint64_t start = clock_monotonic_ns();
        if (attend(&here, &arena, &out, NULL) < 0) exit(1);
        best = fmin(best, seconds_since(start));
        arena_reset(&arena);
    }
    arena_fini(&arena);
    return best;
}

static void run_case(const struct shape *shape, const struct options *options, struct pool *pool,
                     const char *separator)
{
    struct data data;
    allocate(shape, options, &data);
    fill(shape, options, &data);
    struct rope rope;
    struct rope_config config = { .theta = 1e6 };
    if (rope_init(&config, shape->head_dim, &rope, NULL) < 0) exit(1);
    struct attend_args args = {
        .q = { .data = data.q, .dtype = DTYPE_FP32, .dims = 3,
               .shape = { options->queries, shape->query_heads, shape->head_dim } },
        .positions = data.limits, .limits = data.limits,
        .scale = 1.0F / sqrtf((float)shape->head_dim), .rope = shape->rotating ? &rope : NULL,
        .kv_heads = shape->kv_heads, .view_count = SEGMENTS, .pool = pool };
    double floor_s = INFINITY, attend_s = INFINITY;
    uint64_t sum = 0;
    for (size_t round = 0; round < options->rounds; round++) {
        floor_s = fmin(floor_s, stream_seconds(&data, &sum));
        attend_s = fmin(attend_s, attend_seconds(shape, options, &data, &args));
    }
    printf("%s{\"case\":\"%s\",\"kernel\":\"%s\",\"queries\":%zu,\"threads\":%zu,\"bytes\":%zu,"
           "\"stream_ms\":%.3f,\"stream_gb_s\":%.2f,\"attend_ms\":%.3f,\"ratio\":%.3f,"
           "\"check\":\"%" PRIx64 " %.4f\"}",
           separator, shape->name, backend_get()->name, options->queries, options->threads,
           data.copy_bytes, floor_s * 1e3, (double)data.copy_bytes / floor_s * 1e-9, attend_s * 1e3,
           attend_s / floor_s, sum, (double)data.lse[0]);
    fflush(stdout);
    release(&data);
}

static struct options parse(int argc, char **argv)
{
    struct options options = { .rounds = 5, .queries = 1, .threads = 1 };
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        size_t number = value == NULL ? 0 : strtoul(value, NULL, 10);
        if (number > 0 && strcmp(argv[i], "--rounds") == 0) options.rounds = number;
        else if (number > 0 && strcmp(argv[i], "--queries") == 0) options.queries = number;
        else if (number > 0 && strcmp(argv[i], "--threads") == 0) options.threads = number;
        else if (value != NULL && strcmp(argv[i], "--case") == 0) options.only = value;
        else {
            fprintf(stderr, "usage: bench_attend [--rounds N] [--queries N] [--threads N] "
                            "[--case NAME]\n");
            exit(2);
        }
    }
    return options;
}

int main(int argc, char **argv)
{
    struct options options = parse(argc, argv);
    struct pool *pool = NULL;
    if (options.threads > 1 && pool_open(options.threads - 1, &pool, NULL) < 0) return 1;
    const char *separator = "[";
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        if (options.only != NULL && strcmp(options.only, shapes[i].name) != 0) continue;
        run_case(&shapes[i], &options, pool, separator);
        separator = ",\n ";
    }
    printf("]\n");
    pool_close(pool);
    return 0;
}
