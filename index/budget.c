/* SPDX-License-Identifier: Apache-2.0 */
/* budget.c — the published arithmetic, in its order. */
#include "index/budget.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>

#include "base/error.h"
#include "base/tensor.h"

uint64_t budget_const(const struct budget *budget, uint64_t tokens)
{
    assert(budget->window < budget->capacity);
    return tokens < budget->capacity ? BUDGET_ALL : budget->capacity - budget->window;
}

uint64_t budget_pyramid(const struct budget *budget, uint32_t layer, uint64_t tokens)
{
    assert(layer < budget->layers && budget->beta >= 1);
    uint64_t uniform = budget_const(budget, tokens);
    if (uniform == BUDGET_ALL || tokens < 2 * uniform) return uniform;
    uint64_t past = tokens - budget->window; /* ≥ uniform, as tokens ≥ capacity */
    uint64_t least = uniform / budget->beta, most = 2 * uniform - least;
    if (most >= past) {
        most = past;
        least = 2 * uniform - most;
    }
    uint64_t step = budget->layers == 1 ? 0 : (most - least) / (budget->layers - 1);
    return most - layer * step;
}

int budget_heads(const struct tensor *capacities, uint64_t window, uint64_t tokens,
                 uint64_t *ret_kept, struct error *err)
{
    assert(capacities->dims == 1 && capacities->dtype == DTYPE_FP32);
    const float *given = capacities->data;
    uint64_t least = window > 0 ? window : 1;
    for (size_t g = 0; g < capacities->shape[0]; g++) {
        double capacity = (double)given[g];
        if (capacity < (double)least || capacity != floor(capacity))
            return error_set(err, MEMD_EINVAL,
                             "the capacity of KV head %zu is %g, it must be a whole number and at "
                             "least %" PRIu64,
                             g, capacity, least);
        bool all = tokens <= window || (double)tokens < capacity;
        ret_kept[g] = all ? BUDGET_ALL : (uint64_t)capacity - window;
    }
    return 0;
}

bool budget_chooses(uint64_t *kept, size_t heads, uint64_t past)
{
    bool chooses = false;
    for (size_t g = 0; g < heads; g++) {
        chooses |= kept[g] != BUDGET_ALL;
        if (kept[g] == BUDGET_ALL) kept[g] = past;
    }
    return chooses;
}
