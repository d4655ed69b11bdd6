/* SPDX-License-Identifier: Apache-2.0 */
/* context.h — one context: appending tokens layer by layer, and answering queries over them.
 *
 * Every function takes a context that catalog.h has pinned. Appends of one context are
 * serialised inside; attends run concurrently with them and see a prefix of whole tokens.
 * truncate waits for readers.
 *
 * Positions of a layer are 0, 1, 2, … without gaps. append at position p of a layer that holds t
 * tokens: p == t appends; p < t is accepted where it repeats stored bytes exactly (an idempotent
 * retry), the rest is appended; anything else is MEMD_EPOSITION. Layers advance independently;
 * the context's token count is the least over the layers in use (those that hold any token).
 *
 * Threads  any worker
 * Tests    tests/unit/test_context.c, tests/unit/test_recovery.c
 */
#ifndef MEMD_MEMORY_CONTEXT_H
#define MEMD_MEMORY_CONTEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attention/softmax.h"
#include "base/tensor.h"
#include "index/index.h"
#include "memory/model.h"

struct arena;
struct context;
struct error;

const struct model *context_model(const struct context *context);
uint64_t context_id(const struct context *context);
/* W of a context whose method keeps a state of so many numbers of each token; 0: it keeps rows. */
size_t context_state_width(const struct context *context);
/* Where `states` (n, any) of a layer are hidden states, put what the method makes of them (n, W) in
 * their place, of the model's dtype, in the arena: before an append and before a query.
 * Errors   MEMD_ESHAPE neither states nor what tensors were uploaded for · MEMD_ENONFINITE */
int context_encode_states(struct context *context, uint32_t layer, struct arena *arena,
                          struct tensor *states, struct error *err);
uint64_t context_tokens(struct context *context); /* common to all layers in use */
uint64_t context_layer_tokens(struct context *context, uint32_t layer);

struct append_layer {
    uint32_t layer;
    uint64_t position;
    struct tensor k, v;        /* (n, G, D), the model's dtype */
    struct tensor q;           /* (n, H, D), or dims = 0; needed where it is a column */
    const uint32_t *token_ids; /* (n), or NULL */
    const uint8_t *marks;      /* (n) bits of index/columns.h, or NULL: none is marked */
    struct tensor scores;      /* (n, H) attention mass that they have received, or dims = 0 */
    struct tensor states;      /* (n, W) instead of k and v (dims = 0), where the method keeps
                                * states; the model's dtype */
};

struct progress {
    uint64_t tokens;           /* least token count of the layers named */
    uint64_t committed_tokens; /* of the context, common to the layers in use */
    uint64_t synced_tokens;
    uint64_t sequence; /* of this append, for context_reached */
};

/* All layers or none: everything is checked (shapes by the caller; positions, finiteness here)
 * before anything is taken. Copies; the tensors may go away afterwards.
 * Tokens that are there already must be repeated with the columns that they have.
 * Errors   MEMD_EPOSITION · MEMD_ENONFINITE (counted, text names layer, position, head,
 *          dimension; also a query beyond fp16 that is to be kept) · MEMD_EBUSY too much
 *          uncommitted · MEMD_EFULL · MEMD_ENOMEM · MEMD_ELIMIT · MEMD_EINVAL something is missing,
 *          or a mark unknown · MEMD_EUNSUPPORTED something that the method does not keep ·
 *          MEMD_ESHAPE of states */
int context_append(struct context *context, const struct append_layer *layers, size_t count,
                   struct progress *ret_progress, struct error *err);

enum durability { DURABLE_MEMORY, DURABLE_COMMITTED, DURABLE_SYNCED };

/* Has the append with this sequence reached the level? 1 yes (*progress updated), 0 not yet,
 * negative: the commit failed (MEMD_EFULL, MEMD_EIO) and the tokens of it were taken back, or
 * the context went away. Cheap, lock-free enough for the loop thread; ask again after
 * catalog_config.on_progress. DURABLE_SYNCED makes the writer sync soon whatever the sync mode
 * is. */
int context_reached(struct context *context, uint64_t sequence, enum durability level,
                    struct progress *ret_progress, struct error *err);

/* What to make of a device that keeps the newest rows of layers (attention/cuda/accelerator.h): as
 * it is found best; ask it, however many other rows have to be sent there; leave it alone. Where
 * there is none, or it does not answer, the CPU does. */
enum query_window { QUERY_WINDOW_ANY, QUERY_WINDOW_RESIDENT, QUERY_WINDOW_NONE };

struct query {
    uint32_t layer;
    struct tensor q;           /* (n, H, D) */
    const uint64_t *positions; /* (n) */
    const uint64_t *limits;    /* (n), or NULL: limit = everything stored */
    int (*stop)(void *arg);    /* see attend.h */
    void *stop_arg;
    bool no_wait; /* loop: MEMD_EBUSY rather than waiting for a truncate; uses no other thread */
    double target_error; /* wanted relative L2 error of o, 0 … 1; 0 = exact; NaN or below 0 = what
                          * the context's parameters say. Methods that are not asked for an error
                          * (index.h) ignore it */
    uint64_t max_bytes; /* read for this query at most, as far as the method can choose; 0 = what
                         * the context's parameters say */
    struct tensor states; /* (n, W) of the queries, for methods that keep states; or dims = 0 */
    struct plan *plan;    /* not NULL: what is read is written down (index/plan.h) */
    double rope_theta;    /* another base than the model's for keys and queries, or 0.
                           * MEMD_EUNSUPPORTED where memd does not rotate, or something was made of
                           * rotated keys */
    /* The caller's own answer over its window, (n, H, D) and (n, H), or NULL: context_attend
     * answers for both together, quality for what is stored. MEMD_ENONFINITE: it is no partial. */
    const struct partial *local;
    enum query_window window;
};

/* What an answer was made from. Arrays are in the arena of the call. */
struct quality {
    const char *method;
    bool exact; /* every token below the limits was read exactly; all arrays are NULL then */
    float *predicted_error; /* (n, H) relative L2 error of o, NaN = unknown; or NULL = all 0 */
    float *mass;       /* (n, H) share of the softmax mass answered from exact rows, or NULL = all
                        * 1 */
    float *level_mass; /* (n, H, INDEX_LEVELS) share answered from each level (index.h), the last
                        * one is `mass`; what is missing to 1 was dropped. Or NULL = all exact */
    bool *limited;     /* (n, H) max_bytes cut it short of target_error, or NULL = all false */
    uint64_t rows, bytes_read; /* sums of the two arrays below; K and V of a token are two rows */
    uint64_t level_rows[INDEX_LEVELS], level_bytes[INDEX_LEVELS]; /* over all KV heads */
    uint64_t bytes_exact; /* what reading every visible row would have read */
    uint64_t tokens;      /* visible to the query that sees most */
    uint64_t window_tokens; /* of those, read exactly in the resident window of a device */
};

/* o (n, H, D) and lse (n, H) of the caller. Values read from disk for the first time are verified:
 * MEMD_ECORRUPT, never data. */
int context_attend(struct context *context, const struct query *query, struct arena *arena,
                   const struct partial *ret_partial, struct quality *ret_quality,
                   struct error *err);

/* Several queries: those that a device answers exactly, whatever their contexts and layers, are one
 * batch there, and `answered`; status, partial and quality are then as of context_attend. The
 * others are left to it. Where there is no device, that is all of them. */
struct together {
    struct context *context;   /* NULL: none */
    const struct query *query;
    struct arena *arena;       /* of its own */
    struct partial partial;    /* of the caller */
    struct quality *quality;
    struct error *err;
    int status;
    bool answered;
};
void context_attend_together(struct together *all, size_t count);

/* An upper bound of the bytes an attend would read: lets the loop answer empty layers at once.
 * Loop. */
uint64_t context_attend_bytes(struct context *context, uint32_t layer);

int context_search(struct context *context, const struct query *query, struct arena *arena,
                   const struct index_hits *ret_hits, struct quality *ret_quality,
                   struct error *err);

/* Rows by position, as appended, bit for bit: k, v (count, G, D) of the model's dtype, or states
 * (count, W) where these are kept; caller's memory. token_ids (count) is filled, and has_ids set,
 * when the layer has ids for all of them.
 * Errors MEMD_ENOROW · MEMD_EUNSUPPORTED k and v of a context that keeps states, or states of
 * another */
struct fetch_out {
    void *k, *v;
    void *states; /* (count, W) instead of k and v, where the context keeps states */
    uint32_t *token_ids;
    bool has_ids;
};
int context_fetch(struct context *context, uint32_t layer, const uint64_t *ids, size_t count,
                  struct fetch_out *ret_rows, struct error *err);

/* Attention mass that tokens position … position + n - 1 have received, (n, H) of any float dtype,
 * is added to what is known of them. Tokens that the method has folded in already are left out: it
 * is too late for them. Committed with the next rows.
 * Errors   MEMD_EUNSUPPORTED the method takes none · MEMD_EPOSITION not stored yet ·
 *          MEMD_ENONFINITE · MEMD_EINVAL negative */
int context_add_mass(struct context *context, uint32_t layer, uint64_t position,
                     const struct tensor *mass, struct error *err);

/* Compress the first `tokens` tokens of a layer (0 = all of them) as the method does, once: queries
 * read what was kept, and everything behind it. Committed before it returns. Rows stay stored.
 * Where the method keeps everything (a short prompt), nothing is stored and a later call may do
 * more.
 * Errors MEMD_EUNSUPPORTED the method does not compress · MEMD_EEXIST the layer is compressed ·
 * MEMD_EPOSITION fewer tokens · MEMD_EINVAL queries are missing */
struct compress_args {
    uint32_t layer;
    uint64_t tokens;
    struct tensor q;        /* (w, H, D) of the prompt's last w tokens, or dims = 0 */
    int (*stop)(void *arg); /* see attend.h */
    void *stop_arg;
};
int context_compress(struct context *context, const struct compress_args *args,
                     struct arena *arena, uint64_t *ret_kept, struct error *err);

/* Upload a tensor for a layer (or PARAM_ALL_LAYERS), in place of the one that was there. What was
 * folded with the old ones is made again. Committed before it returns. */
int context_put_param(struct context *context, const char *name, uint32_t layer,
                      const struct tensor *value, struct error *err);

/* What a layer's state is like (index/fold.h), for people: "tokens" that are in it, "bytes" of
 * memory, and what its type tells; of a ring (index/lru.h) "ring_states" that it holds and
 * "ring_evicted", tokens that left it. ret_facts (CONTEXT_FACTS_MAX); a count, 0 where the method
 * keeps no state. */
enum { CONTEXT_FACTS_MAX = 36 };
struct fold_fact;
int context_describe(struct context *context, uint32_t layer, struct fold_fact *ret_facts,
                     struct error *err);

/* Roll all layers back to `position` tokens (layers that hold fewer stay). Committed before it
 * returns. MEMD_EPOSITION when the context holds fewer tokens, MEMD_EUNSUPPORTED when a layer's
 * prompt was compressed and reaches farther, or states that left a ring would have to come back. */
int context_truncate(struct context *context, uint64_t position, struct error *err);

#endif
