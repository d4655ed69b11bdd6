/* SPDX-License-Identifier: Apache-2.0 */
/* oracle.c — scores of all keys into a heap and into a sum per query head; then the heap's rows.
 *
 * The mass that was read is the state over the picked rows against the sum over all of them, both
 * from the same scores (choice.h).
 */
#include "index/oracle.h"

#include <math.h>

#include "index/choice.h"

static const struct option_spec specs[ORACLE_OPTIONS] = {
    [ORACLE_K] = OPTION_WHOLE("k", "tokens that each query head attends to beside sinks and "
                              "window", 100, 1, 65536),
    [ORACLE_SINKS] = OPTION_WHOLE("sinks", "first tokens that are always read", 4, 0, 65536),
    [ORACLE_WINDOW] = OPTION_WHOLE("window", "newest tokens that are always read",
                                   512, 0, 1 << 24),
};
static const struct option_table table = { "oracle-topk", specs, ORACLE_OPTIONS };

static void scan_middle(struct pick *pick, const struct choice *choice, struct pick_middle middle)
{
    size_t step = CHOICE_FLOATS / pick->group;
    for (uint64_t at = middle.begin; at < middle.end && pick->stopped == 0; at += step) {
        size_t count = middle.end - at < step ? (size_t)(middle.end - at) : step;
        pick_scores(pick, at, count, choice->scores);
        for (size_t m = 0; m < pick->group; m++) {
            choice_weigh(choice, m, choice->scores + m * count, count);
            choice_offer(choice, m, choice->scores + m * count, count, at);
        }
    }
}

static int task(struct pick *pick, struct error *err)
{
    (void)err;
    const double *options = pick->call->options;
    struct choice choice = choice_at(pick->scratch, pick->group, (size_t)options[ORACLE_K]);
    struct pick_middle middle = pick_steady(pick, (uint64_t)options[ORACLE_SINKS],
                                            (uint64_t)options[ORACLE_WINDOW], UINT64_MAX);
    if (middle.end - middle.begin <= choice.k) {
        pick_range(pick, middle.begin, middle.end);
        return 0;
    }
    scan_middle(pick, &choice, middle);
    if (pick->stopped != 0) return 0;
    for (size_t m = 0; m < pick->group; m++) {
        struct choice_steady before = { pick->max[m], pick->sum[m] };
        pick_list(pick, m, choice.ids + m * choice.k, choice.k);
        pick->predicted[m] = NAN;
        pick->mass[m * INDEX_LEVELS + INDEX_EXACT] = choice_share(&choice, pick, m, before);
    }
    return 0;
}

static int oracle_attend(const struct layer_index *version, const struct index_args *args,
                         const double *options, struct arena *arena,
                         const struct index_answer *ret_answer, struct error *err)
{
    (void)version;
    size_t group = args->attend.q.shape[1] / args->attend.kv_heads;
    return pick_run(&(struct pick_call){ .args = args, .task = task, .options = options,
                                         .scratch_bytes = choice_bytes(group,
                                                                       (size_t)options[ORACLE_K]),
                                         .partial = &ret_answer->partial,
                                         .quality = ret_answer->quality,
                                         .plan = args->plan },
                    arena, err);
}

static int search_task(struct pick *pick, struct error *err)
{
    (void)err;
    pick_range(pick, 0, pick->limit);
    return 0;
}

static int oracle_search(const struct layer_index *version, const struct index_args *args,
                         const double *options, struct arena *arena,
                         const struct index_found *ret_found, struct error *err)
{
    (void)version;
    (void)options;
    if (ret_found->hits.k == 0) return 0;
    return pick_run(&(struct pick_call){ .args = args, .task = search_task,
                                         .hits = &ret_found->hits,
                                         .quality = ret_found->quality },
                    arena, err);
}

const struct layer_index_type oracle_type = { .name = "oracle-topk", .options = &table,
                                              .attend = oracle_attend, .search = oracle_search };
