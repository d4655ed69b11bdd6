/* SPDX-License-Identifier: Apache-2.0 */
/* build_folds.c — folds (index/fold.h) brought up to date before anybody asks, and checkpoints of
 * them.
 *
 * A query does what is missing itself, so this saves time and changes no answer: the first query
 * behind a long prompt finds most of it done. A step takes in some thousand tokens and lets go of
 * the layer then: a query that came meanwhile waits for one step, and a truncate for less.
 *
 * A checkpoint is worth its bytes when several times as many bytes of rows were folded since the
 * last one. It may be of rows that are not committed yet: the writer commits them, or takes them
 * back and the fold with them, before it comes to the checkpoint.
 */
#include <assert.h>
#include <stdlib.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "memory/build.h"

enum { STEP_TOKENS = 2048, CHECKPOINT_TOKENS = 4096, CHECKPOINT_SHARE = 4 };

static int must_yield(void *arg)
{
    return build_must_yield(arg) ? MEMD_ECANCELLED : 0;
}

/* One step of one layer. 1: there are more. */
static int step(struct build *build, uint32_t layer)
{
    struct context *context = build->context;
    struct fold_wish wish = { .layer = layer, .alone = true, .stop = must_yield,
                              .stop_arg = build };
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, FOLD_SCRATCH_BYTES_MAX);
    pthread_rwlock_rdlock(&context->use);
    int rc = fold_step(context, &wish, STEP_TOKENS, &arena, NULL);
    pthread_rwlock_unlock(&context->use);
    return rc;
}

/* A checkpoint under way. */
struct checkpoint {
    uint64_t begun, tokens;
    unsigned char *value; /* header and payload */
    size_t bytes;
};

static void free_checkpoint(struct checkpoint *checkpoint)
{
    free(checkpoint->value);
}

/* With the fold held shared. Are so many bytes worth it? */
static bool is_worth_it(const struct context *context, const struct layer *layer, size_t bytes)
{
    uint64_t fresh = layer->folding.fold->tokens - layer->folding.saved;
    return fresh >= CHECKPOINT_TOKENS &&
           fresh * block_token_bytes(&context->shape) >= CHECKPOINT_SHARE * (uint64_t)bytes;
}

/* With the fold held shared. 1: the checkpoint is filled. */
static int encode(struct context *context, const struct layer *layer,
                  struct checkpoint *ret_checkpoint)
{
    const struct fold_type *type = context->method->fold;
    const struct fold *fold = layer->folding.fold;
    if (fold == NULL) return 0;
    size_t bytes = sizeof(uint64_t) + type->save(fold, NULL);
    if (!is_worth_it(context, layer, bytes)) return 0;
    unsigned char *value = malloc(FORMAT_HEADER_BYTES + bytes);
    if (value == NULL) return MEMD_ENOMEM;
    const struct params *params = context_params(context);
    uint64_t version = params == NULL ? 0 : params->version;
    struct bytes_writer out = bytes_writer(value + FORMAT_HEADER_BYTES, sizeof version);
    bytes_put_le64(&out, version);
    type->save(fold, value + FORMAT_HEADER_BYTES + out.offset);
    format_seal(&(struct value_header){ .kind = FORMAT_KIND_INDEX,
                                        .payload_bytes = bytes,
                                        .position = fold->tokens,
                                        .model_hash = context->shape.model_hash },
                value);
    *ret_checkpoint = (struct checkpoint){ .begun = layer->folding.begun,
                                           .tokens = fold->tokens,
                                           .value = value,
                                           .bytes = FORMAT_HEADER_BYTES + bytes };
    return 1;
}

/* It has taken in more since then, or is still the same; after a truncate into it, it is another
 * one. */
static bool is_current(const struct layer *layer, const void *arg)
{
    const struct checkpoint *checkpoint = arg;
    return layer->folding.begun == checkpoint->begun;
}

/* Unpins and pins the context. */
static int save(struct build *build, uint32_t layer_idx)
{
    struct context *context = build->context;
    struct layer *layer = &context->layers[layer_idx];
    CLEANUP(free_checkpoint) struct checkpoint checkpoint = { 0 };
    if (context->method->fold->save == NULL) return 0;
    pthread_rwlock_rdlock(&context->use);
    pthread_rwlock_rdlock(&layer->folding.lock);
    int rc = encode(context, layer, &checkpoint);
    pthread_rwlock_unlock(&layer->folding.lock);
    pthread_rwlock_unlock(&context->use);
    if (rc <= 0) return rc;
    struct saving saving = { .layer = layer_idx,
                             .value = { checkpoint.value, checkpoint.bytes },
                             .is_current = is_current,
                             .arg = &checkpoint };
    rc = build_save(build, &saving, NULL);
    if (rc < 0 || build->context == NULL) return rc;
    layer = &build->context->layers[layer_idx];
    pthread_rwlock_rdlock(&build->context->use);
    pthread_rwlock_wrlock(&layer->folding.lock);
    if (is_current(layer, &checkpoint)) layer->folding.saved = checkpoint.tokens;
    pthread_rwlock_unlock(&layer->folding.lock);
    pthread_rwlock_unlock(&build->context->use);
    return 0;
}

static int build_layer(struct build *build, uint32_t layer)
{
    int rc = 1;
    while (rc > 0) {
        if (build_must_yield(build)) return MEMD_ECANCELLED;
        rc = step(build, layer);
        if (rc < 0) return rc;
        int saved = save(build, layer);
        if (saved < 0) return saved;
        if (build->context == NULL) return 0;
    }
    return 0;
}

void build_folds(struct build *build)
{
    uint32_t layers = build->context->record->model.layers;
    for (uint32_t i = 0; i < layers && build->context != NULL && !build_must_stop(build); i++) {
        int rc = build_layer(build, i);
        if (rc < 0 && build_failed(build, rc)) return;
    }
}
