/* SPDX-License-Identifier: Apache-2.0 */
/* projected.h — keys in few dimensions, as a fold: the first components of each key in a basis of
 * its head, by which a scan ranks tokens for a part of what the keys would cost to read.
 *
 * The basis P (G, D, D) has the components as columns, the most important first; a projected key is
 * the first r numbers of k·P. It comes from a client, or from the layer itself: principal
 * components (pca.h) of its first tokens. Where r is a share of the variance, it is the largest
 * that any head needs, so that all heads have equally many.
 *
 * What is projected is the key as attention sees it, rotated at its position (a basis of rotated
 * keys), or the one before rotation (`unrotated`), where memd rotates.
 *
 * Shapes   (G, tokens, width) fp16, or fp32 for a model of fp32; width: r rounded up to 8, the rest
 *          zeros
 * Memory   2 · width bytes per token and head (4 · width in fp32), and G·width·D·4 of basis
 * Cost     D·width multiplications per token and head, once; principal components once (pca.h)
 * Exact    a function of the key and the basis. fp16 saturates at 65,504
 * Threads  as fold.h
 * Errors   MEMD_ENOMEM · MEMD_EUNSUPPORTED no variances where a share is wanted · what `stop` says
 * Source   Loki (Singhania et al., arXiv 2406.02542) §4
 * Tests    tests/unit/test_projected.c
 */
#ifndef MEMD_INDEX_PROJECTED_H
#define MEMD_INDEX_PROJECTED_H

#include "index/fold.h"
#include "index/grown.h"

struct projected {
    struct fold base;
    size_t heads, head_dim;
    size_t components, width; /* r, and r rounded up; 0 = there is no basis yet */
    uint32_t dtype;           /* of the projected keys */
    float *basis;             /* (G, width, D) the components as rows */
    struct grown keys;        /* (G, tokens, width) */
};

/* How many components. */
struct projected_wish {
    size_t components; /* or 0: as many as have the share */
    double share;
};

/* For the functions of a fold_type: its `open`, `free` and `advance` (of a fold with a basis; where
 * that fails before it has a token, it has no basis again). */
int projected_open(const struct fold_type *type, const struct fold_source *source,
                   struct fold **ret_fold, struct error *err);
void projected_free(struct fold *fold);
int projected_advance(struct projected *projected, const struct fold_source *source, bool unrotated,
                      uint64_t end, struct error *err);

/* An uploaded basis (G, D, D) and, for a share, variances (G, D), descending; or NULL. */
int projected_take(struct projected *projected, const struct tensor *basis,
                   const struct tensor *variances, const struct projected_wish *wish,
                   struct error *err);

/* A basis of the source's first `tokens` keys. */
int projected_calibrate(struct projected *projected, const struct fold_source *source,
                        bool unrotated, uint64_t tokens, const struct projected_wish *wish,
                        struct error *err);

/* ret_q (width) of q (D) */
void projected_query(const struct projected *projected, size_t head, const float *q, float *ret_q);

/* Products of a projected query (width) with the keys of tokens begin … begin+count-1. */
void projected_scores(const struct projected *projected, size_t head, const float *q,
                      uint64_t begin, size_t count, float *ret_scores);

#endif
