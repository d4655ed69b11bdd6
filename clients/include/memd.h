/* SPDX-License-Identifier: Apache-2.0 */
/* memd.h — the C client of memd: a language model's past, kept by a daemon, attended over here.
 *
 *     struct memd_client *client;
 *     struct memd_context book;
 *     memd_connect("unix:/run/memd/memd.sock", NULL, &client, &err);
 *     memd_open(client, &(struct memd_open){ .name = "book", .model = &model, .create = true },
 *               &book, &err);
 *     memd_append(&book, &(struct memd_append){ .layer = 0, .position = 0, .tokens = n,
 *                                               .k = k, .v = v },
 *                 1, MEMD_ACK_COMMITTED, NULL, &err);
 *     memd_attend(&(struct memd_query){ .context = &book, .layer = 0, .queries = 1, .q = q,
 *                                       .positions = &n, .o = o, .lse = lse }, NULL, &err);
 *
 * SHAPES    Letters: n tokens or queries of one call, L layers, H query heads, G KV heads (H % G ==
 *           0; query head h reads KV head h / (H / G)), D head dimension. A comment such as (n, G,
 *           D) is the shape of the array: dense, row-major, last axis contiguous, little-endian.
 *           W: numbers of a state, for memory methods that keep states instead of K and V.
 *
 * ERRORS    Functions that can fail return 0 or a negative MEMD_E… code and, when `err` is not
 *           NULL, fill it with a sentence for a human. Out-parameters `ret_x` are written only on
 *           success; they may be NULL where nobody wants them, unless said otherwise. Every call
 *           that talks to the daemon can return, besides what stands at the function:
 *             MEMD_EDEADLINE      options.timeout_ms passed
 *             MEMD_ECLOSED        the connection was lost and the request cannot be repeated safely
 *             MEMD_EBUSY          the daemon has too much to do; nothing was done, try again later
 *             MEMD_EDRAINING      the daemon is going down and takes no new work
 *             MEMD_EPERM          this client may not do that (docs/PROTOCOL.md, "Roles")
 *             MEMD_EUNSUPPORTED   the daemon does not know this request
 *             MEMD_ELIMIT         larger than one request or reply may be (proto/limits.h)
 *             MEMD_EPROTO, MEMD_EVERSION  the other side does not speak this protocol
 *             MEMD_ENOMEM, MEMD_EIO
 *
 * MEMORY    Arrays of the caller are sent from where they are and never copied (those in shared
 *           memory do not even travel, see memd_region.h), so they must stay
 *           as they are until the call, or memd_wait on its ticket, has returned. Results (`const
 *           struct memd_x **ret_x`) belong to the client: read-only, valid until memd_free(result),
 *           and no longer than the client. Strings in results end in a zero.
 *
 * THREADS   There is nothing global. Several threads may share one client: their requests travel
 *           over its one connection at the same time, none waits for another's answer. A ticket or
 *           a result belongs to one thread at a time. memd_close: when no other thread uses the
 *           client. A client does not survive fork(2) in the child.
 *
 * LOST CONNECTIONS  When the daemon goes away (restart, crash, network), the next call reconnects
 *           and waits for it until timeout_ms has passed. Requests that were under way are sent
 *           again, in their order, when doing them twice is the same as doing them once: all that
 *           only read, open (without must_create), pin, and append, since the daemon accepts an
 *           append of bytes that it already has. The others (fork, drop, truncate, compact, drain,
 *           open with must_create) return MEMD_ECLOSED when the connection was lost after the first
 *           byte was sent: whether they were done is unknown, ask with memd_stat_name or memd_list.
 *           A daemon that crashed has forgotten tokens that were acknowledged with MEMD_ACK_MEMORY
 *           only: appending behind them gives MEMD_EPOSITION; go on from memd_info.tokens.
 *
 * VERSIONS  Structs only grow, at their end, and zero there means what it was like without; for
 *           that programs are compiled anew, so the number of the shared library (libmemd.so.N)
 *           grows too. The daemon may be older or newer: what it does not know is
 *           MEMD_EUNSUPPORTED.
 */
#ifndef MEMD_H
#define MEMD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MEMD_API __attribute__((visibility("default")))

/* ---- errors ---- */

/* The values are part of the protocol: never renumbered, only added to. */
#ifndef MEMD_BASE_ERROR_H /* memd's own sources have this enum from base/error.h */
enum memd_code {
    MEMD_EINVAL = -1,       /* an argument makes no sense */
    MEMD_ESHAPE = -2,       /* shape, count or dtype does not fit the model */
    MEMD_EPOSITION = -3,    /* position does not continue what is stored */
    MEMD_ENONFINITE = -4,   /* NaN or infinity in appended rows or queries */
    MEMD_ENOCONTEXT = -5,   /* no such context (dropped, evicted, never made) */
    MEMD_EEXIST = -6,       /* there is a context with that name */
    MEMD_EMISMATCH = -7,    /* model or method differs from the stored one */
    MEMD_ENOROW = -8,       /* a row asked for is not stored */
    MEMD_EPROTO = -9,       /* malformed frame or message */
    MEMD_EVERSION = -10,    /* protocol version is not supported */
    MEMD_EUNSUPPORTED = -11, /* not supported by this daemon, method or context */
    MEMD_EPERM = -12,       /* not permitted for this client */
    MEMD_EBUSY = -13,       /* too much work at once, try again */
    MEMD_ELIMIT = -14,      /* a limit was exceeded */
    MEMD_EFULL = -15,       /* no space left: disk, map or byte budget */
    MEMD_ENOMEM = -16,      /* out of memory */
    MEMD_EIO = -17,         /* input or output failed */
    MEMD_ECORRUPT = -18,    /* stored bytes do not match their checksum or header */
    MEMD_EDEADLINE = -19,   /* deadline passed before the answer was ready */
    MEMD_ECANCELLED = -20,  /* cancelled */
    MEMD_EDRAINING = -21,   /* daemon is draining and takes no new work */
    MEMD_ECLOSED = -22,     /* connection closed */
    MEMD_ELOCKED = -23,     /* data directory is in use by another daemon */
    MEMD_EDEVICE = -24      /* accelerator failed */
};
#endif

enum { MEMD_ERROR_TEXT_BYTES = 256 };

/* Detail of a failure; a plain object of the caller. `text` says what and where, with numbers. */
struct memd_error {
    int code;
    char text[MEMD_ERROR_TEXT_BYTES];
};

/* "MEMD_EBUSY" and "too much work at once, try again". Never NULL, static. */
MEMD_API const char *memd_error_name(int code);
MEMD_API const char *memd_error_text(int code);

/* ---- connection ---- */

struct memd_client;

#define MEMD_NO_TIMEOUT UINT32_MAX

/* All zero is a good choice. */
struct memd_options {
    uint32_t timeout_ms;     /* of every call, reconnecting included; 0 = 30,000 */
    const char *token;       /* secret of a TCP listener, or NULL */
    const char *client_name; /* for the daemon's log and `memctl status`, or NULL = "libmemd" */
};

/* Connect to "unix:/path", "tcp:host:port" or "tcp:[v6address]:port" and introduce ourselves. Does
 * not wait for a daemon that is not there: MEMD_ECLOSED. The options are copied. ret_client is
 * required. Errors   MEMD_EINVAL address · MEMD_ECLOSED nobody listens · MEMD_EPERM token is
 * missing or wrong */
MEMD_API int memd_connect(const char *address, const struct memd_options *options,
                          struct memd_client **ret_client, struct memd_error *err);

/* Close the connection. Unfinished requests are forgotten; tickets and results must have been
 * freed. NULL is fine. */
MEMD_API void memd_close(struct memd_client *client);

/* Free a result of this client. NULL is fine. */
MEMD_API void memd_free(const void *result);

/* Since memd_connect; headers included. */
struct memd_counters {
    uint64_t bytes_sent, bytes_received, requests, reconnects;
};
MEMD_API void memd_get_counters(struct memd_client *client, struct memd_counters *ret_counters);

/* What the daemon said about itself. */
struct memd_hello {
    uint32_t version;                  /* of the protocol */
    const char *build;                 /* "memd 0.1.0" */
    const char *role;                  /* "read", "write" or "admin" */
    const char *const *features;
    size_t feature_count;
    const char *const *methods;        /* memory methods that memd_open accepts */
    size_t method_count;
    uint64_t message_bytes_max, payload_bytes_max, requests_in_flight_max;
};
MEMD_API int memd_hello(struct memd_client *client, const struct memd_hello **ret_hello,
                        struct memd_error *err);

/* ---- contexts ---- */

enum memd_dtype {
    MEMD_DTYPE_NONE = 0, /* in calls: that of the model */
    MEMD_FP32 = 1,
    MEMD_FP16 = 2,
    MEMD_BF16 = 3
};

enum memd_rope_pairing {
    MEMD_ROPE_HALF = 0,       /* dimension i turns with i + rotary_dims/2 (Llama in HF, NeoX) */
    MEMD_ROPE_INTERLEAVED = 1 /* dimension 2i turns with 2i+1 (GPT-J, original Llama) */
};

enum memd_rope_scaling {
    MEMD_ROPE_SCALING_NONE = 0,
    MEMD_ROPE_SCALING_LINEAR = 1,
    MEMD_ROPE_SCALING_LLAMA3 = 2,
    MEMD_ROPE_SCALING_YARN = 3
};

/* 0 where a scaling does not use a field, and for the usual value. */
struct memd_rope {
    double theta;
    enum memd_rope_pairing pairing;
    enum memd_rope_scaling scaling;
    double factor;                            /* linear, llama3, yarn: >= 1 */
    double low_freq_factor, high_freq_factor; /* llama3 */
    uint64_t original_context;                /* llama3, yarn: original_max_position_embeddings */
    double beta_fast, beta_slow;              /* yarn, 0 = 32 and 1 */
    double attention_factor;                  /* yarn, 0 = 0.1 ln(factor) + 1 */
    uint32_t rotary_dims;                     /* leading dimensions that turn, 0 = head_dim */
};

/* What the bytes of a context mean. It is stored with the context; a client that believes otherwise
 * gets MEMD_EMISMATCH and never a row. */
struct memd_model {
    uint32_t layers;              /* L, 1 … 1,024 */
    uint32_t query_heads;         /* H, 1 … 1,024, a multiple of G */
    uint32_t kv_heads;            /* G */
    uint32_t head_dim;            /* D, 8 … 1,024, a multiple of 8 */
    enum memd_dtype dtype;        /* of K and V: FP32, FP16 or BF16 */
    const struct memd_rope *rope; /* NULL: keys are opaque, original positions only */
    bool rotated;                 /* keys and queries are sent with RoPE applied */
    double attention_scale;       /* 0 = 1/sqrt(D) */
    const char *fingerprint;      /* free text, compared byte by byte; NULL = "" */
};

struct memd_parameter {
    const char *name, *value;
};

struct memd_open {
    const char *name;               /* 1 … 255 bytes of UTF-8 without control characters */
    const struct memd_model *model; /* needed to create; NULL = whatever is stored */
    const char *method; /* memory method; NULL = "progressive" or whatever is stored */
    const struct memd_parameter *parameters; /* of the method; see memd_methods */
    size_t parameter_count;
    bool create;      /* make it when it does not exist */
    bool must_create; /* MEMD_EEXIST when it does */
};

/* An open context: plain data, nothing to free. It holds the daemon's number of the context, which
 * stays the same over restarts, so it goes on working when the daemon comes back. */
struct memd_context {
    struct memd_client *client;
    uint64_t id;
    uint32_t layers, query_heads, kv_heads, head_dim;
    enum memd_dtype dtype;
    uint64_t tokens;        /* when it was opened: common to all layers in use */
    uint64_t synced_tokens; /* of those, on the disk */
    bool created;           /* by this call */
    uint32_t state_width;   /* W where the method keeps states, 0 = it keeps K and V */
};

/* Open a context by name. ret_context is required.
 * Errors   MEMD_ENOCONTEXT · MEMD_EEXIST · MEMD_EMISMATCH (the text names the field) · MEMD_EINVAL
 *          name,
 *          model or parameter · MEMD_EUNSUPPORTED method · MEMD_EFULL · MEMD_ECORRUPT */
MEMD_API int memd_open(struct memd_client *client, const struct memd_open *args,
                       struct memd_context *ret_context, struct memd_error *err);

/* Cut all layers back to `position` tokens; layers that hold fewer stay. Committed when it returns.
 * Errors   MEMD_ENOCONTEXT · MEMD_EPOSITION holds fewer · MEMD_EFULL */
MEMD_API int memd_truncate(const struct memd_context *context, uint64_t position,
                           uint64_t *ret_tokens, struct memd_error *err);

struct memd_fork {
    const char *name;
    const char *method; /* another way to read the same tokens; NULL = that of the context */
    const struct memd_parameter *parameters; /* of that method; none and no method: the same ones */
    size_t parameter_count;
};

/* A second context with the tokens that this one has now; sealed segments are shared, not copied.
 * With a method or parameters of its own, what was kept for the other method alone (what Compress
 * chose, observed mass, uploaded tensors) stays behind.
 * Errors   MEMD_ENOCONTEXT · MEMD_EEXIST · MEMD_EINVAL name or parameter · MEMD_EFULL ·
 *          MEMD_EUNSUPPORTED the method needs things of each token that are not stored */
MEMD_API int memd_fork(const struct memd_context *context, const struct memd_fork *args,
                       struct memd_context *ret_fork, struct memd_error *err);

/* Remove a context; *ret_bytes = bytes given back, shared ones not counted.
 * Errors   MEMD_ENOCONTEXT */
MEMD_API int memd_drop(const struct memd_context *context, uint64_t *ret_bytes,
                       struct memd_error *err);

/* Keep from eviction for `seconds` (at most 30 days; 0 = no longer).
 * Errors   MEMD_ENOCONTEXT · MEMD_ELIMIT */
MEMD_API int memd_pin(const struct memd_context *context, uint64_t seconds,
                      uint64_t *ret_until_unix_ms, struct memd_error *err);

struct memd_info {
    uint64_t id;
    const char *name;
    struct memd_model model;
    const char *method;
    const struct memd_parameter *parameters;
    size_t parameter_count;
    uint64_t tokens;           /* common to all layers in use */
    uint64_t committed_tokens; /* survive the death of the daemon */
    uint64_t synced_tokens;    /* survive loss of power */
    const uint64_t *layer_tokens; /* (L) */
    size_t layer_count;
    uint64_t stored_bytes;     /* as if nothing were shared */
    uint64_t shared_bytes;     /* of those, in segments that other contexts hold too */
    uint64_t sealed_segments;
    uint64_t created_unix_ms, used_unix_ms, pinned_until_unix_ms;
    uint64_t parent_id;        /* fork of; 0 = none */
    bool resident;             /* open in the daemon's memory */
    uint64_t built_segments;   /* of sealed_segments, those whose planes are made */
    uint64_t indexed_tokens;   /* tokens in the index of every layer in use, where there is one */
    uint64_t derived_bytes;    /* of stored_bytes, what is made from the rows and can be again */
    uint32_t state_width;      /* as in memd_context */
};

/* Errors   MEMD_ENOCONTEXT */
MEMD_API int memd_stat(const struct memd_context *context, const struct memd_info **ret_info,
                       struct memd_error *err);
MEMD_API int memd_stat_name(struct memd_client *client, const char *name,
                            const struct memd_info **ret_info, struct memd_error *err);

struct memd_list {
    const struct memd_info *contexts; /* by name, ascending */
    size_t count;
    bool more; /* go on with after = name of the last */
};

struct memd_list_args {
    const char *prefix; /* of the names, NULL = all */
    const char *after;  /* names that sort after this one, NULL = from the start */
    uint32_t limit;     /* at most so many, 0 = 1,024, the most there can be */
};
MEMD_API int memd_list(struct memd_client *client, const struct memd_list_args *args,
                       const struct memd_list **ret_list, struct memd_error *err);

/* ---- data ---- */

/* What a token is to a method: bits of a mark. */
enum memd_mark {
    MEMD_MARK_LANDMARK = 1, /* ends a block and stands for it */
    MEMD_MARK_SPECIAL = 2   /* BOS, EOS, padding: not to be retrieved */
};

/* n tokens of one layer. memd_methods says what a method wants of it. */
struct memd_append {
    uint32_t layer;
    uint64_t position;         /* of the first token */
    size_t tokens;             /* n >= 1 */
    const void *k, *v;         /* (n, G, D), the model's dtype */
    const void *q;             /* (n, H, D): the queries of those tokens, or NULL */
    enum memd_dtype q_dtype;
    const uint32_t *token_ids; /* (n), or NULL */
    const uint8_t *marks;      /* (n) bits of enum memd_mark, or NULL: none is marked */
    const void *scores;        /* (n, H) attention mass that they have received, or NULL */
    enum memd_dtype scores_dtype;
    const void *states; /* (n, W), the model's dtype, instead of k and v where the method keeps
                         * states */
};

enum memd_ack {
    MEMD_ACK_COMMITTED = 0, /* in the store: survives the death of the daemon */
    MEMD_ACK_MEMORY = 1,    /* in the daemon's memory */
    MEMD_ACK_SYNCED = 2     /* on the disk: survives loss of power */
};

struct memd_progress {
    uint64_t tokens;           /* least token count of the layers of this append, visible now */
    uint64_t committed_tokens; /* of the context, common to all layers in use */
    uint64_t synced_tokens;
};

/* Append to `count` layers (at most 1,024, 256 MiB in all), all or none, and return when the tokens
 * are as safe as `ack` says. Position p of a layer that holds t tokens: p == t appends; p < t is
 * accepted where it repeats stored bytes exactly, and what goes beyond t is appended.
 * Errors   MEMD_ENOCONTEXT · MEMD_EPOSITION · MEMD_ESHAPE · MEMD_ENONFINITE · MEMD_EFULL */
MEMD_API int memd_append(const struct memd_context *context, const struct memd_append *layers,
                         size_t count, enum memd_ack ack, struct memd_progress *ret_progress,
                         struct memd_error *err);

#define MEMD_EXACT (-1.0)        /* as target_error: exact, whatever the context's is */
#define MEMD_NO_BOUND UINT64_MAX /* as max_bytes: no bound, whatever the context's is */

/* What a query makes of the newest rows of a layer, which a daemon with a device keeps there. */
enum memd_window {
    MEMD_WINDOW_ANY = 0,      /* as the daemon sees fit */
    MEMD_WINDOW_RESIDENT = 1, /* the device is to answer, from those rows exactly, while the others
                               * travel; where there is none, or it cannot, the CPU answers */
    MEMD_WINDOW_NONE = 2      /* no device: the CPU answers, nothing is brought into a window */
};

/* n queries to one layer of one context. What is left zero at the end is the context's choice. */
struct memd_query {
    const struct memd_context *context;
    uint32_t layer;
    size_t queries;            /* n, 1 … 4,096 */
    const void *q;             /* (n, H, D) */
    enum memd_dtype q_dtype;
    const uint64_t *positions; /* (n): position of each query, for RoPE */
    const uint64_t *limits;    /* (n): see tokens at positions < limit; NULL: everything stored */
    float *o;                  /* attend: (n, H, D) to be filled, or NULL: see memd_answer */
    float *lse;                /* attend: (n, H) to be filled, or NULL */
    double target_error; /* wanted relative L2 error of o for each query head, at most 1; 0 = the
                          * context's, MEMD_EXACT = exact */
    uint64_t max_bytes;  /* to be read for this query at most, as far as the method can choose; 0 =
                          * the context's, MEMD_NO_BOUND = none */
    const void *states;  /* (n, W) of the queries, where the method keeps states, or NULL */
    enum memd_dtype states_dtype;
    bool explain;           /* attend: memd_answer.plan says what was read; at most 16 of a batch */
    const float *local_o;   /* attend: (n, H, D) and (n, H), the caller's own attention over its */
    const float *local_lse; /* window: the answer is then of both together; or both NULL */
    double rope_theta; /* attend: keys and queries are rotated with this base; 0 = the model's */
    enum memd_window window; /* attend */
};

/* The levels that an answer can be made from, coarse to exact. */
enum memd_level {
    MEMD_LEVEL_CLUSTERS = 0, /* a centroid and a mean value for several tokens */
    MEMD_LEVEL_HI = 1,       /* 4-bit codes of K and V */
    MEMD_LEVEL_LO = 2,       /* 8-bit codes */
    MEMD_LEVEL_EXACT = 3,    /* the rows as appended */
    MEMD_LEVELS = 4
};

/* What an answer was made from. Arrays are (n, H) unless said otherwise. */
struct memd_quality {
    const char *method;
    bool exact;                   /* nothing was left out or approximated */
    const float *predicted_error; /* relative L2 error of o, NaN where the method cannot tell; or
                                   * NULL = all 0 */
    const float *mass;            /* share of the softmax mass read exactly, or NULL = all 1 */
    const bool *limited;          /* a budget cut it short, or NULL = all false */
    uint64_t rows;                /* K and V rows read, over all heads and levels */
    uint64_t bytes_read;
    uint64_t bytes_exact;         /* what exact attention would have read */
    uint64_t tokens;              /* tokens of the layer that the answer saw */
    const float *level_mass; /* (n, H, MEMD_LEVELS): share of the softmax mass answered from each
                              * level; what is missing to 1 was left out; NULL = all exact */
    uint64_t level_rows[MEMD_LEVELS];  /* of rows */
    uint64_t level_bytes[MEMD_LEVELS]; /* of bytes_read */
    uint64_t window_tokens; /* of tokens, read exactly in a device's resident window */
};

#define MEMD_UNPLACED UINT64_MAX /* not rotated at all */

/* What the ids of a run count, and how a group of runs entered the answer. */
enum memd_plan_kind {
    MEMD_PLAN_TOKENS = 0, /* positions in the layer */
    MEMD_PLAN_SLOTS = 1   /* entries of the method's state */
};
enum memd_plan_merge {
    MEMD_PLAN_JOINT = 0,   /* one softmax with everything else */
    MEMD_PLAN_GATED = 1,   /* the softmax of the group alone, times its weight */
    MEMD_PLAN_SEPARATE = 2 /* the answer is of these rows alone */
};

/* Rows that follow each other and were read together. */
struct memd_plan_run {
    uint32_t query;        /* of the item */
    uint32_t head, heads;  /* query heads head … head + heads - 1 */
    uint32_t group;        /* place in memd_plan.groups */
    enum memd_plan_kind kind;
    uint64_t first, count; /* ids */
    uint64_t placed;       /* where key `first` was rotated, the others behind; or MEMD_UNPLACED */
    uint64_t query_placed; /* where the query was rotated */
    float share;           /* of the answer, mean of its heads; NaN = it cannot be told */
};

struct memd_plan_group {
    uint32_t query, head; /* gated: of one query head */
    enum memd_plan_merge merge;
    float weight; /* share of the answer; 1 where it is not gated */
};

/* What was read for an answer, and how it entered it. */
struct memd_plan {
    const struct memd_plan_run *runs;
    size_t run_count;
    const struct memd_plan_group *groups; /* group 0 is joint */
    size_t group_count;
    bool cut; /* more was read than is told here */
};

/* Attention over the remembered tokens. Two answers over disjoint tokens, such as this one and the
 * caller's own window, merge: L = log(sum exp(lse_i)), o = sum exp(lse_i - L) o_i. */
struct memd_answer {
    int status;       /* 0, or the error of this item alone: then nothing below is set */
    const char *text; /* of the error */
    const float *o;   /* (n, H, D): the caller's array when there is one, else the client's */
    const float *lse; /* (n, H): natural log; -inf (and o = 0) where nothing was visible */
    struct memd_quality quality;
    const struct memd_plan *plan; /* where query.explain, else NULL */
};

/* Ask one query. ret_answer may be NULL when o and lse are the caller's. An error of the item is
 * the error of the call.
 * Errors   MEMD_ENOCONTEXT · MEMD_ESHAPE · MEMD_ENONFINITE · MEMD_EINVAL layer, target_error ·
 *          MEMD_ELIMIT too many queries at a time · MEMD_EUNSUPPORTED the method cannot answer
 *          (yet) · MEMD_ECORRUPT */
MEMD_API int memd_attend(const struct memd_query *query, const struct memd_answer **ret_answer,
                         struct memd_error *err);

struct memd_hits {
    size_t k;
    const uint64_t *ids;  /* (n, H, k): token positions, best first; UINT64_MAX = none left */
    const float *scores;  /* (n, H, k): scale * q.k; -inf = none left */
    struct memd_quality quality;
};

/* The k best tokens (1 … 65,536) of each query head. ret_hits is required; query->o, lse are
 * ignored. Errors   as memd_attend */
MEMD_API int memd_search(const struct memd_query *query, uint32_t k,
                         const struct memd_hits **ret_hits, struct memd_error *err);

struct memd_fetch {
    const struct memd_context *context;
    uint32_t layer;
    const uint64_t *ids; /* (m): token positions, any order, repeats allowed */
    size_t count;        /* m, 1 … 65,536 */
    void *k, *v;         /* (m, G, D) to be filled, or NULL: see memd_rows */
    void *states;        /* (m, W) to be filled where the context keeps states, or NULL */
};

struct memd_rows {
    const void *k, *v;         /* (m, G, D), as appended, bit for bit */
    const uint32_t *token_ids; /* (m), or NULL when the layer does not have them for all */
    const void *states;        /* (m, W) where the context keeps states: k and v are NULL then */
};

/* Rows by position. ret_rows may be NULL when k and v (or states) are the caller's.
 * Errors   MEMD_ENOCONTEXT · MEMD_ENOROW · MEMD_EINVAL · MEMD_ECORRUPT */
MEMD_API int memd_fetch(const struct memd_fetch *fetch, const struct memd_rows **ret_rows,
                        struct memd_error *err);

/* ---- several requests at a time ----
 *
 * submit sends what the socket takes at once and returns; the rest goes out and answers come in
 * while some thread is in memd_wait or memd_poll. Everything that a request points to must stay
 * until its ticket is finished or freed. Answers come in any order; appends are done in that in
 * which they were submitted, whatever contexts they are about: another client does not wait. */

struct memd_ticket;

/* 0, or what went wrong before anything was sent: then there is no ticket. ret_ticket is required.
 * A batch of queries may go to any contexts of one client; each has a memd_answer of its own. */
MEMD_API int memd_submit_append(const struct memd_context *context,
                                const struct memd_append *layers, size_t count, enum memd_ack ack,
                                struct memd_ticket **ret_ticket, struct memd_error *err);
MEMD_API int memd_submit_attend(const struct memd_query *queries, size_t count,
                                struct memd_ticket **ret_ticket, struct memd_error *err);
MEMD_API int memd_submit_search(const struct memd_query *query, uint32_t k,
                                struct memd_ticket **ret_ticket, struct memd_error *err);
MEMD_API int memd_submit_fetch(const struct memd_fetch *fetch, struct memd_ticket **ret_ticket,
                               struct memd_error *err);

/* Wait for the answer: 0, or the error of the request. Can be called again, with the same outcome.
 * */
MEMD_API int memd_wait(struct memd_ticket *ticket, struct memd_error *err);

/* 1 when the answer is there and memd_wait will not block, 0 when not. Sends and receives what can
 * be done without waiting; only a lost connection is waited for while it is made again. */
MEMD_API int memd_poll(struct memd_ticket *ticket);

/* Results of a ticket that memd_wait returned 0 for; valid until memd_ticket_free. Asking a ticket
 * of another kind is a programming error (assert). Single errors of a batch stand in
 * answers[i].status. */
MEMD_API const struct memd_progress *memd_ticket_progress(const struct memd_ticket *ticket);
MEMD_API const struct memd_answer *memd_ticket_answers(const struct memd_ticket *ticket,
                                                       size_t *ret_count);
MEMD_API const struct memd_hits *memd_ticket_hits(const struct memd_ticket *ticket);
MEMD_API const struct memd_rows *memd_ticket_rows(const struct memd_ticket *ticket);

/* Finished or not; an unfinished request is forgotten (it may still be done, the caller's arrays
 * are not touched any more). NULL is fine. */
MEMD_API void memd_ticket_free(struct memd_ticket *ticket);

#ifdef __cplusplus
}
#endif

#include "memd_methods.h"   /* memory methods: which there are, what they take, what they tell */
#include "memd_operation.h" /* health, statistics, proofs, repairs */
#include "memd_region.h"    /* memory that is shared with a daemon on the same host */

#endif
