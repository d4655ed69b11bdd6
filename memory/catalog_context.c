/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_context.c — finding, making and pinning contexts.
 *
 * A resident context is in the map, and nothing is loaded twice: loading holds load_lock. A
 * context that is being dropped stays in the map until its data is gone, so that a late pin
 * finds it and is refused.
 */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "memory/builder.h"
#include "memory/catalog_state.h"
#include "memory/chain.h"

enum { USED_STALE_MS = 60 * 1000 };

static void unpin(void *object)
{
    struct context *context = object;
    struct catalog *catalog = context->catalog;
    pthread_mutex_lock(&catalog->lock);
    assert(context->pins > 0);
    if (--context->pins == 0) pthread_cond_broadcast(&catalog->unpinned);
    pthread_mutex_unlock(&catalog->lock);
}

/* Pin a resident. NULL when it is not resident; MEMD_ENOCONTEXT in *ret_rc when it is being
 * dropped. */
static struct context *pin_resident(struct catalog *catalog, uint64_t id, int *ret_rc,
                                    struct error *err)
{
    pthread_mutex_lock(&catalog->lock);
    struct context *context = map_get(&catalog->residents, id);
    bool dropping = context != NULL && context->dropping;
    if (context != NULL && !dropping) {
        context->pins++;
        list_remove(&context->lru_link);
        list_append(&catalog->lru, &context->lru_link);
    }
    pthread_mutex_unlock(&catalog->lock);
    *ret_rc = dropping ? error_set(err, MEMD_ENOCONTEXT, "context %" PRIu64 " is being dropped", id)
                       : 0;
    return dropping ? NULL : context;
}

struct record_job {
    struct writer_job job;
    uint64_t id;
    struct record *record;
};

static int run_put_record(struct writer_job *job, struct error *err)
{
    struct record_job *put = (struct record_job *)(void *)job;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(job->catalog->store, true, &txn, err);
    if (rc < 0) return rc;
    catalog_put_record(&txn, put->id, put->record);
    return catalog_commit(job->catalog, &txn, 0, err);
}

/* After an unclean end the layers may be uneven: cut them to the common count, once per such
 * end. */
static int recover(struct context *context, struct error *err)
{
    struct catalog *catalog = context->catalog;
    if (context->record->generation == catalog->generation) return 0;
    uint64_t common = context_tokens(context), cut = 0;
    for (uint32_t i = 0; i < context->record->model.layers; i++) {
        uint64_t tokens = layer_tokens(&context->layers[i]);
        if (tokens > common) cut += tokens - common;
    }
    int rc = cut == 0 ? 0 : context_even_out(context, common, err);
    if (rc < 0) return rc;
    context->record->generation = catalog->generation;
    struct record_job put = { .job = { .run = run_put_record, .catalog = catalog },
                              .id = context->id,
                              .record = context->record };
    rc = writer_run(catalog->writer, &put.job, err);
    if (rc < 0 || cut == 0) return rc;
    CATALOG_COUNT(catalog, recovered_contexts_total, 1);
    CATALOG_COUNT(catalog, recovered_tokens_cut_total, cut);
    return 0;
}

static int add_resident(struct catalog *catalog, struct context *context, struct error *err)
{
    pthread_mutex_lock(&catalog->lock);
    int rc = map_put(&catalog->residents, context->id, context);
    if (rc == 0) {
        list_append(&catalog->lru, &context->lru_link);
        context->pins = 1;
        builder_add(catalog->builder, context);
        atomic_fetch_add(&catalog->resident_count, 1);
    }
    pthread_mutex_unlock(&catalog->lock);
    return rc == 0 ? 0 : error_set(err, MEMD_ENOMEM, "no memory for a context");
}

/* With load_lock held. */
static int load(struct catalog *catalog, uint64_t id, struct context **ret_context,
                struct error *err)
{
    int rc = 0;
    struct context *resident = pin_resident(catalog, id, &rc, err);
    if (resident != NULL || rc < 0) {
        *ret_context = resident;
        return rc;
    }
    CLEANUP(context_freep) struct context *context = NULL;
    rc = context_load(catalog, id, &context, err);
    if (rc == 0) rc = recover(context, err);
    if (rc == 0) rc = add_resident(catalog, context, err);
    if (rc < 0) return rc;
    *ret_context = TAKE(context);
    return 0;
}

int catalog_pin(struct catalog *catalog, uint64_t context_id, struct arena *arena,
                struct context **ret_context, struct error *err)
{
    int rc = 0;
    struct context *context = pin_resident(catalog, context_id, &rc, err);
    if (context == NULL && rc == 0) {
        pthread_mutex_lock(&catalog->load_lock);
        rc = load(catalog, context_id, &context, err);
        pthread_mutex_unlock(&catalog->load_lock);
        if (rc == 0) catalog_unload_idle(catalog);
    }
    if (rc < 0) return rc;
    if (arena_on_reset(arena, unpin, context) < 0)
        return error_set(err, MEMD_ENOMEM, "no memory for a pin");
    *ret_context = context;
    return 0;
}

bool catalog_pin_resident(struct catalog *catalog, uint64_t context_id, struct arena *arena,
                          struct context **ret_context)
{
    int rc = 0;
    struct context *context = pin_resident(catalog, context_id, &rc, NULL);
    if (context == NULL || arena_on_reset(arena, unpin, context) < 0) return false;
    *ret_context = context;
    return true;
}

struct used_job {
    struct writer_job job;
    uint64_t id, used_unix_ms;
};

static int run_put_used(struct writer_job *job, struct error *err)
{
    struct used_job *put = (struct used_job *)(void *)job;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(job->catalog->store, true, &txn, err);
    CLEANUP(free_ptr) struct record *record = NULL;
    if (rc == 0) rc = catalog_read_record(job->catalog, &txn, put->id, &record, err);
    if (rc < 0) return rc;
    record->used_unix_ms = put->used_unix_ms;
    catalog_put_record(&txn, put->id, record);
    return catalog_commit(job->catalog, &txn, 0, err);
}

/* The least recently used resident that can go; NULL when there is none. With lock held. */
static struct context *idle_resident(struct catalog *catalog)
{
    LIST_FOR(link, &catalog->lru)
    {
        struct context *context = LIST_ENTRY(link, struct context, lru_link);
        if (context->pins == 0 && !context->dropping && writer_is_clean(catalog->writer, context))
            return context;
    }
    return NULL;
}

bool catalog_is_crowded(struct catalog *catalog)
{
    uint64_t held = atomic_load_explicit(&catalog->blocks.held_bytes, memory_order_relaxed) +
                    atomic_load_explicit(&catalog->state_bytes, memory_order_relaxed);
    return atomic_load(&catalog->resident_count) > catalog->contexts_max ||
           held > catalog->resident_bytes_max;
}

void catalog_unload_idle(struct catalog *catalog)
{
    for (;;) {
        pthread_mutex_lock(&catalog->lock);
        struct context *context = NULL;
        if (catalog_is_crowded(catalog)) context = idle_resident(catalog);
        if (context != NULL) {
            map_remove(&catalog->residents, context->id);
            list_remove(&context->lru_link);
            builder_remove(catalog->builder, context);
            atomic_fetch_sub(&catalog->resident_count, 1);
        }
        pthread_mutex_unlock(&catalog->lock);
        if (context == NULL) return;
        struct used_job job = { .job = { .run = run_put_used, .catalog = catalog },
                                .id = context->id,
                                .used_unix_ms = context->used_unix_ms };
        if (context->record->used_unix_ms + USED_STALE_MS < job.used_unix_ms)
            writer_run(catalog->writer, &job.job,
                       NULL); /* lost: it looks older to eviction than it is */
        context_free(context);
    }
}

static int check_name(const char *name, struct error *err)
{
    size_t bytes = strlen(name);
    if (bytes >= 1 && bytes <= LIMIT_NAME_BYTES) return 0;
    return error_set(err, MEMD_EINVAL, "a context name has 1 to %u bytes, not %zu",
                     LIMIT_NAME_BYTES, bytes);
}

int catalog_find(struct catalog *catalog, const char *name, uint64_t *ret_context_id,
                 struct error *err)
{
    int rc = check_name(name, err);
    if (rc < 0) return rc;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    rc = store_begin(catalog->store, false, &txn, err);
    if (rc < 0) return rc;
    struct slice value;
    uint64_t id = 0;
    if (!store_get(&txn, STORE_NAMES, (struct slice){ name, strlen(name) }, &value)) {
        rc = store_failed(&txn, err);
        return rc < 0 ? rc
                      : error_set(err, MEMD_ENOCONTEXT, "there is no context \"%.200s\"", name);
    }
    if (!format_read_u64(value.data, value.bytes, &id))
        return error_set(err, MEMD_ECORRUPT, "the name \"%.200s\" has a malformed id", name);
    *ret_context_id = id;
    return 0;
}

struct create_job {
    struct writer_job job;
    struct record *record;
    struct context *fork_of; /* pinned, or NULL */
    bool same_method;        /* the fork takes along what was stored for the method */
    uint64_t id, tokens;
};

/* Both arguments are of sizes that were checked. */
static struct record *new_record(const struct catalog *catalog, const char *name)
{
    struct record *record = calloc(1, sizeof *record);
    if (record == NULL) return NULL;
    memcpy(record->name, name, strlen(name));
    record->created_unix_ms = record->used_unix_ms = catalog_now_ms();
    record->generation = catalog->generation;
    return record;
}

static int run_create(struct writer_job *job, struct error *err)
{
    struct create_job *create = (struct create_job *)(void *)job;
    struct catalog *catalog = job->catalog;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(catalog->store, true, &txn, err);
    if (rc < 0) return rc;
    struct slice name = { create->record->name, strlen(create->record->name) }, there;
    if (store_get(&txn, STORE_NAMES, name, &there))
        return error_set(err, MEMD_EEXIST, "context \"%.200s\" exists already",
                         create->record->name);
    create->id = catalog->next_context++;
    unsigned char id[8];
    format_put_u64(create->id, id);
    store_put(&txn, STORE_NAMES, name, (struct slice){ id, sizeof id });
    uint64_t set = 0;
    rc = record_find_set(&txn, create->record, &set, err);
    if (rc < 0) return rc;
    catalog_put_record(&txn, create->id, create->record);
    int64_t delta = 0;
    if (create->fork_of != NULL) {
        chain_fork(&txn, create->fork_of->id, create->id, &delta);
        if (create->same_method)
            chain_fork_method(&txn, create->fork_of->id, create->id, &delta);
        pthread_mutex_lock(&create->fork_of->lock);
        create->tokens = context_common(create->fork_of, layer_committed);
        pthread_mutex_unlock(&create->fork_of->lock);
    }
    return catalog_commit(catalog, &txn, delta, err);
}

/* A method and its parameters, as a client named them for a context of this model. */
static int put_method(struct record *record, const struct method *method,
                      const struct parameter *parameters, size_t count, struct error *err)
{
    if (count > LIMIT_PARAMETERS)
        return error_set(err, MEMD_ELIMIT, "%zu parameters, %u are allowed", count,
                         LIMIT_PARAMETERS);
    double options[OPTIONS_MAX];
    int rc = method_parse(method, parameters, count, options, err);
    if (rc == 0) rc = method_check(method, &record->model, options, err);
    if (rc < 0) return rc;
    snprintf(record->method, sizeof record->method, "%s", method->name);
    for (size_t i = 0; i < count; i++) record->parameters[i] = parameters[i];
    record->parameter_count = count;
    return 0;
}

static int find_method(const char *name, const struct method **ret_method, struct error *err)
{
    *ret_method = method_find(name);
    if (*ret_method != NULL) return 0;
    return error_set(err, MEMD_EUNSUPPORTED, "this build has no method \"%.80s\"", name);
}

static int create(struct catalog *catalog, const struct open_args *args, uint64_t *ret_id,
                  struct error *err)
{
    if (args->model == NULL) return error_set(err, MEMD_EINVAL, "a new context needs a model");
    const struct method *method = method_default();
    int rc = args->method[0] == 0 ? 0 : find_method(args->method, &method, err);
    if (rc == 0) rc = check_name(args->name, err);
    if (rc < 0) return rc;
    CLEANUP(free_ptr) struct record *record = new_record(catalog, args->name);
    if (record == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a context");
    record->model = *args->model;
    rc = put_method(record, method, args->parameters, args->parameter_count, err);
    if (rc < 0) return rc;
    struct create_job job = { .job = { .run = run_create, .catalog = catalog }, .record = record };
    rc = writer_run(catalog->writer, &job.job, err);
    if (rc == 0) *ret_id = job.id;
    return rc;
}

static int compare_method(const struct record *stored, const struct open_args *args,
                          struct error *err)
{
    if (args->method[0] != 0 && strcmp(args->method, stored->method) != 0)
        return error_set(err, MEMD_EMISMATCH,
                         "context has method \"%s\", the client says \"%.80s\"", stored->method,
                         args->method);
    if (args->parameter_count == 0) return 0;
    bool equal = args->parameter_count == stored->parameter_count;
    for (size_t i = 0; equal && i < args->parameter_count; i++) {
        equal = strcmp(args->parameters[i].name, stored->parameters[i].name) == 0 &&
                strcmp(args->parameters[i].value, stored->parameters[i].value) == 0;
    }
    return equal ? 0 : error_set(err, MEMD_EMISMATCH, "context has other parameters of its method");
}

int catalog_open_context(struct catalog *catalog, const struct open_args *args, struct arena *arena,
                         struct context **ret_context, bool *ret_created, struct error *err)
{
    uint64_t id = 0;
    struct error why = { 0 };
    bool created = false;
    int rc = catalog_find(catalog, args->name, &id, &why);
    if (rc == MEMD_ENOCONTEXT && (args->create || args->must_create)) {
        rc = create(catalog, args, &id, &why);
        created = rc == 0;
        /* Somebody else was faster. */
        if (rc == MEMD_EEXIST && !args->must_create)
            rc = catalog_find(catalog, args->name, &id, &why);
    } else if (rc == 0 && args->must_create) {
        rc = error_set(&why, MEMD_EEXIST, "context \"%.200s\" exists already", args->name);
    }
    if (rc < 0) return error_set(err, rc, "%s", why.text);
    struct context *context = NULL;
    rc = catalog_pin(catalog, id, arena, &context, err);
    if (rc < 0) return rc;
    if (args->model != NULL) rc = model_compare(&context->record->model, args->model, err);
    if (rc == 0 && args->method != NULL) rc = compare_method(context->record, args, err);
    if (rc < 0) return rc; /* the pin goes with the arena */
    *ret_context = context;
    *ret_created = created;
    return 0;
}

static size_t width_of(const struct method *method, const double *options)
{
    return method->state_width == NULL ? 0 : method->state_width(options);
}

static uint32_t columns_of(const struct method *method, const double *options)
{
    return method->columns == NULL ? COLUMNS_NONE : method->columns(options);
}

/* Can the rows of `parent` be read by the method that `record` names? */
static int check_fork(const struct context *parent, const struct record *record,
                      struct error *err)
{
    const struct method *method = method_find(record->method), *before = parent->method;
    double options[OPTIONS_MAX];
    int rc = method_parse(method, record->parameters, record->parameter_count, options, err);
    if (rc < 0) return rc;
    if (width_of(method, options) != width_of(before, parent->options))
        return error_set(err, MEMD_EUNSUPPORTED, "the rows of \"%.80s\" are not those of a context "
                         "with method %s", parent->record->name, method->name);
    if (columns_of(method, options) != columns_of(before, parent->options) ||
        (method->keeps_queries && !before->keeps_queries))
        return error_set(err, MEMD_EUNSUPPORTED, "method %s keeps other things of a token than "
                         "method %s, with which \"%.80s\" was filled", method->name, before->name,
                         parent->record->name);
    return 0;
}

/* The method of a fork; *ret_same where nothing was said of one. */
static int fork_method(const struct context *parent, const struct fork_args *args,
                       struct record *record, bool *ret_same, struct error *err)
{
    const struct method *method = parent->method;
    bool named = args->method != NULL && args->method[0] != 0;
    *ret_same = !named && args->parameter_count == 0;
    if (*ret_same) {
        memcpy(record->method, parent->record->method, sizeof record->method);
        memcpy(record->parameters, parent->record->parameters, sizeof record->parameters);
        record->parameter_count = parent->record->parameter_count;
        return 0;
    }
    int rc = named ? find_method(args->method, &method, err) : 0;
    if (rc == 0) rc = put_method(record, method, args->parameters, args->parameter_count, err);
    return rc < 0 ? rc : check_fork(parent, record, err);
}

int catalog_fork(struct catalog *catalog, struct context *context, const struct fork_args *args,
                 uint64_t *ret_context_id, uint64_t *ret_tokens, struct error *err)
{
    int rc = check_name(args->name, err);
    if (rc < 0) return rc;
    CLEANUP(free_ptr) struct record *record = new_record(catalog, args->name);
    if (record == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a context");
    record->parent_id = context->id;
    record->model = context->record->model;
    struct create_job job = {
        .job = { .run = run_create, .catalog = catalog },
        .record = record,
        .fork_of = context,
    };
    rc = fork_method(context, args, record, &job.same_method, err);
    if (rc == 0) rc = writer_run(catalog->writer, &job.job, err);
    if (rc < 0) return rc;
    *ret_context_id = job.id;
    *ret_tokens = job.tokens;
    return 0;
}
