/* SPDX-License-Identifier: Apache-2.0 */
/* fold.h — what a method makes of a layer's past and keeps in memory: slots, norms, representatives
 * of blocks.
 *
 * Such a state is a fold: a function of the rows 0 … tokens-1 (and of what was stored with them),
 * taken in one after the other, from the first. It is therefore never the only copy of anything. It
 * can be thrown away and made again from the rows: after a restart, in a fork, after a truncate,
 * and it comes out the same, however the appends were cut. Checkpoints (save, load) only save time.
 *
 * How far it has to be when a layer holds so many tokens is said by `reach`, a function of that
 * number alone. A query brings the fold there before it is answered, and the builder does so
 * beforehand; so no answer depends on how far the builder happens to be.
 *
 * A fold either can be read as of any earlier token (representatives of blocks: use the first ones)
 * or it `forgets` (running means): then a query whose limit lies below fold->tokens is refused
 * (MEMD_EPOSITION), since what is in the fold cannot be taken out of it again. `reach` of such a
 * method stays behind the newest tokens by as many as an engine keeps itself.
 *
 * Rejected: states that are stored with every append (megabytes for each token of a decode), and
 * states that a builder brings up to date some time (answers that depend on the clock).
 *
 * Threads  advance and cut alone, everything else beside each other
 * Errors   MEMD_ENOMEM · MEMD_EUNSUPPORTED (a tensor that is needed was not uploaded) ·
 *          MEMD_ECORRUPT from load · what `stop` says; after an error the fold is as it was before,
 *          or further
 * Tests    those of each method
 */
#ifndef MEMD_INDEX_FOLD_H
#define MEMD_INDEX_FOLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "index/columns.h"
#include "index/params.h"
#include "index/rows.h"

struct error;
struct fold_type;
struct pool;

/* What is folded, and what the fold may depend on besides. */
struct fold_source {
    struct rows rows;     /* of all KV heads, views with columns; at least to the end asked for.
                           * rows.rope as in attend_args: keys and queries are unrotated */
    size_t kv_heads, query_heads, head_dim;
    float scale;          /* of q·k */
    const struct columns *columns;
    const struct params *params; /* NULL: none were uploaded */
    const double *options; /* of the method */
    uint32_t layer, layers;
    /* Attention mass that clients said a token has received, (H), or NULL: nobody said anything.
     * For one thread, and until the next call: where there is mass, `pool` is NULL. */
    const float *(*mass)(void *arg, uint64_t position);
    void *mass_arg;
    struct pool *pool;    /* may be NULL */
    int (*stop)(void *arg); /* as in attend_args; may be NULL */
    void *stop_arg;
};

struct fold {
    const struct fold_type *type;
    uint64_t tokens; /* rows 0 … tokens-1 are in it */
    size_t bytes;    /* of memory, for accounting */
};

/* A number that describes a state, for people: "slots_used" 512. Whoever shows many layers adds
 * them up; where that makes no sense the name ends in _mean, _min or _max. */
struct fold_fact {
    const char *name; /* "merged_total", a literal */
    double value;
};
enum { FOLD_FACTS_MAX = 32 };

struct fold_type {
    const char *name;
    bool forgets;
    /* How many tokens are in the fold when the layer holds `tokens`: never more than that, never
     * less for more. */
    uint64_t (*reach)(const double *options, uint64_t tokens);
    /* Empty. */
    int (*open)(const struct fold_source *source, struct fold **ret_fold, struct error *err);
    void (*free)(struct fold *fold);
    /* Take in rows fold->tokens … end-1; end = reach(something) ≥ fold->tokens. */
    int (*advance)(struct fold *fold, const struct fold_source *source, uint64_t end,
                   struct error *err);
    /* Rows from `tokens` on are gone, and none of them was in the fold. For types that keep besides
     * what they found out about rows that are not in it yet; may be NULL. */
    void (*cut)(struct fold *fold, uint64_t tokens);
    /* Bytes that load turns into the same fold; NULL: it is made again from the rows. save: how
     * many bytes first, with NULL. */
    size_t (*save)(const struct fold *fold, unsigned char *ret_data);
    int (*load)(const struct fold_source *source, const void *data, size_t bytes,
                struct fold **ret_fold, struct error *err);
    /* ret_facts (FOLD_FACTS_MAX); how many. May be NULL. */
    size_t (*describe)(const struct fold *fold, struct fold_fact *ret_facts);
};

#endif
