/* SPDX-License-Identifier: Apache-2.0 */
/* store_fixture.h — a catalog in a fresh directory, and rows that can be computed from where
 * they stand.
 *
 * The value of (layer, position, head, dimension) is a function of these four and a salt, so
 * that a test can say what must come back without keeping a copy. All values are small multiples
 * of 1/64: exact in every dtype.
 */
#ifndef MEMD_TESTS_STORE_FIXTURE_H
#define MEMD_TESTS_STORE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/half.h"
#include "index/columns.h"
#include "memory/catalog.h"
#include "memory/context.h"

struct fixture {
    char path[64];
    struct catalog_config config;
    struct catalog *catalog;
    struct model model;
    const char *method; /* of new contexts; "" = the default */
    const struct parameter *parameters; /* of new contexts */
    size_t parameter_count;
    /* What that method keeps, if it is one of method_fixture.h: appended by the same rule. */
    uint32_t columns;   /* COLUMNS_… */
    size_t state_width; /* or 0: K and V */
    struct arena arena;
    uint32_t salt;
};

#define ASSERT_OK(call, err)                                                                    \
    do {                                                                                        \
        int fixture_rc = (call);                                                                \
        if (fixture_rc < 0) fail_msg("%s: %s (%s)", #call, (err).text, error_name(fixture_rc)); \
    } while (0)

#define ASSERT_CODE(code, call, err)                                                       \
    do {                                                                                   \
        int fixture_rc = (call);                                                           \
        if (fixture_rc != (code))                                                          \
            fail_msg("%s gave %s (%s), not %s", #call, error_name(fixture_rc), (err).text, \
                     error_name(code));                                                    \
    } while (0)

static inline void fixture_open(struct fixture *fx)
{
    struct error err = { 0 };
    ASSERT_OK(catalog_open(&fx->config, &fx->catalog, &err), err);
}

static inline void fixture_begin(struct fixture *fx)
{
    *fx = (struct fixture){ .path = "/tmp/memd-test-XXXXXX", .method = "", .salt = 1 };
    assert_non_null(mkdtemp(fx->path));
    fx->config = (struct catalog_config){
        .path = fx->path,
        .map_bytes = UINT64_C(256) << 20,
        .tail_bytes_max = UINT64_C(64) << 20,
        .sync = SYNC_NEVER,
        .contexts_max = 16,
        .resident_bytes_max = UINT64_C(1) << 30,
    };
    fx->model = (struct model){
        .layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16, .dtype = DTYPE_FP16
    };
    struct error err = { 0 };
    ASSERT_OK(model_check(&fx->model, &err), err);
    arena_init(&fx->arena, (size_t)256 << 20);
    fixture_open(fx);
}

static inline void fixture_close(struct fixture *fx)
{
    arena_reset(&fx->arena);
    catalog_close(fx->catalog);
    fx->catalog = NULL;
}

static inline void fixture_restart(struct fixture *fx)
{
    fixture_close(fx);
    fixture_open(fx);
}

static inline void fixture_remove(const char *path)
{
    static const char *const files[] = { "data.mdb", "lock.mdb", "lock", "synced" };
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s/%s", path, files[i]);
        unlink(name);
    }
    if (rmdir(path) != 0) fail_msg("%s still holds files: %s", path, strerror(errno));
}

static inline void fixture_end(struct fixture *fx)
{
    arena_fini(&fx->arena);
    catalog_close(fx->catalog);
    fixture_remove(fx->path);
}

static inline struct context *fixture_context(struct fixture *fx, const char *name)
{
    struct error err = { 0 };
    struct context *context = NULL;
    bool created = false;
    struct open_args args = {
        .name = name, .model = &fx->model, .method = fx->method, .create = true,
        .parameters = fx->parameters, .parameter_count = fx->parameter_count,
    };
    ASSERT_OK(catalog_open_context(fx->catalog, &args, &fx->arena, &context, &created, &err), err);
    return context;
}

static inline float fixture_value(uint32_t salt, uint32_t layer, uint64_t position, size_t element)
{
    uint64_t x = position * 0x9E3779B97F4A7C15u + ((uint64_t)layer << 48) + ((uint64_t)salt << 56) +
                 element * 0xD1342543DE82EF95u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u; /* splitmix64 */
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    return (float)((int)(x >> 57) - 64) / 64.0f;
}

/* Rows of K (kind 0) or V (kind 1): (n, G, D), to be freed. */
static inline void *fixture_rows(const struct fixture *fx, uint32_t layer, uint64_t position,
                                 size_t count, int kind)
{
    size_t row = (size_t)fx->model.kv_heads * fx->model.head_dim,
           bytes = dtype_bytes(fx->model.dtype);
    unsigned char *data = malloc(count * row * bytes + 1);
    float *line = malloc(row * sizeof *line);
    assert_non_null(data);
    assert_non_null(line);
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < row; j++)
            line[j] = fixture_value(fx->salt, layer, position + i, j + (size_t)kind * 100000);
        half_store(line, row, fx->model.dtype, data + i * row * bytes);
    }
    free(line);
    return data;
}

static inline struct tensor fixture_tensor(const struct fixture *fx, const void *data, size_t count)
{
    return (struct tensor){ .data = data,
                            .dtype = fx->model.dtype,
                            .dims = 3,
                            .shape = { count, fx->model.kv_heads, fx->model.head_dim } };
}

struct place {
    uint32_t layer;
    uint64_t position;
};

/* States (n, W), to be freed. */
static inline void *fixture_states(const struct fixture *fx, struct place place, size_t count)
{
    size_t width = fx->state_width, bytes = dtype_bytes(fx->model.dtype);
    unsigned char *data = malloc(count * width * bytes + 1);
    assert_non_null(data);
    for (size_t i = 0; i < count * width; i++) {
        float value = fixture_value(fx->salt, place.layer, place.position + i / width,
                                    i % width + 300000);
        half_store(&value, 1, fx->model.dtype, data + i * bytes);
    }
    return data;
}

/* Element `j` of a token's query; its marks. */
static inline float fixture_query(uint32_t salt, struct place place, size_t j)
{
    return fixture_value(salt, place.layer, place.position, j + 200000);
}

static inline uint8_t fixture_mark(uint32_t salt, struct place place)
{
    float value = fixture_value(salt, place.layer, place.position, 400000);
    return (uint8_t)((unsigned)(64 * value + 64) % (MARKS_ALL + 1));
}

/* Queries (n, H, D) in fp32, to be freed. */
static inline float *fixture_queries(const struct fixture *fx, struct place place, size_t count)
{
    size_t values = (size_t)fx->model.query_heads * fx->model.head_dim;
    float *q = malloc(count * values * sizeof *q + 1);
    assert_non_null(q);
    for (size_t i = 0; i < count * values; i++)
        q[i] = fixture_query(fx->salt, (struct place){ place.layer, place.position + i / values },
                             i % values);
    return q;
}

static inline uint8_t *fixture_marks(const struct fixture *fx, struct place place, size_t count)
{
    uint8_t *marks = malloc(count + 1);
    assert_non_null(marks);
    for (size_t i = 0; i < count; i++)
        marks[i] = fixture_mark(fx->salt, (struct place){ place.layer, place.position + i });
    return marks;
}

/* Append `count` tokens to one layer. */
static inline int fixture_append_layer(const struct fixture *fx, struct context *context,
                                       struct place place, size_t count, struct progress *progress,
                                       struct error *err)
{
    uint32_t layer = place.layer;
    uint64_t position = place.position;
    bool states = fx->state_width > 0;
    void *k = states ? NULL : fixture_rows(fx, layer, position, count, 0),
         *v = states ? NULL : fixture_rows(fx, layer, position, count, 1),
         *w = states ? fixture_states(fx, place, count) : NULL;
    float *q = (fx->columns & COLUMNS_QUERIES) == 0 ? NULL : fixture_queries(fx, place, count);
    uint8_t *marks = (fx->columns & COLUMNS_MARKS) == 0 ? NULL : fixture_marks(fx, place, count);
    uint32_t *ids = malloc((count + 1) * sizeof *ids);
    for (size_t i = 0; i < count; i++) ids[i] = (uint32_t)(position + i) * 3 + fx->salt;
    struct append_layer part = { .layer = layer, .position = position, .token_ids = ids,
                                 .marks = marks };
    if (!states) {
        part.k = fixture_tensor(fx, k, count);
        part.v = fixture_tensor(fx, v, count);
    } else {
        part.states = (struct tensor){ .data = w, .dtype = fx->model.dtype, .dims = 2,
                                       .shape = { count, fx->state_width } };
    }
    if (q != NULL)
        part.q = (struct tensor){ .data = q, .dtype = DTYPE_FP32, .dims = 3,
                                  .shape = { count, fx->model.query_heads, fx->model.head_dim } };
    int rc = context_append(context, &part, 1, progress, err);
    free(k);
    free(v);
    free(w);
    free(q);
    free(marks);
    free(ids);
    return rc;
}

/* To all layers; all must succeed. */
static inline struct progress fixture_append(const struct fixture *fx, struct context *context,
                                             uint64_t position, size_t count)
{
    struct error err = { 0 };
    struct progress progress = { 0 };
    for (uint32_t layer = 0; layer < fx->model.layers; layer++)
        ASSERT_OK(fixture_append_layer(fx, context, (struct place){ layer, position }, count,
                                       &progress, &err),
                  err);
    return progress;
}

/* Layer rows [from, to) must be what fixture_append wrote, ids included. */
static inline void fixture_expect(const struct fixture *fx, struct context *context, uint32_t layer,
                                  uint64_t from, uint64_t to)
{
    size_t count = (size_t)(to - from);
    size_t bytes = count * fx->model.kv_heads * fx->model.head_dim * dtype_bytes(fx->model.dtype);
    size_t state_bytes = count * fx->state_width * dtype_bytes(fx->model.dtype);
    bool states = state_bytes > 0;
    uint64_t *ids = malloc(count * sizeof *ids + 1);
    for (size_t i = 0; i < count; i++) ids[i] = from + i;
    struct fetch_out out = { .k = states ? NULL : malloc(bytes + 1),
                             .v = states ? NULL : malloc(bytes + 1),
                             .states = states ? malloc(state_bytes) : NULL,
                             .token_ids = malloc(count * sizeof(uint32_t) + 1) };
    struct error err = { 0 };
    ASSERT_OK(context_fetch(context, layer, ids, count, &out, &err), err);
    void *k = fixture_rows(fx, layer, from, count, 0), *v = fixture_rows(fx, layer, from, count, 1),
         *w = fixture_states(fx, (struct place){ layer, from }, count);
    if (states) {
        assert_memory_equal(out.states, w, state_bytes);
    } else {
        assert_memory_equal(out.k, k, bytes);
        assert_memory_equal(out.v, v, bytes);
    }
    assert_int_equal(out.has_ids, count > 0);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(out.token_ids[i], (uint32_t)(from + i) * 3 + fx->salt);
    free(k);
    free(v);
    free(w);
    free(out.k);
    free(out.v);
    free(out.states);
    free(out.token_ids);
    free(ids);
}

struct answer {
    float o[4 * 64], lse[4];
};

/* One query at `limit` (UINT64_MAX: everything). */
static inline int fixture_attend(struct fixture *fx, struct context *context, uint32_t layer,
                                 uint64_t limit, struct answer *answer, struct error *err)
{
    size_t heads = fx->model.query_heads, dim = fx->model.head_dim;
    assert_true(heads <= 4 && dim <= 64);
    float q[4 * 64];
    for (size_t i = 0; i < heads * dim; i++) q[i] = fixture_value(77, layer, 5, i) * 2;
    uint64_t position = context_layer_tokens(context, layer);
    struct query query = {
        .layer = layer,
        .q = { .data = q, .dtype = DTYPE_FP32, .dims = 3, .shape = { 1, heads, dim } },
        .positions = &position,
        .limits = limit == UINT64_MAX ? NULL : &limit
    };
    struct partial partial = { .o = answer->o, .lse = answer->lse, .rows = heads, .head_dim = dim };
    struct quality quality;
    return context_attend(context, &query, &fx->arena, &partial, &quality, err);
}

/* Wait until an append is committed (or synced): bounded, without sleeping. */
static inline int fixture_reach(struct fixture *fx, struct context *context, uint64_t sequence,
                                enum durability level, struct error *err)
{
    struct progress progress = { 0 };
    ASSERT_OK(catalog_sync(fx->catalog, err), *err);
    return context_reached(context, sequence, level, &progress, err);
}

#endif
