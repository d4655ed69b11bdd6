/* SPDX-License-Identifier: Apache-2.0 */
/* methods.c — the table of memory methods; everything that lists them starts here. */
#include "memory/methods/methods.h"

#include <assert.h>
#include <string.h>

#include "base/error.h"
#include "memory/catalog.h"

/* X(variable, name) */
#define METHOD_MAP(X)      \
    X(method_full, "full")

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
    return &method_full;
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

int method_parse(const struct method *method, const struct parameter *parameters, size_t count,
                 double *ret_options, struct error *err)
{
    struct option_text texts[LIMIT_PARAMETERS];
    assert(count <= LIMIT_PARAMETERS && method->options->count <= OPTIONS_MAX);
    for (size_t i = 0; i < count; i++)
        texts[i] = (struct option_text){ parameters[i].name, parameters[i].value };
    return options_parse(method->options, texts, count, ret_options, err);
}
