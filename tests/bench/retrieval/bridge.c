/* SPDX-License-Identifier: Apache-2.0 */
/* bridge.c — the memory methods for Python, on arrays of one layer and without a daemon.
 *
 * The benchmark compares methods on captured keys, next to libraries that only Python can call. So
 * this is the smallest surface that ctypes can use: a bench holds the rows of one layer (memory of
 * the caller, head by head, in views of 1,024 tokens as they lie in the store), codes planes,
 * builds the index of a method and asks the method through the same table as the daemon does. What
 * is timed is timed here, in CPU time of the calling thread and without a pool; before each call
 * the caches can be filled with something else, because in a model the other layers do that.
 *
 * Every function returns 0 or a code of base/error.h; bench_message() says more.
 */
#include <assert.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "index/centroid_table.h"
#include "index/layer_index.h"
#include "index/planes.h"
#include "memory/catalog.h"
#include "memory/methods/methods.h"

#define ARENA_BYTES ((size_t)4 << 30)
#define EVICT_BYTES ((size_t)96 << 20) /* more than any cache of the machines we know */
enum { SEGMENT = PLANES_TOKENS };

/* The structs are read and written by bridge.py: 8-byte fields only, in this order. */
struct bench_shape {
    uint64_t query_heads, kv_heads, head_dim;
    uint64_t capacity;        /* tokens of k and v */
    const uint16_t *k, *v;    /* (G, capacity, D) fp16 */
};

struct bench_query {
    const float *q;           /* (n, H, D) */
    const uint64_t *limits;   /* (n) */
    uint64_t n, block;        /* queries, of which `block` are asked at a time */
    uint64_t tokens;          /* that there are; each call sees those below its largest limit */
    uint64_t planed;          /* of the first so many segments, planes may be used */
    double target_error;      /* below 0: as the method's parameters say */
    uint64_t max_bytes;
    uint64_t evict;           /* 1: empty the caches before each call */
};

struct bench_answer {
    float *o, *lse;           /* (n, H, D), (n, H) */
    float *predicted, *mass;  /* (n, H), (n, H, INDEX_LEVELS) */
    bool *limited;            /* (n, H) */
    double *seconds;          /* (n / block), of each call */
    uint64_t *rows, *bytes;   /* (n / block, INDEX_LEVELS) */
};

struct bench_build {
    uint64_t tokens;           /* rows 0 … tokens-1 */
    const uint16_t *q;         /* (count, H, D) fp16, queries that were kept */
    const uint64_t *positions; /* (count) */
    uint64_t count;
    double *seconds;           /* out */
    uint64_t *bytes;           /* out */
};

struct bench {
    struct bench_shape shape;
    struct planes_layout layout;
    size_t segments;             /* of the capacity, the last one may be open */
    unsigned char **payloads;    /* (G, segments) hi, then lo; NULL: not coded */
    struct planes *planes;       /* (G, segments) */
    struct centroid_table **tables; /* (segments / TABLE_SEGMENTS, rounded up) */
    size_t table_count;
    const struct planes **table; /* (G, view_count) */
    struct view *views;          /* (G, view_count) */
    const struct method *method;
    double options[OPTIONS_MAX];
    struct layer_index *version;
    unsigned char *evict; /* (EVICT_BYTES), made when needed */
    uint64_t evicted;     /* keeps the compiler from skipping its reads */
    struct arena arena;
    struct error error;
};

int bench_open(const struct bench_shape *shape, struct bench **ret_bench);
void bench_close(struct bench *bench);
const char *bench_message(const struct bench *bench);
int bench_method(struct bench *bench, const char *name, const struct option_text *texts,
                 uint64_t count);
int bench_needs(const struct bench *bench);
int bench_encode(struct bench *bench, uint64_t segment, const float *query_square,
                 uint64_t queries, double *ret_seconds);
uint64_t bench_plane_bytes(const struct bench *bench, int lo);
int bench_make(struct bench *bench, const struct bench_build *build);
int bench_attend(struct bench *bench, const struct bench_query *query,
                 const struct bench_answer *ret_answer);
int bench_search(struct bench *bench, const struct bench_query *query, uint64_t k,
                 uint64_t *ret_ids, double *ret_seconds);
int bench_empty_caches(struct bench *bench);

/* Time of this thread alone: everything here runs on it, and what others do on the machine
 * meanwhile is not counted (but for the caches that they take). */
static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static double seconds_since(uint64_t start_ns)
{
    return (double)(now_ns() - start_ns) * 1e-9;
}

void bench_close(struct bench *bench)
{
    if (bench == NULL) return;
    layer_index_put(bench->version);
    for (size_t i = 0; bench->payloads != NULL && i < bench->shape.kv_heads * bench->segments; i++)
        free(bench->payloads[i]);
    free(bench->payloads);
    for (size_t i = 0; i < bench->table_count; i++) centroid_table_free(bench->tables[i]);
    free(bench->tables);
    free(bench->planes);
    free(bench->table);
    free(bench->views);
    free(bench->evict);
    arena_fini(&bench->arena);
    free(bench);
}

static void close_benchp(struct bench **bench)
{
    bench_close(*bench);
}

int bench_open(const struct bench_shape *shape, struct bench **ret_bench)
{
    mallopt(M_MMAP_THRESHOLD, 32 << 20); /* as the daemon: scratch is not faulted in again */
    mallopt(M_TRIM_THRESHOLD, 256 << 20);
    CLEANUP(close_benchp) struct bench *bench = calloc(1, sizeof *bench);
    if (bench == NULL) return MEMD_ENOMEM;
    bench->shape = *shape;
    bench->segments = (shape->capacity + SEGMENT - 1) / SEGMENT;
    size_t count = shape->kv_heads * bench->segments;
    bench->payloads = calloc(count, sizeof *bench->payloads);
    bench->planes = calloc(count, sizeof *bench->planes);
    bench->table_count = (bench->segments + TABLE_SEGMENTS - 1) / TABLE_SEGMENTS;
    bench->tables = calloc(bench->table_count, sizeof *bench->tables);
    bench->table = calloc(count, sizeof *bench->table);
    bench->views = calloc(count, sizeof *bench->views);
    if (bench->payloads == NULL || bench->planes == NULL || bench->table == NULL ||
        bench->views == NULL)
        return MEMD_ENOMEM;
    arena_init(&bench->arena, ARENA_BYTES);
    planes_layout_init(shape->head_dim, &bench->layout);
    *ret_bench = TAKE(bench);
    return 0;
}

const char *bench_message(const struct bench *bench)
{
    return bench->error.text;
}

int bench_method(struct bench *bench, const char *name, const struct option_text *texts,
                 uint64_t count)
{
    const struct method *method = method_find(name);
    if (method == NULL)
        return error_set(&bench->error, MEMD_EUNSUPPORTED, "no method \"%.40s\" in this build",
                         name);
    if (method != bench->method) {
        layer_index_put(bench->version);
        bench->version = NULL;
    }
    bench->method = method;
    const struct option_table *table = method->options;
    if (table == NULL) table = method->layer->options;
    return options_parse(table, texts, count, bench->options, &bench->error);
}

/* Bit 0: planes; bit 1: an index of the layer; bit 2: which needs queries. */
int bench_needs(const struct bench *bench)
{
    const struct layer_index_type *layer = bench->method->layer;
    return (bench->method->planes ? 1 : 0) | (layer != NULL && layer->build != NULL ? 2 : 0) |
           (layer != NULL && layer->needs_queries ? 4 : 0);
}

/* Views of the first `tokens` rows, as they lie in the store. Returns the number per KV head. */
static size_t make_views(struct bench *bench, uint64_t tokens)
{
    const struct bench_shape *shape = &bench->shape;
    assert(tokens <= shape->capacity);
    size_t count = (tokens + SEGMENT - 1) / SEGMENT, row_bytes = shape->head_dim * 2;
    for (size_t g = 0; g < shape->kv_heads; g++) {
        for (size_t i = 0; i < count; i++) {
            size_t at = i * SEGMENT, row = (g * shape->capacity + at) * shape->head_dim;
            bench->views[g * count + i] = (struct view){
                .k = shape->k + row, .v = shape->v + row, .k_stride_bytes = row_bytes,
                .v_stride_bytes = row_bytes, .position = at, .dtype = DTYPE_FP16,
                .tokens = tokens - at < SEGMENT ? tokens - at : SEGMENT };
        }
    }
    return count;
}

/* Centroids side by side once there are enough of them, as the builder does (build_tables.c):
 * before anything is timed. */
static int fill_tables(struct bench *bench, uint64_t planed)
{
    if (planed > bench->segments) planed = bench->segments;
    for (size_t segment = planed; planed >= TABLE_FROM && segment-- > 0;) {
        struct centroid_table **table = &bench->tables[segment / TABLE_SEGMENTS];
        if (*table == NULL)
            *table = centroid_table_new(bench->layout.head_dim, bench->shape.kv_heads);
        if (*table == NULL) return error_set(&bench->error, MEMD_ENOMEM, "table of centroids");
        for (size_t g = 0; g < bench->shape.kv_heads; g++) {
            size_t at = g * bench->segments + segment;
            if (bench->payloads[at] != NULL && bench->planes[at].entry.space == NULL)
                centroid_table_put(*table, g, segment % TABLE_SEGMENTS, &bench->planes[at]);
        }
    }
    return 0;
}

/* Planes of the views that make_views made. */
static void make_table(struct bench *bench, const struct bench_query *query, size_t view_count)
{
    for (size_t g = 0; g < bench->shape.kv_heads; g++) {
        for (size_t i = 0; i < view_count; i++) {
            size_t at = g * bench->segments + i;
            bool use = i < query->planed && bench->payloads[at] != NULL &&
                       bench->views[g * view_count + i].tokens == SEGMENT;
            bench->table[g * view_count + i] = use ? &bench->planes[at] : NULL;
        }
    }
}

/* Code one segment of every KV head. query_square (G, D) or NULL. */
int bench_encode(struct bench *bench, uint64_t segment, const float *query_square,
                 uint64_t queries, double *ret_seconds)
{
    const struct planes_layout *layout = &bench->layout;
    size_t count = make_views(bench, (segment + 1) * SEGMENT), bytes = layout->hi_bytes;
    for (size_t g = 0; g < bench->shape.kv_heads; g++) {
        size_t at = g * bench->segments + segment;
        free(bench->payloads[at]);
        size_t wanted = (bytes + layout->lo_bytes + 4095) & ~(size_t)4095;
        bench->payloads[at] = aligned_alloc(4096, wanted);
        if (bench->payloads[at] == NULL) return error_set(&bench->error, MEMD_ENOMEM, "payload");
        unsigned char *hi = bench->payloads[at], *lo = hi + bytes;
        struct planes_source source = {
            .view = &bench->views[g * count + segment],
            .query_square = query_square == NULL ? NULL : query_square + g * layout->head_dim,
            .queries = queries };
        memset(hi, 0, bytes + layout->lo_bytes); /* page faults are not the encoder's */
        uint64_t start = now_ns();
        int rc = planes_encode(layout, &source, &bench->arena, hi, lo, &bench->error);
        *ret_seconds += seconds_since(start);
        arena_reset(&bench->arena);
        if (rc == 0) rc = planes_open(layout, hi, lo, &bench->planes[at], &bench->error);
        if (rc < 0) return rc;
    }
    return 0;
}

uint64_t bench_plane_bytes(const struct bench *bench, int lo)
{
    return lo != 0 ? bench->layout.lo_bytes : bench->layout.hi_bytes;
}

/* Build the method's index of the layer. */
int bench_make(struct bench *bench, const struct bench_build *build)
{
    const struct bench_shape *shape = &bench->shape;
    struct layer_source source = {
        .view_count = make_views(bench, build->tokens), .views = bench->views,
        .kv_heads = shape->kv_heads, .tokens = build->tokens, .query_heads = shape->query_heads,
        .head_dim = shape->head_dim, .scale = 1.0F / __builtin_sqrtf((float)shape->head_dim),
        .queries = { .q = build->q, .positions = build->positions, .count = build->count },
        .options = bench->options };
    struct layer_index *version = NULL;
    uint64_t start = now_ns();
    int rc = bench->method->layer->build(&source, bench->version, &version, &bench->error);
    if (rc < 0) return rc;
    *build->seconds = seconds_since(start);
    *build->bytes = version->bytes;
    layer_index_put(bench->version);
    bench->version = version;
    return 0;
}

int bench_empty_caches(struct bench *bench)
{
    if (bench->evict == NULL) {
        bench->evict = malloc(EVICT_BYTES);
        if (bench->evict == NULL)
            return error_set(&bench->error, MEMD_ENOMEM, "buffer for eviction");
        memset(bench->evict, 1, EVICT_BYTES);
    }
    for (size_t i = 0; i < EVICT_BYTES; i += 64) bench->evicted += bench->evict[i];
    return 0;
}

/* Queries first … first + count - 1 as the method sees them. */
static struct reading reading_of(struct bench *bench, const struct bench_query *query,
                                 size_t first, size_t count)
{
    const struct bench_shape *shape = &bench->shape;
    uint64_t tokens = 0; /* stored when these are asked: what they may see */
    for (size_t i = first; i < first + count; i++)
        tokens = query->limits[i] > tokens ? query->limits[i] : tokens;
    if (tokens > query->tokens) tokens = query->tokens;
    size_t view_count = make_views(bench, tokens);
    make_table(bench, query, view_count);
    return (struct reading){
        .attend = { .q = { .data = query->q + first * shape->query_heads * shape->head_dim,
                           .dtype = DTYPE_FP32, .dims = 3,
                           .shape = { count, shape->query_heads, shape->head_dim } },
                    .positions = query->limits + first, .limits = query->limits + first,
                    .scale = 1.0F / __builtin_sqrtf((float)shape->head_dim),
                    .views = bench->views, .view_count = view_count,
                    .kv_heads = shape->kv_heads },
        .planes = bench->method->planes ? bench->table : NULL, .version = bench->version,
        .target_error = query->target_error, .max_bytes = query->max_bytes,
        .options = bench->options };
}

int bench_attend(struct bench *bench, const struct bench_query *query,
                 const struct bench_answer *ret_answer)
{
    size_t heads = bench->shape.query_heads, dim = bench->shape.head_dim;
    int rc = fill_tables(bench, query->planed);
    for (size_t at = 0, call = 0; rc == 0 && at < query->n; at += query->block, call++) {
        size_t count = query->n - at < query->block ? query->n - at : query->block;
        struct index_quality quality = { .predicted_error = ret_answer->predicted + at * heads,
                                         .mass = ret_answer->mass + at * heads * INDEX_LEVELS,
                                         .limited = ret_answer->limited + at * heads };
        struct index_answer answer = {
            .partial = { .o = ret_answer->o + at * heads * dim,
                         .lse = ret_answer->lse + at * heads, .rows = count * heads,
                         .head_dim = dim },
            .quality = &quality };
        struct reading reading = reading_of(bench, query, at, count);
        rc = query->evict != 0 ? bench_empty_caches(bench) : 0;
        if (rc < 0) return rc;
        uint64_t start = now_ns();
        rc = bench->method->attend(bench->method, &reading, &bench->arena, &answer, &bench->error);
        ret_answer->seconds[call] = seconds_since(start);
        arena_reset(&bench->arena);
        if (rc < 0) return rc;
        memcpy(ret_answer->rows + call * INDEX_LEVELS, quality.rows, sizeof quality.rows);
        memcpy(ret_answer->bytes + call * INDEX_LEVELS, quality.bytes, sizeof quality.bytes);
    }
    return rc;
}

/* ids (n, H, k). */
int bench_search(struct bench *bench, const struct bench_query *query, uint64_t k,
                 uint64_t *ret_ids, double *ret_seconds)
{
    size_t answers = query->n * bench->shape.query_heads;
    CLEANUP(free_ptr) float *scores = calloc(answers * k, sizeof *scores);
    CLEANUP(free_ptr) float *mass = calloc(answers * (INDEX_LEVELS + 1), sizeof *mass);
    CLEANUP(free_ptr) bool *limited = calloc(answers, sizeof *limited);
    if (scores == NULL || mass == NULL || limited == NULL)
        return error_set(&bench->error, MEMD_ENOMEM, "scores of a search");
    for (size_t at = 0; at < query->n; at++) {
        size_t row = at * bench->shape.query_heads;
        struct index_quality quality = { .predicted_error = mass + answers * INDEX_LEVELS + row,
                                         .mass = mass + row * INDEX_LEVELS,
                                         .limited = limited + row };
        struct index_hits hits = { .ids = ret_ids + row * k, .scores = scores + row * k, .k = k };
        struct reading reading = reading_of(bench, query, at, 1);
        uint64_t start = now_ns();
        int rc = bench->method->search(bench->method, &reading, &bench->arena, &hits, &quality,
                                       &bench->error);
        *ret_seconds += seconds_since(start);
        arena_reset(&bench->arena);
        if (rc < 0) return rc;
    }
    return 0;
}
