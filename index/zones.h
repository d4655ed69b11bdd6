/* SPDX-License-Identifier: Apache-2.0 */
/* zones.h — RetroInfer's wave index: k-means clusters of keys, a few of them read, more of them
 * estimated, most of them dropped.
 *
 * Source: RetroInfer (arXiv 2505.02922v3, §3) and the code beside it (microsoft/RetrievalAttention,
 * cache_hub/retroinfer_cache.py and kmeans.py). Keys (rotated) minus their mean are clustered by
 * spherical k-means inside segments of about 8,192 tokens, 16 tokens per cluster on average, the
 * centroids starting at every 16th key; the last of 10 passes assigns every key to the best of
 * *all* centroids and leaves plain means. Kept per cluster: the centroid, the mean of its values,
 * its size. A query reads three zones:
 *
 *     steady       4 sinks, 64 local tokens and what no cluster covers: exactly
 *     retrieval    the best 1.8 % of clusters: all members exactly
 *     estimation   the next 23.2 %: size * exp(scale q·c) stands for their mass, the mean value for
 *                  their values
 *
 * The rest is dropped. One ranking serves a KV head: the softmax over its centroids of each query
 * head, summed over the group. Zones merge by log-sum-exp. What differs from the paper's system and
 * why: docs/decisions/0038.
 *
 * A version keeps clusters of the *prompt* (what was there when it was first built) and, appended,
 * those of 1,024 tokens each that came later. When as much has been appended as the prompt had, all
 * of it is clustered anew as one prompt.
 *
 * Bytes of save, little-endian (arrays one after the other, nothing between):
 *     u32 magic 0x454e4f5a · u32 1 · u64 tokens · u64 sinks · u64 prompt tokens · u64 clusters C ·
 *     u32 G · u32 D · u32 begin (G, C+1) · u32 members (G, tokens - sinks) ·
 *     fp16 centroids (G, C, D) · bf16 mean values (G, C, D)
 *
 * Memory   4 D bytes per cluster and 4 per token, of each KV head
 * Errors   MEMD_ENOMEM · what `stop` returns · MEMD_ECORRUPT from load and validate
 * Quality  mass of what was dropped as the centroids estimate it; predicted error unknown (NaN)
 *          unless everything was read; max_bytes is not looked at
 * Tests    tests/unit/test_zones.c
 */
#ifndef MEMD_INDEX_ZONES_H
#define MEMD_INDEX_ZONES_H

#include "index/layer_index.h"

enum zones_option {
    ZONES_RETRIEVAL,
    ZONES_ESTIMATION,
    ZONES_SINKS,
    ZONES_LOCAL,
    ZONES_ITERATIONS,
    ZONES_OPTIONS
};

enum { ZONES_STEP = 1024, ZONES_SEGMENT = 8192, ZONES_CLUSTER = 16 };

extern const struct layer_index_type zones_type;

/* Clusters of one layer. Positions are 32 bits wide: LIMIT_TOKENS is 2^32. */
struct zones {
    struct layer_index base;
    size_t kv_heads, head_dim, clusters; /* of each KV head */
    uint64_t sinks;   /* positions below are in no cluster */
    uint64_t prompt;  /* positions below were clustered together */
    uint32_t *begin;  /* (G, C+1) into members */
    uint32_t *members; /* (G, tokens - sinks) positions by cluster, ascending within it */
    uint16_t *centroids; /* (G, C, D) fp16 */
    uint16_t *means;     /* (G, C, D) bf16: of values */
};

/* How many tokens are in clusters, per KV head. */
static inline size_t zones_covered(const struct zones *zones)
{
    return zones->base.tokens > zones->sinks ? (size_t)(zones->base.tokens - zones->sinks) : 0;
}

/* An empty version with room for `clusters`; NULL without memory. */
struct zones *zones_new(const struct layer_source *shape, uint64_t tokens, uint64_t sinks,
                        size_t clusters);

/* Members of the type, in files of their own. */
int zones_build(const struct layer_source *source, const struct layer_index *before,
                struct layer_index **ret_version, struct error *err);
size_t zones_save(const struct layer_index *version, unsigned char *ret_data);
int zones_load(const struct layer_source *shape, const void *data, size_t bytes,
               struct layer_index **ret_version, struct error *err);
int zones_validate(const struct layer_index *version, struct error *err);

#endif
