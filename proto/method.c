/* SPDX-License-Identifier: Apache-2.0 */
/* method.c — the names come from the list itself, so that a new request kind has one at once. */
#include "proto/method.h"

#include <stddef.h>

const char *method_name(unsigned method)
{
    switch (method) {
#define X(NAME, number, snake, Message, role) \
    case METHOD_##NAME: return #snake;
        METHOD_MAP(X)
#undef X
    default: return NULL;
    }
}
