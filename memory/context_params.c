/* SPDX-License-Identifier: Apache-2.0 */
/* context_params.c — uploading tensors (uploads.h): checked, committed, put to use.
 *
 * All memory is there before the commit, so what is committed is in use when the request is
 * answered. A context changes to the new tensors with `use` held alone: no query sees two
 * generations, and a fold that was made with the old ones goes.
 *
 * The tensors of a named set are those of every context that has the parameter `params` with its
 * name. They are committed with load_lock held, so that a context has either read the new ones or
 * is resident already; then all residents are told.
 *
 * Rejected: one owner per context and links between them (a fork of a fork of a fork).
 */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "memory/builder.h"
#include "memory/catalog_state.h"
#include "memory/owned.h"
#include "memory/uploads.h"

enum { PIN_BYTES = 64 << 10 };

const char *record_upload_set(const struct record *record)
{
    for (size_t i = 0; i < record->parameter_count; i++) {
        if (strcmp(record->parameters[i].name, METHOD_PARAMS_PARAMETER) == 0)
            return record->parameters[i].value;
    }
    return NULL;
}

static struct param_sizes sizes_of(const struct record *record)
{
    struct block_shape shape;
    record_shape(record, &shape);
    return (struct param_sizes){ .query_heads = record->model.query_heads,
                                 .kv_heads = record->model.kv_heads,
                                 .head_dim = record->model.head_dim,
                                 .state_width = shape.state_width };
}

/* The size that the tensors before gave to letter h; 0 = none has it. */
static size_t hidden_width(const struct param_table *table, const struct uploads *uploads)
{
    for (size_t i = 0; uploads != NULL && i < uploads->params.count; i++) {
        const struct param *item = &uploads->items[i];
        for (size_t j = 0; j < table->count; j++) {
            const char *at = strcmp(table->specs[j].name, item->name) != 0
                                 ? NULL
                                 : strchr(table->specs[j].shape, 'h');
            if (at != NULL) return item->value.shape[at - table->specs[j].shape];
        }
    }
    return 0;
}

static int compare_set(const struct upload_set *set, const struct record *record, struct error *err)
{
    struct param_sizes sizes = sizes_of(record);
    if (strcmp(set->method, record->method) == 0 && set->layers == record->model.layers &&
        set->sizes.query_heads == sizes.query_heads && set->sizes.kv_heads == sizes.kv_heads &&
        set->sizes.head_dim == sizes.head_dim && set->sizes.state_width == sizes.state_width)
        return 0;
    return error_set(err, MEMD_EMISMATCH,
                     "the set of tensors is for method %s, L=%" PRIu32 " H=%zu G=%zu D=%zu and "
                     "states of %zu, the context has %s, %" PRIu32 " %zu %zu %zu %zu",
                     set->method, set->layers, set->sizes.query_heads, set->sizes.kv_heads,
                     set->sizes.head_dim, set->sizes.state_width, record->method,
                     record->model.layers, sizes.query_heads, sizes.kv_heads, sizes.head_dim,
                     sizes.state_width);
}

int record_find_set(struct store_txn *txn, const struct record *record, uint64_t *ret_id,
                    struct error *err)
{
    const char *name = record_upload_set(record);
    struct upload_set set;
    *ret_id = 0;
    if (name == NULL) return 0;
    int rc = upload_set_find(txn, name, &set, err);
    if (rc == 0)
        return error_set(err, MEMD_EINVAL, "there is no set of tensors \"%.200s\"", name);
    if (rc > 0) rc = compare_set(&set, record, err);
    if (rc == 0) *ret_id = set.id;
    return rc;
}

/* What a resident context has of the same owner: as new as the store's, or it is told soon. */
static struct uploads *find_resident(struct catalog *catalog, uint64_t owner)
{
    struct uploads *found = NULL;
    size_t at = 0;
    pthread_mutex_lock(&catalog->lock);
    for (struct context *context;
         found == NULL && (context = map_next(&catalog->residents, &at)) != NULL;) {
        if (context->record == NULL) continue;
        pthread_mutex_lock(&context->lock);
        if (context->uploads != NULL && context->uploads->owner == owner)
            found = uploads_get(context->uploads);
        pthread_mutex_unlock(&context->lock);
    }
    pthread_mutex_unlock(&catalog->lock);
    return found;
}

int context_load_uploads(struct context *context, struct store_txn *txn, struct error *err)
{
    if (context->method->params == NULL) return 0;
    struct error why = { 0 };
    int rc = record_find_set(txn, context->record, &context->upload_set, &why);
    uint64_t owner = context->upload_set != 0 ? context->upload_set : context->id;
    if (rc == 0 && context->upload_set != 0)
        context->uploads = find_resident(context->catalog, owner);
    if (rc == 0 && context->uploads == NULL)
        rc = uploads_load(context->catalog, txn, owner, &context->uploads, &why);
    if (rc == MEMD_ECORRUPT) CATALOG_COUNT(context->catalog, checksum_failures_total, 1);
    return rc < 0 ? error_set(err, rc, "context %" PRIu64 ": %s", context->id, why.text) : 0;
}

static uint64_t version_of(const struct uploads *uploads)
{
    return uploads == NULL ? 0 : uploads->params.version;
}

/* From now on the context uses these, if they are newer; takes the reference over. */
static void put_to_use(struct context *context, struct uploads *fresh)
{
    struct uploads *old = fresh;
    context_lock_alone(context);
    pthread_mutex_lock(&context->lock);
    if (version_of(fresh) > version_of(context->uploads)) {
        old = context->uploads;
        context->uploads = fresh;
    }
    pthread_mutex_unlock(&context->lock);
    for (uint32_t i = 0; old != fresh && i < context->record->model.layers; i++)
        fold_drop(context, &context->layers[i]);
    context_unlock_alone(context);
    uploads_put(old);
    builder_wake(context->catalog->builder, context);
}

const struct params *context_params(const struct context *context)
{
    return context->uploads == NULL ? NULL : &context->uploads->params;
}

/* One tensor under way. */
struct upload_job {
    struct writer_job job;
    const struct uploads *fresh;
    uint64_t model_hash;
    const char *set_name; /* of a set that is made with it, or NULL */
    struct upload_set set;
};

static int run_upload(struct writer_job *job, struct error *err)
{
    struct upload_job *upload = (struct upload_job *)(void *)job;
    struct catalog *catalog = job->catalog;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int64_t delta = 0;
    size_t bytes = upload->fresh->data[upload->fresh->params.count - 1]->bytes;
    int rc = evict_check(catalog, &(struct room_wish){ bytes, bytes }, err);
    if (rc == 0) rc = store_begin(catalog->store, true, &txn, err);
    if (rc < 0) return rc;
    if (upload->set_name != NULL) upload_set_store(&txn, upload->set_name, &upload->set, &delta);
    rc = uploads_store(&txn, upload->fresh, upload->model_hash, &delta, err);
    return rc < 0 ? rc : catalog_commit(catalog, &txn, delta, err);
}

static int run_take_id(struct writer_job *job, struct error *err)
{
    struct upload_job *upload = (struct upload_job *)(void *)job;
    (void)err;
    upload->set.id = job->catalog->next_context++; /* saved by the next commit */
    return 0;
}

/* Is it one that the method knows, and small enough? */
static int check_tensor(const struct record *record, const struct uploads *before,
                        const struct param *param, struct error *err)
{
    const struct method *method = method_find(record->method);
    struct param_sizes sizes = sizes_of(record);
    uint64_t bytes = tensor_elements(&param->value) * sizeof(float);
    if (method->params == NULL)
        return error_set(err, MEMD_EUNSUPPORTED, "method %s takes no tensors", method->name);
    if (param->layer >= record->model.layers && param->layer != PARAM_ALL_LAYERS)
        return error_set(err, MEMD_EINVAL, "layer %" PRIu32 " of a model with %" PRIu32 " layers",
                         param->layer, record->model.layers);
    sizes.hidden_width = hidden_width(method->params, before);
    int rc = params_check(method->params, &sizes, param->name, &param->value, err);
    if (rc < 0) return rc;
    if (bytes > LIMIT_PARAM_BYTES)
        return error_set(err, MEMD_ELIMIT, "a tensor of %" PRIu64 " bytes, %" PRIu64
                         " are the most", bytes, LIMIT_PARAM_BYTES);
    if (before == NULL) return 0;
    if (before->params.count >= LIMIT_PARAMS || before->bytes + bytes > LIMIT_PARAMS_BYTES)
        return error_set(err, MEMD_ELIMIT,
                         "%zu tensors of %" PRIu64 " bytes are there; %u of %" PRIu64
                         " bytes are the most", before->params.count, before->bytes, LIMIT_PARAMS,
                         LIMIT_PARAMS_BYTES);
    return 0;
}

static int fill_param(const char *name, uint32_t layer, const struct tensor *value,
                      struct param *ret_param, struct error *err)
{
    size_t bytes = strlen(name);
    if (bytes == 0 || bytes >= PARAM_NAME_BYTES || !dtype_is_float(value->dtype))
        return error_set(err, MEMD_EINVAL, "no method has a tensor \"%.40s\" of %s", name,
                         dtype_name(value->dtype));
    *ret_param = (struct param){ .layer = layer, .value = *value };
    memcpy(ret_param->name, name, bytes);
    return 0;
}

/* With append_lock held. */
static int put_param(struct context *context, const struct param *param, struct error *err)
{
    struct catalog *catalog = context->catalog;
    CLEANUP(uploads_putp) struct uploads *fresh = NULL;
    int rc = check_tensor(context->record, context->uploads, param, err);
    if (rc == 0)
        rc = uploads_with(catalog, context->id, context->uploads, param, &fresh, err);
    if (rc < 0) return rc;
    struct upload_job upload = { .job = { .run = run_upload, .catalog = catalog },
                                 .fresh = fresh,
                                 .model_hash = context->shape.model_hash };
    rc = writer_run(catalog->writer, &upload.job, err);
    if (rc == 0) put_to_use(context, TAKE(fresh));
    return rc;
}

int context_put_param(struct context *context, const char *name, uint32_t layer,
                      const struct tensor *value, struct error *err)
{
    struct param param;
    int rc = fill_param(name, layer, value, &param, err);
    if (rc < 0) return rc;
    if (context->upload_set != 0)
        return error_set(err, MEMD_EUNSUPPORTED,
                         "the context uses the tensors of set \"%.200s\" and has none of its own",
                         record_upload_set(context->record));
    pthread_mutex_lock(&context->append_lock);
    rc = put_param(context, &param, err);
    pthread_mutex_unlock(&context->append_lock);
    return rc;
}

/* A resident that uses the set and has older tensors; 0 = there is none. */
static uint64_t find_stale(struct catalog *catalog, const struct uploads *fresh)
{
    uint64_t id = 0;
    size_t at = 0;
    pthread_mutex_lock(&catalog->lock);
    for (struct context *context;
         id == 0 && (context = map_next(&catalog->residents, &at)) != NULL;) {
        if (context->record == NULL || context->dropping ||
            context->upload_set != fresh->owner)
            continue;
        pthread_mutex_lock(&context->lock);
        if (version_of(context->uploads) < version_of(fresh)) id = context->id;
        pthread_mutex_unlock(&context->lock);
    }
    pthread_mutex_unlock(&catalog->lock);
    return id;
}

static void tell_residents(struct catalog *catalog, struct uploads *fresh)
{
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, PIN_BYTES);
    for (uint64_t id; (id = find_stale(catalog, fresh)) != 0; arena_reset(&arena)) {
        struct context *context = NULL;
        if (catalog_pin_resident(catalog, id, &arena, &context))
            put_to_use(context, uploads_get(fresh));
    }
}

/* A record that is stored nowhere: what a context would have that uses the set. */
static int model_record(const struct shared_param *args, struct record **ret_record,
                        struct error *err)
{
    const struct method *method = method_find(args->method);
    double options[OPTIONS_MAX];
    if (method == NULL)
        return error_set(err, MEMD_EUNSUPPORTED, "this build has no method \"%.80s\"",
                         args->method);
    if (args->parameter_count > LIMIT_PARAMETERS)
        return error_set(err, MEMD_ELIMIT, "%zu parameters, %u are allowed", args->parameter_count,
                         LIMIT_PARAMETERS);
    int rc = method_parse(method, args->parameters, args->parameter_count, options, err);
    if (rc == 0) rc = method_check(method, args->model, options, err);
    if (rc < 0) return rc;
    struct record *record = calloc(1, sizeof *record);
    if (record == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a set of tensors");
    record->model = *args->model;
    memcpy(record->method, method->name, strlen(method->name));
    for (size_t i = 0; i < args->parameter_count; i++) record->parameters[i] = args->parameters[i];
    record->parameter_count = args->parameter_count;
    *ret_record = record;
    return 0;
}

/* What there is of the set; a new one gets an id. */
static int open_set(struct catalog *catalog, const struct shared_param *args,
                    const struct record *record, struct upload_job *upload,
                    struct uploads **ret_before, struct error *err)
{
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(catalog->store, false, &txn, err);
    if (rc == 0) rc = upload_set_find(&txn, args->set, &upload->set, err);
    if (rc < 0) return rc;
    if (rc > 0) {
        rc = compare_set(&upload->set, record, err);
        return rc < 0 ? rc : uploads_load(catalog, &txn, upload->set.id, ret_before, err);
    }
    upload->set_name = args->set;
    upload->set = (struct upload_set){ .layers = record->model.layers, .sizes = sizes_of(record) };
    memcpy(upload->set.method, record->method, sizeof upload->set.method);
    *ret_before = NULL;
    struct upload_job take = { .job = { .run = run_take_id, .catalog = catalog } };
    rc = writer_run(catalog->writer, &take.job, err);
    upload->set.id = take.set.id;
    return rc;
}

/* With load_lock held. */
static int put_shared(struct catalog *catalog, const struct shared_param *args,
                      const struct param *param, struct uploads **ret_fresh, struct error *err)
{
    CLEANUP(free_ptr) struct record *record = NULL;
    CLEANUP(uploads_putp) struct uploads *before = NULL;
    CLEANUP(uploads_putp) struct uploads *fresh = NULL;
    struct upload_job upload = { .job = { .run = run_upload, .catalog = catalog } };
    int rc = model_record(args, &record, err);
    if (rc == 0) rc = open_set(catalog, args, record, &upload, &before, err);
    if (rc == 0) rc = check_tensor(record, before, param, err);
    if (rc == 0) rc = uploads_with(catalog, upload.set.id, before, param, &fresh, err);
    if (rc < 0) return rc;
    upload.fresh = fresh;
    rc = writer_run(catalog->writer, &upload.job, err);
    if (rc == 0) *ret_fresh = TAKE(fresh);
    return rc;
}

int catalog_put_shared_param(struct catalog *catalog, const struct shared_param *args,
                             struct error *err)
{
    struct param param;
    CLEANUP(uploads_putp) struct uploads *fresh = NULL;
    size_t bytes = strlen(args->set);
    int rc = fill_param(args->name, args->layer, args->value, &param, err);
    if (rc == 0 && (bytes == 0 || bytes > LIMIT_PARAMETER_BYTES))
        rc = error_set(err, MEMD_EINVAL, "the name of a set has 1 to %u bytes, not %zu",
                       LIMIT_PARAMETER_BYTES, bytes);
    if (rc < 0) return rc;
    pthread_mutex_lock(&catalog->load_lock);
    rc = put_shared(catalog, args, &param, &fresh, err);
    pthread_mutex_unlock(&catalog->load_lock);
    if (rc == 0) tell_residents(catalog, fresh);
    return rc;
}

struct drop_set_job {
    struct writer_job job;
    const char *name;
    uint64_t bytes;
};

/* Does any context say that it uses the set? */
static int check_unused(struct store_txn *txn, const char *name, struct error *err)
{
    CLEANUP(free_ptr) struct record *record = malloc(sizeof *record);
    if (record == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a context");
    struct store_cursor cursor;
    int rc = 0;
    for (bool found = store_seek(txn, STORE_CONTEXTS, (struct slice){ NULL, 0 }, &cursor);
         rc == 0 && found; found = store_next(&cursor)) {
        if (record_decode(cursor.value.data, cursor.value.bytes, record, NULL) < 0) continue;
        const char *used = record->dropping ? NULL : record_upload_set(record);
        if (used != NULL && strcmp(used, name) == 0)
            rc = error_set(err, MEMD_EBUSY, "context \"%.200s\" uses the set", record->name);
    }
    store_cursor_close(&cursor);
    return rc;
}

static int run_drop_set(struct writer_job *job, struct error *err)
{
    struct drop_set_job *drop = (struct drop_set_job *)(void *)job;
    struct upload_set set = { 0 };
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int64_t delta = 0;
    int rc = store_begin(job->catalog->store, true, &txn, err);
    if (rc == 0) rc = upload_set_find(&txn, drop->name, &set, err);
    if (rc == 0)
        rc = error_set(err, MEMD_EINVAL, "there is no set of tensors \"%.200s\"", drop->name);
    if (rc > 0) rc = check_unused(&txn, drop->name, err);
    if (rc < 0) return rc;
    owned_clear(&txn, STORE_PARAMS, set.id, UINT64_MAX, &delta);
    owned_remove(&txn, STORE_SETS, (struct slice){ drop->name, strlen(drop->name) }, &delta);
    rc = catalog_commit(job->catalog, &txn, delta, err);
    if (rc == 0) drop->bytes = (uint64_t)-delta;
    return rc;
}

int catalog_drop_shared_params(struct catalog *catalog, const char *set, uint64_t *ret_bytes,
                               struct error *err)
{
    struct drop_set_job drop = { .job = { .run = run_drop_set, .catalog = catalog, .frees = true },
                                 .name = set };
    pthread_mutex_lock(&catalog->load_lock);
    int rc = writer_run(catalog->writer, &drop.job, err);
    pthread_mutex_unlock(&catalog->load_lock);
    if (rc == 0) *ret_bytes = drop.bytes;
    return rc;
}
