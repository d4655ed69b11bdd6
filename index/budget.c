/* SPDX-License-Identifier: Apache-2.0 */
/* budget.c — the published arithmetic, in its order. */
#include "index/budget.h"

#include <assert.h>

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
