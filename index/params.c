/* SPDX-License-Identifier: Apache-2.0 */
/* params.c — a handful of tensors, so a search is a walk. */
#include "index/params.h"

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/half.h"

static size_t size_of(const struct param_sizes *sizes, char letter)
{
    switch (letter) {
    case 'G': return sizes->kv_heads;
    case 'H': return sizes->query_heads;
    case 'D': return sizes->head_dim;
    case 'W': return sizes->state_width;
    default: assert(letter == 'h'); return sizes->hidden_width;
    }
}

static int wrong_shape(const struct param_spec *spec, const struct param_sizes *sizes,
                       const struct tensor *value, struct error *err)
{
    char wanted[64] = "", got[96] = "";
    for (size_t i = 0, used = 0; spec->shape[i] != '\0'; i++) {
        size_t size = size_of(sizes, spec->shape[i]);
        int some = size == 0 ? snprintf(wanted + used, sizeof wanted - used, " %c", spec->shape[i])
                             : snprintf(wanted + used, sizeof wanted - used, " %zu", size);
        if (some > 0 && used + (size_t)some < sizeof wanted) used += (size_t)some;
    }
    for (size_t i = 0, used = 0; i < value->dims; i++) {
        int some = snprintf(got + used, sizeof got - used, " %zu", value->shape[i]);
        if (some > 0 && used + (size_t)some < sizeof got) used += (size_t)some;
    }
    return error_set(err, MEMD_ESHAPE, "%s has the shape (%s ), it must be (%s )", spec->name, got,
                     wanted);
}

static int check_shape(const struct param_spec *spec, const struct param_sizes *sizes,
                       const struct tensor *value, struct error *err)
{
    bool fits = value->dims == strlen(spec->shape);
    for (size_t i = 0; fits && i < value->dims; i++) {
        size_t size = size_of(sizes, spec->shape[i]);
        fits = value->shape[i] > 0 && (size == 0 || value->shape[i] == size);
    }
    return fits ? 0 : wrong_shape(spec, sizes, value, err);
}

int params_check(const struct param_table *table, const struct param_sizes *sizes,
                 const char *name, const struct tensor *value, struct error *err)
{
    const struct param_spec *spec = NULL;
    for (size_t i = 0; table != NULL && i < table->count; i++) {
        if (strcmp(table->specs[i].name, name) == 0) spec = &table->specs[i];
    }
    if (spec == NULL)
        return error_set(err, MEMD_EINVAL, "the method has no tensor \"%.40s\"", name);
    int rc = check_shape(spec, sizes, value, err);
    if (rc < 0) return rc;
    size_t count = tensor_elements(value), bad = 0;
    size_t at = half_find_nonfinite(value->data, value->dtype, count, &bad);
    if (at < count)
        return error_set(err, MEMD_ENONFINITE, "%s: number %zu is NaN or infinite, %zu such "
                         "numbers", name, at, bad);
    return 0;
}

const struct tensor *params_find(const struct params *params, const char *name, uint32_t layer)
{
    const struct tensor *all = NULL;
    for (size_t i = 0; params != NULL && i < params->count; i++) {
        const struct param *item = &params->items[i];
        if (strcmp(item->name, name) != 0) continue;
        if (item->layer == layer) return &item->value;
        if (item->layer == PARAM_ALL_LAYERS) all = &item->value;
    }
    return all;
}
