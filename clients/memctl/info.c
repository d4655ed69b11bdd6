/* SPDX-License-Identifier: Apache-2.0 */
/* info.c — keys as documented in memctl(1); a time that never was is null. */
#include "clients/memctl/info.h"

#include <stddef.h>
#include <stdio.h>

#include "base/tensor.h"

const char *info_dtype_name(enum memd_dtype dtype)
{
    return dtype_name((uint32_t)dtype);
}

static const char *scaling_name(enum memd_rope_scaling scaling)
{
    switch (scaling) {
    case MEMD_ROPE_SCALING_NONE: return "none";
    case MEMD_ROPE_SCALING_LINEAR: return "linear";
    case MEMD_ROPE_SCALING_LLAMA3: return "llama3";
    case MEMD_ROPE_SCALING_YARN: return "yarn";
    }
    return "unknown";
}

static const char *pairing_name(enum memd_rope_pairing pairing)
{
    return pairing == MEMD_ROPE_HALF ? "half" : "interleaved";
}

struct info_text info_rope_text(const struct memd_rope *rope)
{
    struct info_text text = { "none" };
    if (rope == NULL) return text;
    int used = snprintf(text.text, sizeof text.text, "%s, theta %g", pairing_name(rope->pairing),
                        rope->theta);
    if (rope->scaling != MEMD_ROPE_SCALING_NONE) {
        snprintf(text.text + used, sizeof text.text - (size_t)used, ", %s scaling by %g",
                 scaling_name(rope->scaling), rope->factor);
    }
    return text;
}

static void rope_json(struct json *json, const struct memd_rope *rope)
{
    if (rope == NULL) {
        json_null(json, "rope");
        return;
    }
    json_open(json, "rope", '{');
    json_real(json, "theta", rope->theta);
    json_text(json, "pairing", pairing_name(rope->pairing));
    json_text(json, "scaling", scaling_name(rope->scaling));
    json_real(json, "factor", rope->factor);
    json_real(json, "low_freq_factor", rope->low_freq_factor);
    json_real(json, "high_freq_factor", rope->high_freq_factor);
    json_uint(json, "original_context", rope->original_context);
    json_real(json, "beta_fast", rope->beta_fast);
    json_real(json, "beta_slow", rope->beta_slow);
    json_real(json, "attention_factor", rope->attention_factor);
    json_uint(json, "rotary_dims", rope->rotary_dims);
    json_close(json);
}

static void model_json(struct json *json, const struct memd_model *model)
{
    json_open(json, "model", '{');
    json_uint(json, "layers", model->layers);
    json_uint(json, "query_heads", model->query_heads);
    json_uint(json, "kv_heads", model->kv_heads);
    json_uint(json, "head_dim", model->head_dim);
    json_text(json, "dtype", info_dtype_name(model->dtype));
    rope_json(json, model->rope);
    json_bool(json, "rotated", model->rotated);
    json_real(json, "attention_scale", model->attention_scale);
    json_text(json, "fingerprint", model->fingerprint);
    json_close(json);
}

static void time_json(struct json *json, const char *key, uint64_t unix_ms)
{
    if (unix_ms == 0) {
        json_null(json, key);
    } else {
        json_uint(json, key, unix_ms);
    }
}

void info_json(struct json *json, const struct memd_info *info, bool with_layers)
{
    json_text(json, "name", info->name);
    json_uint(json, "id", info->id);
    json_text(json, "method", info->method);
    json_open(json, "parameters", '{');
    for (size_t i = 0; i < info->parameter_count; i++) {
        json_text(json, info->parameters[i].name, info->parameters[i].value);
    }
    json_close(json);
    model_json(json, &info->model);
    json_uint(json, "tokens", info->tokens);
    json_uint(json, "committed_tokens", info->committed_tokens);
    json_uint(json, "synced_tokens", info->synced_tokens);
    json_uint(json, "stored_bytes", info->stored_bytes);
    json_uint(json, "shared_bytes", info->shared_bytes);
    json_uint(json, "sealed_segments", info->sealed_segments);
    json_uint(json, "built_segments", info->built_segments);
    json_uint(json, "indexed_tokens", info->indexed_tokens);
    json_uint(json, "derived_bytes", info->derived_bytes);
    time_json(json, "created_unix_ms", info->created_unix_ms);
    time_json(json, "used_unix_ms", info->used_unix_ms);
    time_json(json, "pinned_until_unix_ms", info->pinned_until_unix_ms);
    if (info->parent_id == 0) {
        json_null(json, "parent_id");
    } else {
        json_uint(json, "parent_id", info->parent_id);
    }
    json_bool(json, "resident", info->resident);
    json_uint(json, "state_width", info->state_width);
    if (with_layers) {
        json_open(json, "layer_tokens", '[');
        for (size_t i = 0; i < info->layer_count; i++) json_uint(json, NULL, info->layer_tokens[i]);
        json_close(json);
    }
}
