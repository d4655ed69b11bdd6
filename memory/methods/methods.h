/* SPDX-License-Identifier: Apache-2.0 */
/* methods.h — memory methods: how a query of a context is answered from what the layer holds.
 *
 * A method is one struct and one line in methods.c. It never touches storage: it is given the
 * exact rows of the layer as views, with what was made of them, and gives an answer with a record
 * of how it came about. What it wants to be made of them it says in its struct:
 *
 *     columns    kept with every token as it is appended (index/columns.h)
 *     planes     codes of sealed segments, made in the background (index/planes.h)
 *     layer      an index of the whole layer, made in the background (index/layer_index.h)
 *     fold       a state that rows are folded into, up to date whenever a query is answered
 *                (index/fold.h)
 *     ring       which states are read depends on which were retrieved before (index/lru.h)
 *     compress   a selection of the prompt, made once when a client asks (index/selection.h)
 *     params     tensors that clients upload (index/params.h)
 *
 * To add one see docs/HACKING.md.
 *
 * Threads  any worker, concurrently; a method keeps nothing between calls
 * Errors   MEMD_EINVAL parameters · MEMD_EUNSUPPORTED parameters that the model does not allow ·
 *          MEMD_ENOMEM · what `stop` says
 * Tests    tests/unit/test_catalog.c, tests/unit/test_methods.c
 */
#ifndef MEMD_MEMORY_METHODS_H
#define MEMD_MEMORY_METHODS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "index/columns.h"
#include "index/fold.h"
#include "index/index.h"
#include "index/lru.h"
#include "index/options.h"
#include "index/params.h"
#include "index/plan.h"
#include "index/selection.h"
#include "memory/context.h"

struct arena;
struct error;
struct layer_index;
struct layer_index_type;
struct model;
struct parameter;
struct pick_call;
struct planes;

/* What a method retrieved for some queries: positions (count), INDEX_NONE where there was none. */
struct ring_uses {
    const uint64_t *positions;
    size_t count;
};

/* What a method is given: some queries, and one state of the layer that does not change while they
 * are answered. */
struct reading {
    struct attend_args attend; /* complete; views (G, view_count) hold every visible row */
    const struct planes *const *planes; /* (G, view_count), of the same views; may hold NULL. NULL
                                         * when the method wants none */
    /* Rows and `lo` of planes are asked for before they are read: attend.admit, and this one with
     * the same argument (index/progressive.h). A method without planes need not: its rows were
     * verified before. */
    bool (*admit_lo)(void *arg, const struct view *view, size_t place);
    const struct layer_index *version;  /* or NULL: none was built yet */
    double target_error;                /* of the query, or below 0: the context's parameters */
    uint64_t max_bytes;                 /* of the query, or 0: the context's parameters */
    const double *options;              /* values of the method's table */

    uint32_t layer, layers;             /* of the query; of the model */
    uint64_t tokens;                    /* stored in the layer, whatever the limits */
    struct columns columns;
    const struct fold *fold;            /* up to date; does not change meanwhile. NULL: none */
    const struct lru *ring;             /* of these rows, a copy; NULL: method->ring says 0 */
    struct ring_uses *uses;             /* to be filled in where there is a ring: used, once the
                                         * answer is there */
    const struct selection *selection;  /* what was kept of the prompt; NULL: not compressed */
    const struct params *params;        /* may be NULL */
    struct tensor states;               /* (n, W) of the queries, or dims = 0 */
    struct plan *plan;                  /* to be written, or NULL */
    const struct partial *local;        /* of the query's own window, (n, H); or NULL */
    /* Asked before the CPU by what reads all of these views exactly, and by nothing else; or
     * NULL. */
    struct attend_device *device;
};

/* What a compression is made from: a prompt that is stored. */
struct compressing {
    struct rows rows;        /* of all KV heads */
    size_t kv_heads, query_heads, head_dim;
    float scale;
    const struct rope *rope; /* as in attend_args */
    uint64_t tokens;         /* of the prompt */
    struct tensor q;         /* (w, H, D): the queries of its last w tokens, or dims = 0 */
    uint32_t layer, layers;
    const struct params *params; /* may be NULL */
    const double *options;
    struct pool *pool;
    int (*stop)(void *arg);
    void *stop_arg;
};

/* Hidden states that a client sent in place of states. */
struct encoding {
    struct tensor given;         /* (n, any) */
    const struct params *params; /* may be NULL */
    const double *options;
    uint32_t layer;
};

struct method {
    const char *name;
    const char *help; /* one line */
    const struct option_table *options; /* NULL: those of `layer` */
    bool planes;        /* sealed segments get planes (index/planes.h) */
    bool keeps_queries; /* a sample of the appended queries is stored with each segment; the option
                         * "sample" says how many of them */
    const struct layer_index_type *layer; /* layers get an index as a whole; or NULL */
    const struct fold_type *fold;         /* or NULL */
    const struct param_table *params;     /* or NULL */
    bool takes_mass;    /* attention mass of tokens (Observe, scores of appends) is kept for it */
    bool sees_all;      /* is given all rows of the layer, also those beyond the limits */
    /* Columns of its tokens (index/columns.h), a set; NULL: none. */
    uint32_t (*columns)(const double *options);
    /* It keeps a state of so many numbers of each token (a multiple of 16) instead of K and V.
     * Views then have one head, of half as many dimensions: K is the first half of a state, V the
     * second. NULL: it keeps rows. */
    size_t (*state_width)(const double *options);
    /* Its layers have rings of so many states (index/lru.h), which leave by when they were last
     * retrieved: reading.ring says which are there, reading.uses takes what was retrieved. The
     * ring is stored with the rows (memory/context_ring.c); truncating to where states would have
     * to come back is MEMD_EUNSUPPORTED. 0, or NULL: there is none. */
    size_t (*ring)(const double *options);
    /* Make states, ret_states (n, W), of what is of another width; appends and queries may bring
     * that where tensors were uploaded for it, else MEMD_ESHAPE. NULL: they never may. */
    int (*encode)(const struct encoding *encoding, struct arena *arena, float *ret_states,
                  struct error *err);
    /* The layer whose rows a query of `layer` reads; params are those of `layer`. NULL: itself. */
    uint32_t (*rows_layer)(const double *options, uint32_t layer);
    /* Do these options fit the model? NULL: all do. */
    int (*check)(const struct method *method, const struct model *model, const double *options,
                 struct error *err);
    /* What is kept of a prompt; NULL: MEMD_EUNSUPPORTED. Truncating into a compressed prompt is
     * refused with that code too. A selection that stays NULL with 0 says that all of this layer is
     * kept: then there is nothing to store, and the layer is as if nobody had asked. */
    int (*compress)(const struct method *method, const struct compressing *compressing,
                    struct arena *arena, struct selection **ret_selection, struct error *err);
    /* Instead of functions of its own for the next two, where both read chosen rows by tasks
     * (index/pick.h) and are method_attend_picked and method_search_picked: fill in task,
     * scratch_bytes, places and version, whose memory is the arena's. 1: there is nothing to choose
     * from, everything is read. Not asked where there are no rows. */
    int (*pick)(const struct reading *reading, struct arena *arena, struct pick_call *ret_call,
                struct error *err);
    /* Would an attend be attend() over all views and nothing else? NULL: never. */
    bool (*reads_exactly)(const struct method *method, const struct reading *reading);
    /* quality->method is filled in by the caller. */
    int (*attend)(const struct method *method, const struct reading *reading, struct arena *arena,
                  const struct index_answer *ret_answer, struct error *err);
    int (*search)(const struct method *method, const struct reading *reading, struct arena *arena,
                  const struct index_hits *ret_hits, struct index_quality *ret_quality,
                  struct error *err);
    /* Join an answer with the caller's own over its window, into the answer; NULL: by log-sum-exp,
     * as one softmax over both. */
    int (*join)(const struct method *method, const struct reading *reading,
                const struct partial *local, const struct partial *answer, struct error *err);
};

extern const struct method method_full, method_progressive;
/* indexed.c; those of FAISS only in builds with it */
extern const struct method method_retrieval_attention, method_faiss_flat, method_faiss_ivf,
    method_faiss_hnsw, method_retroinfer, method_streaming, method_oracle_topk;
extern const struct method method_memorizing;
extern const struct method method_extended_mind;
extern const struct method method_infllm, method_longheads;
extern const struct method method_l2norm;
extern const struct method method_camelot, method_loki;
extern const struct method method_pyramidkv, method_snapkv;
extern const struct method method_landmark;
extern const struct method method_neurocache;

/* The method of contexts that are made without naming one. */
const struct method *method_default(void);
/* NULL when there is no such method. */
const struct method *method_find(const char *name);

/* Does it want an index of the layer to be built? */
bool method_builds(const struct method *method);

const struct option_table *method_options(const struct method *method);

/* A parameter of every method with `params`, which the catalog looks at: the set of tensors that a
 * context uses. */
#define METHOD_PARAMS_PARAMETER "params"

/* Are these the parameters of this method, and in range? ret_options (OPTIONS_MAX) */
int method_parse(const struct method *method, const struct parameter *parameters, size_t count,
                 double *ret_options, struct error *err);

/* Can a context of this model have a method with these options? MEMD_EUNSUPPORTED where not. */
int method_check(const struct method *method, const struct model *model, const double *options,
                 struct error *err);

/* What is kept of a token besides K and V (COLUMNS_…), or instead of them (elements, 0 = K and V
 * are kept); `method` has passed method_check with these options. */
uint32_t method_columns(const struct method *method, const double *options);
/* Whose rows a query of `layer` reads. */
uint32_t method_rows_layer(const struct method *method, const double *options, uint32_t layer);

size_t method_state_width(const struct method *method, const double *options);

/* The value of an option by name, or `absent` where the method has no such option. */
double method_option(const struct method *method, const double *options, const char *name,
                     double absent);

/* Everything exactly: what `full` is, and what others do as long as there is nothing to choose
 * from. ret_answer->quality arrays are left alone where they are NULL. */
int method_attend_exactly(const struct reading *reading, struct arena *arena,
                          const struct index_answer *ret_answer, struct error *err);
int method_search_exactly(const struct reading *reading, struct arena *arena,
                          const struct index_hits *ret_hits, struct index_quality *ret_quality,
                          struct error *err);

/* method->attend and method->search of methods that `pick`: of the same rows, and with what belongs
 * to the query from `reading`. */
int method_attend_picked(const struct method *method, const struct reading *reading,
                         struct arena *arena, const struct index_answer *ret_answer,
                         struct error *err);
int method_search_picked(const struct method *method, const struct reading *reading,
                         struct arena *arena, const struct index_hits *ret_hits,
                         struct index_quality *ret_quality, struct error *err);

#endif
