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

#define MEMD_ALL_LAYERS UINT32_MAX

/* A tensor for a method (memd_method.tensors). */
struct memd_param {
    const char *name;
    uint32_t layer;        /* or MEMD_ALL_LAYERS */
    const void *value;     /* of shape (shape[0], … shape[dims - 1]) */
    enum memd_dtype dtype; /* MEMD_DTYPE_NONE = MEMD_FP32 */
    uint32_t dims;         /* 1 … 4 */
    size_t shape[4];
};

/* Upload tensors (at most 4,096) for one context, in place of those that were there. Committed when
 * it returns; one after the other, an error leaves those before it.
 * Errors   MEMD_ENOCONTEXT · MEMD_EINVAL no such tensor · MEMD_ESHAPE · MEMD_ENONFINITE ·
 *          MEMD_EUNSUPPORTED the context uses a set · MEMD_EFULL */
MEMD_API int memd_put_params(const struct memd_context *context, const struct memd_param *params,
                             size_t count, struct memd_error *err);

/* Tensors that contexts share: those that are opened with the parameter params = name, with this
 * model and method. */
struct memd_param_set {
    const char *name; /* as that of a context */
    const struct memd_model *model;
    const char *method;
    const struct memd_parameter *parameters;
    size_t parameter_count;
};

/* The same for a set; its first tensor makes it.
 * Errors   MEMD_EMISMATCH it is for another model or method · those of memd_put_params and
 *          memd_open */
MEMD_API int memd_put_shared_params(struct memd_client *client, const struct memd_param_set *set,
                                    const struct memd_param *params, size_t count,
                                    struct memd_error *err);
/* Errors   MEMD_EINVAL there is none · MEMD_EBUSY a context uses it */
MEMD_API int memd_drop_shared_params(struct memd_client *client, const char *set,
                                     uint64_t *ret_bytes, struct memd_error *err);

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
