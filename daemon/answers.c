/* SPDX-License-Identifier: Apache-2.0 */
/* answers.c — an item is counted in a histogram of its own first, so that a batch of queries costs
 * a few atomic additions, not some for each query head.
 */
#include "daemon/answers.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "base/error.h"
#include "memory/context.h"

static const double error_bounds[ANSWERS_BOUNDS] = { 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3,
                                                     0.01, 0.02, 0.05, 0.1,  0.2,  0.5 };
static const double share_bounds[ANSWERS_BOUNDS] = { 0.01, 0.02, 0.05, 0.1, 0.15, 0.2,
                                                     0.3,  0.4,  0.5,  0.7, 0.9,  0.99 };
#define PPB 1e9

struct tally {
    uint64_t counts[ANSWERS_BOUNDS + 1];
    double sum;
    uint64_t unknown;
};

int answers_new(struct answers **ret_answers, struct error *err)
{
    struct answers *answers = calloc(1, sizeof *answers);
    if (answers == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu bytes of statistics",
                         sizeof *answers);
    *ret_answers = answers;
    return 0;
}

void answers_free(struct answers *answers)
{
    free(answers);
}

const double *answers_bounds(enum answers_kind kind)
{
    return kind == ANSWERS_PREDICTED_ERROR ? error_bounds : share_bounds;
}

const char *answers_kind_name(enum answers_kind kind)
{
    static const char *const names[ANSWERS_KINDS] = {
#define X(NAME, text) [ANSWERS_##NAME] = (text),
        ANSWERS_HISTOGRAM_MAP(X)
#undef X
    };
    return names[kind];
}

static void count(struct tally *tally, const double *bounds, double value)
{
    if (isnan(value)) {
        tally->unknown++;
        return;
    }
    size_t bucket = 0;
    while (bucket < ANSWERS_BOUNDS && value > bounds[bucket]) bucket++;
    tally->counts[bucket]++;
    if (isfinite(value)) tally->sum += value;
}

/* NULL `values`: all of them are `value`. */
static struct tally count_all(const double *bounds, const float *values, double value, size_t rows)
{
    struct tally tally = { .sum = 0 };
    for (size_t i = 0; values != NULL && i < rows; i++) count(&tally, bounds, (double)values[i]);
    if (values != NULL) return tally;
    count(&tally, bounds, value);
    for (size_t i = 0; i <= ANSWERS_BOUNDS; i++) tally.counts[i] *= rows;
    tally.sum *= (double)rows;
    return tally;
}

static void add(_Atomic uint64_t *counter, uint64_t value)
{
    if (value > 0) atomic_fetch_add_explicit(counter, value, memory_order_relaxed);
}

static void add_tally(struct answers_histogram *histogram, const struct tally *tally)
{
    for (size_t i = 0; i <= ANSWERS_BOUNDS; i++) add(&histogram->counts[i], tally->counts[i]);
    if (tally->sum > 0.0 && tally->sum < PPB) /* what fits in 64 bits a few times over */
        add(&histogram->sum_ppb, (uint64_t)(tally->sum * PPB));
}

static void raise_limit(_Atomic uint64_t *limit, uint64_t value)
{
    uint64_t seen = atomic_load_explicit(limit, memory_order_relaxed);
    while (seen < value && !atomic_compare_exchange_weak_explicit(
                               limit, &seen, value, memory_order_relaxed, memory_order_relaxed)) {
    }
}

void answers_record(struct answers *answers, uint32_t layer, const struct quality *quality,
                    size_t rows)
{
    assert(layer < LIMIT_LAYERS);
    struct answers_histogram *histograms = answers->layers[layer];
    raise_limit(&answers->layer_limit, (uint64_t)layer + 1);
    struct tally errors = count_all(error_bounds, quality->predicted_error, 0.0, rows);
    add_tally(&histograms[ANSWERS_PREDICTED_ERROR], &errors);
    add(&answers->unpredicted, errors.unknown);
    struct tally mass = count_all(share_bounds, quality->mass, 1.0, rows);
    add_tally(&histograms[ANSWERS_EXACT_MASS], &mass);
    /* One item is one reading of the layer, for all its queries and heads. */
    double share = quality->bytes_exact == 0
                       ? 0.0
                       : (double)quality->bytes_read / (double)quality->bytes_exact;
    struct tally bytes = count_all(share_bounds, NULL, share, 1);
    add_tally(&histograms[ANSWERS_BYTES_SHARE], &bytes);
    uint64_t limited = 0;
    for (size_t i = 0; quality->limited != NULL && i < rows; i++) limited += quality->limited[i];
    add(&answers->limited, limited);
    for (size_t i = 0; i < INDEX_LEVELS; i++)
        add(&answers->level_bytes[i], quality->level_bytes[i]);
}
