/* SPDX-License-Identifier: Apache-2.0 */
/* memd_methods.h — the part of memd.h about memory methods: which there are and what they want,
 * what a client gives them besides rows and queries, what they keep, why they answer as they do.
 *
 * A part of memd.h, which includes it; the rules of that header (errors, memory, threads) hold.
 */
#ifndef MEMD_METHODS_H
#define MEMD_METHODS_H

#include "memd.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- which there are ---- */

/* What a memory method can be told when a context is made with it. */
struct memd_option {
    const char *name, *help;
    double fallback;    /* in force where it is not given */
    double least, most; /* what may be given */
    bool whole;         /* whole numbers only */
    const char *const *choices; /* or one of these names, `fallback` the place of one of them */
    size_t choice_count;        /* 0: a number */
};

/* A tensor that a client uploads for it. */
struct memd_method_tensor {
    const char *name;
    const char *shape; /* a letter for each axis: G, H, D of the model, W of a state, h = any, but
                        * the same in all tensors that name it */
    const char *help;
};

/* What depends on options is said of those that are in force where none are given. */
struct memd_method {
    const char *name, *help;
    const struct memd_option *options;
    size_t option_count;
    bool is_default; /* of contexts that are made without naming one */
    const struct memd_method_tensor *tensors;
    size_t tensor_count;
    bool takes_mass;      /* attention mass of tokens: scores of memd_append */
    bool compresses;      /* a prompt, once */
    bool wants_queries;   /* with every append */
    bool samples_queries; /* with the first append of a layer, and some later ones */
    bool wants_marks;     /* with appends */
    bool folds;           /* keeps a state of its own */
    uint32_t state_width; /* W where it keeps states instead of K and V, 0 = it keeps rows */
};

struct memd_methods {
    const struct memd_method *methods;
    size_t count;
};

/* The memory methods that the daemon has. */
MEMD_API int memd_methods(struct memd_client *client, const struct memd_methods **ret_methods,
                          struct memd_error *err);

/* ---- what they take ---- */

/* Attention mass that n tokens of a layer have received since it was last told: for methods that
 * choose by it (memd_method.takes_mass). */
struct memd_mass {
    uint32_t layer;
    uint64_t position; /* of the first token */
    size_t tokens;     /* n >= 1 */
    const void *mass;  /* (n, H) */
    enum memd_dtype dtype; /* MEMD_DTYPE_NONE = MEMD_FP32 */
};

/* Add to what is known of stored tokens. Sent once: MEMD_ECLOSED leaves open whether it was added.
 * Errors   MEMD_ENOCONTEXT · MEMD_EUNSUPPORTED · MEMD_EPOSITION not stored · MEMD_ENONFINITE ·
 *          MEMD_EINVAL negative */
MEMD_API int memd_observe(const struct memd_context *context, const struct memd_mass *mass,
                          struct memd_error *err);

/* One layer of a prompt. */
struct memd_compress {
    uint32_t layer;
    uint64_t tokens;  /* of the prompt; 0 = all that is stored */
    const void *q;    /* (w, H, D): queries of the prompt's last w tokens, where the method wants
                       * them, or NULL */
    size_t queries;   /* w */
    enum memd_dtype q_dtype;
};

/* Let the method choose what it keeps of a prompt (memd_method.compresses): from now on queries of
 * these layers read that and everything behind the prompt. Rows stay stored. Layer after layer,
 * each committed when it is done; an error ends it, and those before it are done. ret_kept (count):
 * tokens kept of each layer, over all heads.
 * Errors   MEMD_ENOCONTEXT · MEMD_EUNSUPPORTED · MEMD_EEXIST compressed already · MEMD_EPOSITION ·
 *          MEMD_EINVAL queries are missing */
MEMD_API int memd_compress(const struct memd_context *context, const struct memd_compress *layers,
                           size_t count, uint64_t *ret_kept, struct memd_error *err);

/* ---- what they tell ---- */

/* What a method keeps of a layer, in numbers. */
struct memd_fact {
    const char *name; /* "tokens" folded into it, "bytes" of memory, and what the method tells */
    double value;
};

struct memd_layer_state {
    uint32_t layer;
    const struct memd_fact *facts;
    size_t fact_count;
};

struct memd_states {
    const struct memd_layer_state *layers; /* in use; none where the method keeps no state */
    size_t count;
};

/* The states of a context, brought up to date; it becomes resident. Errors   MEMD_ENOCONTEXT */
MEMD_API int memd_states(const struct memd_context *context, const struct memd_states **ret_states,
                         struct memd_error *err);

struct memd_explain_args {
    uint32_t layer;
    uint64_t query;      /* 0 = the newest, 1 = the one before it … */
    double target_error; /* as in memd_query */
    uint64_t max_bytes;
};

/* What was read for a query. */
struct memd_explained {
    uint64_t queries;  /* that are kept; 0: nothing below means anything */
    uint64_t position; /* of the query */
    uint64_t tokens;   /* of the layer */
    const float *lse;  /* (H) of the answer */
    size_t heads;      /* H */
    const struct memd_plan *plan;
    struct memd_quality quality;
};

/* One of the queries of memd_recall again, over everything that is stored now, with what is read
 * for it and why. Errors   as memd_attend · MEMD_ENOROW queries are kept, but not so many */
MEMD_API int memd_explain(const struct memd_context *context, const struct memd_explain_args *args,
                          const struct memd_explained **ret_explained, struct memd_error *err);

#ifdef __cplusplus
}
#endif

#endif
