/* SPDX-License-Identifier: Apache-2.0 */
/* catalog.h — all contexts of one data directory: open, find, list, drop, evict, verify.
 *
 * One daemon per directory: catalog_open takes an exclusive lock on DIR/lock (MEMD_ELOCKED). The
 * catalog owns the store (LMDB), the writer thread and the resident contexts. A context becomes
 * resident when it is first pinned and leaves memory again when nobody has used it for a while
 * and memory is wanted.
 *
 * Pins     catalog_open_context and catalog_pin give a pinned context; the pin is released when
 *          `arena` is reset, on every path.
 * Threads  everything here may be called from any worker thread, nothing from the loop thread
 *          but what is marked "loop": other calls read the disk or wait for the writer.
 * Errors   MEMD_ENOCONTEXT · MEMD_EEXIST · MEMD_EMISMATCH · MEMD_EFULL disk, map or budget ·
 *          MEMD_ECORRUPT · MEMD_EIO · MEMD_ENOMEM · MEMD_ELIMIT · MEMD_EINVAL
 * Tests    tests/unit/test_catalog.c, tests/fault, tests/daemon
 */
#ifndef MEMD_MEMORY_CATALOG_H
#define MEMD_MEMORY_CATALOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "index/index.h"
#include "memory/context.h"
#include "memory/model.h"
#include "proto/limits.h"

struct accelerator;
struct arena;
struct catalog;
struct context;
struct error;
struct pool;
struct tensor;

enum sync_mode { SYNC_ALWAYS, SYNC_INTERVAL, SYNC_NEVER };

struct catalog_config {
    const char *path;        /* directory, made when missing (mode 0700) */
    uint64_t map_bytes;      /* LMDB map, sparse; the most the store can ever hold */
    uint64_t budget_bytes;   /* evict above this; 0 = none */
    uint64_t tail_bytes_max; /* RAM for tokens that are not committed; MEMD_EBUSY above */
    enum sync_mode sync;
    uint64_t sync_interval_ms; /* SYNC_INTERVAL */
    size_t contexts_max;       /* resident at once */
    uint64_t resident_bytes_max; /* RAM for open tails, folds, uploaded tensors and tables
                                  * of centroids (half of it at most); idle
                                  * contexts leave memory above */
    struct pool *pool;         /* attention inside an answer is split over it; may be NULL */
    struct accelerator *accelerator; /* asked before the CPU; outlives the catalog; may be NULL */
    /* Called on the writer thread after every commit or sync that may have fulfilled a waiter. */
    void (*on_progress)(void *arg);
    void *on_progress_arg;
};

int catalog_open(const struct catalog_config *config, struct catalog **ret_catalog,
                 struct error *err);

/* Commit and sync everything, close. No context may be pinned. NULL is fine. */
void catalog_close(struct catalog *catalog);

/* Change sync mode and budget of a running catalog (SIGHUP). */
void catalog_reconfigure(struct catalog *catalog, const struct catalog_config *config);

enum { METHOD_NAME_BYTES = 32 };
struct parameter {
    char name[LIMIT_PARAMETER_BYTES + 1];
    char value[LIMIT_PARAMETER_BYTES + 1];
};

struct open_args {
    const char *name;
    const struct model *model; /* checked; NULL = whatever is stored */
    const char *method;        /* "" = "progressive" or whatever is stored */
    const struct parameter *parameters;
    size_t parameter_count;
    bool create, must_create;
};

int catalog_open_context(struct catalog *catalog, const struct open_args *args, struct arena *arena,
                         struct context **ret_context, bool *ret_created, struct error *err);
int catalog_pin(struct catalog *catalog, uint64_t context_id, struct arena *arena,
                struct context **ret_context, struct error *err);
/* Loop: the same when the context is in memory already, without the disk and without waiting for
 * a lock that is held during I/O. False: use catalog_pin on a worker (which also tells why). */
bool catalog_pin_resident(struct catalog *catalog, uint64_t context_id, struct arena *arena,
                          struct context **ret_context);
int catalog_find(struct catalog *catalog, const char *name, uint64_t *ret_context_id,
                 struct error *err);

/* Copy-on-write: a context gets the tokens that the other has now. With another method, or other
 * parameters, it reads the same rows in another way: what was kept for the old method alone
 * (selections, observed mass, uploaded tensors) stays behind. MEMD_EUNSUPPORTED where the method
 * needs something of every token that is not stored with these. */
struct fork_args {
    const char *name;
    const char *method; /* NULL or "": the same, and the same parameters if none are given */
    const struct parameter *parameters;
    size_t parameter_count;
};
int catalog_fork(struct catalog *catalog, struct context *context, const struct fork_args *args,
                 uint64_t *ret_context_id, uint64_t *ret_tokens, struct error *err);

/* Remove a context in bounded transactions; its name is free at once. Waits until nothing pins
 * it, refuses new pins meanwhile. A crash in between is finished at the next catalog_open. */
int catalog_drop(struct catalog *catalog, uint64_t context_id, uint64_t *ret_bytes,
                 struct error *err);

/* Keep from eviction until now + seconds (0 = unpin). */
int catalog_retain(struct catalog *catalog, uint64_t context_id, uint64_t seconds,
                   uint64_t *ret_until_unix_ms, struct error *err);

/* Upload a tensor of a named set, in place of the one that was there; the first one makes the set.
 * It is for one method and one shape of model: contexts of these use it that were opened with the
 * parameter params=SET. Committed before it returns; residents that use it have it by then.
 * Errors   MEMD_EMISMATCH the set is for something else · those of context_put_param */
struct shared_param {
    const char *set;
    const struct model *model; /* checked */
    const char *method;
    const struct parameter *parameters;
    size_t parameter_count;
    const char *name;
    uint32_t layer; /* or PARAM_ALL_LAYERS */
    const struct tensor *value;
};
int catalog_put_shared_param(struct catalog *catalog, const struct shared_param *args,
                             struct error *err);
/* MEMD_EBUSY while a context uses it, MEMD_EINVAL when there is none. */
int catalog_drop_shared_params(struct catalog *catalog, const char *set, uint64_t *ret_bytes,
                               struct error *err);

struct context_info {
    uint64_t id, parent_id;
    char name[LIMIT_NAME_BYTES + 1];
    struct model model;
    char method[METHOD_NAME_BYTES];
    const struct parameter *parameters; /* arena */
    size_t parameter_count;
    uint64_t tokens, committed_tokens, synced_tokens;
    uint64_t stored_bytes, shared_bytes, sealed_segments;
    uint64_t derived_bytes;  /* of stored_bytes: planes and saved layer indexes */
    uint64_t built_segments; /* of sealed_segments: those that have planes */
    uint64_t indexed_tokens; /* below which every layer in use is in its layer index */
    uint64_t created_unix_ms, used_unix_ms, retained_until_unix_ms;
    const uint64_t *layer_tokens; /* (L) arena */
    bool resident;
};

int catalog_stat(struct catalog *catalog, uint64_t context_id, struct arena *arena,
                 struct context_info *ret_info, struct error *err);

/* Up to `limit` contexts with names that start with `prefix` and sort after `after`, ascending. */
struct list_args {
    const char *prefix, *after;
    size_t limit; /* 0 or more than LIMIT_LIST: LIMIT_LIST */
};
struct list_page {
    struct context_info *infos; /* (count) arena */
    size_t count;
    bool more;
};
int catalog_list(struct catalog *catalog, const struct list_args *args, struct arena *arena,
                 struct list_page *ret_page, struct error *err);

/* Where a walk over all records stands. The cursor is opaque bytes (arena); start with 0 bytes, go
 * on until it comes back with 0 bytes. */
struct walk_args {
    uint64_t context_id; /* 0 = the whole store */
    const void *cursor;
    size_t cursor_bytes;
    size_t limit; /* dump: records; 0 or more than LIMIT_LIST: LIMIT_LIST */
};

/* One bounded step (about 64 MiB or 100 ms) of checking every checksum, header and invariant. */
struct verify_step {
    const unsigned char *cursor;
    size_t cursor_bytes;
    uint64_t values, bytes, values_total;
    char **findings; /* arena; a few hundred at most per step */
    size_t finding_count;
    char **unchecked; /* the same: what could not be checked, and why; no damage */
    size_t unchecked_count;
};
int catalog_verify(struct catalog *catalog, const struct walk_args *args, struct arena *arena,
                   struct verify_step *ret_step, struct error *err);

/* Derived data (planes, layer indexes) is made from exact rows by a thread of the catalog, while
 * everything else goes on; what is not there yet is answered exactly. */
struct build_progress {
    uint64_t segments, built;       /* sealed segments that want planes; that have them */
    uint64_t indexes, built_indexes; /* layers that want a layer index; whose index is as new as it
                                      * is to be */
    uint64_t failures; /* of this context since it is resident: disk full, no memory, … */
    int last_failure;  /* 0 = the last attempt succeeded */
};
/* How far the context's derived data is. It becomes resident, so that it will be built. */
int catalog_built(struct catalog *catalog, uint64_t context_id, struct build_progress *ret_progress,
                  struct error *err);

/* Wait until nothing more can be built of the context now: all is built, or what is missing has
 * failed and is tried again later. `stop` as in struct query, may be NULL. */
int catalog_wait_built(struct catalog *catalog, uint64_t context_id, int (*stop)(void *arg),
                       void *stop_arg, struct build_progress *ret_progress, struct error *err);

/* Delete the derived data of one context, in bounded transactions; the builder makes it again.
 * Waits for queries that read it. With context_id 0 the step takes the next context of the store:
 * go on with the cursor until it comes back with 0 bytes. */
struct rebuild_step {
    const unsigned char *cursor; /* arena */
    size_t cursor_bytes;
    uint64_t context_id; /* what this step was about; 0 = there was none left */
    uint64_t segments, bytes; /* deleted */
};
int catalog_rebuild(struct catalog *catalog, const struct walk_args *args, struct arena *arena,
                    struct rebuild_step *ret_step, struct error *err);

/* The operator's proof: the latest queries of a layer (appended or attended, a few are kept in
 * memory), answered again over everything stored now, by the context's method and exactly. */
struct recall_args {
    uint64_t context_id;
    uint32_t layer;
    double target_error; /* as in struct query */
    uint64_t max_bytes;
    int (*stop)(void *arg);
    void *stop_arg;
};
struct recall_layer {
    uint64_t queries; /* kept queries that were answered; 0: nothing below means anything */
    uint64_t answers; /* queries times query heads */
    uint64_t tokens;
    double error_mean, error_p50, error_p90, error_p99, error_max; /* true relative L2 error of o */
    double lse_error_max;
    /* Over the answers whose error was predicted: `predicted` of them. */
    uint64_t predicted;
    double predicted_mean;
    double ratio_median; /* predicted / true error */
    double within_twice; /* share whose true error is at most twice the target; of all answers */
    double mass[INDEX_LEVELS]; /* means */
    uint64_t bytes_read, bytes_exact; /* over all queries, asked one at a time */
    uint64_t level_bytes[INDEX_LEVELS];
};
int catalog_recall(struct catalog *catalog, const struct recall_args *args, struct arena *arena,
                   struct recall_layer *ret_layer, struct error *err);

/* One of the latest queries of a layer again, over everything that is stored, with its plan. */
struct explain_args {
    uint64_t context_id;
    uint32_t layer;
    uint64_t query;      /* 0: the newest, 1: the one before it … */
    double target_error; /* as in struct query */
    uint64_t max_bytes;
    int (*stop)(void *arg);
    void *stop_arg;
};
struct plan;
struct explained {
    uint64_t queries;    /* that are kept; 0: nothing below means anything */
    uint64_t position;   /* of the query */
    uint64_t tokens;     /* of the layer */
    size_t heads;
    float *lse;          /* (H) */
    struct plan *plan;
    struct quality quality;
};
/* MEMD_ENOROW when queries are kept, but not so many. */
int catalog_explain(struct catalog *catalog, const struct explain_args *args, struct arena *arena,
                    struct explained *ret_explained, struct error *err);

struct record_info {
    const char *table;
    char *key, *summary; /* arena, readable */
    uint64_t bytes;
};
struct dump_step {
    const unsigned char *cursor;
    size_t cursor_bytes;
    struct record_info *records;
    size_t record_count;
};
int catalog_dump(struct catalog *catalog, const struct walk_args *args, struct arena *arena,
                 struct dump_step *ret_step, struct error *err);

/* Write a compacted copy into the new directory `path` (must not exist). Long; readers and
 * writers go on. */
int catalog_compact(struct catalog *catalog, const char *path, uint64_t *ret_before,
                    uint64_t *ret_after, struct error *err);

/* Numbers of a catalog, by name: how it stands, and what only grows. The struct, the counters
 * inside and the reply of Stats are made from these lists. */
#define CATALOG_GAUGE_MAP(X) \
    X(contexts)              \
    X(resident_contexts)     \
    X(stored_bytes)          \
    X(budget_bytes)          \
    X(map_bytes)             \
    X(map_used_bytes)        \
    X(file_bytes)            \
    X(tail_bytes)            \
    X(build_waiting)         \
    X(state_bytes)           \
    X(damaged_drops)         \
    X(damaged_pages)

#define CATALOG_COUNTER_MAP(X)    \
    X(commits_total)              \
    X(syncs_total)                \
    X(sealed_segments_total)      \
    X(evicted_contexts_total)     \
    X(commit_failures_total)      \
    X(checksum_failures_total)    \
    X(proven_bytes_total)         \
    X(appended_tokens_total)      \
    X(appended_bytes_total)       \
    X(nonfinite_rejected_total)   \
    X(recovered_contexts_total)   \
    X(recovered_tokens_cut_total) \
    X(commit_ns_total)            \
    X(sync_ns_total)              \
    X(built_segments_total)       \
    X(built_indexes_total)        \
    X(built_bytes_total)          \
    X(build_failures_total)       \
    X(damaged_derived_total)      \
    X(build_ns_total)             \
    X(page_turns_total)

struct catalog_stats {
#define X(name) uint64_t name;
    CATALOG_GAUGE_MAP(X) CATALOG_COUNTER_MAP(X)
#undef X
};

/* Loop: reads atomics, and one number under a lock that nobody holds for long. */
void catalog_get_stats(struct catalog *catalog, struct catalog_stats *ret_stats);

/* Commit and sync everything appended so far, now. */
int catalog_sync(struct catalog *catalog, struct error *err);

/* Give back memory that is only kept for the next appends. */
void catalog_trim(struct catalog *catalog);

/* The memory methods this build has, for Hello and for error texts; NULL-terminated. */
const char *const *catalog_methods(void);

#endif
