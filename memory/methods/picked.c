/* SPDX-License-Identifier: Apache-2.0 */
/* picked.c — what every method does that chooses rows for each query and reads them by pick.h: it
 * says how, and is asked for attention or for hits alike, so that both are of the same rows. */
#include "index/pick.h"

#include "memory/methods/methods.h"

/* What is the same for attention and hits. 1: everything is to be read. */
static int prepare(const struct method *method, const struct reading *reading, struct arena *arena,
                   struct pick_call *ret_call, struct error *err)
{
    ret_call->options = reading->options;
    ret_call->plan = reading->plan;
    return reading->attend.view_count == 0 ? 1 : method->pick(reading, arena, ret_call, err);
}

int method_attend_picked(const struct method *method, const struct reading *reading,
                         struct arena *arena, const struct index_answer *ret_answer,
                         struct error *err)
{
    struct index_args args = { .attend = reading->attend, .max_bytes = reading->max_bytes };
    struct pick_call call = { .args = &args, .partial = &ret_answer->partial,
                              .quality = ret_answer->quality };
    int rc = prepare(method, reading, arena, &call, err);
    if (rc > 0) return method_attend_exactly(reading, arena, ret_answer, err);
    return rc < 0 ? rc : pick_run(&call, arena, err);
}

int method_search_picked(const struct method *method, const struct reading *reading,
                         struct arena *arena, const struct index_hits *ret_hits,
                         struct index_quality *ret_quality, struct error *err)
{
    struct index_args args = { .attend = reading->attend, .max_bytes = reading->max_bytes };
    struct pick_call call = { .args = &args, .hits = ret_hits, .quality = ret_quality };
    int rc = ret_hits->k == 0 ? 1 : prepare(method, reading, arena, &call, err);
    if (rc > 0) return method_search_exactly(reading, arena, ret_hits, ret_quality, err);
    return rc < 0 ? rc : pick_run(&call, arena, err);
}
