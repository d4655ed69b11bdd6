/* SPDX-License-Identifier: Apache-2.0 */
/* layer_index.c — the references of a version.
 *
 * A version is born with one reference, its maker's. Whoever takes another must hold one already
 * (the catalog's, under its lock), so a count of zero is never raised again. Release on the way
 * down and acquire before freeing: what a reader did with the version happens before it is freed.
 */
#include "index/layer_index.h"

#include <assert.h>
#include <limits.h>

struct layer_index *layer_index_get(struct layer_index *version)
{
    unsigned before = atomic_fetch_add_explicit(&version->references, 1, memory_order_relaxed);
    assert(before > 0 && before < UINT_MAX);
    return version;
}

void layer_index_put(struct layer_index *version)
{
    if (version == NULL) return;
    unsigned before = atomic_fetch_sub_explicit(&version->references, 1, memory_order_acq_rel);
    assert(before > 0);
    if (before == 1) version->type->free(version);
}
