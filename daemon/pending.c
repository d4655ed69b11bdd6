/* SPDX-License-Identifier: Apache-2.0 */
/* pending.c — until memory/ has them; removed with its commit. */
#include "base/error.h"
#include "memory/catalog.h"

int catalog_verify(struct catalog *catalog, uint64_t context_id, const void *cursor,
                   size_t cursor_bytes, struct arena *arena, struct verify_step *ret_step,
                   struct error *err)
{
    (void)catalog, (void)context_id, (void)cursor, (void)cursor_bytes, (void)arena, (void)ret_step;
    return error_set(err, MEMD_EUNSUPPORTED, "verify is not in this build");
}

int catalog_dump(struct catalog *catalog, uint64_t context_id, const void *cursor,
                 size_t cursor_bytes, size_t limit, struct arena *arena, struct dump_step *ret_step,
                 struct error *err)
{
    (void)catalog, (void)context_id, (void)cursor, (void)cursor_bytes, (void)arena, (void)ret_step;
    (void)limit;
    return error_set(err, MEMD_EUNSUPPORTED, "dump is not in this build");
}

int catalog_compact(struct catalog *catalog, const char *path, uint64_t *ret_before,
                    uint64_t *ret_after, struct error *err)
{
    (void)catalog, (void)path, (void)ret_before, (void)ret_after;
    return error_set(err, MEMD_EUNSUPPORTED, "compact is not in this build");
}
