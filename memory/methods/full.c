/* SPDX-License-Identifier: Apache-2.0 */
/* full.c — exact attention over everything: the truth that every other method is measured against.
 *
 * Reads every row, so it needs no queries of the past; those that an append brings along are not
 * kept.
 */
#include "base/error.h"
#include "memory/catalog.h"
#include "memory/context_state.h"
#include "memory/methods/methods.h"

static int check(const struct parameter *parameters, size_t count, struct error *err)
{
    if (count == 0) return 0;
    return error_set(err, MEMD_EINVAL, "method full has no parameter \"%.80s\"",
                     parameters[0].name);
}

static int plan(const struct snapshot *snapshot, const struct query *query, struct arena *arena,
                struct plan *ret_plan, struct error *err)
{
    (void)query;
    (void)arena;
    (void)err;
    *ret_plan = (struct plan){ .views = snapshot->views,
                               .view_count = snapshot->view_count,
                               .exact = true };
    return 0;
}

const struct method method_full = { .name = "full", .check = check, .plan = plan };
