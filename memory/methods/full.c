/* SPDX-License-Identifier: Apache-2.0 */
/* full.c — exact attention over everything: the truth that every other method is measured against.
 *
 * Reads every row, so it wants nothing derived and has no parameters. The two functions are also
 * what other methods do as long as there is nothing to choose from.
 */
#include "base/arena.h"
#include "base/error.h"
#include "index/exact.h"
#include "memory/methods/methods.h"

/* `parts`: K and V, or K alone. */
static void count_rows(const struct reading *reading, unsigned parts, struct index_quality *quality)
{
    struct exact_cost cost = exact_cost(&reading->attend, parts);
    for (int i = 0; i < INDEX_LEVELS; i++) quality->rows[i] = quality->bytes[i] = 0;
    quality->rows[INDEX_EXACT] = cost.rows;
    quality->bytes[INDEX_EXACT] = cost.bytes;
    size_t answers = reading->attend.q.shape[0] * reading->attend.q.shape[1];
    for (size_t i = 0; i < answers; i++) {
        if (quality->predicted_error != NULL) quality->predicted_error[i] = 0;
        if (quality->limited != NULL) quality->limited[i] = false;
        for (size_t l = 0; quality->mass != NULL && l < INDEX_LEVELS; l++)
            quality->mass[i * INDEX_LEVELS + l] = l == INDEX_EXACT ? 1 : 0;
    }
}

int method_attend_exactly(const struct reading *reading, struct arena *arena,
                          const struct index_answer *ret_answer, struct error *err)
{
    int rc = 0;
    struct attend_args args = reading->attend;
    args.device = reading->device;
    if (args.view_count == 0)
        partial_clear(&ret_answer->partial);
    else
        rc = attend(&args, arena, &ret_answer->partial, err);
    if (rc == 0) count_rows(reading, 2, ret_answer->quality);
    if (rc == 0 && reading->plan != NULL) exact_plan(&reading->attend, reading->plan);
    return rc;
}

int method_search_exactly(const struct reading *reading, struct arena *arena,
                          const struct index_hits *ret_hits, struct index_quality *ret_quality,
                          struct error *err)
{
    int rc = exact_search(&reading->attend, arena, ret_hits, err);
    if (rc == 0) count_rows(reading, 1, ret_quality);
    return rc;
}

static int attend_full(const struct method *method, const struct reading *reading,
                       struct arena *arena, const struct index_answer *ret_answer,
                       struct error *err)
{
    (void)method;
    return method_attend_exactly(reading, arena, ret_answer, err);
}

static int search_full(const struct method *method, const struct reading *reading,
                       struct arena *arena, const struct index_hits *ret_hits,
                       struct index_quality *ret_quality, struct error *err)
{
    (void)method;
    return method_search_exactly(reading, arena, ret_hits, ret_quality, err);
}

static bool reads_exactly(const struct method *method, const struct reading *reading)
{
    (void)method;
    (void)reading;
    return true;
}

static const struct option_table options = { .owner = "full" };

const struct method method_full = {
    .name = "full",
    .help = "reads everything exactly",
    .options = &options,
    .reads_exactly = reads_exactly,
    .attend = attend_full,
    .search = search_full,
};
