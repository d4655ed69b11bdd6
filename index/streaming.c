/* SPDX-License-Identifier: Apache-2.0 */
/* streaming.c — pick_steady and nothing else. */
#include "index/streaming.h"

#include "index/pick.h"

static const struct option_spec specs[STREAMING_OPTIONS] = {
    [STREAMING_SINKS] = OPTION_WHOLE("sinks", "first tokens that are always read", 4, 0, 65536),
    [STREAMING_WINDOW] = OPTION_WHOLE("window", "newest tokens that are always read",
                                      512, 0, 1 << 24),
};
static const struct option_table table = { "streaming", specs, STREAMING_OPTIONS };

static int task(struct pick *pick, struct error *err)
{
    (void)err;
    const double *options = pick->call->options;
    struct pick_middle middle = pick_steady(pick, (uint64_t)options[STREAMING_SINKS],
                                            (uint64_t)options[STREAMING_WINDOW], UINT64_MAX);
    if (middle.begin < middle.end) pick_dropped(pick);
    return 0;
}

static int streaming_attend(const struct layer_index *version, const struct index_args *args,
                            const double *options, struct arena *arena,
                            const struct index_answer *ret_answer, struct error *err)
{
    (void)version;
    return pick_run(&(struct pick_call){ .args = args, .task = task, .options = options,
                                         .partial = &ret_answer->partial,
                                         .quality = ret_answer->quality },
                    arena, err);
}

static int streaming_search(const struct layer_index *version, const struct index_args *args,
                            const double *options, struct arena *arena,
                            const struct index_found *ret_found, struct error *err)
{
    (void)version;
    if (ret_found->hits.k == 0) return 0;
    return pick_run(&(struct pick_call){ .args = args, .task = task, .options = options,
                                         .hits = &ret_found->hits, .quality = ret_found->quality },
                    arena, err);
}

const struct layer_index_type streaming_type = { .name = "streaming", .options = &table,
                                                 .attend = streaming_attend,
                                                 .search = streaming_search };
