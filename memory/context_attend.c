/* SPDX-License-Identifier: Apache-2.0 */
/* context_attend.c — a query in three steps: what is there (snapshot), answer from it (method), say
 * what was done (quality). Search differs in the second step alone. Of a method with a fold the
 * first includes bringing that up to date (context_fold.c).
 *
 * Of several queries at once, those that a device answers exactly take the first step together, are
 * one batch there, and take the other two one after another. Methods are not asked twice: that of
 * such a query finds the answer where it would have put it (attend_device.answered).
 */
#include <assert.h>
#include <inttypes.h>
#include <math.h>

#include "attention/cuda/accelerator.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/half.h"
#include "index/plan_share.h"
#include "memory/catalog_state.h"

/* Those of the queries, where they are given. */
static int check_states(const struct context *context, const struct query *query, struct error *err)
{
    const struct tensor *states = &query->states;
    size_t width = context->shape.state_width, bad = 0;
    if (states->dims == 0) return 0;
    if (width == 0)
        return error_set(err, MEMD_EUNSUPPORTED, "method %s keeps no states, the query has some",
                         context->method->name);
    if (states->dims != 2 || states->shape[0] != query->q.shape[0] || states->shape[1] != width)
        return error_set(err, MEMD_ESHAPE, "states (%zu, %zu) of %zu queries, not of %zu elements",
                         states->shape[0], states->shape[1], query->q.shape[0], width);
    size_t count = states->shape[0] * width;
    size_t at = half_find_nonfinite(states->data, states->dtype, count, &bad);
    if (at == count) return 0;
    return error_set(err, MEMD_ENONFINITE,
                     "the state of query %zu is NaN or infinite in element %zu, %zu such values",
                     at / width, at % width, bad);
}

static int check_query(const struct context *context, const struct query *query, struct error *err)
{
    assert(query->q.dims == 3);
    if (query->layer < context->record->model.layers) return check_states(context, query, err);
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

/* Everything that is stored when the caller set no limits. */
static int fill_limits(const struct query *query, uint64_t tokens, struct arena *arena,
                       const uint64_t **ret_limits, struct error *err)
{
    *ret_limits = query->limits;
    if (query->limits != NULL) return 0;
    size_t count = query->q.shape[0];
    uint64_t *limits = arena_calloc(arena, count, sizeof *limits);
    if (limits == NULL) return error_set(err, MEMD_ENOMEM, "no memory for %zu limits", count);
    for (size_t i = 0; i < count; i++) limits[i] = tokens;
    *ret_limits = limits;
    return 0;
}

/* Does the method read rows that no query may see? An index or a fold names any row it covers. */
static bool takes_all(const struct method *method)
{
    return method->layer != NULL || method->fold != NULL || method->sees_all;
}

/* Whose rows it is about; parameters are of the layer that asks. */
static uint32_t stored_layer(const struct context *context, const struct query *query)
{
    return method_rows_layer(context->method, context->options, query->layer);
}

/* What is consolidated cannot be taken out of the fold again. */
static int check_fold(const struct context *context, const struct query *query,
                      const uint64_t *limits, struct error *err)
{
    if (context->method->fold == NULL || !context->method->fold->forgets) return 0;
    uint32_t layer = stored_layer(context, query);
    uint64_t folded = context->layers[layer].folding.fold->tokens;
    for (size_t i = 0; i < query->q.shape[0]; i++) {
        if (limits[i] < folded)
            return error_set(err, MEMD_EPOSITION,
                             "query %zu sees the first %" PRIu64 " tokens, but layer %" PRIu32
                             " has consolidated %" PRIu64 ", which cannot be undone",
                             i, limits[i], layer, folded);
    }
    return 0;
}

/* What turns keys and queries: the model's rope, or one like it with another base. What was made of
 * keys that were rotated by the model's would not fit them. */
static int find_rope(const struct context *context, const struct query *query, struct arena *arena,
                     const struct rope **ret_rope, struct error *err)
{
    *ret_rope = context->rope;
    if (query->rope_theta == 0) return 0;
    const struct method *method = context->method;
    if (context->rope == NULL)
        return error_set(err, MEMD_EUNSUPPORTED,
                         "rope_theta: memd does not rotate the keys of this context");
    if (method->planes || method->fold != NULL || method_builds(method))
        return error_set(err, MEMD_EUNSUPPORTED, "rope_theta: method %s keeps what it made of keys "
                         "with the model's own", method->name);
    struct rope_config config = context->record->model.rope;
    config.theta = query->rope_theta;
    struct rope *rope = arena_alloc(arena, sizeof *rope);
    if (rope == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a rope");
    *ret_rope = rope;
    return rope_init(&config, context->record->model.head_dim, rope, err);
}

static void fill_reading(const struct context *context, const struct query *query,
                         const uint64_t *limits, struct asking *asking)
{
    const struct snapshot *snapshot = &asking->snapshot;
    double target = query->target_error;
    asking->reading = (struct reading){
        .attend = {
            .q = query->q,
            .positions = query->positions,
            .limits = limits,
            .scale = (float)context->record->model.attention_scale,
            .rope = asking->rope,
            .views = snapshot->views,
            .kv_heads = context->shape.heads,
            .view_count = snapshot->view_count,
            .pool = query->no_wait ? NULL : context->catalog->pool,
            .stop = query->stop,
            .stop_arg = query->stop_arg,
            /* All rows of other methods were verified, and they make views of their own. */
            .admit = context->method->planes ? context_admit : NULL,
            .admit_arg = asking,
        },
        .admit_lo = context_admit_lo,
        .planes = snapshot->planes,
        .version = snapshot->version,
        .target_error = isnan(target) || target < 0 ? -1 : target,
        .max_bytes = query->max_bytes,
        .options = context->options,
        .layer = query->layer,
        .layers = context->record->model.layers,
        .tokens = snapshot->tokens,
        .columns = context->shape.columns,
        .fold = context->layers[asking->layer].folding.fold,
        .ring = asking->ring,
        .uses = &asking->uses,
        .selection = snapshot->selection,
        .params = context_params(context),
        .states = query->states,
        .plan = query->plan,
        .local = query->local,
    };
}

static int make_quality(const struct query *query, struct arena *arena,
                        struct index_quality *ret_quality, struct error *err)
{
    size_t answers = query->q.shape[0] * query->q.shape[1];
    struct index_quality quality = {
        .predicted_error = arena_calloc(arena, answers, sizeof(float)),
        .mass = arena_calloc(arena, answers * INDEX_LEVELS, sizeof(float)),
        .limited = arena_calloc(arena, answers, sizeof(bool)),
    };
    if (quality.predicted_error == NULL || quality.mass == NULL || quality.limited == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for the quality of %zu answers", answers);
    *ret_quality = quality;
    return 0;
}

static int take_rows(struct context *context, const struct query *query, struct arena *arena,
                     struct snapshot *ret_snapshot, struct error *err)
{
    uint64_t limit = highest_limit(query, query->q.shape[0]);
    uint64_t taken = takes_all(context->method) ? UINT64_MAX : limit;
    struct fold_wish wish = { .layer = stored_layer(context, query),
                              .no_wait = query->no_wait,
                              .stop = query->stop,
                              .stop_arg = query->stop_arg };
    int rc = context->method->fold != NULL
                 ? fold_hold(context, &wish, arena, ret_snapshot, err)
                 : snapshot_take(context, wish.layer, taken, arena, ret_snapshot, err);
    if (rc == 0 && ret_snapshot->seen > limit) ret_snapshot->seen = limit;
    return rc;
}

static void give_rows(struct context *context, struct asking *asking)
{
    if (context->method->fold != NULL) fold_let_go(context, asking->layer);
    snapshot_release(&asking->snapshot);
}

/* With use held shared; give_rows is due when it returns 0. */
static int begin_reading(struct context *context, const struct query *query, struct arena *arena,
                         struct asking *ret_asking, struct error *err)
{
    *ret_asking = (struct asking){ .context = context,
                                   .layer = stored_layer(context, query),
                                   .no_wait = query->no_wait };
    const uint64_t *limits = NULL;
    int rc = find_rope(context, query, arena, &ret_asking->rope, err);
    if (rc == 0) rc = take_rows(context, query, arena, &ret_asking->snapshot, err);
    if (rc < 0) return rc;
    rc = fill_limits(query, ret_asking->snapshot.tokens, arena, &limits, err);
    if (rc == 0)
        rc = ring_take(context, ret_asking->layer, ret_asking->snapshot.tokens, arena,
                       &ret_asking->ring, err);
    if (rc == 0) rc = check_fold(context, query, limits, err);
    if (rc == 0) rc = make_quality(query, arena, &ret_asking->quality, err);
    if (rc < 0) {
        give_rows(context, ret_asking);
        return rc;
    }
    fill_reading(context, query, limits, ret_asking);
    return 0;
}

static bool was_exact(const struct index_quality *quality, size_t answers)
{
    for (size_t i = 0; i < answers; i++) {
        if (quality->predicted_error[i] != 0 || quality->limited[i]) return false;
    }
    for (int level = 0; level < INDEX_EXACT; level++) {
        if (quality->rows[level] != 0) return false;
    }
    return true;
}

static int fill_quality(const struct context *context, const struct asking *asking,
                        struct arena *arena, struct quality *ret_quality, struct error *err)
{
    const struct index_quality *made = &asking->quality;
    const struct attend_device *device = asking->reading.device;
    size_t answers = asking->reading.attend.q.shape[0] * asking->reading.attend.q.shape[1];
    struct quality quality = {
        .method = context->method->name,
        .exact = was_exact(made, answers),
        .bytes_exact = asking->snapshot.seen * block_token_bytes(&context->shape),
        .tokens = asking->snapshot.seen,
        .window_tokens = device == NULL ? 0 : device->resident,
    };
    for (int level = 0; level < INDEX_LEVELS; level++) {
        quality.rows += quality.level_rows[level] = made->rows[level];
        quality.bytes_read += quality.level_bytes[level] = made->bytes[level];
    }
    if (!quality.exact) {
        quality.predicted_error = made->predicted_error;
        quality.level_mass = made->mass;
        quality.limited = made->limited;
        quality.mass = arena_calloc(arena, answers, sizeof(float));
        if (quality.mass == NULL)
            return error_set(err, MEMD_ENOMEM, "no memory for the quality of %zu answers", answers);
        for (size_t i = 0; i < answers; i++)
            quality.mass[i] = made->mass[i * INDEX_LEVELS + INDEX_EXACT];
    }
    *ret_quality = quality;
    return 0;
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

/* With use held shared. */
static int ask_held(struct context *context, const struct query *query, struct arena *arena,
                    struct asking *ret_asking, struct error *err)
{
    atomic_store_explicit(&context->used_unix_ms, catalog_now_ms(), memory_order_relaxed);
    return begin_reading(context, query, arena, ret_asking, err);
}

int context_ask(struct context *context, const struct query *query, struct arena *arena,
                struct asking *ret_asking, struct error *err)
{
    int rc = check_query(context, query, err);
    if (rc == 0) rc = begin_use(context, query, err);
    if (rc < 0) return rc;
    rc = ask_held(context, query, arena, ret_asking, err);
    if (rc < 0) pthread_rwlock_unlock(&context->use);
    return rc;
}

void context_asked(struct context *context, struct asking *asking)
{
    bool folds = context->method->fold != NULL;
    give_rows(context, asking);
    pthread_rwlock_unlock(&context->use);
    /* A fold that grew may be too much. The loop, which let none grow, has no time to look. */
    if (folds && !asking->no_wait && catalog_is_crowded(context->catalog))
        catalog_unload_idle(context->catalog);
}

static void use_ring(const struct asking *asking)
{
    if (asking->ring != NULL)
        ring_use(asking->context, asking->layer, asking->ring, &asking->uses);
}

/* The loop has no time for it. */
static void observe(struct context *context, const struct query *query)
{
    if (query->no_wait || context->method == &method_full) return;
    context_observe(context, &(struct observation){ .layer = query->layer,
                                                    .q = &query->q,
                                                    .positions = query->positions });
}

/* A number that is none would come back as an answer. An empty window is (0, -inf). */
static int check_local(const struct partial *local, struct error *err)
{
    size_t bad = 0, count = local->rows * local->head_dim;
    if (half_find_nonfinite(local->o, DTYPE_FP32, count, &bad) != count)
        return error_set(err, MEMD_ENONFINITE, "%zu numbers of local_o are NaN or infinite", bad);
    for (size_t i = 0; i < local->rows; i++)
        if (isnan(local->lse[i]) || local->lse[i] == INFINITY)
            return error_set(err, MEMD_ENONFINITE, "local_lse %zu is NaN or infinite", i);
    return 0;
}

static int join(const struct context *context, const struct reading *reading,
                const struct query *query, const struct partial *answer, struct error *err)
{
    const struct method *method = context->method;
    if (query->local == NULL) return 0;
    if (method->join != NULL) return method->join(method, reading, query->local, answer, err);
    partial_merge(answer, query->local);
    return 0;
}

/* The answer to what was asked, and what it was made from. */
static int answer(struct asking *asking, const struct query *query, struct arena *arena,
                  const struct partial *ret_partial, struct quality *ret_quality,
                  struct error *err)
{
    const struct context *context = asking->context;
    struct reading *reading = &asking->reading;
    struct index_answer made = { .partial = *ret_partial, .quality = &asking->quality };
    int rc = context->method->attend(context->method, reading, arena, &made, err);
    /* Rows that are states cannot be scored as they are. */
    if (rc == 0 && query->plan != NULL && context->method->state_width == NULL)
        rc = plan_share(query->plan, &reading->attend, ret_partial->lse, arena, err);
    rc = context_answered(asking, rc, err);
    if (rc == 0) rc = join(context, reading, query, ret_partial, err);
    if (rc == 0) rc = fill_quality(context, asking, arena, ret_quality, err);
    if (rc == 0) use_ring(asking);
    return rc;
}

/* The device that the query may be asked of, which lives as long as its reading. */
static void offer_device(const struct query *query, struct asking *asking,
                         struct attend_device *device)
{
    struct context *context = asking->context;
    *device = (struct attend_device){ .accelerator = context->catalog->accelerator,
                                      .window = context->layers[asking->layer].window,
                                      .insist = query->window == QUERY_WINDOW_RESIDENT };
    /* The loop does not wait for a device. */
    if (device->accelerator != NULL && !query->no_wait && query->window != QUERY_WINDOW_NONE)
        asking->reading.device = device;
}

int context_answer(struct context *context, const struct query *query, struct arena *arena,
                   const struct partial *ret_partial, struct quality *ret_quality,
                   struct error *err)
{
    struct asking asking = { .context = context };
    struct attend_device device;
    int rc = query->local == NULL ? 0 : check_local(query->local, err);
    if (rc == 0) rc = context_ask(context, query, arena, &asking, err);
    if (rc < 0) return rc;
    offer_device(query, &asking, &device);
    rc = answer(&asking, query, arena, ret_partial, ret_quality, err);
    context_asked(context, &asking);
    return rc;
}

int context_attend(struct context *context, const struct query *query, struct arena *arena,
                   const struct partial *ret_partial, struct quality *ret_quality,
                   struct error *err)
{
    int rc = context_answer(context, query, arena, ret_partial, ret_quality, err);
    if (rc == 0) observe(context, query);
    return rc;
}

/* ---- several at once ---- */

enum { TOGETHER_MAX = 64 };

/* Queries whose rows are held, and contexts whose `use` is. */
struct group {
    struct group_query {
        struct together *one;
        struct asking *asking; /* in the arena of `one` */
        struct attend_device *device;
    } held[TOGETHER_MAX];
    struct accelerator_step steps[TOGETHER_MAX];
    struct context *contexts[TOGETHER_MAX];
    size_t count, context_count, bytes;
};

/* Hold the context once, whatever the number of its queries: a reader that waits behind a writer
 * that waits for that reader would wait for ever. False: it is not to be had at once. */
static bool hold_context(struct group *group, struct context *context)
{
    for (size_t i = 0; i < group->context_count; i++)
        if (group->contexts[i] == context) return true;
    if (pthread_rwlock_tryrdlock(&context->use) != 0) return false;
    group->contexts[group->context_count++] = context;
    return true;
}

/* Add the query if a device can answer it as it is. What is wrong with others is said to whoever
 * asks them alone. */
static void add_one(struct group *group, struct together *one)
{
    struct context *context = one->context;
    const struct method *method = context->method;
    const struct query *query = one->query;
    struct asking *asking = arena_alloc(one->arena, sizeof *asking);
    struct attend_device *device = arena_alloc(one->arena, sizeof *device);
    if (asking == NULL || device == NULL || check_query(context, query, NULL) < 0 ||
        (query->local != NULL && check_local(query->local, NULL) < 0) ||
        !hold_context(group, context) ||
        ask_held(context, query, one->arena, asking, NULL) < 0)
        return;
    offer_device(query, asking, device);
    if (asking->reading.device == NULL || !method->reads_exactly(method, &asking->reading)) {
        give_rows(context, asking);
        return;
    }
    asking->reading.attend.device = device;
    group->steps[group->count] = (struct accelerator_step){ .args = &asking->reading.attend,
                                                            .partial = one->partial };
    group->held[group->count++] = (struct group_query){ one, asking, device };
    group->bytes += one->arena->used_bytes;
}

static void answer_held(struct group_query *held, bool by_device)
{
    struct together *one = held->one;
    held->asking->reading.attend.device = NULL; /* reading.device is where methods look */
    if (by_device) {
        held->device->answered = one->answered = true;
        one->status = answer(held->asking, one->query, one->arena, &one->partial, one->quality,
                             one->err);
        if (one->status == 0) observe(one->context, one->query);
    }
    give_rows(one->context, held->asking);
}

void context_attend_together(struct together *all, size_t count)
{
    for (size_t at = 0; at < count;) {
        struct group group = { .count = 0 };
        for (; at < count && group.count < TOGETHER_MAX; at++) {
            if (all[at].context == NULL || all[at].context->method->reads_exactly == NULL) continue;
            /* One thread is at work: it has one thread's share of the memory. */
            if (group.bytes > all[at].arena->limit_bytes / 2) break;
            add_one(&group, &all[at]);
        }
        accelerator_attend_all(group.steps, group.count);
        for (size_t i = 0; i < group.count; i++)
            answer_held(&group.held[i], group.steps[i].rc == 0);
        for (size_t i = 0; i < group.context_count; i++)
            pthread_rwlock_unlock(&group.contexts[i]->use);
    }
}

int context_search(struct context *context, const struct query *query, struct arena *arena,
                   const struct index_hits *ret_hits, struct quality *ret_quality,
                   struct error *err)
{
    struct asking asking;
    int rc = context_ask(context, query, arena, &asking, err);
    if (rc < 0) return rc;
    rc = context->method->search(context->method, &asking.reading, arena, ret_hits,
                                 &asking.quality, err);
    rc = context_answered(&asking, rc, err);
    if (rc == 0) rc = fill_quality(context, &asking, arena, ret_quality, err);
    if (rc == 0) use_ring(&asking);
    context_asked(context, &asking);
    return rc;
}
