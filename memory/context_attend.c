/* SPDX-License-Identifier: Apache-2.0 */
/* context_attend.c — a query in four steps: what is there (snapshot), what of it to read
 * (method), read it (attention/), say what was done (quality). Search differs in the third step
 * alone.
 */
#include <assert.h>
#include <inttypes.h>

#include "attention/attend.h"
#include "base/arena.h"
#include "base/error.h"
#include "index/exact.h"
#include "memory/catalog_state.h"
#include "memory/methods/methods.h"

struct reading {
    struct snapshot snapshot;
    struct plan plan;
    const uint64_t *limits; /* (n) */
};

static int check_query(const struct context *context, const struct query *query, struct error *err)
{
    assert(query->q.dims == 3);
    if (query->layer < context->record->model.layers) return 0;
    return error_set(err, MEMD_EINVAL, "layer %" PRIu32 " of a model with %" PRIu32 " layers",
                     query->layer, context->record->model.layers);
}

/* The highest position that any query may see. */
static uint64_t highest_limit(const struct query *query, size_t count)
{
    if (query->limits == NULL) return UINT64_MAX;
    uint64_t highest = 0;
    for (size_t i = 0; i < count; i++) {
        if (query->limits[i] > highest) highest = query->limits[i];
    }
    return highest;
}

static int fill_limits(const struct query *query, struct arena *arena, struct reading *reading,
                       struct error *err)
{
    reading->limits = query->limits;
    if (query->limits != NULL) return 0;
    size_t count = query->q.shape[0];
    uint64_t *limits = arena_calloc(arena, count, sizeof *limits);
    if (limits == NULL) return error_set(err, MEMD_ENOMEM, "no memory for %zu limits", count);
    for (size_t i = 0; i < count; i++) limits[i] = reading->snapshot.tokens;
    reading->limits = limits;
    return 0;
}

/* With use held shared; snapshot_release is due when it returns 0. */
static int begin_reading(struct context *context, const struct query *query, struct arena *arena,
                         struct reading *ret_reading, struct error *err)
{
    struct reading reading = { 0 };
    uint64_t limit = highest_limit(query, query->q.shape[0]);
    int rc = snapshot_take(context, query->layer, limit, arena, &reading.snapshot, err);
    if (rc < 0) return rc;
    rc = fill_limits(query, arena, &reading, err);
    if (rc == 0) rc = context->method->plan(&reading.snapshot, query, arena, &reading.plan, err);
    if (rc < 0) {
        snapshot_release(&reading.snapshot);
        return rc;
    }
    *ret_reading = reading;
    return 0;
}

static struct attend_args arguments(const struct context *context, const struct query *query,
                                    const struct reading *reading)
{
    return (struct attend_args){
        .q = query->q,
        .positions = query->positions,
        .limits = reading->limits,
        .scale = (float)context->record->model.attention_scale,
        .rope = context->rope,
        .views = reading->plan.views,
        .kv_heads = context->shape.heads,
        .view_count = reading->plan.view_count,
        .pool = query->no_wait ? NULL : context->catalog->pool,
        .stop = query->stop,
        .stop_arg = query->stop_arg,
    };
}

static void fill_quality(const struct context *context, const struct reading *reading,
                         struct quality *ret_quality)
{
    uint64_t rows = 0;
    for (size_t i = 0; i < reading->plan.view_count; i++) rows += reading->plan.views[i].tokens;
    rows *= 2 * (uint64_t)context->shape.heads; /* K and V of every head */
    *ret_quality = (struct quality){
        .method = context->method->name,
        .exact = reading->plan.exact,
        .rows = rows,
        .bytes_read = rows * context->shape.row_bytes,
        .bytes_exact = reading->snapshot.seen * block_token_bytes(&context->shape),
        .tokens = reading->snapshot.seen,
    };
}

static int begin_use(struct context *context, const struct query *query, struct error *err)
{
    if (!query->no_wait) {
        pthread_rwlock_rdlock(&context->use);
        return 0;
    }
    if (pthread_rwlock_tryrdlock(&context->use) == 0) return 0;
    return error_set(err, MEMD_EBUSY, "the context is being truncated");
}

/* Everything in front of the arithmetic; end_query is due when it returns 0. */
static int begin_query(struct context *context, const struct query *query, struct arena *arena,
                       struct reading *ret_reading, struct error *err)
{
    int rc = check_query(context, query, err);
    if (rc == 0) rc = begin_use(context, query, err);
    if (rc < 0) return rc;
    atomic_store_explicit(&context->used_unix_ms, catalog_now_ms(), memory_order_relaxed);
    rc = begin_reading(context, query, arena, ret_reading, err);
    if (rc < 0) pthread_rwlock_unlock(&context->use);
    return rc;
}

static void end_query(struct context *context, struct reading *reading)
{
    snapshot_release(&reading->snapshot);
    pthread_rwlock_unlock(&context->use);
}

int context_attend(struct context *context, const struct query *query, struct arena *arena,
                   const struct partial *ret_partial, struct quality *ret_quality,
                   struct error *err)
{
    struct reading reading;
    int rc = begin_query(context, query, arena, &reading, err);
    if (rc < 0) return rc;
    struct attend_args args = arguments(context, query, &reading);
    if (reading.plan.view_count == 0)
        partial_clear(ret_partial);
    else
        rc = attend(&args, arena, ret_partial, err);
    fill_quality(context, &reading, ret_quality);
    end_query(context, &reading);
    return rc;
}

int context_search(struct context *context, const struct query *query, struct arena *arena,
                   const struct index_hits *ret_hits, struct quality *ret_quality,
                   struct error *err)
{
    struct reading reading;
    int rc = begin_query(context, query, arena, &reading, err);
    if (rc < 0) return rc;
    struct attend_args args = arguments(context, query, &reading);
    rc = exact_search(&args, arena, ret_hits, err);
    fill_quality(context, &reading, ret_quality);
    ret_quality->rows /= 2; /* keys only */
    ret_quality->bytes_read /= 2;
    end_query(context, &reading);
    return rc;
}
