/* SPDX-License-Identifier: Apache-2.0 */
/* fold_fixture.h — what the answers of the test methods must be (fold_method.h), worked out from
 * the values that were appended, not from what is stored.
 */
#ifndef MEMD_TESTS_FOLD_FIXTURE_H
#define MEMD_TESTS_FOLD_FIXTURE_H

#include "tests/unit/builder_fixture.h"
#include "tests/unit/fold_method.h"

enum { FOLD_STEP = 64, FOLD_WINDOW = 100 }; /* the defaults of the test methods */

static inline uint64_t fold_reach(uint64_t tokens)
{
    return tokens < FOLD_WINDOW ? 0 : (tokens - FOLD_WINDOW) / FOLD_STEP * FOLD_STEP;
}

/* Tokens from `cut` on were appended with another salt. */
struct fold_past {
    uint32_t salt, salt_behind;
    uint64_t cut;
    const float *mass;  /* (T, H), or NULL */
    const float *extra; /* (extra_count) numbers in front of the first token */
    size_t extra_count;
};

static inline uint64_t fold_expected(const struct fixture *fx, const struct fold_past *past,
                                     uint32_t layer, uint64_t tokens)
{
    size_t dim = fx->model.head_dim, heads = fx->model.query_heads;
    uint64_t sum = 0;
    for (size_t i = 0; tokens > 0 && i < past->extra_count; i++)
        sum = fold_sum_value(sum, past->extra[i]);
    for (uint64_t i = 0; i < tokens; i++) {
        uint32_t salt = i < past->cut ? past->salt : past->salt_behind;
        for (size_t j = 0; j < fx->model.kv_heads; j++) {
            for (size_t d = 0; d < dim; d++)
                sum = fold_sum_value(sum, fixture_value(salt, layer, i, j * dim + d));
            for (size_t d = 0; d < dim; d++)
                sum = fold_sum_value(sum, fixture_value(salt, layer, i, j * dim + d + 100000));
        }
        bool any = false;
        for (size_t h = 0; past->mass != NULL && h < heads; h++)
            any |= past->mass[i * heads + h] != 0;
        for (size_t h = 0; any && h < heads; h++)
            sum = fold_sum_value(sum, past->mass[i * heads + h]);
    }
    return sum;
}

static inline void fold_expect_said(const struct answer *answer, uint64_t sum, uint64_t tokens)
{
    uint64_t said = 0;
    for (size_t i = 0; i < 4; i++) said |= (uint64_t)answer->o[FOLD_SAYS_SUM + i] << 16 * i;
    if ((uint64_t)answer->o[FOLD_SAYS_TOKENS] != tokens)
        fail_msg("%g tokens are folded, expected %llu", (double)answer->o[FOLD_SAYS_TOKENS],
                 (unsigned long long)tokens);
    if (said != sum)
        fail_msg("the sum of %llu tokens is %016llx, expected %016llx", (unsigned long long)tokens,
                 (unsigned long long)said, (unsigned long long)sum);
}

/* All that a layer's fold has to have now. */
static inline void fold_expect_layer(struct fixture *fx, struct context *context, uint32_t layer,
                                     const struct fold_past *past)
{
    struct error err = { 0 };
    struct answer answer;
    uint64_t tokens = fold_reach(context_layer_tokens(context, layer));
    ASSERT_OK(fixture_attend(fx, context, layer, UINT64_MAX, &answer, &err), err);
    fold_expect_said(&answer, fold_expected(fx, past, layer, tokens), tokens);
}

static inline void fold_expect_past(struct fixture *fx, struct context *context,
                                    const struct fold_past *past)
{
    for (uint32_t layer = 0; layer < fx->model.layers; layer++)
        fold_expect_layer(fx, context, layer, past);
}

static inline void fold_expect(struct fixture *fx, struct context *context)
{
    fold_expect_past(fx, context, &(struct fold_past){ fx->salt, fx->salt, 0, NULL, NULL, 0 });
}

#endif
