/* SPDX-License-Identifier: Apache-2.0 */
/* layer_index.h — an index over all rows of a layer that is made as a whole: graph, zones, FAISS.
 *
 * Such an index is a version: built from rows 0 … tokens-1 (and the version before, which it may
 * copy from), immutable afterwards, replaced by the next one when enough tokens have come. Readers
 * keep the version they began with (references); what lies behind its `tokens` they read exactly.
 * So no index needs locks of its own, and a crash while one is built costs nothing.
 *
 * Rejected: inserting in place under readers' locks (hnswlib's way: a lock per node, and a
 * half-inserted state on the disk).
 *
 * Threads  build: the builder's thread, which may use the pool; attend, search: any, concurrently
 * Memory   a version is on the heap; the last layer_index_put frees it
 * Errors   MEMD_ENOMEM · MEMD_ECANCELLED by `stop` · MEMD_ECORRUPT from load · MEMD_EUNSUPPORTED
 *          where queries are needed and none were kept
 */
#ifndef MEMD_INDEX_LAYER_INDEX_H
#define MEMD_INDEX_LAYER_INDEX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "index/index.h"
#include "index/options.h"

struct arena;
struct error;

/* Queries of the past that were kept, a sample of positions. */
struct kept_queries {
    const uint16_t *q;         /* (count, H, D) fp16, as the client sent them (not scaled; rotated
                                * only if the model's keys are) */
    const uint64_t *positions; /* (count) ascending */
    size_t count;
};

/* What a version is built from. */
struct layer_source {
    const struct view *views; /* (G, view_count): positions 0 … tokens-1 without gaps */
    size_t view_count, kv_heads;
    uint64_t tokens;
    size_t query_heads, head_dim;
    float scale;
    const struct rope *rope; /* as in attend_args: not NULL = rows and queries are unrotated */
    struct kept_queries queries;
    const double *options;  /* values of the type's table */
    struct pool *pool;      /* may be NULL */
    int (*stop)(void *arg); /* as in attend_args */
    void *stop_arg;
};

struct layer_index {
    const struct layer_index_type *type;
    atomic_uint references;
    uint64_t tokens; /* covers positions 0 … tokens-1 */
    size_t bytes;    /* of memory, for accounting */
};

struct layer_index_type {
    const char *name;
    const struct option_table *options;
    /* Do these options fit a context whose keys memd rotates, or does not? NULL: all do. */
    int (*check)(const double *options, bool rotates, struct error *err);
    uint64_t step_tokens; /* a new version is worth it when so many tokens came (1024, 8192) */
    bool needs_queries;

    /* `before` may be NULL; it is not changed. */
    int (*build)(const struct layer_source *source, const struct layer_index *before,
                 struct layer_index **ret_version, struct error *err);
    void (*free)(struct layer_index *version);

    /* Bytes that load turns into the same version; NULL: not kept, built again after a restart.
     * save: *ret_bytes first with data NULL, then the bytes. */
    size_t (*save)(const struct layer_index *version, unsigned char *ret_data);
    int (*load)(const struct layer_source *shape, const void *data, size_t bytes,
                struct layer_index **ret_version, struct error *err);
    /* Every invariant, against the rows; for verify and tests. NULL when there are none. */
    int (*validate)(const struct layer_index *version, struct error *err);

    /* Rows that `version` does not cover and what the kind reads exactly (sinks, window) come from
     * args->attend.views. `options` are those of the context, so that search-time options need no
     * new version. */
    int (*attend)(const struct layer_index *version, const struct index_args *args,
                  const double *options, struct arena *arena, const struct index_answer *ret_answer,
                  struct error *err);
    int (*search)(const struct layer_index *version, const struct index_args *args,
                  const double *options, struct arena *arena, const struct index_found *ret_found,
                  struct error *err);
};

struct layer_index *layer_index_get(struct layer_index *version);
void layer_index_put(struct layer_index *version); /* NULL is fine */

#endif
