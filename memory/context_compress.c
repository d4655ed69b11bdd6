/* SPDX-License-Identifier: Apache-2.0 */
/* context_compress.c — what a method keeps of a prompt, chosen once: chosen from a snapshot while
 * everything else goes on, stored as a note by the writer, then in use.
 *
 * What was chosen is true of the rows that it was chosen from, and of no others. Whoever cuts rows
 * counts that (context->cuts), so the writer sees whether one came in between; it looks, commits
 * and puts the selection in its place without letting anybody cut.
 *
 * A selection is authoritative: the queries that decided it are gone. A context with a damaged one
 * is not loaded, as with damaged tail records.
 */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "memory/catalog_state.h"
#include "memory/owned.h"

struct keep_job {
    struct writer_job job;
    struct context *context;
    uint32_t layer;
    uint64_t cuts; /* when it was chosen */
    uint64_t tokens; /* of the prompt */
    struct selection *selection; /* NULL: the method keeps everything of this layer */
};

static void put_selection(struct selection **selection)
{
    selection_free(*selection);
}

static struct slice name_of(const struct context *context, uint32_t layer, unsigned char *buffer)
{
    return (struct slice){ buffer,
                           format_key_note(context->id, layer, NOTE_SELECTION, 0, buffer) };
}

static int already(uint32_t layer, const struct selection *selection, struct error *err)
{
    return error_set(err, MEMD_EEXIST,
                     "the first %" PRIu64 " tokens of layer %" PRIu32 " are compressed already",
                     selection->tokens, layer);
}

/* Writer. */
static int check_unchanged(const struct keep_job *keep, struct error *err)
{
    struct context *context = keep->context;
    const struct layer *layer = &context->layers[keep->layer];
    pthread_mutex_lock(&context->lock);
    bool cut = context->cuts != keep->cuts || layer->committed < keep->selection->tokens;
    const struct selection *before = layer->selection;
    pthread_mutex_unlock(&context->lock);
    if (before != NULL) return already(keep->layer, before, err);
    return !cut ? 0 : error_set(err, MEMD_EPOSITION,
                                "layer %" PRIu32 " was cut while it was being compressed",
                                keep->layer);
}

static int put_note(const struct keep_job *keep, struct store_txn *txn, int64_t *delta,
                    struct error *err)
{
    const struct context *context = keep->context;
    size_t bytes = selection_encoded_bytes(keep->selection);
    CLEANUP(free_ptr) unsigned char *value = malloc(FORMAT_HEADER_BYTES + bytes);
    if (value == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a selection");
    selection_encode(keep->selection, value + FORMAT_HEADER_BYTES);
    format_seal(&(struct value_header){ .kind = FORMAT_KIND_SELECTION,
                                        .payload_bytes = bytes,
                                        .position = keep->selection->tokens,
                                        .model_hash = context->shape.model_hash },
                value);
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    owned_put(txn, STORE_NOTES, name_of(context, keep->layer, key),
              (struct slice){ value, FORMAT_HEADER_BYTES + bytes }, delta);
    return 0;
}

static int run_keep(struct writer_job *job, struct error *err)
{
    struct keep_job *keep = (struct keep_job *)(void *)job;
    struct context *context = keep->context;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int64_t delta = 0;
    size_t bytes = selection_encoded_bytes(keep->selection);
    int rc = check_unchanged(keep, err);
    if (rc == 0) rc = evict_check(job->catalog, &(struct room_wish){ bytes, bytes }, err);
    if (rc == 0) rc = store_begin(job->catalog->store, true, &txn, err);
    if (rc == 0) rc = put_note(keep, &txn, &delta, err);
    if (rc == 0) rc = catalog_commit(job->catalog, &txn, delta, err);
    if (rc < 0) return rc;
    pthread_mutex_lock(&context->lock);
    context->layers[keep->layer].selection = TAKE(keep->selection);
    pthread_mutex_unlock(&context->lock);
    return 0;
}

static int check(struct context *context, const struct compress_args *args, uint64_t *ret_tokens,
                 struct error *err)
{
    const struct model *model = &context->record->model;
    if (args->layer >= model->layers)
        return error_set(err, MEMD_EINVAL, "layer %" PRIu32 " of a model with %" PRIu32 " layers",
                         args->layer, model->layers);
    if (context->method->compress == NULL)
        return error_set(err, MEMD_EUNSUPPORTED, "method %s does not compress prompts",
                         context->method->name);
    uint64_t stored = layer_tokens(&context->layers[args->layer]);
    uint64_t tokens = args->tokens == 0 ? stored : args->tokens;
    if (tokens == 0 || tokens > stored)
        return error_set(err, MEMD_EPOSITION, "layer %" PRIu32 " holds %" PRIu64 " tokens, %" PRIu64
                         " are to be compressed", args->layer, stored, tokens);
    const struct tensor *q = &args->q;
    if (q->dims != 0 && (q->dims != 3 || q->shape[0] == 0 || q->shape[0] > tokens ||
                         q->shape[1] != model->query_heads || q->shape[2] != model->head_dim))
        return error_set(err, MEMD_ESHAPE,
                         "the queries of the last tokens must be (1 … %" PRIu64 ", %" PRIu32
                         ", %" PRIu32 ")", tokens, model->query_heads, model->head_dim);
    *ret_tokens = tokens;
    return 0;
}

static int choose(struct context *context, const struct compress_args *args,
                  const struct snapshot *snapshot, struct arena *arena,
                  struct selection **ret_selection, struct error *err)
{
    const struct model *model = &context->record->model;
    struct compressing compressing = {
        .rows = { .views = snapshot->views,
                  .view_count = snapshot->view_count,
                  .head_dim = context->shape.head_dim,
                  .rope = context->rope },
        .kv_heads = context->shape.heads,
        .query_heads = model->query_heads,
        .head_dim = context->shape.head_dim,
        .scale = (float)model->attention_scale,
        .rope = context->rope,
        .tokens = snapshot->seen,
        .q = args->q,
        .layer = args->layer,
        .layers = model->layers,
        .params = context_params(context),
        .options = context->options,
        .pool = context->catalog->pool,
        .stop = args->stop,
        .stop_arg = args->stop_arg,
    };
    int rc = context->method->compress(context->method, &compressing, arena, ret_selection, err);
    assert(rc < 0 || *ret_selection == NULL || (*ret_selection)->tokens == snapshot->seen);
    return rc;
}

/* With use held shared. */
static int choose_now(struct keep_job *keep, const struct compress_args *args, struct arena *arena,
                      struct error *err)
{
    struct context *context = keep->context;
    struct snapshot snapshot;
    int rc = check(context, args, &keep->tokens, err);
    if (rc == 0) rc = snapshot_take(context, args->layer, keep->tokens, arena, &snapshot, err);
    if (rc < 0) return rc;
    pthread_mutex_lock(&context->lock);
    keep->cuts = context->cuts;
    pthread_mutex_unlock(&context->lock);
    rc = snapshot.selection != NULL
             ? already(args->layer, snapshot.selection, err)
             : choose(context, args, &snapshot, arena, &keep->selection, err);
    snapshot_release(&snapshot);
    return rc;
}

int context_compress(struct context *context, const struct compress_args *args, struct arena *arena,
                     uint64_t *ret_kept, struct error *err)
{
    struct keep_job keep = { .job = { .run = run_keep, .catalog = context->catalog },
                             .context = context,
                             .layer = args->layer };
    pthread_rwlock_rdlock(&context->use);
    int rc = choose_now(&keep, args, arena, err);
    pthread_rwlock_unlock(&context->use);
    CLEANUP(put_selection) struct selection *selection = keep.selection;
    if (rc < 0) return rc;
    if (selection == NULL) {
        *ret_kept = keep.tokens * context->shape.heads;
        return 0;
    }
    uint64_t kept = selection->first[selection->heads];
    rc = writer_run(context->catalog->writer, &keep.job, err);
    selection = keep.selection; /* NULL: it is in its place */
    if (rc == 0) *ret_kept = kept;
    return rc;
}

int context_load_selection(struct context *context, uint32_t layer, struct slice value,
                           struct error *err)
{
    struct value_header header;
    struct error why = { 0 };
    CLEANUP(put_selection) struct selection *selection = NULL;
    int rc = format_decode(value.data, value.bytes, &header, &why);
    if (rc == 0 && (header.kind != FORMAT_KIND_SELECTION ||
                    header.model_hash != context->shape.model_hash))
        rc = error_set(&why, MEMD_ECORRUPT, "the header belongs to another value");
    if (rc == 0) rc = format_verify(value.data, value.bytes, &why);
    if (rc == 0)
        rc = selection_decode((const unsigned char *)value.data + FORMAT_HEADER_BYTES,
                              value.bytes - FORMAT_HEADER_BYTES, &selection, &why);
    if (rc == 0 && (selection->tokens > layer_tokens(&context->layers[layer]) ||
                    (selection->heads != context->shape.heads &&
                     selection->heads != context->record->model.query_heads)))
        rc = error_set(&why, MEMD_ECORRUPT, "%" PRIu64 " tokens of %" PRIu32 " heads",
                       selection->tokens, selection->heads);
    if (rc == MEMD_ECORRUPT) CATALOG_COUNT(context->catalog, checksum_failures_total, 1);
    if (rc < 0)
        return error_set(err, rc, "context %" PRIu64 " layer %" PRIu32 " selection: %s",
                         context->id, layer, why.text);
    context->layers[layer].selection = TAKE(selection);
    return 0;
}

void context_cut_selection(struct layer *layer, uint64_t tokens)
{
    if (layer->selection == NULL || layer->selection->tokens <= tokens) return;
    selection_free(layer->selection);
    layer->selection = NULL;
}

void context_remove_selection(struct context *context, uint32_t layer, struct store_txn *txn,
                              int64_t *delta)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    owned_remove(txn, STORE_NOTES, name_of(context, layer, key), delta);
}
