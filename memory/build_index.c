/* SPDX-License-Identifier: Apache-2.0 */
/* build_index.c — the index of a layer as a whole: load what was saved, build a version when enough
 * segments were sealed since the last one, save it.
 *
 * Such a build may take minutes and reads rows all over the layer, so it holds `use` shared; it
 * asks all the time whether somebody wants the context alone (truncate, drop) and then gives up:
 * an index can be made again, a truncate must not wait. The version is put in place before `use`
 * is let go, so it belongs to just these rows.
 *
 * Saving comes after that, without a pin. Whether the rows are still the same is seen by the
 * version itself: a truncate that reached into it has taken it from the layer.
 *
 * Rejected: a read transaction for the time of the build (it would keep every page from being
 * reused, and the file would grow as long as somebody appends).
 */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "index/layer_index.h"
#include "memory/build.h"

enum { SCRATCH_BYTES_MAX = 64 << 20 };
#define QUERIES_BYTES_MAX (UINT64_C(256) << 20)

/* One layer under way. */
struct layer_task {
    struct build *build;
    uint32_t layer;
    uint64_t tokens; /* sealed and committed */
    struct layer_index *before, *made; /* references */
    uint16_t *q;         /* kept queries, and their positions */
    uint64_t *positions;
    size_t query_count;
};

static void release(struct layer_task *task)
{
    layer_index_put(task->before);
    layer_index_put(task->made);
    free(task->q);
    free(task->positions);
}

static int must_yield(void *arg)
{
    return build_must_yield(arg) ? MEMD_ECANCELLED : 0;
}

static void free_kept(struct kept **kept)
{
    kept_free(*kept);
}

/* Every `stride`-th kept query of a segment. */
static int add_kept(struct layer_task *task, const struct kept *kept, uint64_t position,
                    size_t stride, struct error *err)
{
    struct context *context = task->build->context;
    size_t values = context_query_values(context);
    size_t count = task->query_count + kept->count;
    uint16_t *q = realloc(task->q, count * values * sizeof *q);
    if (q != NULL) task->q = q;
    uint64_t *positions = realloc(task->positions, count * sizeof *positions);
    if (positions != NULL) task->positions = positions;
    if (q == NULL || positions == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu kept queries", count);
    for (size_t i = 0; i < kept->count; i += stride) {
        memcpy(q + task->query_count * values, kept->q + i * values, values * sizeof *q);
        positions[task->query_count++] = position + kept->rows[i];
    }
    return 0;
}

/* The kept queries of all sealed segments; what is damaged is passed over. `segments` (count) */
static int collect_queries(struct layer_task *task, const uint64_t *segments, size_t count,
                           struct error *err)
{
    struct context *context = task->build->context;
    uint64_t query_bytes = context_query_values(context) * sizeof(uint16_t);
    uint64_t most = count * FORMAT_SEGMENT_TOKENS * query_bytes;
    size_t stride = (size_t)(most / QUERIES_BYTES_MAX) + 1;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(context->catalog->store, false, &txn, err);
    for (size_t i = 0; rc == 0 && i < count; i++) {
        CLEANUP(free_kept) struct kept *kept = NULL;
        if (build_must_yield(task->build)) return MEMD_ECANCELLED;
        if (kept_load(context, &txn, segments[i], &kept, NULL) < 0) {
            CATALOG_COUNT(context->catalog, damaged_derived_total, 1);
            continue;
        }
        if (kept != NULL)
            rc = add_kept(task, kept, (uint64_t)i * FORMAT_SEGMENT_TOKENS, stride, err);
    }
    return rc;
}

static int copy_segments(struct layer_task *task, uint64_t **ret_segments, size_t *ret_count)
{
    struct context *context = task->build->context;
    const struct layer *layer = &context->layers[task->layer];
    size_t count = task->tokens / FORMAT_SEGMENT_TOKENS;
    uint64_t *segments = calloc(count + 1, sizeof *segments);
    if (segments == NULL) return MEMD_ENOMEM;
    pthread_mutex_lock(&context->lock);
    for (size_t i = 0; i < count; i++) segments[i] = layer->slots[i].segment;
    pthread_mutex_unlock(&context->lock);
    *ret_segments = segments;
    *ret_count = count;
    return 0;
}

static void fill_source(struct layer_task *task, const struct snapshot *snapshot,
                        struct layer_source *ret_source)
{
    const struct context *context = task->build->context;
    *ret_source = (struct layer_source){
        .views = snapshot->views,
        .view_count = snapshot->view_count,
        .kv_heads = context->shape.heads,
        .tokens = task->tokens,
        .query_heads = context->record->model.query_heads,
        .head_dim = context->shape.head_dim,
        .scale = (float)context->record->model.attention_scale,
        .rope = context->rope,
        .queries = { task->q, task->positions, task->query_count },
        .options = context->options,
        .stop = must_yield,
        .stop_arg = task->build,
    };
}

/* The saved version, when it fits: no more than the rows that are sealed. */
static int load(struct layer_task *task, const struct layer_source *source, struct error *err)
{
    struct context *context = task->build->context;
    const struct layer_index_type *type = context->method->layer;
    struct slice payload;
    uint64_t covered = 0;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(context->catalog->store, false, &txn, err);
    if (rc < 0 || type->load == NULL) return rc;
    rc = context_find_saved(context, task->layer, &txn, &payload, &covered, err);
    if (rc <= 0 || covered > task->tokens) return rc;
    struct layer_source shape = *source;
    shape.tokens = covered;
    rc = type->load(&shape, payload.data, payload.bytes, &task->made, err);
    if (rc == 0 && type->validate != NULL) rc = type->validate(task->made, err);
    if (rc == 0 && task->made->tokens != covered)
        rc = error_set(err, MEMD_ECORRUPT, "it covers %" PRIu64 " tokens", task->made->tokens);
    return rc;
}

/* With use held shared. */
static void put_in_place(struct layer_task *task)
{
    struct context *context = task->build->context;
    struct layer *layer = &context->layers[task->layer];
    struct layer_index *made = layer_index_get(task->made);
    pthread_mutex_lock(&context->lock);
    struct layer_index *old = layer->version;
    layer->version = made;
    pthread_mutex_unlock(&context->lock);
    layer_index_put(old);
}

static int make(struct layer_task *task, const struct layer_source *source, struct error *err)
{
    struct context *context = task->build->context;
    const struct layer_index_type *type = context->method->layer;
    CLEANUP(free_ptr) uint64_t *segments = NULL;
    size_t count = 0;
    struct layer_source whole = *source;
    int rc = context->method->keeps_queries ? copy_segments(task, &segments, &count) : 0;
    if (rc == 0 && context->method->keeps_queries)
        rc = collect_queries(task, segments, count, err);
    whole.queries = (struct kept_queries){ task->q, task->positions, task->query_count };
    return rc < 0 ? rc : type->build(&whole, task->before, &task->made, err);
}

/* With use held shared. 1: a new version is in place that is to be saved. */
static int renew(struct layer_task *task, struct arena *arena, struct error *err)
{
    struct context *context = task->build->context;
    struct layer *layer = &context->layers[task->layer];
    const struct layer_index_type *type = context->method->layer;
    struct snapshot snapshot;
    struct layer_source source;
    pthread_mutex_lock(&context->lock);
    task->tokens = layer->committed / FORMAT_SEGMENT_TOKENS * FORMAT_SEGMENT_TOKENS;
    if (layer->version != NULL) task->before = layer_index_get(layer->version);
    pthread_mutex_unlock(&context->lock);
    uint64_t covered = task->before == NULL ? 0 : task->before->tokens;
    bool may_load = !layer->index_loaded;
    if (task->tokens == 0 || (!may_load && task->tokens < covered + type->step_tokens)) return 0;
    int rc = snapshot_take(context, task->layer, task->tokens, arena, &snapshot, err);
    if (rc < 0) return rc;
    fill_source(task, &snapshot, &source);
    layer->index_loaded = true;
    if (may_load && load(task, &source, NULL) < 0) {
        CATALOG_COUNT(context->catalog, damaged_derived_total, 1);
        layer_index_put(TAKE(task->made));
    }
    bool loaded = task->made != NULL;
    if (loaded) covered = task->made->tokens;
    if (!loaded && task->tokens >= covered + type->step_tokens) rc = make(task, &source, err);
    if (rc == 0 && task->made != NULL) put_in_place(task);
    snapshot_release(&snapshot);
    if (rc < 0 || task->made == NULL) return rc;
    /* A loaded one may be old already: the next look, which is woken here, renews it. */
    if (loaded && task->tokens >= covered + type->step_tokens) task->build->again = true;
    return loaded ? 0 : 1;
}

/* It is not that of the layer any more after a truncate into it. */
static bool is_current(const struct layer *layer, const void *arg)
{
    return layer->version == arg;
}

/* Unpins and pins the context. */
static int save(struct layer_task *task, struct error *err)
{
    struct build *build = task->build;
    const struct layer_index_type *type = build->context->method->layer;
    if (type->save == NULL) return 0;
    size_t bytes = type->save(task->made, NULL);
    CLEANUP(free_ptr) unsigned char *value = malloc(FORMAT_HEADER_BYTES + bytes);
    if (value == NULL) return error_set(err, MEMD_ENOMEM, "no memory to save an index");
    type->save(task->made, value + FORMAT_HEADER_BYTES);
    format_seal(&(struct value_header){ .kind = FORMAT_KIND_INDEX,
                                        .payload_bytes = bytes,
                                        .position = task->made->tokens,
                                        .model_hash = build->context->shape.model_hash },
                value);
    struct saving saving = { .layer = task->layer,
                             .value = { value, FORMAT_HEADER_BYTES + bytes },
                             .is_current = is_current,
                             .arg = task->made };
    return build_save(build, &saving, err);
}

/* Another version of one layer, if it is time. */
static int build_layer(struct build *build, uint32_t layer, struct error *err)
{
    struct context *context = build->context;
    CLEANUP(release) struct layer_task task = { .build = build, .layer = layer };
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, SCRATCH_BYTES_MAX);
    pthread_rwlock_rdlock(&context->use);
    int rc = renew(&task, &arena, err);
    context->layers[layer].index_failed = rc < 0;
    pthread_rwlock_unlock(&context->use);
    if (rc <= 0) return rc;
    build->done++;
    CATALOG_COUNT(build->catalog, built_indexes_total, 1);
    return save(&task, err);
}

void build_indexes(struct build *build)
{
    uint32_t layers = build->context->record->model.layers;
    for (uint32_t i = 0; i < layers && build->context != NULL && !build_must_stop(build); i++) {
        int rc = build_layer(build, i, NULL);
        if (rc < 0 && build_failed(build, rc)) return;
    }
}
