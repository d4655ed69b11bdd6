/* SPDX-License-Identifier: Apache-2.0 */
/* streaming.c — two ranges of rows, one count of them: where the query sits among the kept keys is
 * known before any is read, so each key is rotated once, where it goes. */
#include "index/streaming.h"

#include "index/pick.h"
#include "index/positions.h"

static const char *const choices[] = { "auto", "cache-index", "original" };
static const enum position_rule rules[] = { POSITIONS_CACHE_INDEX, POSITIONS_CACHE_INDEX,
                                            POSITIONS_ORIGINAL };

static const struct option_spec specs[STREAMING_OPTIONS] = {
    [STREAMING_SINKS] = OPTION_WHOLE("sinks", "first tokens that are always read", 4, 0, 65536),
    [STREAMING_WINDOW] = OPTION_WHOLE("window", "newest tokens that are always read",
                                      512, 0, 1 << 24),
    [STREAMING_POSITIONS] = OPTION_CHOICE("positions", "where kept keys are rotated; auto: "
                                          "cache-index where memd rotates keys, else original",
                                          0, choices),
};
static const struct option_table table = { "streaming", specs, STREAMING_OPTIONS };

static enum position_rule rule_of(const double *options, bool rotates)
{
    return positions_rule(rules, options[STREAMING_POSITIONS], rotates);
}

/* Sinks, then the window behind them as if nothing had ever been in between. */
static void read_placed(struct pick *pick, struct pick_middle middle)
{
    struct kept_range kept = { middle.begin, middle.end, pick->limit };
    uint64_t position = pick->call->args->attend.positions[pick->query];
    struct placement placement = { .rule = POSITIONS_CACHE_INDEX,
                                   .query = positions_before(&kept, position) };
    pick_place(pick, placement);
    pick_range(pick, 0, middle.begin);
    placement.shift = middle.end - middle.begin;
    pick_place(pick, placement);
    pick_range(pick, middle.end, pick->limit);
}

static int task(struct pick *pick, struct error *err)
{
    (void)err;
    const double *options = pick->call->options;
    uint64_t sinks = (uint64_t)options[STREAMING_SINKS];
    uint64_t window = (uint64_t)options[STREAMING_WINDOW];
    struct pick_middle middle = pick_middle(pick, sinks, window, UINT64_MAX);
    if (pick->call->places) read_placed(pick, middle);
    else pick_steady(pick, sinks, window, UINT64_MAX);
    if (middle.begin < middle.end) pick_dropped(pick, PICK_GROUP);
    return 0;
}

static int streaming_attend(const struct layer_index *version, const struct index_args *args,
                            const double *options, struct arena *arena,
                            const struct index_answer *ret_answer, struct error *err)
{
    (void)version;
    bool places = rule_of(options, args->attend.rope != NULL) != POSITIONS_ORIGINAL;
    return pick_run(&(struct pick_call){ .args = args, .task = task, .options = options,
                                         .places = places, .partial = &ret_answer->partial,
                                         .quality = ret_answer->quality,
                                         .plan = args->plan },
                    arena, err);
}

static int streaming_search(const struct layer_index *version, const struct index_args *args,
                            const double *options, struct arena *arena,
                            const struct index_found *ret_found, struct error *err)
{
    (void)version;
    if (ret_found->hits.k == 0) return 0;
    bool places = rule_of(options, args->attend.rope != NULL) != POSITIONS_ORIGINAL;
    return pick_run(&(struct pick_call){ .args = args, .task = task, .options = options,
                                         .places = places, .hits = &ret_found->hits,
                                         .quality = ret_found->quality },
                    arena, err);
}

static int streaming_check(const double *options, bool rotates, struct error *err)
{
    return positions_check(table.owner, rule_of(options, rotates), rotates, err);
}

const struct layer_index_type streaming_type = { .name = "streaming", .options = &table,
                                                 .check = streaming_check,
                                                 .attend = streaming_attend,
                                                 .search = streaming_search };
