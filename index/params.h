/* SPDX-License-Identifier: Apache-2.0 */
/* params.h — the tensors that a client uploads for a method: projections, a PCA basis, gates.
 *
 * A method declares them in a table with shapes in letters; what is uploaded is checked against the
 * model, kept as fp32, and given to the method as an immutable set. A tensor is for one layer or
 * for all of them; one for the layer itself comes first.
 *
 * Threads  pure; a set does not change
 * Errors   MEMD_EINVAL no such parameter · MEMD_ESHAPE another shape than declared (the text has
 *          both) · MEMD_ENONFINITE
 * Tests    tests/unit/test_params.c
 */
#ifndef MEMD_INDEX_PARAMS_H
#define MEMD_INDEX_PARAMS_H

#include <stddef.h>
#include <stdint.h>

#include "base/tensor.h"

struct error;

enum { PARAM_NAME_BYTES = 32, PARAM_ALL_LAYERS = UINT16_MAX };

/* shape: one letter per axis, "GDD". G, H, D: of the model. W: of a state (the method's width), h:
 * of a hidden state (any, but the same in all tensors that name it). */
struct param_spec {
    const char *name, *shape, *help;
};

struct param_table {
    const struct param_spec *specs;
    size_t count;
};

/* Sizes of the letters; 0 = any. */
struct param_sizes {
    size_t query_heads, kv_heads, head_dim, state_width, hidden_width;
};

struct param {
    char name[PARAM_NAME_BYTES];
    uint32_t layer;      /* or PARAM_ALL_LAYERS */
    struct tensor value; /* FP32 */
};

/* A set, as a method sees it. */
struct params {
    const struct param *items;
    size_t count;
    uint64_t version; /* another one after every upload */
};

/* May this tensor be uploaded under this name? */
int params_check(const struct param_table *table, const struct param_sizes *sizes,
                 const char *name, const struct tensor *value, struct error *err);

/* The tensor of a layer, or NULL. `params` may be NULL. */
const struct tensor *params_find(const struct params *params, const char *name, uint32_t layer);

#endif
