/* SPDX-License-Identifier: Apache-2.0 */
/* wire.c — field by field, in the order of memd.proto, so that a missing one is easy to see. */
#include "clients/libmemd/wire.h"

#include <math.h>
#include <string.h>

Memd__Model *wire_model(struct memd_ticket *ticket, const struct memd_model *model)
{
    Memd__Model *wire = ticket_alloc(ticket, 1, sizeof *wire);
    if (wire == NULL) return NULL;
    memd__model__init(wire);
    wire->layers = model->layers;
    wire->query_heads = model->query_heads;
    wire->kv_heads = model->kv_heads;
    wire->head_dim = model->head_dim;
    wire->dtype = (Memd__DType)model->dtype;
    wire->rotated = model->rotated;
    wire->attention_scale = model->attention_scale;
    if (model->fingerprint != NULL) wire->fingerprint = (char *)model->fingerprint;
    if (model->rope == NULL) return wire;

    const struct memd_rope *rope = model->rope;
    wire->rope = ticket_alloc(ticket, 1, sizeof *wire->rope);
    if (wire->rope == NULL) return NULL;
    memd__rope__init(wire->rope);
    wire->rope->theta = rope->theta;
    wire->rope->pairing = (Memd__RopePairing)rope->pairing;
    wire->rope->scaling = (Memd__RopeScaling)rope->scaling;
    wire->rope->factor = rope->factor;
    wire->rope->low_freq_factor = rope->low_freq_factor;
    wire->rope->high_freq_factor = rope->high_freq_factor;
    wire->rope->original_context = rope->original_context;
    wire->rope->beta_fast = rope->beta_fast;
    wire->rope->beta_slow = rope->beta_slow;
    wire->rope->attention_factor = rope->attention_factor;
    wire->rope->rotary_dims = rope->rotary_dims;
    return wire;
}

Memd__Parameter **wire_parameters(struct memd_ticket *ticket,
                                  const struct memd_parameter *parameters, size_t count)
{
    Memd__Parameter **list = ticket_alloc(ticket, count, sizeof *list);
    Memd__Parameter *wires = ticket_alloc(ticket, count, sizeof *wires);
    if (list == NULL || wires == NULL) return NULL;
    for (size_t i = 0; i < count; i++) {
        memd__parameter__init(&wires[i]);
        if (parameters[i].name != NULL) wires[i].name = (char *)parameters[i].name;
        if (parameters[i].value != NULL) wires[i].value = (char *)parameters[i].value;
        list[i] = &wires[i];
    }
    return list;
}

static int read_model(struct memd_ticket *ticket, const Memd__Model *wire, struct memd_model *model)
{
    *model = (struct memd_model){ 0 };
    model->fingerprint = "";
    if (wire == NULL) return 0;
    model->layers = wire->layers;
    model->query_heads = wire->query_heads;
    model->kv_heads = wire->kv_heads;
    model->head_dim = wire->head_dim;
    model->dtype = (enum memd_dtype)wire->dtype;
    model->rotated = wire->rotated;
    model->attention_scale = wire->attention_scale;
    model->fingerprint = wire->fingerprint;
    if (wire->rope == NULL) return 0;

    struct memd_rope *rope = ticket_alloc(ticket, 1, sizeof *rope);
    if (rope == NULL) return MEMD_ENOMEM;
    rope->theta = wire->rope->theta;
    rope->pairing = (enum memd_rope_pairing)wire->rope->pairing;
    rope->scaling = (enum memd_rope_scaling)wire->rope->scaling;
    rope->factor = wire->rope->factor;
    rope->low_freq_factor = wire->rope->low_freq_factor;
    rope->high_freq_factor = wire->rope->high_freq_factor;
    rope->original_context = wire->rope->original_context;
    rope->beta_fast = wire->rope->beta_fast;
    rope->beta_slow = wire->rope->beta_slow;
    rope->attention_factor = wire->rope->attention_factor;
    rope->rotary_dims = wire->rope->rotary_dims;
    model->rope = rope;
    return 0;
}

int wire_read_info(struct memd_ticket *ticket, const Memd__ContextInfo *wire,
                   struct memd_info *ret_info)
{
    struct memd_info info = { .id = wire->context_id, .name = wire->name, .method = wire->method };
    int rc = read_model(ticket, wire->model, &info.model);
    if (rc < 0) return rc;
    struct memd_parameter *parameters = ticket_alloc(ticket, wire->n_parameters,
                                                     sizeof *parameters);
    if (parameters == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < wire->n_parameters; i++) {
        parameters[i].name = wire->parameters[i]->name;
        parameters[i].value = wire->parameters[i]->value;
    }
    info.parameters = parameters;
    info.parameter_count = wire->n_parameters;
    info.tokens = wire->tokens;
    info.committed_tokens = wire->committed_tokens;
    info.synced_tokens = wire->synced_tokens;
    info.layer_tokens = wire->layer_tokens;
    info.layer_count = wire->n_layer_tokens;
    info.stored_bytes = wire->stored_bytes;
    info.shared_bytes = wire->shared_bytes;
    info.sealed_segments = wire->sealed_segments;
    info.created_unix_ms = wire->created_unix_ms;
    info.used_unix_ms = wire->used_unix_ms;
    info.pinned_until_unix_ms = wire->pinned_until_unix_ms;
    info.parent_id = wire->parent_id;
    info.resident = wire->resident;
    info.built_segments = wire->built_segments;
    info.indexed_tokens = wire->indexed_tokens;
    info.derived_bytes = wire->derived_bytes;
    info.state_width = (uint32_t)wire->state_width;
    *ret_info = info;
    return 0;
}

static int check_count(struct memd_ticket *ticket, const char *what, size_t have, size_t want)
{
    if (have == 0 || have == want) return 0;
    return error_set(&ticket->err, MEMD_EPROTO,
                     "%zu values of %s in the reply, must be %zu or none", have, what, want);
}

/* A reply without them read everything exactly, as daemons did before there were levels. */
static int read_levels(struct memd_ticket *ticket, const Memd__Quality *wire,
                       struct memd_quality *quality)
{
    quality->level_rows[MEMD_LEVEL_EXACT] = wire->rows;
    quality->level_bytes[MEMD_LEVEL_EXACT] = wire->bytes_read;
    int rc = check_count(ticket, "level_rows", wire->n_level_rows, MEMD_LEVELS);
    if (rc == 0) rc = check_count(ticket, "level_bytes", wire->n_level_bytes, MEMD_LEVELS);
    if (rc < 0) return rc;
    size_t bytes = sizeof quality->level_rows;
    if (wire->n_level_rows > 0) memcpy(quality->level_rows, wire->level_rows, bytes);
    if (wire->n_level_bytes > 0) memcpy(quality->level_bytes, wire->level_bytes, bytes);
    return 0;
}

int wire_read_quality(struct memd_ticket *ticket, const Memd__Quality *wire, size_t count,
                      struct memd_quality *ret_quality)
{
    struct memd_quality quality = { .method = "" };
    if (wire == NULL) {
        *ret_quality = quality;
        return 0;
    }
    int rc = check_count(ticket, "predicted_error", wire->n_predicted_error, count);
    if (rc == 0) rc = check_count(ticket, "mass", wire->n_mass, count);
    if (rc == 0) rc = check_count(ticket, "limited", wire->n_limited, count);
    size_t level_count = count * MEMD_LEVELS;
    if (rc == 0) rc = check_count(ticket, "level_mass", wire->n_level_mass, level_count);
    if (rc == 0) rc = read_levels(ticket, wire, &quality);
    if (rc < 0) return rc;
    if (wire->n_limited > 0) {
        bool *limited = ticket_alloc(ticket, count, sizeof *limited);
        if (limited == NULL) return MEMD_ENOMEM;
        for (size_t i = 0; i < count; i++) limited[i] = wire->limited[i];
        quality.limited = limited;
    }
    quality.method = wire->method;
    quality.exact = wire->exact;
    quality.predicted_error = wire->n_predicted_error > 0 ? wire->predicted_error : NULL;
    quality.mass = wire->n_mass > 0 ? wire->mass : NULL;
    quality.rows = wire->rows;
    quality.bytes_read = wire->bytes_read;
    quality.bytes_exact = wire->bytes_exact;
    quality.tokens = wire->tokens;
    quality.window_tokens = wire->window_tokens;
    quality.level_mass = wire->n_level_mass > 0 ? wire->level_mass : NULL;
    *ret_quality = quality;
    return 0;
}

/* All columns of `what` are as long as the first. */
static int check_columns(struct memd_ticket *ticket, const char *what, const size_t *lengths,
                         size_t columns)
{
    for (size_t i = 1; i < columns; i++)
        if (lengths[i] != lengths[0])
            return error_set(&ticket->err, MEMD_EPROTO, "%s of a plan in columns of %zu and %zu",
                             what, lengths[0], lengths[i]);
    return 0;
}

static int read_runs(struct memd_ticket *ticket, const Memd__PlanRuns *wire, struct memd_plan *plan)
{
    const size_t lengths[] = { wire->n_query, wire->n_head,  wire->n_heads,
                               wire->n_group, wire->n_kind,  wire->n_first,
                               wire->n_count, wire->n_placed, wire->n_query_placed };
    int rc = check_columns(ticket, "runs", lengths, sizeof lengths / sizeof lengths[0]);
    if (rc == 0) rc = check_count(ticket, "shares", wire->n_share, lengths[0]);
    if (rc < 0 || lengths[0] == 0) return rc;
    struct memd_plan_run *runs = ticket_alloc(ticket, lengths[0], sizeof *runs);
    if (runs == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < lengths[0]; i++)
        runs[i] = (struct memd_plan_run){ .query = wire->query[i],
                                          .head = wire->head[i],
                                          .heads = wire->heads[i],
                                          .group = wire->group[i],
                                          .kind = (enum memd_plan_kind)wire->kind[i],
                                          .first = wire->first[i],
                                          .count = wire->count[i],
                                          .placed = wire->placed[i],
                                          .query_placed = wire->query_placed[i],
                                          .share = wire->n_share > 0 ? wire->share[i] : NAN };
    plan->runs = runs;
    plan->run_count = lengths[0];
    return 0;
}

static int read_groups(struct memd_ticket *ticket, const Memd__PlanGroups *wire,
                       struct memd_plan *plan)
{
    const size_t lengths[] = { wire->n_query, wire->n_head, wire->n_merge, wire->n_weight };
    int rc = check_columns(ticket, "groups", lengths, sizeof lengths / sizeof lengths[0]);
    if (rc < 0 || lengths[0] == 0) return rc;
    struct memd_plan_group *groups = ticket_alloc(ticket, lengths[0], sizeof *groups);
    if (groups == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < lengths[0]; i++)
        groups[i] = (struct memd_plan_group){ .query = wire->query[i],
                                              .head = wire->head[i],
                                              .merge = (enum memd_plan_merge)wire->merge[i],
                                              .weight = wire->weight[i] };
    plan->groups = groups;
    plan->group_count = lengths[0];
    return 0;
}

int wire_read_plan(struct memd_ticket *ticket, const Memd__Plan *wire,
                   const struct memd_plan **ret_plan)
{
    *ret_plan = NULL;
    if (wire == NULL) return 0;
    struct memd_plan *plan = ticket_alloc(ticket, 1, sizeof *plan);
    if (plan == NULL) return MEMD_ENOMEM;
    plan->cut = wire->cut;
    int rc = wire->runs == NULL ? 0 : read_runs(ticket, wire->runs, plan);
    if (rc == 0 && wire->groups != NULL) rc = read_groups(ticket, wire->groups, plan);
    for (size_t i = 0; rc == 0 && i < plan->run_count; i++)
        if (plan->runs[i].group >= plan->group_count)
            rc = error_set(&ticket->err, MEMD_EPROTO, "run %zu is of group %u of %zu", i,
                           plan->runs[i].group, plan->group_count);
    if (rc == 0) *ret_plan = plan;
    return rc;
}

bool wire_target_error(double chosen, double *ret_wire)
{
    *ret_wire = chosen == MEMD_EXACT ? 0.0 : chosen;
    return chosen != 0.0;
}

bool wire_max_bytes(uint64_t chosen, uint64_t *ret_wire)
{
    *ret_wire = chosen == MEMD_NO_BOUND ? 0 : chosen;
    return chosen != 0;
}
