/* SPDX-License-Identifier: Apache-2.0 */
/* methods.c — the table of memory methods; everything that lists them starts here. */
#include "memory/methods/methods.h"

#include <assert.h>
#include <string.h>

#include "base/error.h"
#include "index/layer_index.h"
#include "memory/catalog.h"

/* X(variable, name) */
#ifdef MEMD_FAISS
#define FAISS_METHOD_MAP(X)            \
    X(method_faiss_flat, "faiss-flat") \
    X(method_faiss_ivf, "faiss-ivf")   \
    X(method_faiss_hnsw, "faiss-hnsw")
#else
#define FAISS_METHOD_MAP(X)
#endif

#define METHOD_MAP(X)                                    \
    X(method_full, "full")                               \
    X(method_progressive, "progressive")                 \
    X(method_retrieval_attention, "retrieval-attention") \
    FAISS_METHOD_MAP(X)                                  \
    X(method_retroinfer, "retroinfer")                   \
    X(method_streaming, "streaming")                     \
    X(method_longheads, "longheads")                     \
    X(method_infllm, "infllm")                           \
    X(method_landmark, "landmark")                       \
    X(method_memorizing, "memorizing")                   \
    X(method_neurocache, "neurocache")                   \
    X(method_extended_mind, "extended-mind")             \
    X(method_loki, "loki")                               \
    X(method_camelot, "camelot")                         \
    X(method_snapkv, "snapkv")                           \
    X(method_pyramidkv, "pyramidkv")                     \
    X(method_l2norm, "l2norm")                           \
    X(method_oracle_topk, "oracle-topk")

static const struct method *const methods[] = {
#define X(method, name) &method,
    METHOD_MAP(X)
#undef X
};
enum { METHODS = sizeof methods / sizeof methods[0] };

/* A name must be a constant here; tests/unit/test_methods.c compares them. */
static const char *const names[METHODS + 1] = {
#define X(method, name) name,
    METHOD_MAP(X)
#undef X
    NULL,
};

const struct method *method_default(void)
{
    return &method_progressive;
}

const struct method *method_find(const char *name)
{
    for (size_t i = 0; i < METHODS; i++) {
        if (strcmp(methods[i]->name, name) == 0) return methods[i];
    }
    return NULL;
}

const char *const *catalog_methods(void)
{
    return names;
}

bool method_builds(const struct method *method)
{
    return method->layer != NULL && method->layer->build != NULL;
}

const struct option_table *method_options(const struct method *method)
{
    return method->options != NULL ? method->options : method->layer->options;
}

int method_parse(const struct method *method, const struct parameter *parameters, size_t count,
                 double *ret_options, struct error *err)
{
    struct option_text texts[LIMIT_PARAMETERS];
    assert(count <= LIMIT_PARAMETERS && method_options(method)->count <= OPTIONS_MAX);
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        bool reserved = method->params != NULL &&
                        strcmp(parameters[i].name, METHOD_PARAMS_PARAMETER) == 0;
        if (!reserved)
            texts[used++] = (struct option_text){ parameters[i].name, parameters[i].value };
    }
    return options_parse(method_options(method), texts, used, ret_options, err);
}

uint32_t method_columns(const struct method *method, const double *options)
{
    return method->columns == NULL ? COLUMNS_NONE : method->columns(options);
}

uint32_t method_rows_layer(const struct method *method, const double *options, uint32_t layer)
{
    return method->rows_layer == NULL ? layer : method->rows_layer(options, layer);
}

size_t method_state_width(const struct method *method, const double *options)
{
    return method->state_width == NULL ? 0 : method->state_width(options);
}

/* Half a state is a row. */
static int check_width(const struct method *method, const double *options, struct error *err)
{
    size_t width = method_state_width(method, options);
    if (width % 16 == 0 && width <= 2 * (size_t)LIMIT_HEAD_DIM) return 0;
    return error_set(err, MEMD_EINVAL,
                     "method %s: states of %zu elements, must be a multiple of 16 up to %u",
                     method->name, width, 2 * LIMIT_HEAD_DIM);
}

int method_check(const struct method *method, const struct model *model, const double *options,
                 struct error *err)
{
    int rc = check_width(method, options, err);
    if (rc < 0) return rc;
    if (method->check != NULL) return method->check(method, model, options, err);
    if (method->layer == NULL || method->layer->check == NULL) return 0;
    return method->layer->check(options, model_rotates(model), err);
}

double method_option(const struct method *method, const double *options, const char *name,
                     double absent)
{
    const struct option_table *table = method_options(method);
    for (size_t i = 0; i < table->count; i++) {
        if (strcmp(table->specs[i].name, name) == 0) return options[i];
    }
    return absent;
}
