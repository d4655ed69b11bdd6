/* SPDX-License-Identifier: Apache-2.0 */
/* method_table.h — a test program brings methods that no build of memd has.
 *
 * METHOD_TABLE, once in the program, names them; with -Wl,--wrap=method_find they are then found
 * by their names like the others, and memd's own table knows nothing of them.
 */
#ifndef MEMD_TESTS_METHOD_TABLE_H
#define MEMD_TESTS_METHOD_TABLE_H

#include <stddef.h>
#include <string.h>

#include "memory/methods/methods.h"

const struct method *__wrap_method_find(const char *name);
const struct method *__real_method_find(const char *name);

#define METHOD_TABLE(...)                                                 \
    const struct method *__wrap_method_find(const char *name)             \
    {                                                                     \
        static const struct method *const brought[] = { __VA_ARGS__ };    \
        for (size_t i = 0; i < sizeof brought / sizeof brought[0]; i++) { \
            if (strcmp(brought[i]->name, name) == 0) return brought[i];   \
        }                                                                 \
        return __real_method_find(name);                                  \
    }                                                                     \
    const struct method *__real_method_find(const char *name)

#endif
