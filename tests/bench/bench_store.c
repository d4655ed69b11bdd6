/* SPDX-License-Identifier: Apache-2.0 */
/* bench_store.c — the store without a daemon: appending a stream of KV, decode steps, opening
 * again.
 *
 *     bench_store DIR [GIB] [TOKENS_PER_APPEND]
 *
 * DIR must not exist. Appends GIB (default 4) of KV in the shape of Llama-3-8B (32 layers, 8 KV
 * heads, D = 128, fp16: 128 KiB per token) to contexts of 8,192 tokens, without sync; then
 * one-token steps; then closes, opens, and attends with one token. Prints one JSON object.
 * `append` counts from the first call to the last return; `committed` until everything is in the
 * store.
 */
#include <inttypes.h>
#include <malloc.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "memory/catalog.h"
#include "memory/context.h"

enum { CONTEXT_TOKENS = 8192, STEPS = 200 };

struct bench {
    struct catalog_config config;
    struct catalog *catalog;
    struct model model;
    struct arena arena;
    unsigned char *rows; /* (n, G, D) */
    size_t rows_tokens;
};

static double seconds_since(uint64_t start_ns)
{
    return (double)(clock_monotonic_ns() - start_ns) / 1e9;
}

static int check(int rc, const struct error *err)
{
    if (rc < 0) fprintf(stderr, "%s: %s\n", error_name(rc), err->text);
    return rc;
}

static struct context *open_context(struct bench *bench, unsigned number)
{
    char name[32];
    snprintf(name, sizeof name, "bench-%u", number);
    struct open_args args = { .name = name, .model = &bench->model, .method = "", .create = true };
    struct context *context = NULL;
    bool created = false;
    struct error err = { 0 };
    int rc = catalog_open_context(bench->catalog, &args, &bench->arena, &context, &created, &err);
    return check(rc, &err) < 0 ? NULL : context;
}

/* One append of all layers. */
static int append(struct bench *bench, struct context *context, uint64_t position, size_t tokens)
{
    struct append_layer parts[LIMIT_APPEND_LAYERS];
    struct tensor rows = { .data = bench->rows,
                           .dtype = bench->model.dtype,
                           .dims = 3,
                           .shape = { tokens, bench->model.kv_heads, bench->model.head_dim } };
    for (uint32_t i = 0; i < bench->model.layers; i++) {
        parts[i] = (struct append_layer){ .layer = i, .position = position, .k = rows, .v = rows };
    }
    struct progress progress;
    struct error err = { 0 };
    int rc = 0;
    do {
        rc = context_append(context, parts, bench->model.layers, &progress, &err);
    } while (rc == MEMD_EBUSY && sched_yield() == 0); /* the writer has the core meanwhile */
    return check(rc, &err);
}

static int stream(struct bench *bench, uint64_t tokens)
{
    uint64_t start = clock_monotonic_ns();
    double bytes = (double)tokens * (double)model_token_bytes(&bench->model, 2) *
                   bench->model.layers;
    for (uint64_t done = 0; done < tokens; done += bench->rows_tokens) {
        struct context *context = open_context(bench, (unsigned)(done / CONTEXT_TOKENS));
        if (context == NULL) return -1;
        if (append(bench, context, done % CONTEXT_TOKENS, bench->rows_tokens) < 0) return -1;
        arena_reset(&bench->arena);
    }
    double append_s = seconds_since(start);
    struct catalog_stats stats;
    struct error err = { 0 };
    while (catalog_get_stats(bench->catalog, &stats), stats.tail_bytes > 0) continue;
    double committed_s = seconds_since(start);
    if (check(catalog_sync(bench->catalog, &err), &err) < 0) return -1;
    printf("\"append_gb_s\": %.3f, \"committed_gb_s\": %.3f, \"synced_gb_s\": %.3f, \"commits\": "
           "%" PRIu64 ", \"commit_s\": %.3f, ",
           bytes / append_s / 1e9, bytes / committed_s / 1e9, bytes / seconds_since(start) / 1e9,
           stats.commits_total, (double)stats.commit_ns_total / 1e9);
    return 0;
}

static int steps(struct bench *bench)
{
    struct context *context = open_context(bench, 1000000);
    if (context == NULL) return -1;
    uint64_t start = clock_monotonic_ns();
    for (uint64_t i = 0; i < STEPS; i++) {
        if (append(bench, context, i, 1) < 0) return -1;
    }
    printf("\"decode_step_us\": %.1f, ", seconds_since(start) / STEPS * 1e6);
    arena_reset(&bench->arena);
    return 0;
}

static int reopen(struct bench *bench)
{
    catalog_close(bench->catalog);
    bench->catalog = NULL;
    struct error err = { 0 };
    uint64_t start = clock_monotonic_ns();
    if (check(catalog_open(&bench->config, &bench->catalog, &err), &err) < 0) return -1;
    double open_s = seconds_since(start);
    struct context *context = open_context(bench, 0);
    if (context == NULL) return -1;
    printf("\"open_ms\": %.2f, \"open_and_pin_ms\": %.2f}\n", open_s * 1e3,
           seconds_since(start) * 1e3);
    arena_reset(&bench->arena);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: bench_store DIR [GIB] [TOKENS_PER_APPEND]\n");
        return 2;
    }
    mallopt(M_ARENA_MAX, 1); /* as daemon/main.c does */
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 256 << 20);
    uint64_t gib = argc > 2 ? strtoull(argv[2], NULL, 10) : 4;
    struct bench bench = {
        .config = { .path = argv[1],
                    .map_bytes = (gib + 8) << 30,
                    .tail_bytes_max = UINT64_C(512) << 20,
                    .sync = SYNC_NEVER,
                    .contexts_max = 1000, .resident_bytes_max = UINT64_C(8) << 30 },
        .model = { .layers = 32,
                   .query_heads = 32,
                   .kv_heads = 8,
                   .head_dim = 128,
                   .dtype = DTYPE_FP16 },
        .rows_tokens = argc > 3 ? strtoull(argv[3], NULL, 10) : 256,
    };
    struct error err = { 0 };
    size_t bytes = bench.rows_tokens * 8 * 128 * 2;
    CLEANUP(free_ptr) unsigned char *rows = malloc(bytes);
    if (rows == NULL || bench.rows_tokens == 0) return 1;
    for (size_t i = 0; i < bytes; i++) rows[i] = i % 2 == 0 ? (unsigned char)(i * 131 >> 3) : 0x34;
    bench.rows = rows;
    arena_init(&bench.arena, (size_t)64 << 20);
    if (check(model_check(&bench.model, &err), &err) < 0) return 1;
    if (check(catalog_open(&bench.config, &bench.catalog, &err), &err) < 0) return 1;
    printf("{\"gib\": %" PRIu64 ", \"tokens_per_append\": %zu, ", gib, bench.rows_tokens);
    uint64_t tokens = (gib << 30) / (128 << 10);
    int rc = stream(&bench, tokens);
    if (rc == 0) rc = steps(&bench);
    if (rc == 0) rc = reopen(&bench);
    arena_fini(&bench.arena);
    catalog_close(bench.catalog);
    return rc < 0 ? 1 : 0;
}
