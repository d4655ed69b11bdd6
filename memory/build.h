/* SPDX-License-Identifier: Apache-2.0 */
/* build.h — the builder's work on one context; for builder.c, build_*.c and rebuild.c alone.
 *
 * A pass holds a pin of its context while it looks at it and lets it go before it waits for the
 * writer; the context may then be gone, and the pass is over.
 *
 * Threads  builder, but for what is called from writer jobs
 * Tests    tests/unit/test_builder.c
 */
#ifndef MEMD_MEMORY_BUILD_H
#define MEMD_MEMORY_BUILD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "memory/catalog_state.h"

struct builder;

struct build {
    struct builder *builder;
    struct catalog *catalog;
    uint64_t context_id;
    struct context *context; /* pinned, or NULL */
    uint64_t done;           /* things that were made or put to use */
    uint64_t failed;
    int failure; /* the last one */
    bool again;  /* cut short by somebody who wanted the context: soon again */
};

/* False when the context is not resident any more. */
bool build_pin(struct build *build);
void build_unpin(struct build *build);

/* The catalog is being closed, or the context dropped. */
bool build_must_stop(const struct build *build);
/* That, or somebody waits to hold the context alone: end what holds `use`. */
bool build_must_yield(const struct build *build);

/* Is there room for `bytes` that are not rows? MEMD_EFULL */
int build_check_room(struct catalog *catalog, uint64_t bytes, struct error *err);

/* Note a failure; true when it makes no sense to go on with this pass. */
bool build_failed(struct build *build, int code);

/* Planes of every sealed slot that was not looked at; those that failed before too when `retry`.
 * The context is pinned, and may be gone afterwards. */
void build_planes(struct build *build, bool retry);

/* Centroids of planes in use side by side (index/centroid_table.h), of layers that are long enough;
 * copies in memory, as far as there is room. With the context pinned. */
void build_tables(struct build *build);

/* The index of every layer: load, build, save. Likewise. */
void build_indexes(struct build *build);

/* The fold of every layer, up to date for now. Likewise. */
void build_folds(struct build *build);

/* A value of the table indexes (header and payload), in place of the one before, if it is still
 * true of the layer: asked on the writer thread with context->lock held. Unpins and pins the
 * context. */
struct saving {
    uint32_t layer;
    struct slice value;
    bool (*is_current)(const struct layer *layer, const void *arg);
    const void *arg;
};
int build_save(struct build *build, const struct saving *saving, struct error *err);

/* Take planes of these segments (ascending) away from every resident context; waits for readers.
 * With planes_lock held exclusively, until they are deleted. */
int build_unpublish(struct catalog *catalog, const uint64_t *segments, size_t count,
                    struct error *err);

/* Delete what was derived for a context. */
int build_delete(struct catalog *catalog, uint64_t context_id, struct rebuild_step *step,
                 struct error *err);

#endif
