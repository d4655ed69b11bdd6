/* SPDX-License-Identifier: Apache-2.0 */
/* backend.c — one row per instruction set that this build was compiled for.
 *
 * A level without a row (neon on an x86) falls to the next lower one that has it.
 */
#include "attention/backend.h"

#include <assert.h>
#include <stddef.h>

static const struct backend tables[CPU_LEVELS] = {
    [CPU_REF] = { "ref", partial_ref, score_ref },
};

const struct backend *backend_for(enum cpu_level level)
{
    assert(level < CPU_LEVELS);
    if (level > cpu_level_best() || tables[level].partial == NULL) return NULL;
    return &tables[level];
}

const struct backend *backend_get(void)
{
    enum cpu_level level = cpu_level();
    while (backend_for(level) == NULL) level--; /* ends at ref, which is always there */
    return backend_for(level);
}
