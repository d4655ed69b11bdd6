/* SPDX-License-Identifier: Apache-2.0 */
/* fake_memory.c — memory/'s functions as far as the daemon calls them; contexts 1 and 2. */
#include "tests/flow/fake_memory.h"

#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/error.h"
#include "memory/catalog.h"
#include "memory/context.h"
#include "memory/methods/methods.h"

struct fake fake;

struct context {
    struct model model;
    bool is_quick; /* its attends are never held */
};

struct catalog {
    struct catalog_config config;
    struct context context, quick;
};

static struct catalog *open_catalog;

void fake_progress(void)
{
    open_catalog->config.on_progress(open_catalog->config.on_progress_arg);
}

/* By the linker in front of base/clock.c's. */
uint64_t __real_clock_monotonic_ns(void);
uint64_t __wrap_clock_monotonic_ns(void);

uint64_t __wrap_clock_monotonic_ns(void)
{
    return __real_clock_monotonic_ns() + atomic_load(&fake.waited_ns);
}

void fake_wait(uint64_t ms)
{
    atomic_fetch_add(&fake.waited_ns, ms * 1000000);
}

int catalog_open(const struct catalog_config *config, struct catalog **ret_catalog,
                 struct error *err)
{
    open_catalog = calloc(1, sizeof *open_catalog);
    if (open_catalog == NULL) return error_set(err, MEMD_ENOMEM, "no memory");
    open_catalog->config = *config;
    open_catalog->context.model = (struct model){
        .layers = 2, .query_heads = 2, .kv_heads = 1, .head_dim = 8, .dtype = DTYPE_FP32
    };
    open_catalog->quick = open_catalog->context;
    open_catalog->quick.is_quick = true;
    *ret_catalog = open_catalog;
    return 0;
}

void catalog_close(struct catalog *catalog)
{
    if (catalog == open_catalog) open_catalog = NULL;
    free(catalog);
}

void catalog_trim(struct catalog *catalog)
{
    (void)catalog;
}

void catalog_reconfigure(struct catalog *catalog, const struct catalog_config *config)
{
    catalog->config = *config;
}

static void unpin(void *object)
{
    (void)object;
    atomic_fetch_sub(&fake.pins, 1);
}

int catalog_pin(struct catalog *catalog, uint64_t context_id, struct arena *arena,
                struct context **ret_context, struct error *err)
{
    if (context_id == 0 || context_id > FAKE_CONTEXTS)
        return error_set(err, MEMD_ENOCONTEXT, "no such context");
    atomic_fetch_add(&fake.pins, 1);
    if (arena_on_reset(arena, unpin, catalog) < 0) return error_set(err, MEMD_ENOMEM, "no memory");
    *ret_context = context_id == 2 ? &catalog->quick : &catalog->context;
    return 0;
}

bool catalog_pin_resident(struct catalog *catalog, uint64_t context_id, struct arena *arena,
                          struct context **ret_context)
{
    return catalog_pin(catalog, context_id, arena, ret_context, NULL) == 0;
}

int catalog_open_context(struct catalog *catalog, const struct open_args *args, struct arena *arena,
                         struct context **ret_context, bool *ret_created, struct error *err)
{
    (void)args;
    *ret_created = false;
    return catalog_pin(catalog, 1, arena, ret_context, err);
}

static int not_here(struct error *err)
{
    return error_set(err, MEMD_EUNSUPPORTED, "not in the fake");
}

int catalog_find(struct catalog *catalog, const char *name, uint64_t *ret_context_id,
                 struct error *err)
{
    (void)catalog, (void)name, (void)ret_context_id;
    return not_here(err);
}

int catalog_fork(struct catalog *catalog, struct context *context, const struct fork_args *args,
                 uint64_t *ret_context_id, uint64_t *ret_tokens, struct error *err)
{
    (void)catalog, (void)context, (void)args, (void)ret_context_id, (void)ret_tokens;
    return not_here(err);
}

int catalog_drop(struct catalog *catalog, uint64_t context_id, uint64_t *ret_bytes,
                 struct error *err)
{
    (void)catalog, (void)context_id, (void)ret_bytes;
    return not_here(err);
}

int catalog_retain(struct catalog *catalog, uint64_t context_id, uint64_t seconds,
                   uint64_t *ret_until_unix_ms, struct error *err)
{
    (void)catalog, (void)context_id, (void)seconds, (void)ret_until_unix_ms;
    return not_here(err);
}

int catalog_stat(struct catalog *catalog, uint64_t context_id, struct arena *arena,
                 struct context_info *ret_info, struct error *err)
{
    (void)arena, (void)err;
    *ret_info = (struct context_info){ .id = context_id, .model = catalog->context.model };
    ret_info->tokens = atomic_load(&fake.tokens);
    return 0;
}

int catalog_list(struct catalog *catalog, const struct list_args *args, struct arena *arena,
                 struct list_page *ret_page, struct error *err)
{
    (void)catalog, (void)args, (void)arena, (void)ret_page;
    return not_here(err);
}

int catalog_verify(struct catalog *catalog, const struct walk_args *args, struct arena *arena,
                   struct verify_step *ret_step, struct error *err)
{
    (void)catalog, (void)args, (void)arena, (void)ret_step;
    return not_here(err);
}

int catalog_dump(struct catalog *catalog, const struct walk_args *args, struct arena *arena,
                 struct dump_step *ret_step, struct error *err)
{
    (void)catalog, (void)args, (void)arena, (void)ret_step;
    return not_here(err);
}

int catalog_compact(struct catalog *catalog, const char *path, uint64_t *ret_before,
                    uint64_t *ret_after, struct error *err)
{
    (void)catalog, (void)path, (void)ret_before, (void)ret_after;
    return not_here(err);
}

int catalog_built(struct catalog *catalog, uint64_t context_id, struct build_progress *ret_progress,
                  struct error *err)
{
    (void)catalog;
    if (context_id != 1) return error_set(err, MEMD_ENOCONTEXT, "no such context");
    unsigned built = atomic_load(&fake.built_segments);
    *ret_progress = (struct build_progress){ .segments = FAKE_SEGMENTS, .built = built };
    return 0;
}

/* With context_id 0: context 1, then the end. */
int catalog_rebuild(struct catalog *catalog, const struct walk_args *args, struct arena *arena,
                    struct rebuild_step *ret_step, struct error *err)
{
    (void)catalog, (void)arena;
    if (args->context_id > 1) return error_set(err, MEMD_ENOCONTEXT, "no such context");
    *ret_step = (struct rebuild_step){ 0 };
    if (args->context_id == 0 && args->cursor_bytes > 0) return 0;
    unsigned built = atomic_exchange(&fake.built_segments, 0);
    *ret_step = (struct rebuild_step){ .context_id = 1, .segments = built, .bytes = built * 100 };
    static const unsigned char one[] = { 1 };
    if (args->context_id == 0) {
        ret_step->cursor = one;
        ret_step->cursor_bytes = sizeof one;
    }
    return 0;
}

int catalog_explain(struct catalog *catalog, const struct explain_args *args, struct arena *arena,
                    struct explained *ret_explained, struct error *err)
{
    (void)catalog;
    (void)args;
    (void)arena;
    (void)err;
    *ret_explained = (struct explained){ 0 };
    return 0;
}

int catalog_recall(struct catalog *catalog, const struct recall_args *args, struct arena *arena,
                   struct recall_layer *ret_layer, struct error *err)
{
    (void)catalog, (void)arena, (void)err;
    atomic_store(&fake.target_error, args->target_error);
    atomic_store(&fake.max_bytes, args->max_bytes);
    *ret_layer = (struct recall_layer){ .queries = args->layer == 0 ? 0 : 3, .answers = 6,
                                        .error_p99 = 0.02, .predicted = 6, .ratio_median = 0.9,
                                        .within_twice = 1.0 };
    return 0;
}

static const struct option_spec specs[] = {
    OPTION_REAL("target_error", "wanted error", 0.02, 0, 1),
};
static const struct option_table options = { "fake", specs, 1 };
static const struct method method_fake = { .name = "fake", .help = "of a test",
                                           .options = &options };

const struct method *method_default(void)
{
    return &method_fake;
}

const struct method *method_find(const char *name)
{
    (void)name;
    return &method_fake;
}

const struct option_table *method_options(const struct method *method)
{
    return method->options;
}

double method_option(const struct method *method, const double *values, const char *name,
                     double fallback)
{
    return strcmp(name, method->options->specs[0].name) == 0 ? values[0] : fallback;
}

int method_parse(const struct method *method, const struct parameter *parameters, size_t count,
                 double *ret_options, struct error *err)
{
    (void)parameters, (void)count, (void)err;
    ret_options[0] = method->options->specs[0].fallback;
    return 0;
}

void catalog_get_stats(struct catalog *catalog, struct catalog_stats *ret_stats)
{
    (void)catalog;
    *ret_stats = (struct catalog_stats){ .contexts = 1 };
}

const char *const *catalog_methods(void)
{
    static const char *const names[] = { "fake", NULL };
    return names;
}

const struct model *context_model(const struct context *context)
{
    return &context->model;
}

int context_add_mass(struct context *context, uint32_t layer, uint64_t position,
                     const struct tensor *mass, struct error *err)
{
    (void)context, (void)layer, (void)position, (void)mass;
    return not_here(err);
}

int context_compress(struct context *context, const struct compress_args *args, struct arena *arena,
                     uint64_t *ret_kept, struct error *err)
{
    (void)context, (void)args, (void)arena, (void)ret_kept;
    return not_here(err);
}

int context_put_param(struct context *context, const char *name, uint32_t layer,
                      const struct tensor *value, struct error *err)
{
    (void)context, (void)name, (void)layer, (void)value;
    return not_here(err);
}

int catalog_put_shared_param(struct catalog *catalog, const struct shared_param *args,
                             struct error *err)
{
    (void)catalog, (void)args;
    return not_here(err);
}

int catalog_drop_shared_params(struct catalog *catalog, const char *set, uint64_t *ret_bytes,
                               struct error *err)
{
    (void)catalog, (void)set, (void)ret_bytes;
    return not_here(err);
}

int context_describe(struct context *context, uint32_t layer, struct fold_fact *ret_facts,
                     struct error *err)
{
    (void)context, (void)layer, (void)ret_facts, (void)err;
    return 0;
}

size_t context_state_width(const struct context *context)
{
    (void)context;
    return 0;
}

int context_encode_states(struct context *context, uint32_t layer, struct arena *arena,
                          struct tensor *states, struct error *err)
{
    (void)context, (void)layer, (void)arena, (void)states;
    return not_here(err);
}

uint64_t context_id(const struct context *context)
{
    (void)context;
    return 1;
}

uint64_t context_tokens(struct context *context)
{
    (void)context;
    return atomic_load(&fake.tokens);
}

uint64_t context_layer_tokens(struct context *context, uint32_t layer)
{
    return layer == 1 ? FAKE_LAYER_TOKENS_LARGE : context_tokens(context);
}

uint64_t context_attend_bytes(struct context *context, uint32_t layer)
{
    return context_layer_tokens(context, layer) * 64;
}

/* Every other append is slow enough to be overtaken by the next, if that is allowed to run. */
static void dawdle(void)
{
    enum { DAWDLE_NS = 20000000 };
    unsigned mine = atomic_fetch_add(&fake.appending, 1);
    if (mine % 2 != 0) return;
    uint64_t end_ns = clock_monotonic_ns() + DAWDLE_NS;
    while (atomic_load(&fake.slow_append) && clock_monotonic_ns() < end_ns) sched_yield();
}

int context_append(struct context *context, const struct append_layer *layers, size_t count,
                   struct progress *ret_progress, struct error *err)
{
    (void)context, (void)count;
    dawdle();
    if (atomic_load(&fake.no_room)) {
        atomic_fetch_add(&fake.refused, 1);
        return error_set(err, MEMD_EBUSY, "no room");
    }
    uint64_t tokens = atomic_load(&fake.tokens);
    if (layers[0].position != tokens)
        return error_set(err, MEMD_EPOSITION, "at %llu, holds %llu",
                         (unsigned long long)layers[0].position, (unsigned long long)tokens);
    tokens += layers[0].k.shape[0];
    atomic_store(&fake.tokens, tokens);
    *ret_progress = (struct progress){ .tokens = tokens, .sequence = tokens };
    return 0;
}

int context_reached(struct context *context, uint64_t sequence, enum durability level,
                    struct progress *ret_progress, struct error *err)
{
    (void)context, (void)level;
    int failure = atomic_load(&fake.commit_failure);
    if (failure != 0) return error_set(err, failure, "the commit failed");
    if (atomic_load(&fake.hold_commits)) return 0;
    *ret_progress = (struct progress){ .tokens = sequence, .committed_tokens = sequence };
    return 1;
}

/* Wait until the test lets go or the request is to stop. */
static int wait_held(const struct query *query, struct error *err)
{
    while (atomic_load(&fake.hold_attends)) {
        int rc = query->stop(query->stop_arg);
        if (rc < 0) return error_set(err, rc, "stopped while attending");
        sched_yield();
    }
    return 0;
}

/* A quality as an index gives it: half of the mass from hi, a quarter exact, a quarter dropped. */
static int estimate(size_t rows, struct arena *arena, struct quality *ret_quality,
                    struct error *err)
{
    struct quality quality = { .method = "fake", .rows = 30, .bytes_read = 300,
                               .bytes_exact = 1000, .tokens = 10,
                               .level_rows = { 0, 20, 0, 10 }, .level_bytes = { 0, 100, 0, 200 } };
    quality.predicted_error = arena_calloc(arena, rows, sizeof(float));
    quality.mass = arena_calloc(arena, rows, sizeof(float));
    quality.level_mass = arena_calloc(arena, rows * INDEX_LEVELS, sizeof(float));
    quality.limited = arena_calloc(arena, rows, sizeof(bool));
    if (quality.predicted_error == NULL || quality.mass == NULL || quality.level_mass == NULL ||
        quality.limited == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory");
    for (size_t i = 0; i < rows; i++) {
        quality.predicted_error[i] = i == 0 ? NAN : 0.015F;
        quality.mass[i] = quality.level_mass[i * INDEX_LEVELS + INDEX_EXACT] = 0.25F;
        quality.level_mass[i * INDEX_LEVELS + INDEX_HI] = 0.5F;
        quality.limited[i] = i == 1;
    }
    *ret_quality = quality;
    return 0;
}

/* There is no device. */
void context_attend_together(struct together *all, size_t count)
{
    (void)all;
    (void)count;
}

int context_attend(struct context *context, const struct query *query, struct arena *arena,
                   const struct partial *ret_partial, struct quality *ret_quality,
                   struct error *err)
{
    atomic_store(&fake.target_error, query->target_error);
    atomic_store(&fake.max_bytes, query->max_bytes);
    if (query->no_wait && atomic_load(&fake.locked)) return error_set(err, MEMD_EBUSY, "locked");
    atomic_fetch_add(query->no_wait ? &fake.attended_on_loop : &fake.attended_on_worker, 1);
    atomic_fetch_add(&fake.attending, 1);
    bool held = !query->no_wait && !context->is_quick;
    int rc = held ? wait_held(query, err) : 0;
    if (rc < 0) return rc;
    memset(ret_partial->o, 0, ret_partial->rows * ret_partial->head_dim * sizeof(float));
    for (size_t i = 0; i < ret_partial->rows; i++) ret_partial->lse[i] = -INFINITY;
    *ret_quality = (struct quality){ .method = "fake", .exact = true };
    return atomic_load(&fake.estimates) ? estimate(ret_partial->rows, arena, ret_quality, err) : 0;
}

int context_search(struct context *context, const struct query *query, struct arena *arena,
                   const struct index_hits *ret_hits, struct quality *ret_quality,
                   struct error *err)
{
    (void)context, (void)query, (void)arena, (void)ret_hits, (void)ret_quality;
    return not_here(err);
}

int context_fetch(struct context *context, uint32_t layer, const uint64_t *ids, size_t count,
                  struct fetch_out *ret_rows, struct error *err)
{
    (void)context, (void)layer, (void)ids, (void)count, (void)ret_rows;
    return not_here(err);
}

int context_truncate(struct context *context, uint64_t position, struct error *err)
{
    (void)context, (void)err;
    atomic_store(&fake.tokens, position);
    return 0;
}

int model_check(struct model *model, struct error *err)
{
    (void)model, (void)err;
    return 0;
}
