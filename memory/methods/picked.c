/* SPDX-License-Identifier: Apache-2.0 */
/* picked.c — what every method does that chooses rows for each query and reads them by pick.h: it
 * says how, and is asked for attention or for hits alike, so that both are of the same rows. */
#include "index/pick.h"

#include "memory/methods/methods.h"

static struct index_args arguments(const struct reading *reading)
{
    return (struct index_args){ .attend = reading->attend, .max_bytes = reading->max_bytes };
}

int method_attend_picked(const struct reading *reading, const struct pick_call *how,
                         struct arena *arena, const struct index_answer *ret_answer,
                         struct error *err)
{
    if (reading->attend.view_count == 0)
        return method_attend_exactly(reading, arena, ret_answer, err);
    struct index_args args = arguments(reading);
    struct pick_call call = *how;
    call.args = &args;
    call.options = reading->options;
    call.plan = reading->plan;
    call.partial = &ret_answer->partial;
    call.quality = ret_answer->quality;
    return pick_run(&call, arena, err);
}

int method_search_picked(const struct reading *reading, const struct pick_call *how,
                         struct arena *arena, const struct index_hits *ret_hits,
                         struct index_quality *ret_quality, struct error *err)
{
    if (reading->attend.view_count == 0 || ret_hits->k == 0)
        return method_search_exactly(reading, arena, ret_hits, ret_quality, err);
    struct index_args args = arguments(reading);
    struct pick_call call = *how;
    call.args = &args;
    call.options = reading->options;
    call.plan = reading->plan;
    call.hits = ret_hits;
    call.quality = ret_quality;
    return pick_run(&call, arena, err);
}
