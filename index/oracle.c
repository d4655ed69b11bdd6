/* SPDX-License-Identifier: Apache-2.0 */
/* oracle.c — scores of all keys into a heap and into a sum per query head; then the heap's rows.
 *
 * The mass that was read is the state over the picked rows against the sum over all of them, both
 * from the same scores.
 */
#include "index/oracle.h"

#include <math.h>

#include "index/pick.h"

enum { STEP_FLOATS = 8192 }; /* scores in flight */

static const struct option_spec specs[ORACLE_OPTIONS] = {
    [ORACLE_K] = OPTION_WHOLE("k", "tokens that each query head attends to beside sinks and "
                              "window", 100, 1, 65536),
    [ORACLE_SINKS] = OPTION_WHOLE("sinks", "first tokens that are always read", 4, 0, 65536),
    [ORACLE_WINDOW] = OPTION_WHOLE("window", "newest tokens that are always read",
                                   512, 0, 1 << 24),
};
static const struct option_table table = { "oracle-topk", specs, ORACLE_OPTIONS };

/* Scratch of a task. */
struct choice {
    float *scores;     /* (STEP_FLOATS) */
    float *max;        /* (group) of all scores in the middle */
    double *sum;       /* (group) of exp(score - max) */
    uint64_t *ids;     /* (group, k) */
    float *top_scores; /* (group, k) */
    size_t k;
};

static size_t choice_bytes(size_t group, size_t k)
{
    return STEP_FLOATS * sizeof(float) + group * (sizeof(double) + sizeof(float)) +
           group * k * (sizeof(uint64_t) + sizeof(float));
}

static struct choice choice_at(void *scratch, size_t group, size_t k)
{
    struct choice choice = { .ids = scratch, .k = k };
    choice.sum = (double *)(void *)(choice.ids + group * k);
    choice.scores = (float *)(void *)(choice.sum + group);
    choice.max = choice.scores + STEP_FLOATS;
    choice.top_scores = choice.max + group;
    return choice;
}

static struct topk top_of(const struct choice *choice, size_t m)
{
    return (struct topk){ choice->ids + m * choice->k, choice->top_scores + m * choice->k,
                          choice->k };
}

/* scores (count) of consecutive rows, for head m */
static void offer(const struct choice *choice, size_t m, const float *scores, size_t count,
                  uint64_t position)
{
    struct topk top = top_of(choice, m);
    float max = choice->max[m];
    for (size_t i = 0; i < count; i++) {
        topk_offer(&top, scores[i], position + i);
        if (scores[i] > max) max = scores[i];
    }
    double sum = max == -INFINITY ? 0.0 : choice->sum[m] * exp((double)(choice->max[m] - max));
    for (size_t i = 0; i < count; i++) sum += (double)expf(scores[i] - max);
    choice->sum[m] = sum;
    choice->max[m] = max;
}

static void scan_middle(struct pick *pick, const struct choice *choice, struct pick_middle middle)
{
    size_t step = STEP_FLOATS / pick->group;
    for (uint64_t at = middle.begin; at < middle.end && pick->stopped == 0; at += step) {
        size_t count = middle.end - at < step ? (size_t)(middle.end - at) : step;
        pick_scores(pick, at, count, choice->scores);
        for (size_t m = 0; m < pick->group; m++)
            offer(choice, m, choice->scores + m * count, count, at);
    }
}

/* Share of head m's softmax that its state has, where the middle as a whole has (max, sum) and the
 * steady rows alone had (steady_max, steady_sum). */
static float share(const struct pick *pick, const struct choice *choice, size_t m,
                   float steady_max, float steady_sum)
{
    double all = steady_max == -INFINITY ? -INFINITY : (double)steady_max + log(steady_sum);
    double middle = (double)choice->max[m] + log(choice->sum[m]);
    double top = fmax(all, middle);
    double total = top + log(exp(all - top) + exp(middle - top));
    double part = exp((double)pick->max[m] + log((double)pick->sum[m]) - total);
    return part < 1.0 ? (float)part : 1.0F;
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
    for (size_t m = 0; m < pick->group; m++) {
        struct topk top = top_of(&choice, m);
        topk_clear(&top);
        choice.max[m] = -INFINITY;
        choice.sum[m] = 0.0;
    }
    scan_middle(pick, &choice, middle);
    if (pick->stopped != 0) return 0;
    for (size_t m = 0; m < pick->group; m++) {
        float steady_max = pick->max[m], steady_sum = pick->sum[m];
        pick_list(pick, m, choice.ids + m * choice.k, choice.k);
        pick->predicted[m] = NAN;
        pick->mass[m * INDEX_LEVELS + INDEX_EXACT] = share(pick, &choice, m, steady_max,
                                                           steady_sum);
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
