/* SPDX-License-Identifier: Apache-2.0 */
/* reduce.c — plain loops; the pool remembers the scores that it has written over. */
#include "index/reduce.h"

#include <assert.h>
#include <string.h>

const char *const reduce_names[REDUCES] = { "none", "mean", "max", "sum" };

void reduce_group(enum reduce rule, const float *scores, size_t group, size_t n,
                  float *ret_scores)
{
    assert(group > 0 && (rule != REDUCE_NONE || group == 1));
    memmove(ret_scores, scores, n * sizeof *scores);
    for (size_t m = 1; m < group; m++) {
        const float *more = scores + m * n;
        for (size_t i = 0; i < n; i++) {
            if (rule != REDUCE_MAX) ret_scores[i] += more[i];
            else if (more[i] > ret_scores[i]) ret_scores[i] = more[i];
        }
    }
    for (size_t i = 0; rule == REDUCE_MEAN && i < n; i++) ret_scores[i] /= (float)group;
}

void reduce_pool(float *scores, size_t n, size_t kernel)
{
    assert(kernel % 2 == 1 && kernel <= REDUCE_KERNEL_MAX);
    float before[REDUCE_KERNEL_MAX] = { 0 }; /* score i - j at (i - j) % kernel */
    size_t half = kernel / 2;
    for (size_t i = 0; i < n; i++) {
        before[i % kernel] = scores[i];
        double sum = 0.0;
        for (size_t j = 0; j <= half && j <= i; j++) sum += (double)before[(i - j) % kernel];
        for (size_t j = i + 1; j <= i + half && j < n; j++) sum += (double)scores[j];
        scores[i] = (float)(sum / (double)kernel);
    }
}
