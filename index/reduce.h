/* SPDX-License-Identifier: Apache-2.0 */
/* reduce.h — scores of tokens by single query heads become scores by which a KV head chooses: over
 * its neighbours, and over the heads of a group.
 *
 * Methods that were published for models with a key per query head score each head by itself. With
 * grouped queries (GQA) the heads of a group share their KV head's rows; where they have to agree
 * on one choice, their scores are reduced by one of
 *
 *     none    they do not agree: each query head chooses for itself
 *     mean    KVCache-Factory's default
 *     max     a token that one head wants very much is kept for all
 *     sum     the same choice as mean
 *
 * Shapes   scores (n) of one head
 * Threads  pure
 * Source   Zefan-Cai/KVCache-Factory (head reduction); SnapKV (arXiv 2404.14469) §4 (pooling)
 * Tests    tests/unit/test_reduce.c
 */
#ifndef MEMD_INDEX_REDUCE_H
#define MEMD_INDEX_REDUCE_H

#include <stddef.h>

enum reduce { REDUCE_NONE, REDUCE_MEAN, REDUCE_MAX, REDUCE_SUM, REDUCES };

/* The names, in this order, for a named choice of a method's options. */
extern const char *const reduce_names[REDUCES];

/* The heads of a group (group, n), into ret_scores (n), which may be the first of them. REDUCE_NONE
 * only with group 1. */
void reduce_group(enum reduce rule, const float *scores, size_t group, size_t n,
                  float *ret_scores);

/* Average of each score and its neighbours, `kernel` of them (odd), in place. Beyond both ends
 * there are zeros, and they count: PyTorch's avg_pool1d with padding kernel / 2. So scores near an
 * end are damped. */
void reduce_pool(float *scores, size_t n, size_t kernel);

enum { REDUCE_KERNEL_MAX = 63 };

#endif
