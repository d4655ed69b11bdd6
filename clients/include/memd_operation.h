/* SPDX-License-Identifier: Apache-2.0 */
/* memd_operation.h — the part of memd.h that an operator's program uses: what the daemon is and
 * does, whether what it stores and answers is right, and what to do where it is not.
 *
 * A part of memd.h, which includes it; the rules of that header (errors, memory, threads) hold.
 */
#ifndef MEMD_OPERATION_H
#define MEMD_OPERATION_H

#include "memd.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- operation ---- */

struct memd_health {
    bool live;
    bool ready; /* recovered and taking work */
    bool draining;
    const char *reason; /* when not ready */
};
MEMD_API int memd_health(struct memd_client *client, const struct memd_health **ret_health,
                         struct memd_error *err);

struct memd_status {
    const char *build;
    uint64_t pid, uptime_ms;
    const char *data; /* directory */
    const char *const *listeners;
    size_t listener_count;
    const char *sync, *simd;
    uint32_t workers;
    uint64_t connections, contexts;
    uint64_t stored_bytes, budget_bytes; /* budget 0 = none */
    uint64_t map_bytes, map_used_bytes, file_bytes;
    const char *backend, *backend_reason;
    bool draining;
    uint64_t shared_regions, shared_bytes, shared_bytes_max; /* memory that clients share */
    uint64_t damaged_drops; /* dropped contexts whose bytes damage keeps in the store */
    uint64_t damaged_pages; /* of the store, fenced off when it was opened */
};
MEMD_API int memd_status(struct memd_client *client, const struct memd_status **ret_status,
                         struct memd_error *err);

struct memd_counter {
    const char *name; /* ends in _total when it only grows */
    uint64_t value;
};

struct memd_histogram {
    const char *name;
    const double *bounds;   /* (bound_count): upper bounds, seconds or shares */
    const uint64_t *counts; /* (bound_count + 1) */
    size_t bound_count;
    double sum;
};

struct memd_stats {
    const struct memd_counter *counters;
    size_t counter_count;
    const struct memd_histogram *histograms;
    size_t histogram_count;
};
MEMD_API int memd_stats(struct memd_client *client, const struct memd_stats **ret_stats,
                        struct memd_error *err);

/* Where a stepwise walk goes on: start with {NULL, 0}, stop when it comes back with 0 bytes. */
struct memd_cursor {
    const void *data;
    size_t bytes;
};

struct memd_verify {
    struct memd_cursor next;
    uint64_t values, bytes;  /* checked in this step */
    uint64_t values_total;   /* estimate over all steps, for progress */
    const char *const *findings;
    size_t finding_count;
    const char *const *unchecked; /* what the daemon could not check, and why: no damage */
    size_t unchecked_count;
};

/* One step of checking every checksum and invariant; context_id 0 = the whole store. */
MEMD_API int memd_verify(struct memd_client *client, uint64_t context_id, struct memd_cursor cursor,
                         const struct memd_verify **ret_verify, struct memd_error *err);

struct memd_summary {
    double mean, p50, p90, p99, max;
};

/* The latest queries of a layer, answered again by the context's method and exactly. */
struct memd_recall {
    const char *method;
    double target_error; /* that was asked for; NaN where the method takes none */
    uint64_t queries;    /* kept ones that were answered; 0: nothing below means anything */
    uint64_t answers;    /* queries times query heads */
    uint64_t tokens;     /* of the layer */
    struct memd_summary error; /* true relative L2 error of o, over the answers */
    double lse_error_max;
    uint64_t predicted;    /* answers whose error the method predicted; over those alone: */
    double predicted_mean;
    double ratio_median;   /* predicted by true error */
    double within_twice;   /* share of all answers whose true error is at most twice the target */
    double level_mass[MEMD_LEVELS]; /* mean share of the softmax mass */
    uint64_t bytes_read, bytes_exact; /* for all queries */
    uint64_t level_bytes[MEMD_LEVELS];
};

struct memd_recall_args {
    uint32_t layer;
    double target_error; /* as in memd_query */
    uint64_t max_bytes;
};

/* The proof that answers are as good as they say, one layer at a time. The daemon keeps a few of
 * the latest queries of each layer, sent by memd_append or memd_attend, in its memory.
 * Errors   as memd_attend */
MEMD_API int memd_recall(const struct memd_context *context, const struct memd_recall_args *args,
                         const struct memd_recall **ret_recall, struct memd_error *err);

/* How far the data is that a method derives from the rows of a context. */
struct memd_rebuild {
    struct memd_cursor next;
    uint64_t context_id; /* that this step was about; 0 = none */
    uint64_t deleted_segments, deleted_bytes;
    uint64_t segments, built_segments; /* sealed segments that want planes; that have them */
    uint64_t indexes, built_indexes;   /* layers that want an index; whose index is as new as it
                                        * is to be */
    uint64_t failures;   /* of building it, since the context is in memory */
    const char *failure; /* why the last attempt failed; "" = it did not */
};

/* One step of deleting derived data, so that the daemon makes it again, in the background; until
 * then rows are read exactly. context_id 0 = all contexts, one a step.
 * Errors   MEMD_ENOCONTEXT · MEMD_EPERM */
MEMD_API int memd_rebuild(struct memd_client *client, uint64_t context_id,
                          struct memd_cursor cursor, const struct memd_rebuild **ret_rebuild,
                          struct memd_error *err);

/* Delete nothing, only say how far one context is, which becomes resident. Errors   MEMD_ENOCONTEXT
 */
MEMD_API int memd_built(struct memd_client *client, uint64_t context_id,
                        const struct memd_rebuild **ret_rebuild, struct memd_error *err);

struct memd_record {
    const char *table, *key, *summary; /* readable */
    uint64_t bytes;
};

struct memd_dump {
    struct memd_cursor next;
    const struct memd_record *records;
    size_t count;
};

struct memd_dump_args {
    uint64_t context_id; /* 0 = the whole store */
    struct memd_cursor cursor;
    uint32_t limit;      /* records, 0 = 1,024, the most there can be */
};
MEMD_API int memd_dump(struct memd_client *client, const struct memd_dump_args *args,
                       const struct memd_dump **ret_dump, struct memd_error *err);

/* Write a compacted copy of the store to a new directory on the daemon's host. May take long:
 * connect with MEMD_NO_TIMEOUT.
 * Errors   MEMD_EINVAL path · MEMD_EEXIST · MEMD_EFULL */
MEMD_API int memd_compact(struct memd_client *client, const char *path, uint64_t *ret_bytes_before,
                          uint64_t *ret_bytes_after, struct memd_error *err);

/* Take no new work, finish what is there within deadline_ms (0 = the daemon's own), sync, exit.
 * Returns when the daemon has begun to; *ret_requests_left = requests that it still had. */
MEMD_API int memd_drain(struct memd_client *client, uint32_t deadline_ms,
                        uint64_t *ret_requests_left, struct memd_error *err);

#ifdef __cplusplus
}
#endif

#endif
