/* SPDX-License-Identifier: Apache-2.0 */
/* progressive.c — the default: read as little as the asked error allows (index/progressive.h), from
 * planes of sealed segments and exact rows of everything else.
 *
 * Asked for an error of 0, or as long as there are no planes, it is `full`.
 */
#include "index/progressive.h"

#include "base/error.h"
#include "index/exact.h"
#include "memory/methods/methods.h"

enum { TARGET_ERROR, MAX_BYTES, EXACT_BELOW };

static const struct option_spec specs[] = {
    [TARGET_ERROR] = OPTION_REAL("target_error", "relative L2 error of an answer, 0 = exact",
                                 0.02, 0, 1),
    [MAX_BYTES] = OPTION_WHOLE("max_bytes", "read per query at most, 0 = no bound", 0, 0, 0x1p53),
    [EXACT_BELOW] = OPTION_WHOLE("exact_below", "tokens below which everything is read; -1 = "
                                 "where that is cheaper", -1, -1, 0x1p53),
};
static const struct option_table options = { "progressive", specs, sizeof specs / sizeof specs[0] };

static struct progressive_args arguments(const struct reading *reading)
{
    const double *values = reading->options;
    double target = reading->target_error < 0 ? values[TARGET_ERROR] : reading->target_error;
    struct progressive_args args = {
        .base = { .attend = reading->attend,
                  .target_error = (float)target,
                  .max_bytes = reading->max_bytes == 0 ? (uint64_t)values[MAX_BYTES]
                                                       : reading->max_bytes },
        .planes = reading->planes,
        .admit_lo = reading->admit_lo,
        .exact_below = values[EXACT_BELOW] < 0 ? UINT64_MAX : (uint64_t)values[EXACT_BELOW],
    };
    args.base.attend.device = reading->device;
    return args;
}

static bool has_planes(const struct reading *reading)
{
    for (size_t i = 0; reading->planes != NULL && i < reading->attend.view_count; i++) {
        if (reading->planes[i] != NULL) return true;
    }
    return false;
}

static bool reads_exactly(const struct method *method, const struct reading *reading)
{
    (void)method;
    struct progressive_args args = arguments(reading);
    return args.base.target_error == 0 || !has_planes(reading) || progressive_reads_all(&args);
}

static int attend_progressively(const struct method *method, const struct reading *reading,
                                struct arena *arena, const struct index_answer *ret_answer,
                                struct error *err)
{
    (void)method;
    struct progressive_args args = arguments(reading);
    if (args.base.target_error == 0 || !has_planes(reading))
        return method_attend_exactly(reading, arena, ret_answer, err);
    if (reading->plan != NULL) exact_plan(&reading->attend, reading->plan);
    return progressive_attend(&args, arena, ret_answer, err);
}

static int search_progressively(const struct method *method, const struct reading *reading,
                                struct arena *arena, const struct index_hits *ret_hits,
                                struct index_quality *ret_quality, struct error *err)
{
    (void)method;
    struct progressive_args args = arguments(reading);
    if (args.base.target_error == 0 || !has_planes(reading))
        return method_search_exactly(reading, arena, ret_hits, ret_quality, err);
    return progressive_search(&args, arena, ret_hits, ret_quality, err);
}

const struct method method_progressive = {
    .name = "progressive",
    .help = "reads as little as the asked error allows",
    .options = &options,
    .planes = true,
    .reads_exactly = reads_exactly,
    .attend = attend_progressively,
    .search = search_progressively,
};
