/* SPDX-License-Identifier: Apache-2.0 */
/* model.h — the model descriptor: what a context's bytes mean, checked whenever somebody opens it.
 *
 * Two clients that disagree about heads, dtype, RoPE or fingerprint must never read each other's
 * rows: the descriptor is stored with the context, its hash stands in every stored value, and
 * opening with a different one is MEMD_EMISMATCH with a text that names the first field that
 * differs.
 *
 * Threads  plain data
 * Errors   MEMD_EINVAL out of range · MEMD_ELIMIT · MEMD_EMISMATCH
 * Tests    tests/unit/test_model.c
 */
#ifndef MEMD_MEMORY_MODEL_H
#define MEMD_MEMORY_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attention/rope.h"
#include "base/bytes.h"
#include "proto/limits.h"

struct error;

struct model {
    uint32_t layers;      /* L */
    uint32_t query_heads; /* H */
    uint32_t kv_heads;    /* G; H % G == 0 */
    uint32_t head_dim;    /* D, a multiple of 8 */
    uint32_t dtype;       /* enum dtype of stored K and V */
    bool has_rope;
    struct rope_config rope;
    bool rotated;         /* K and q arrive with RoPE applied */
    double attention_scale; /* never 0 after model_check: the default is filled in */
    char fingerprint[LIMIT_FINGERPRINT_BYTES + 1];
};

/* Check every field, fill in defaults (attention scale, yarn betas, rotary_dims), so that equal
 * meanings compare equal. */
int model_check(struct model *model, struct error *err);

/* 0, or MEMD_EMISMATCH naming the first field that differs. Both are checked models. */
int model_compare(const struct model *stored, const struct model *wanted, struct error *err);

/* XXH3 of the encoded descriptor: the `model` field of every stored value. */
uint64_t model_hash(const struct model *model);

void model_encode(const struct model *model, struct bytes_writer *out);
int model_decode(struct bytes_reader *in, struct model *ret_model, struct error *err);

/* Does memd rotate keys and queries, because they come without RoPE applied? */
static inline bool model_rotates(const struct model *model)
{
    return model->has_rope && !model->rotated;
}

/* Bytes of K and V of one token in one layer. */
static inline size_t model_token_bytes(const struct model *model, size_t element_bytes)
{
    return (size_t)2 * model->kv_heads * model->head_dim * element_bytes;
}

#endif
