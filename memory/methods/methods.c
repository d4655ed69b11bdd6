/* SPDX-License-Identifier: Apache-2.0 */
/* methods.c — the table of memory methods; everything that lists them starts here. */
#include "memory/methods/methods.h"

#include <string.h>

#include "memory/catalog.h"

static const struct method *const methods[] = { &method_full };
enum { METHODS = sizeof methods / sizeof methods[0] };

static const char *const names[METHODS + 1] = { "full", NULL };

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
