/* SPDX-License-Identifier: Apache-2.0 */
/* wire.c — field by field: the only place where both spellings of a thing stand together. */
#include "daemon/wire.h"

#include <assert.h>
#include <string.h>

#include "base/arena.h"
#include "base/error.h"
#include "index/plan.h"
#include "memory/context.h"
#include "memory/methods/methods.h"
#include "proto/limits.h"

int wire_no_memory(struct error *err)
{
    return error_set(err, MEMD_ENOMEM, "no memory for the answer (request_memory_max)");
}

/* New message of type Memd__<Type> in the arena, or NULL. */
#define NEW_MESSAGE(arena, Type, INIT)                                  \
    __extension__({                                                     \
        Memd__##Type *fresh = arena_alloc((arena), sizeof(Memd__##Type)); \
        if (fresh != NULL) *fresh = (Memd__##Type)MEMD__##INIT##__INIT; \
        fresh;                                                          \
    })

static int copy_text(const char *text, const char *what, size_t limit, char *ret_copy,
                     struct error *err)
{
    size_t bytes = strlen(text);
    if (bytes > limit)
        return error_set(err, MEMD_ELIMIT, "%s of %zu bytes, limit %zu", what, bytes, limit);
    memcpy(ret_copy, text, bytes + 1);
    return 0;
}

static struct rope_config decode_rope(const Memd__Rope *rope)
{
    return (struct rope_config){
        .theta = rope->theta,
        .pairing = (uint32_t)rope->pairing,
        .scaling = (uint32_t)rope->scaling,
        .factor = rope->factor,
        .low_freq_factor = rope->low_freq_factor,
        .high_freq_factor = rope->high_freq_factor,
        .original_context = rope->original_context,
        .beta_fast = rope->beta_fast,
        .beta_slow = rope->beta_slow,
        .attention_factor = rope->attention_factor,
        .rotary_dims = rope->rotary_dims,
    };
}

int wire_decode_model(const Memd__Model *message, struct model *ret_model, struct error *err)
{
    struct model model = {
        .layers = message->layers,
        .query_heads = message->query_heads,
        .kv_heads = message->kv_heads,
        .head_dim = message->head_dim,
        .dtype = (uint32_t)message->dtype,
        .has_rope = message->rope != NULL,
        .rotated = message->rotated,
        .attention_scale = message->attention_scale,
    };
    if (model.has_rope) model.rope = decode_rope(message->rope);
    int rc = copy_text(message->fingerprint, "fingerprint", LIMIT_FINGERPRINT_BYTES,
                       model.fingerprint, err);
    if (rc == 0) rc = model_check(&model, err);
    if (rc == 0) *ret_model = model;
    return rc;
}

static Memd__Rope *encode_rope(const struct rope_config *rope, struct arena *arena)
{
    Memd__Rope *message = NEW_MESSAGE(arena, Rope, ROPE);
    if (message == NULL) return NULL;
    message->theta = rope->theta;
    message->pairing = (Memd__RopePairing)rope->pairing;
    message->scaling = (Memd__RopeScaling)rope->scaling;
    message->factor = rope->factor;
    message->low_freq_factor = rope->low_freq_factor;
    message->high_freq_factor = rope->high_freq_factor;
    message->original_context = rope->original_context;
    message->beta_fast = rope->beta_fast;
    message->beta_slow = rope->beta_slow;
    message->attention_factor = rope->attention_factor;
    message->rotary_dims = rope->rotary_dims;
    return message;
}

Memd__Model *wire_encode_model(const struct model *model, struct arena *arena)
{
    Memd__Model *message = NEW_MESSAGE(arena, Model, MODEL);
    char *fingerprint = arena_strndup(arena, model->fingerprint, strlen(model->fingerprint));
    if (message == NULL || fingerprint == NULL) return NULL;
    message->layers = model->layers;
    message->query_heads = model->query_heads;
    message->kv_heads = model->kv_heads;
    message->head_dim = model->head_dim;
    message->dtype = (Memd__DType)model->dtype;
    message->rotated = model->rotated;
    message->attention_scale = model->attention_scale;
    message->fingerprint = fingerprint;
    if (!model->has_rope) return message;
    message->rope = encode_rope(&model->rope, arena);
    return message->rope == NULL ? NULL : message;
}

int wire_check_method(const char *name, struct error *err)
{
    if (strlen(name) < METHOD_NAME_BYTES) return 0;
    return error_set(err, MEMD_ELIMIT, "method name of %zu bytes, limit %d", strlen(name),
                     METHOD_NAME_BYTES - 1);
}

int wire_decode_parameters(Memd__Parameter *const *messages, size_t count, struct arena *arena,
                           struct parameter **ret_parameters, struct error *err)
{
    if (count > LIMIT_PARAMETERS)
        return error_set(err, MEMD_ELIMIT, "%zu parameters, limit %u", count, LIMIT_PARAMETERS);
    struct parameter *parameters = arena_calloc(arena, count, sizeof *parameters);
    if (parameters == NULL) return wire_no_memory(err);
    for (size_t i = 0; i < count; i++) {
        int rc = copy_text(messages[i]->name, "parameter name", LIMIT_PARAMETER_BYTES,
                           parameters[i].name, err);
        if (rc == 0)
            rc = copy_text(messages[i]->value, "parameter value", LIMIT_PARAMETER_BYTES,
                           parameters[i].value, err);
        if (rc < 0) return rc;
    }
    *ret_parameters = parameters;
    return 0;
}

static Memd__Parameter **encode_parameters(const struct parameter *parameters, size_t count,
                                           struct arena *arena)
{
    Memd__Parameter **list = arena_calloc(arena, count, sizeof(Memd__Parameter *));
    for (size_t i = 0; list != NULL && i < count; i++) {
        list[i] = NEW_MESSAGE(arena, Parameter, PARAMETER);
        if (list[i] == NULL) return NULL;
        list[i]->name = (char *)parameters[i].name;
        list[i]->value = (char *)parameters[i].value;
    }
    return list;
}

int wire_decode_walk(uint64_t context_id, const ProtobufCBinaryData *cursor,
                     struct walk_args *ret_args, struct error *err)
{
    if (cursor->len > LIMIT_CURSOR_BYTES)
        return error_set(err, MEMD_ELIMIT, "cursor of %zu bytes, limit %u", cursor->len,
                         LIMIT_CURSOR_BYTES);
    *ret_args = (struct walk_args){ .context_id = context_id,
                                    .cursor = cursor->data,
                                    .cursor_bytes = cursor->len };
    return 0;
}

/* 0 where this build lacks the method. */
static size_t state_width(const struct context_info *info)
{
    double values[OPTIONS_MAX];
    const struct method *method = method_find(info->method);
    if (method == NULL || method->state_width == NULL) return 0;
    int rc = method_parse(method, info->parameters, info->parameter_count, values, NULL);
    return rc < 0 ? 0 : method->state_width(values);
}

Memd__ContextInfo *wire_encode_info(const struct context_info *info, struct arena *arena)
{
    Memd__ContextInfo *message = NEW_MESSAGE(arena, ContextInfo, CONTEXT_INFO);
    if (message == NULL) return NULL;
    message->context_id = info->id;
    message->name = (char *)info->name;
    message->model = wire_encode_model(&info->model, arena);
    message->method = (char *)info->method;
    message->parameters = encode_parameters(info->parameters, info->parameter_count, arena);
    message->n_parameters = info->parameter_count;
    message->tokens = info->tokens;
    message->committed_tokens = info->committed_tokens;
    message->synced_tokens = info->synced_tokens;
    message->stored_bytes = info->stored_bytes;
    message->shared_bytes = info->shared_bytes;
    message->created_unix_ms = info->created_unix_ms;
    message->used_unix_ms = info->used_unix_ms;
    message->pinned_until_unix_ms = info->retained_until_unix_ms;
    message->parent_id = info->parent_id;
    message->sealed_segments = info->sealed_segments;
    message->layer_tokens = (uint64_t *)info->layer_tokens;
    message->n_layer_tokens = info->layer_tokens == NULL ? 0 : info->model.layers;
    message->resident = info->resident;
    message->built_segments = info->built_segments;
    message->indexed_tokens = info->indexed_tokens;
    message->derived_bytes = info->derived_bytes;
    message->state_width = state_width(info);
    return message->model == NULL || message->parameters == NULL ? NULL : message;
}

static_assert((int)MEMD__LEVEL__LEVEL_CLUSTERS == INDEX_CLUSTERS, "one numbering of levels");
static_assert((int)MEMD__LEVEL__LEVEL_HI == INDEX_HI, "one numbering of levels");
static_assert((int)MEMD__LEVEL__LEVEL_LO == INDEX_LO, "one numbering of levels");
static_assert((int)MEMD__LEVEL__LEVEL_EXACT == INDEX_EXACT, "one numbering of levels");

/* Left out where everything was read exactly: that is what a client takes their absence for. */
static void encode_levels(const struct quality *quality, size_t rows, Memd__Quality *message)
{
    if (quality->level_mass != NULL) {
        message->level_mass = quality->level_mass;
        message->n_level_mass = rows * INDEX_LEVELS;
    }
    if (quality->level_rows[INDEX_EXACT] == quality->rows &&
        quality->level_bytes[INDEX_EXACT] == quality->bytes_read)
        return;
    message->level_rows = (uint64_t *)quality->level_rows;
    message->level_bytes = (uint64_t *)quality->level_bytes;
    message->n_level_rows = message->n_level_bytes = INDEX_LEVELS;
}

Memd__Quality *wire_encode_quality(const struct quality *quality, size_t rows, struct arena *arena)
{
    Memd__Quality *message = NEW_MESSAGE(arena, Quality, QUALITY);
    if (message == NULL) return NULL;
    message->method = (char *)quality->method;
    message->exact = quality->exact;
    message->rows = quality->rows;
    message->bytes_read = quality->bytes_read;
    message->bytes_exact = quality->bytes_exact;
    message->tokens = quality->tokens;
    message->window_tokens = quality->window_tokens;
    message->predicted_error = quality->predicted_error;
    message->n_predicted_error = quality->predicted_error == NULL ? 0 : rows;
    message->mass = quality->mass;
    message->n_mass = quality->mass == NULL ? 0 : rows;
    encode_levels(quality, rows, message);
    if (quality->limited == NULL) return message;
    message->limited = arena_calloc(arena, rows, sizeof *message->limited);
    if (message->limited == NULL) return NULL;
    message->n_limited = rows;
    for (size_t i = 0; i < rows; i++) message->limited[i] = quality->limited[i];
    return message;
}

static_assert((int)MEMD__PLAN_KIND__PLAN_TOKENS == PLAN_TOKENS, "one numbering of ids");
static_assert((int)MEMD__PLAN_KIND__PLAN_SLOTS == PLAN_SLOTS, "one numbering of ids");
static_assert((int)MEMD__PLAN_MERGE__PLAN_JOINT == PLAN_JOINT, "one numbering of merges");
static_assert((int)MEMD__PLAN_MERGE__PLAN_GATED == PLAN_GATED, "one numbering of merges");
static_assert((int)MEMD__PLAN_MERGE__PLAN_SEPARATE == PLAN_SEPARATE, "one numbering of merges");

/* Room for a column of every entry: its length, and `to` in the message. */
#define NEW_COLUMN(arena, message, column, count)                                  \
    ((message)->n_##column = (count),                                              \
     (message)->column = arena_calloc((arena), (count), sizeof *(message)->column), \
     (message)->column != NULL)

static Memd__PlanRuns *encode_runs(const struct plan *plan, struct arena *arena)
{
    size_t count = plan->run_count;
    Memd__PlanRuns *runs = NEW_MESSAGE(arena, PlanRuns, PLAN_RUNS);
    if (runs == NULL || !NEW_COLUMN(arena, runs, query, count) ||
        !NEW_COLUMN(arena, runs, head, count) || !NEW_COLUMN(arena, runs, heads, count) ||
        !NEW_COLUMN(arena, runs, group, count) || !NEW_COLUMN(arena, runs, kind, count) ||
        !NEW_COLUMN(arena, runs, first, count) || !NEW_COLUMN(arena, runs, count, count) ||
        !NEW_COLUMN(arena, runs, placed, count) || !NEW_COLUMN(arena, runs, query_placed, count) ||
        !NEW_COLUMN(arena, runs, share, count))
        return NULL;
    for (size_t i = 0; i < count; i++) {
        const struct plan_run *run = &plan->runs[i];
        runs->query[i] = run->query;
        runs->head[i] = run->head;
        runs->heads[i] = run->heads;
        runs->group[i] = run->group;
        runs->kind[i] = (Memd__PlanKind)run->kind;
        runs->first[i] = run->first;
        runs->count[i] = run->count;
        runs->placed[i] = run->placed;
        runs->query_placed[i] = run->query_placed;
        runs->share[i] = run->share;
    }
    return runs;
}

static Memd__PlanGroups *encode_groups(const struct plan *plan, struct arena *arena)
{
    size_t count = plan->group_count;
    Memd__PlanGroups *groups = NEW_MESSAGE(arena, PlanGroups, PLAN_GROUPS);
    if (groups == NULL || !NEW_COLUMN(arena, groups, query, count) ||
        !NEW_COLUMN(arena, groups, head, count) || !NEW_COLUMN(arena, groups, merge, count) ||
        !NEW_COLUMN(arena, groups, weight, count))
        return NULL;
    for (size_t i = 0; i < count; i++) {
        groups->query[i] = plan->groups[i].query;
        groups->head[i] = plan->groups[i].head;
        groups->merge[i] = (Memd__PlanMerge)plan->groups[i].merge;
        groups->weight[i] = plan->groups[i].weight;
    }
    return groups;
}

Memd__Plan *wire_encode_plan(const struct plan *plan, struct arena *arena)
{
    Memd__Plan *message = NEW_MESSAGE(arena, Plan, PLAN);
    if (message == NULL) return NULL;
    message->runs = encode_runs(plan, arena);
    message->groups = encode_groups(plan, arena);
    message->cut = plan->cut;
    return message->runs == NULL || message->groups == NULL ? NULL : message;
}
