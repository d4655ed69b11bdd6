/* SPDX-License-Identifier: Apache-2.0 */
/* builder.h — the thread that derives: planes of sealed segments, indexes of layers, from rows that
 * are committed, while everything else goes on.
 *
 * A resident context is looked at when it becomes resident and whenever segments of it were
 * sealed. What the store already has (from before a restart, from a fork) is checked and put to
 * use, what is missing is made. Nothing waits for it: rows without derived data are answered
 * exactly.
 *
 * This thread alone makes planes and takes them away for a rebuild, so a value that somebody may
 * be reading is never deleted: it is first taken from every resident context, and until it is
 * gone nobody finds it in the store (context_adopt.c). It waits for the writer only while it pins
 * nothing, since the writer may wait for its pin (eviction).
 *
 * What fails (no room, no memory, corrupt rows) is counted and tried again, after a second at
 * first, after a minute at last. Rows come first: nothing derived is written when the budget, the
 * map or the disk is nearly full.
 *
 * Memory   planes: one segment of one context, about 1.5 times its rows. An index: what its kind
 *          needs, and up to 256 MiB of kept queries
 * Threads  as said at each function
 * Tests    tests/unit/test_builder.c, tests/unit/test_rebuild.c, tests/fault
 */
#ifndef MEMD_MEMORY_BUILDER_H
#define MEMD_MEMORY_BUILDER_H

#include <stdbool.h>
#include <stdint.h>

#include "memory/catalog.h"

struct builder;

int builder_open(struct catalog *catalog, struct builder **ret_builder, struct error *err);
/* End the thread, within one KV head of a segment. NULL is fine. */
void builder_stop(struct builder *builder);
/* After builder_stop, when nobody calls builder_wake any more. NULL is fine. */
void builder_close(struct builder *builder);

/* Look at this resident context. Any thread; the second with catalog.lock held. */
void builder_wake(struct builder *builder, struct context *context);
void builder_add(struct builder *builder, struct context *context);
/* It is no longer resident. With catalog.lock held. */
void builder_remove(struct builder *builder, struct context *context);

/* Delete what was derived for a context, see catalog_rebuild. Workers. */
int builder_rebuild(struct builder *builder, uint64_t context_id, struct rebuild_step *step,
                    struct error *err);

/* Is anything of this context still to be done at once? With catalog.lock held. */
bool builder_is_busy(struct builder *builder, const struct context *context);
/* Wait until that may have changed, 50 ms at most. With catalog.lock held. */
void builder_wait(struct builder *builder);

#endif
