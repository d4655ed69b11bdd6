/* SPDX-License-Identifier: Apache-2.0 */
/* context_fold.c — what a method makes of a layer's rows (index/fold.h): made when it is first
 * asked for, brought to where it has to be, held while it is read.
 *
 * A query holds the fold shared, takes its snapshot of the rows then, and looks whether the fold is
 * where these rows want it. If not it lets go, takes in what is missing alone, and begins again: an
 * append in between may want more of it. So what a method sees fits together, and a fold that
 * forgets has never taken in a row that the snapshot does not have.
 *
 * A fold is never further than `reach` of the rows that are there: where a truncate or a rollback
 * makes that untrue it is thrown away, even if no row in it is gone. Otherwise an answer would
 * depend on what was once stored. The next query begins from the checkpoint, if that is not too far
 * either, or from the first row.
 *
 * A checkpoint is a value of the table `indexes`: u64 version of the parameter tensors that went
 * into the fold, then what the type saved. What cannot be read is passed over.
 *
 * Rejected: copies, so that readers need not wait for the fold to advance (each decoded token would
 * copy megabytes of slots to change one).
 */
#include <assert.h>
#include <inttypes.h>

#include "base/arena.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "memory/catalog_state.h"

static uint64_t reach(const struct context *context, uint64_t tokens)
{
    uint64_t end = context->method->fold->reach(context->options, tokens);
    assert(end <= tokens);
    return end;
}

static bool is_there(const struct folding *folding, uint64_t end)
{
    return folding->fold != NULL && folding->fold->tokens >= end;
}

static int on_hold(struct folding *folding, const struct fold_wish *wish, struct error *err)
{
    if (!wish->no_wait) {
        pthread_rwlock_rdlock(&folding->lock);
        return 0;
    }
    if (pthread_rwlock_tryrdlock(&folding->lock) == 0) return 0;
    return error_set(err, MEMD_EBUSY, "layer %" PRIu32 " is being folded", wish->layer);
}

static struct fold_source source_of(const struct context *context, const struct fold_wish *wish,
                                    const struct snapshot *snapshot)
{
    const struct model *model = &context->record->model;
    return (struct fold_source){
        .rows = { .views = snapshot->views,
                  .view_count = snapshot->view_count,
                  .head_dim = context->shape.head_dim,
                  .rope = context->rope },
        .kv_heads = context->shape.heads,
        .query_heads = model->query_heads,
        .head_dim = context->shape.head_dim,
        .scale = (float)model->attention_scale,
        .columns = &context->shape.columns,
        .params = context_params(context),
        .options = context->options,
        .layer = wish->layer,
        .layers = model->layers,
        /* mass_read keeps the chunk that it is in: it is for one thread. */
        .pool = wish->alone || context->method->takes_mass ? NULL : context->catalog->pool,
        .stop = wish->stop,
        .stop_arg = wish->stop_arg,
    };
}

/* 1: the saved fold is in *ret_fold. 0: there is none that fits. Negative: it is damaged. */
static int load(struct context *context, const struct fold_source *source, uint64_t tokens,
                struct fold **ret_fold, struct error *err)
{
    const struct fold_type *type = context->method->fold;
    if (type->load == NULL) return 0;
    struct slice payload = { 0 };
    uint64_t covered = 0;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(context->catalog->store, false, &txn, err);
    if (rc == 0) rc = context_find_saved(context, source->layer, &txn, &payload, &covered, err);
    if (rc <= 0) return rc;
    struct bytes_reader in = bytes_reader(payload.data, payload.bytes);
    uint64_t version = bytes_get_le64(&in);
    if (in.bad) return error_set(err, MEMD_ECORRUPT, "a checkpoint of %zu bytes", payload.bytes);
    uint64_t wanted = source->params == NULL ? 0 : source->params->version;
    if (version != wanted || covered > reach(context, tokens)) return 0;
    struct fold *fold = NULL;
    rc = type->load(source, (const unsigned char *)payload.data + in.offset,
                    payload.bytes - in.offset, &fold, err);
    if (rc < 0) return rc;
    if (fold->tokens != covered) {
        type->free(fold);
        return error_set(err, MEMD_ECORRUPT, "the checkpoint has %" PRIu64 " tokens, not %" PRIu64,
                         fold->tokens, covered);
    }
    *ret_fold = fold;
    return 1;
}

static void count_bytes(struct context *context, struct folding *folding)
{
    size_t bytes = folding->fold == NULL ? 0 : folding->fold->bytes;
    atomic_fetch_add(&context->catalog->state_bytes, (uint64_t)bytes - folding->counted);
    folding->counted = bytes;
}

/* With the lock held exclusively. */
static int begin(struct context *context, const struct fold_source *source, uint64_t tokens,
                 struct error *err)
{
    struct folding *folding = &context->layers[source->layer].folding;
    struct error why = { 0 };
    int rc = load(context, source, tokens, &folding->fold, &why);
    if (rc == MEMD_ENOMEM) return error_set(err, rc, "%s", why.text);
    if (rc < 0) CATALOG_COUNT(context->catalog, damaged_derived_total, 1);
    uint64_t saved = rc > 0 ? folding->fold->tokens : 0;
    if (rc <= 0) rc = context->method->fold->open(source, &folding->fold, err);
    if (rc < 0) return rc;
    assert(folding->fold->type == context->method->fold);
    folding->begun = atomic_fetch_add(&context->catalog->folds_begun, 1) + 1;
    folding->saved = saved;
    return 0;
}

/* Alone. After an error the fold may be further than before. */
static int advance(struct context *context, const struct fold_wish *wish,
                   const struct snapshot *snapshot, uint64_t end, struct error *err)
{
    struct folding *folding = &context->layers[wish->layer].folding;
    struct fold_source source = source_of(context, wish, snapshot);
    CLEANUP(mass_reader_fini) struct mass_reader mass = { context, wish->layer, 0, NULL, 0, { 0 } };
    if (context->method->takes_mass) source.mass = mass_read;
    source.mass_arg = &mass;
    pthread_rwlock_wrlock(&folding->lock);
    int rc = folding->fold == NULL ? begin(context, &source, snapshot->tokens, err) : 0;
    if (rc == 0 && folding->fold->tokens < end) {
        rc = context->method->fold->advance(folding->fold, &source, end, err);
        assert(rc < 0 || folding->fold->tokens == end);
        assert(folding->fold->tokens <= end);
    }
    if (mass.rc < 0) { /* it went on without */
        fold_drop(context, &context->layers[wish->layer]);
        rc = error_set(err, mass.rc, "%s", mass.err.text);
    }
    count_bytes(context, folding);
    pthread_rwlock_unlock(&folding->lock);
    return rc;
}

int fold_hold(struct context *context, const struct fold_wish *wish, struct arena *arena,
              struct snapshot *ret_snapshot, struct error *err)
{
    struct folding *folding = &context->layers[wish->layer].folding;
    for (;;) {
        struct snapshot snapshot;
        int rc = on_hold(folding, wish, err);
        if (rc < 0) return rc;
        rc = snapshot_take(context, wish->layer, UINT64_MAX, arena, &snapshot, err);
        uint64_t end = rc < 0 ? 0 : reach(context, snapshot.tokens);
        if (rc == 0 && is_there(folding, end)) {
            *ret_snapshot = snapshot;
            return 0;
        }
        pthread_rwlock_unlock(&folding->lock);
        if (rc < 0) return rc;
        rc = wish->no_wait ? error_set(err, MEMD_EBUSY, "layer %" PRIu32 " has rows to fold",
                                       wish->layer)
                           : advance(context, wish, &snapshot, end, err);
        snapshot_release(&snapshot);
        if (rc < 0) return rc;
    }
}

void fold_let_go(struct context *context, uint32_t layer)
{
    pthread_rwlock_unlock(&context->layers[layer].folding.lock);
}

/* The end of a step of about `step` tokens behind `from`: some value of reach, at most `last`. */
static uint64_t step_end(const struct context *context, uint64_t from, uint64_t step,
                         uint64_t tokens)
{
    for (;; step *= 2) {
        uint64_t seen = tokens - from > step ? from + step : tokens;
        uint64_t end = reach(context, seen);
        if (end > from || seen == tokens) return end;
    }
}

int fold_step(struct context *context, const struct fold_wish *wish, uint64_t step,
              struct arena *arena, struct error *err)
{
    struct folding *folding = &context->layers[wish->layer].folding;
    uint64_t tokens = layer_tokens(&context->layers[wish->layer]), from = 0;
    pthread_rwlock_rdlock(&folding->lock);
    if (folding->fold != NULL) from = folding->fold->tokens;
    bool there = is_there(folding, reach(context, tokens));
    pthread_rwlock_unlock(&folding->lock);
    if (there || tokens == 0) return 0;
    struct snapshot snapshot;
    int rc = snapshot_take(context, wish->layer, tokens, arena, &snapshot, err);
    if (rc < 0) return rc;
    uint64_t end = step_end(context, from, step, tokens);
    rc = advance(context, wish, &snapshot, end, err);
    snapshot_release(&snapshot);
    return rc < 0 ? rc : end < reach(context, tokens);
}

void fold_drop(struct context *context, struct layer *layer)
{
    struct folding *folding = &layer->folding;
    if (folding->fold != NULL) context->method->fold->free(folding->fold);
    folding->fold = NULL;
    folding->begun = 0;
    count_bytes(context, folding);
}

void fold_cut(struct context *context, struct layer *layer, uint64_t tokens)
{
    struct fold *fold = layer->folding.fold;
    if (fold == NULL) return;
    if (fold->tokens > reach(context, tokens)) fold_drop(context, layer);
    else if (fold->type->cut != NULL) fold->type->cut(fold, tokens);
}

static_assert(CONTEXT_FACTS_MAX == FOLD_FACTS_MAX + 4, "what every fold has, and every ring");

static size_t describe(const struct fold *fold, struct fold_fact *ret_facts)
{
    ret_facts[0] = (struct fold_fact){ "tokens", (double)fold->tokens };
    ret_facts[1] = (struct fold_fact){ "bytes", (double)fold->bytes };
    size_t count = fold->type->describe == NULL ? 0 : fold->type->describe(fold, ret_facts + 2);
    assert(count <= FOLD_FACTS_MAX);
    return count + 2;
}

int context_describe(struct context *context, uint32_t layer, struct fold_fact *ret_facts,
                     struct error *err)
{
    const struct fold_type *type = context->method->fold;
    if (layer >= context->record->model.layers)
        return error_set(err, MEMD_EINVAL, "layer %" PRIu32 " of a model with %" PRIu32 " layers",
                         layer, context->record->model.layers);
    if (type == NULL) return 0;
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, FOLD_SCRATCH_BYTES_MAX);
    struct snapshot snapshot;
    pthread_rwlock_rdlock(&context->use);
    int rc = fold_hold(context, &(struct fold_wish){ .layer = layer }, &arena, &snapshot, err);
    if (rc == 0) {
        rc = (int)describe(context->layers[layer].folding.fold, ret_facts);
        int more = ring_describe(context, layer, snapshot.tokens, &arena, ret_facts + rc, err);
        rc = more < 0 ? more : rc + more;
        fold_let_go(context, layer);
        snapshot_release(&snapshot);
    }
    pthread_rwlock_unlock(&context->use);
    return rc;
}
