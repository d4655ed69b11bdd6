/* SPDX-License-Identifier: Apache-2.0 */
/* answers.h — what the answers to Attend were made from, since the daemon started: per layer a
 * histogram each of predicted error, exact softmax mass and bytes; over all layers the bytes by
 * level.
 *
 * Layers are counted by their number, whatever the context: the diffuse first layer of one model
 * behaves like that of another, and the table is bounded by LIMIT_LAYERS.
 *
 * Memory   answers_new, answers_free; pages of layers that were never asked are never touched
 * Threads  any: counters are atomic and only added to, so the loop never waits for a worker
 * Tests    tests/unit/test_answers.c
 */
#ifndef MEMD_DAEMON_ANSWERS_H
#define MEMD_DAEMON_ANSWERS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "index/index.h"
#include "proto/limits.h"

struct error;
struct quality;

enum { ANSWERS_BOUNDS = 12 };

/* X(NAME, name in Stats) */
#define ANSWERS_HISTOGRAM_MAP(X)             \
    X(PREDICTED_ERROR, "predicted_error")    \
    X(EXACT_MASS, "exact_mass")              \
    X(BYTES_SHARE, "bytes_share")

enum answers_kind {
#define X(NAME, text) ANSWERS_##NAME,
    ANSWERS_HISTOGRAM_MAP(X)
#undef X
        ANSWERS_KINDS,
};

struct answers_histogram {
    _Atomic uint64_t counts[ANSWERS_BOUNDS + 1];
    _Atomic uint64_t sum_ppb; /* in 1e-9 */
};

struct answers {
    struct answers_histogram layers[LIMIT_LAYERS][ANSWERS_KINDS];
    _Atomic uint64_t layer_limit; /* layers below it may have been asked */
    _Atomic uint64_t unpredicted; /* answers, each one query head of one query, as those below */
    _Atomic uint64_t limited;
    _Atomic uint64_t level_bytes[INDEX_LEVELS];
};

int answers_new(struct answers **ret_answers, struct error *err);
void answers_free(struct answers *answers); /* NULL is fine */

/* One item was answered; `rows` = n * H, the length of the quality's arrays. */
void answers_record(struct answers *answers, uint32_t layer, const struct quality *quality,
                    size_t rows);

/* Upper bounds of a kind of histogram, ascending (ANSWERS_BOUNDS). */
const double *answers_bounds(enum answers_kind kind);

/* "predicted_error" */
const char *answers_kind_name(enum answers_kind kind);

#endif
