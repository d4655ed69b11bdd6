/* SPDX-License-Identifier: Apache-2.0 */
/* bench_cuda.c — what a device achieves, against its own copy bandwidth and against the CPU.
 *
 *     bench_cuda PLUGIN [TOKENS [WINDOW]]        128K tokens, a window of 8,192
 *
 * Shapes of a layer of Llama-3-8B: 32 query heads, 8 KV heads, D = 128, fp16. One JSON object a
 * line, medians:
 *
 *     copy     device to device, and pinned memory to device, 256 MiB at a time; of_copy is what
 *              others reach of the first
 *     partial  flash decoding over TOKENS tokens that lie in device memory: what a window costs
 *              that holds everything
 *     step     accelerator_attend over a resident window: what a client waits for; and the same by
 *              one thread of the CPU
 *
 * docs/decisions/0062 has the model that these numbers are to be held against. With the fake device
 * of the tests it only shows that it runs.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention/attend.h"
#include "attention/cuda/accelerator.h"
#include "base/arena.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/half.h"
#include "base/tensor.h"
#include "tests/random.h"

enum { H = 32, G = 8, D = 128, SPLIT = 128, ROUNDS = 21, WARM = 3, COPY_BYTES = 256 << 20 };

struct bench {
    const struct device_table *table;
    struct device *device;
    char name[DEVICE_NAME_BYTES];
    size_t tokens, window;
    size_t copy_bytes;
    double copy_gb_s; /* within the device: what a kernel that only moves bytes could reach */
};

static int by_size(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return left < right ? -1 : left > right;
}

/* Median seconds of `run`, which waits for what it starts; negative when it failed. */
static double seconds_of(int (*run)(void *arg), void *arg)
{
    double seconds[ROUNDS];
    for (int round = -WARM; round < ROUNDS; round++) {
        uint64_t begin = clock_monotonic_ns();
        if (run(arg) != 0) return -1.0;
        if (round >= 0) seconds[round] = (double)(clock_monotonic_ns() - begin) * 1e-9;
    }
    qsort(seconds, ROUNDS, sizeof seconds[0], by_size);
    return seconds[ROUNDS / 2];
}

static void print_line(const struct bench *bench, const char *what, double seconds, double bytes)
{
    if (seconds < 0.0) printf("{\"what\":\"%s\",\"failed\":true}\n", what);
    else
        printf("{\"device\":\"%s\",\"what\":\"%s\",\"us\":%.2f,\"gb_s\":%.2f,\"of_copy\":%.3f}\n",
               bench->name, what, seconds * 1e6, bytes / seconds * 1e-9,
               bench->copy_gb_s > 0.0 ? bytes / seconds * 1e-9 / bench->copy_gb_s : 1.0);
}

/* ---- copies ---- */

struct copying {
    const struct bench *bench;
    void *to;
    const void *from;
};

static int run_copy(void *arg)
{
    const struct copying *copying = arg;
    const struct bench *bench = copying->bench;
    int rc = bench->table->copy(bench->device, DEVICE_COMPUTE, copying->to, copying->from,
                                bench->copy_bytes);
    return rc < 0 ? rc : bench->table->finish(bench->device, DEVICE_COMPUTE, NULL);
}

static int bench_copies(struct bench *bench, struct error *err)
{
    const struct device_table *table = bench->table;
    void *one = NULL, *other = NULL, *host = NULL;
    int rc = table->alloc(bench->device, bench->copy_bytes, &one, err);
    if (rc == 0) rc = table->alloc(bench->device, bench->copy_bytes, &other, err);
    if (rc == 0) rc = table->alloc_host(bench->device, bench->copy_bytes, &host, err);
    if (rc == 0) {
        struct copying within = { bench, one, other }, across = { bench, one, host };
        /* A copy within the device reads and writes. */
        double seconds = seconds_of(run_copy, &within), bytes = 2.0 * (double)bench->copy_bytes;
        print_line(bench, "copy within", seconds, bytes);
        if (seconds > 0.0) bench->copy_gb_s = bytes / seconds * 1e-9;
        print_line(bench, "copy to the device", seconds_of(run_copy, &across),
                   (double)bench->copy_bytes);
    }
    if (one != NULL) table->free(bench->device, one);
    if (other != NULL) table->free(bench->device, other);
    if (host != NULL) table->free_host(bench->device, host);
    return rc;
}

/* ---- flash decoding over everything ---- */

struct decoding {
    const struct bench *bench;
    struct partial_launch partial;
    struct merge_launch merge;
    unsigned char *lists, *end;          /* pinned: what was taken of them ends at `end` */
    unsigned char *memory;               /* the same on the device */
    const unsigned char *rows;           /* device: (G, T, 2, D) */
};

static int run_partial(void *arg)
{
    const struct decoding *decoding = arg;
    const struct bench *bench = decoding->bench;
    int rc = bench->table->partial(bench->device, DEVICE_COMPUTE, &decoding->partial);
    if (rc == 0) rc = bench->table->merge(bench->device, DEVICE_COMPUTE, &decoding->merge);
    return rc < 0 ? rc : bench->table->finish(bench->device, DEVICE_COMPUTE, NULL);
}

/* `bytes` of the lists. */
static void *take(struct decoding *decoding, size_t bytes)
{
    void *at = decoding->end;
    decoding->end += (bytes + 255) / 256 * 256;
    return at;
}

/* Where something of the lists is on the device. */
static void *there(const struct decoding *decoding, const void *here)
{
    return decoding->memory + ((const unsigned char *)here - decoding->lists);
}

static void list_runs(struct decoding *decoding, size_t splits)
{
    size_t group = H / G, count = G * splits, tokens = decoding->bench->tokens;
    struct partial_run *runs = take(decoding, count * sizeof *runs);
    float *q = take(decoding, sizeof(float) * H * D);
    uint64_t *limits = take(decoding, H * sizeof *limits);
    uint32_t *begin = take(decoding, (H + 1) * sizeof *begin);
    uint32_t *parts = take(decoding, H * splits * sizeof *parts);
    float *o = take(decoding, count * group * D * sizeof *o);
    float *lse = take(decoding, count * group * sizeof *lse);
    float *ret_o = take(decoding, sizeof(float) * H * D);
    float *ret_lse = take(decoding, sizeof(float) * H);
    uint64_t random = 1;
    for (size_t i = 0; i < (size_t)H * D; i++) q[i] = random_float(&random) * 0.1F;
    for (size_t h = 0; h < H; h++) limits[h] = tokens;
    for (size_t i = 0; i < count; i++) {
        size_t g = i / splits, first = i % splits * SPLIT, row = sizeof(uint16_t) * D;
        size_t rows = tokens - first < SPLIT ? tokens - first : SPLIT;
        const unsigned char *k = decoding->rows + (g * tokens + first) * 2 * row;
        runs[i] = (struct partial_run){
            .rows = { .k = k, .v = k + row, .k_stride_bytes = (uint32_t)(2 * row),
                      .v_stride_bytes = (uint32_t)(2 * row), .k_dtype = DTYPE_FP16,
                      .v_dtype = DTYPE_FP16 },
            .count = (uint32_t)rows, .query = (uint32_t)(g * group), .queries = (uint32_t)group,
            .result = (uint32_t)(i * group), .position = first };
    }
    for (size_t h = 0; h <= H; h++) begin[h] = (uint32_t)(h * splits);
    for (size_t i = 0; i < H * splits; i++) {
        size_t h = i / splits, run = h / group * splits + i % splits;
        parts[i] = (uint32_t)(run * group + h % group);
    }
    decoding->partial = (struct partial_launch){
        .runs = there(decoding, runs), .count = (uint32_t)count, .head_dim = D,
        .q = there(decoding, q), .limits = there(decoding, limits), .o = there(decoding, o),
        .lse = there(decoding, lse) };
    decoding->merge = (struct merge_launch){
        .begin = there(decoding, begin), .parts = there(decoding, parts), .count = H,
        .head_dim = D, .o = there(decoding, o), .lse = there(decoding, lse),
        .ret_o = there(decoding, ret_o), .ret_lse = there(decoding, ret_lse) };
}

static int time_partial(struct decoding *decoding, size_t rows_bytes)
{
    const struct bench *bench = decoding->bench;
    list_runs(decoding, (bench->tokens + SPLIT - 1) / SPLIT);
    int rc = bench->table->copy(bench->device, DEVICE_COMPUTE, decoding->memory, decoding->lists,
                                (size_t)(decoding->end - decoding->lists));
    if (rc == 0) rc = bench->table->finish(bench->device, DEVICE_COMPUTE, NULL);
    if (rc == 0)
        print_line(bench, "partial over everything", seconds_of(run_partial, decoding),
                   (double)rows_bytes);
    return rc;
}

static int bench_partial(const struct bench *bench, struct error *err)
{
    const struct device_table *table = bench->table;
    size_t bytes = bench->tokens * G * D * 2 * sizeof(uint16_t);
    size_t splits = (bench->tokens + SPLIT - 1) / SPLIT;
    size_t lists = (4 << 20) + splits * H * (D + 64) * sizeof(float);
    void *rows = NULL, *memory = NULL, *host = NULL;
    int rc = table->alloc(bench->device, bytes, &rows, err);
    if (rc == 0) rc = table->alloc(bench->device, lists, &memory, err);
    if (rc == 0) rc = table->alloc_host(bench->device, lists, &host, err);
    if (rc == 0)
        rc = time_partial(&(struct decoding){ .bench = bench, .lists = host, .end = host,
                                              .memory = memory, .rows = rows }, bytes);
    if (rows != NULL) table->free(bench->device, rows);
    if (memory != NULL) table->free(bench->device, memory);
    if (host != NULL) table->free_host(bench->device, host);
    return rc;
}

/* ---- steps ---- */

struct stepping {
    struct accelerator *accelerator;
    struct window *window;
    uint16_t *k, *v; /* (T, G, D) */
    struct view views[G];
    struct attend_args args;
    struct arena arena;
    float q[H * D], o[H * D], lse[H];
    uint64_t limit;
};

static int run_step(void *arg)
{
    struct stepping *stepping = arg;
    struct partial answer = { stepping->o, stepping->lse, H, D };
    struct attend_device device = { .accelerator = stepping->accelerator,
                                    .window = stepping->window };
    struct attend_args args = stepping->args;
    args.device = &device;
    return accelerator_attend(&args, &answer, NULL);
}

static int run_on_cpu(void *arg)
{
    struct stepping *stepping = arg;
    struct partial answer = { stepping->o, stepping->lse, H, D };
    arena_reset(&stepping->arena);
    return attend(&stepping->args, &stepping->arena, &answer, NULL);
}

static void make_rows(struct stepping *stepping, size_t tokens)
{
    uint64_t random = 1;
    for (size_t i = 0; i < tokens * G * D; i++) {
        stepping->k[i] = half_to_fp16(random_float(&random));
        stepping->v[i] = half_to_fp16(random_float(&random));
    }
    for (size_t i = 0; i < (size_t)H * D; i++) stepping->q[i] = random_float(&random);
    for (size_t g = 0; g < G; g++)
        stepping->views[g] = (struct view){
            .k = stepping->k + g * D, .v = stepping->v + g * D,
            .k_stride_bytes = sizeof(uint16_t) * G * D, .v_stride_bytes = sizeof(uint16_t) * G * D,
            .tokens = tokens, .dtype = DTYPE_FP16 };
    stepping->limit = tokens;
    stepping->args = (struct attend_args){
        .q = { .data = stepping->q, .dtype = DTYPE_FP32, .dims = 3, .shape = { 1, H, D } },
        .limits = &stepping->limit, .scale = 0.0883883F, .views = stepping->views, .kv_heads = G,
        .view_count = 1 };
}

static int bench_steps(const struct bench *bench, struct error *err)
{
    static struct stepping stepping;
    size_t bytes = bench->window * G * D * sizeof(uint16_t);
    struct accelerator_config config = { .ordinal = -1, .window_bytes = UINT64_C(1) << 30,
                                         .travel_bytes = 64 << 20, .sink_tokens = 4,
                                         .window_tokens = (uint32_t)bench->window };
    int rc = accelerator_open(bench->table, &config, &stepping.accelerator, err);
    if (rc < 0) return rc;
    stepping.window = window_new(stepping.accelerator, &(struct window_shape){ G, D, DTYPE_FP16,
                                                                              NULL });
    stepping.k = malloc(bytes);
    stepping.v = malloc(bytes);
    arena_init(&stepping.arena, (size_t)256 << 20);
    if (stepping.window != NULL && stepping.k != NULL && stepping.v != NULL) {
        make_rows(&stepping, bench->window);
        print_line(bench, "step over a window", seconds_of(run_step, &stepping),
                   2.0 * (double)bytes);
        print_line(bench, "the same by one CPU thread", seconds_of(run_on_cpu, &stepping),
                   2.0 * (double)bytes);
    }
    arena_fini(&stepping.arena);
    free(stepping.k);
    free(stepping.v);
    window_free(stepping.window);
    accelerator_close(stepping.accelerator);
    return 0;
}

static int run_all(struct bench *bench, struct error *err)
{
    struct device_info info;
    int rc = bench->table->open(-1, &bench->device, err);
    if (rc < 0) return rc;
    rc = bench->table->describe(bench->device, &info, err);
    if (rc == 0) {
        memcpy(bench->name, info.name, sizeof bench->name);
        rc = bench_copies(bench, err);
    }
    if (rc == 0) rc = bench_partial(bench, err);
    bench->table->close(bench->device);
    return rc == 0 ? bench_steps(bench, err) : rc;
}

int main(int argc, char **argv)
{
    struct bench bench = { .tokens = 128 << 10, .window = 8192, .copy_bytes = COPY_BYTES };
    struct error err = { 0 };
    if (argc < 2) {
        fprintf(stderr, "usage: bench_cuda PLUGIN [TOKENS [WINDOW]]\n");
        return 2;
    }
    if (argc > 2) bench.tokens = strtoull(argv[2], NULL, 10);
    if (argc > 3) bench.window = strtoull(argv[3], NULL, 10);
    if (bench.tokens < 1024) bench.copy_bytes = 1 << 20; /* not for the numbers */
    int rc = accelerator_load_plugin(argv[1], &bench.table, &err);
    if (rc == 0) rc = run_all(&bench, &err);
    if (rc < 0) printf("{\"failed\":\"%s\"}\n", err.text);
    return rc < 0 ? 1 : 0;
}
