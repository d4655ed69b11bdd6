/* SPDX-License-Identifier: Apache-2.0 */
/* progressive_block.h — one block of progressive attention: some queries of one KV head, and what
 * its stages hand to each other.
 *
 * A block goes through the levels from coarse to exact (progressive_block.c has the flow):
 *
 *     queries    its M query rows in the space of every segment, as int8
 *     clusters   every cluster of every segment by its centroid: a mass W and a priority
 *     scan       K-hi of the clusters that were opened: a weight per token; V-hi of those where
 *                values matter too
 *     probe      a sample of the clusters without V: how wrong are they together?
 *     refine     tokens whose codes matter too much: 8 bits, or their exact rows
 *
 * All masses are exp(score - shift[m]) with one shift per query row, all sums of values but those
 * of exact rows are in the rotated space of values, and are turned back once at the end.
 *
 * Internal to index/progressive*.c.
 */
#ifndef MEMD_INDEX_PROGRESSIVE_BLOCK_H
#define MEMD_INDEX_PROGRESSIVE_BLOCK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "attention/scan.h"
#include "index/kernels/plane.h"
#include "index/progressive.h"

struct backend;
struct arena;
struct block;
struct error;
struct plane_backend;

enum {
    BLOCK_ROWS = 16,     /* query rows of a block at most */
    BLOCK_PROBES = 64,   /* clusters sampled at most: fewer let a round stop by luck (0032) */
    BLOCK_PROBES_LEAST = 8, /* where the target is coarse */
    BLOCK_ROUNDS = 4,    /* of opening clusters */
    BLOCK_GATHER = 64,   /* refined rows that go through attention together */
    BLOCK_LINE_BYTES = 64,
    BLOCK_BINS = 1024,   /* of a histogram of floats ≥ 0: quarter octaves */
};

/* The bin of a float ≥ 0 (exponent and two bits of mantissa), and the least float of a bin: sums
 * per bin give thresholds without sorting. */
static inline uint32_t block_bin(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits >> 21;
}

static inline float block_bin_least(uint32_t bin)
{
    uint32_t bits = bin << 21;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* An fp16 that is neither negative nor infinite, such as a step: the exponents lie 112 apart. */
static inline float block_step(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 13;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value * 0x1p112F;
}

/* The least of a tile's weights (16), which are not negative: as signed numbers, which a compiler
 * may compare in any order. */
static inline float block_least(const float *weights)
{
    int32_t bits[PLANE_TILE], least = INT32_MAX;
    float value;
    memcpy(bits, weights, sizeof bits);
    for (size_t t = 0; t < PLANE_TILE; t++) least = bits[t] < least ? bits[t] : least;
    memcpy(&value, &least, sizeof value);
    return value;
}

/* Entries of a search's scratch heaps. */
#define PROGRESSIVE_SCRATCH(k) ((k) + 16)

/* What all blocks of a call share; immutable while they run, but for the scan's `stopped`. */
struct progressive {
    const struct progressive_args *args;
    struct scan scan;
    const struct backend *backend;
    const struct plane_backend *planes;
    const struct index_quality *quality; /* arrays of the answer */
    const struct partial *out;           /* (n, H) rows */
    size_t block_rows, blocks;           /* per KV head; rows = queries × H/G */
    uint64_t block_bytes;                /* that a block may read, UINT64_MAX = no bound */
    float target;
    const struct index_hits *hits;       /* NULL: attention */
    void (*run)(struct block *block);    /* block_run or block_search */
    atomic_uint_fast64_t rows[INDEX_LEVELS], bytes[INDEX_LEVELS]; /* read so far */
};

/* A segment that is answered from its planes. */
struct block_segment {
    const struct planes *planes;
    const struct view *view;
    uint64_t opened; /* bit c: K-hi of cluster c was read */
    uint64_t valued; /* V-hi too; never without K-hi */
    uint64_t dropped; /* masses that count as 0: next to nothing */
    bool blank;      /* no cluster counts for any row: masses and priorities are not there */
    bool estimated;  /* masses and priorities are there */
    bool turned;     /* the queries are in its space */
    bool vectors;    /* what that takes was counted, of a segment in a table */
};

/* Opened tiles of one segment, with the weights of their tokens. */
struct block_chunk {
    size_t segment, count; /* count tiles */
    uint64_t valued;       /* bit i: V-hi of tile i was read */
    const uint8_t *soon;   /* codes that are read after its values, NULL: not known */
    uint64_t quiet;        /* bit i: no token of tile i can matter (progressive_refine.c) */
    uint16_t *tiles;       /* (count) ascending */
    float *weights;        /* (M, 16 count) */
    float *tile_sum;       /* (M, count) */
    float *tile_square;    /* (M, count) */
    float *tile_most;      /* (M, count) largest e² of its tokens (progressive_refine.c) */
    float *key_step, *value_step; /* (count) the largest of its tokens' steps, squared */
};

/* A cluster of the sample. */
struct block_probe {
    size_t segment, cluster, draws;
    double chance; /* of one draw */
};

/* One running state of kernels/partial.h. */
struct block_state {
    float *max, *sum; /* (M) */
    float *acc;       /* (M, D) */
};

struct block {
    const struct progressive *call;
    size_t kv_head, first; /* row 0 is row `first` of the KV head's n × H/G */
    size_t rows, head_dim; /* M, D */
    const float *q;                 /* (M, D) scaled, rotated by RoPE */

    struct block_segment *segments;
    size_t segment_count;

    /* Queries, per segment. */
    int8_t *q8;        /* (P, M, D) */
    float *scale;      /* (P, M) */
    float *offset;     /* (P, M) */
    int32_t *sum;      /* (P, M) */
    float *deviation;  /* (P, M): times sqrt(key_spread) = deviation of a score in a cluster, in the
                        * space that its centroids were scored in */
    float *square;     /* (P, M): |q'|² */
    float *turned;     /* (M, D) fp32 queries of one segment */
    /* The same of a space that segments share (centroid_table.h), the one asked for last. */
    struct block_space {
        const struct planes_space *space; /* NULL: none was */
        int8_t *q8;                       /* (M, D) */
        float *scale, *offset, *deviation, *square; /* (M) */
        int32_t *sum;                     /* (M) */
    } shared;

    /* Clusters, per segment. */
    float *centre;     /* (P, M, 64): score of the centroid, of segments without an entry */
    float *scores;     /* (M, 64) of one segment */
    size_t scored_count, tabled_count; /* segments, by centroids at 7 bits, and at 4 of a table */
    float *mass;       /* (P, M, 64): W, 16 exp(centroid score + …); of opened ones the sum. Until
                        * it is estimated, the centroid score of segments with an entry */
    float *priority;   /* (P, M, 64): which to read more of first; own unit per query row */
    float *shift;      /* (M) */
    float *mass_top;       /* (P, M): the largest logarithm of a mass per token */
    float *priority_log;   /* (P, M): the same of a priority */
    float *priority_top;   /* (P, M): no priority of the segment is larger */
    float *mass_sum;       /* (P, M): as it was estimated */
    float *priority_sum;   /* (P, M): of a segment that nothing was read of */
    float *priority_shift; /* (M): priority = exp(… - priority_shift) */
    double *priority_unit; /* (M): from weights to priorities, exp(shift - priority_shift) */
    float *threshold;      /* (M): priorities from here on are read */
    double *mass_shut;     /* (M) of clusters that are not opened */
    double *priority_shut; /* (M) of clusters without V */
    double *priority_all;  /* (M) of all priorities that ever went into priority_shut */
    float *base, *removed, *residual; /* (M, D), see progressive_block.c */
    double *mass_removed; /* (M) of the tokens that were taken out of it to be refined */
    double *mass_open; /* (M) of the tokens that are answered from hi */
    uint64_t *fresh;   /* (P) */

    struct block_chunk *chunks;
    size_t chunk_count, tiles_used;
    size_t coded;       /* tokens answered from hi */
    uint16_t *tiles;    /* (64 P) */
    float *weights;     /* (M 1024 P) */
    float *tile_sums;   /* (3 M 64 P) */
    float *tile_steps;  /* (2 64 P) */

    struct block_probe probes[BLOCK_PROBES];
    size_t probe_count, draws;
    float *probe_values; /* (BLOCK_PROBES, M, D): Σ w r of the cluster */
    float *probe_means;  /* (BLOCK_PROBES, D) */
    float *probe_masses; /* (BLOCK_PROBES, M): Σ w */
    float *correction;   /* (M, D): Σ w v of shut clusters, what the sample adds to it */
    double *correction_mass; /* (M): the same of Σ w */

    struct block_state exact, refined; /* in original space; in rotated space */
    float *exact_turned; /* (M, D): exact.acc in rotated space */
    struct block_state row;            /* of one segment's refined rows */
    float *uneven;                     /* (M, 1024): weights over the least of their tile */
    float *gather_k, *gather_v;        /* (BLOCK_GATHER, D) */
    uint32_t *visible;   /* (M) */

    double *total;       /* (M) Σ of all masses */
    float *output;       /* (M, D) the answer so far, rotated */
    double *norm;        /* (M) its length */
    double *shut_error;  /* (M) predicted, of what stayed at clusters */
    double *code_error;  /* (M) predicted, of codes */
    float *histogram;    /* (M, BLOCK_BINS) */
    bool limited;        /* bytes ran out */

    uint64_t *best_ids; /* (M, PROGRESSIVE_SCRATCH(k)) of searching: a heap per row */
    float *best_scores; /* the same */

    uint64_t level_rows[INDEX_LEVELS], level_bytes[INDEX_LEVELS];
    struct scan_cursor *cursor;
};

/* The queries in the space of segment p as int8, turned when first asked for; block->deviation is
 * left as it is. */
struct plane_queries block_plane_queries(struct block *block, size_t p);
/* In that of its entry in a table, if it has one. Sets block->deviation of p. */
struct plane_queries block_centroid_queries(struct block *block, size_t p);
/* In the space of segment p, fp32, into block->turned. */
void block_turn_exactly(struct block *block, size_t p);

/* Variances inside the clusters of segment p, for queries of the space that its centroids were
 * scored in. (64) */
const float *block_key_spread(const struct block *block, size_t p);
/* Scores of the centroids of segment p, as they are at hand. Sets block->deviation of p.
 * ret_scores (M, 64) */
void block_score_centroids(struct block *block, size_t p, float *ret_scores);
/* Where block_score_clusters leaves the scores of the centroids of segment p. (M, 64) */
static inline float *block_scored(const struct block *block, size_t p)
{
    bool tabled = block->segments[p].planes->entry.space != NULL;
    return (tabled ? block->mass : block->centre) + p * block->rows * PLANES_CLUSTERS;
}
/* Scores of some centroids (bits) of segment p as the tokens of their clusters are moved to them:
 * of 7 bits, in `room` (M, 64) where those are not the ones that were scored. (M, 64) */
const float *block_centres(struct block *block, size_t p, uint64_t clusters, float *room);
/* What that reads for a cluster at most, its segment's vectors included; 0 without tables. */
size_t block_centre_bytes(const struct block *block);
/* What block_score_centroids has read. */
size_t block_centroid_bytes(const struct block *block);

/* Scores of the centroids of all clusters. Sets shift. */
void block_score_clusters(struct block *block);
/* Masses, priorities and mean values of the clusters of every `every`-th segment; the others are
 * left out as if they held nothing. Returns how many segments were looked at. */
size_t block_estimate_clusters(struct block *block, size_t every);
/* Mark clusters until the priorities of those without V sum to no more than allowed[m] (M); as many
 * as the byte budget allows. Sets threshold. Returns how many are to be read (more) of; their bits
 * are in ret_fresh (P). */
size_t block_choose(struct block *block, const double *allowed, uint64_t *ret_fresh);

/* A function that does nothing but ask for memory has no effect that gcc knows, and its calls are
 * removed unless it is inlined first (docs/decisions/0047). */
#define BLOCK_FETCH static inline __attribute__((always_inline))

/* Ask for lines of memory, into the second-level cache. */
BLOCK_FETCH void block_fetch_lines(const void *from, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += BLOCK_LINE_BYTES)
        __builtin_prefetch((const unsigned char *)from + at, 0, 2);
}

/* The same into the first level: single lines that lie apart. */
BLOCK_FETCH void block_fetch_near(const void *from, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += BLOCK_LINE_BYTES)
        __builtin_prefetch((const unsigned char *)from + at, 0, 3);
}

/* Ask for what reading clusters (bits) of segment p begins with: they lie anywhere, and a CPU that
 * is told where while it works on those before does not wait. The kernels ask for the tiles behind
 * the first ones. */
void block_fetch(const struct block *block, size_t p, uint64_t clusters);
void block_fetch_planes(const struct block_segment *segment, size_t head_dim, uint64_t clusters);

/* How the rounding errors of a tile's scores are shared out: proportional to step², 1 on the mean.
 * steps (16) fp16, ret_shares (16) */
void block_centre_shares(const uint16_t *steps, float *ret_shares);
/* Scores of a tile (16) whose centroid scores `centre`, in place: moved by those shares until their
 * mean is the centroid's. */
void block_centre_tile(float *scores, float centre, const float *shares);
/* Residuals of the tiles `which` (bits) of a chunk, with their weights as they are, added to
 * acc (M, D). */
void block_weigh(struct block *block, const struct block_chunk *chunk, uint64_t which, float *acc);
/* K-hi of the fresh clusters of segment p: a new chunk whose weights are scores still. `soon`:
 * codes that are read next, or NULL. */
struct block_chunk *block_score_tokens(struct block *block, size_t p, uint64_t fresh,
                                       const uint8_t *soon);
/* K-hi of the fresh clusters, chunks with weights, masses moved from shut to open; V-hi where what
 * the mean value gets wrong reaches the threshold. */
void block_scan_fresh(struct block *block, const uint64_t *fresh);

/* Sample clusters without V by `draws` draws, ≤ BLOCK_PROBES / 2, or by so many more of the same
 * (no cluster was opened in between): sets shut_error and the corrections, if there is anything to
 * sample. total, output and norm are to be without a correction, and stay so. */
void block_probe(struct block *block, size_t draws, bool more);

/* total, output, norm from what is known. */
void block_sum_up(struct block *block);

/* Read tokens more finely until codes meet what the target leaves them; sets code_error. */
void block_refine(struct block *block);

/* What the mean value of a cluster is off by, squared: 8 bits of it are coded. */
static inline float block_mean_rounding(const struct block *block, const struct planes *planes,
                                        size_t c)
{
    return planes->mean_scale[c] * planes->mean_scale[c] * (float)block->head_dim / 12.0F;
}

/* K-hi of a tile, or V-hi. */
size_t block_plane_bytes(const struct block *block);
/* Clusters of the block without V. */
size_t block_shut_count(const struct block *block);
/* shift[m] is final, or was moved: what follows from it. */
void block_set_unit(struct block *block, size_t m);
/* Bytes that may still be read. */
uint64_t block_bytes_left(const struct block *block);

/* Sort views into segments with planes and rows to be read exactly; `read` gets runs of the latter,
 * rows begin … end-1 of the scan. */
void block_sort_views(struct block *block,
                      void (*read)(struct block *block, size_t begin, size_t end));
/* Query of the scan that row m belongs to, and row m's number in the answer (n, H). */
size_t block_query(const struct block *block, size_t m);
size_t block_answer_row(const struct block *block, size_t m);

/* Nothing was read into this state. */
void block_clear_state(const struct block *block, const struct block_state *state);
/* The flow. */
void block_run(struct block *block);

/* Run every block of a call over `segments` segments per KV head; args, backend, planes, run and
 * what run needs are set. */
int progressive_run(struct progressive *call, size_t segments, struct arena *arena,
                    struct error *err);
/* Segments with planes, of the KV head that has most. */
size_t progressive_segments(const struct progressive_args *args);
/* Is it better to read everything? */
bool progressive_is_exact(const struct progressive_args *args, size_t segments);
/* Add what the blocks of a call read. */
void progressive_count(const struct progressive *call, struct index_quality *quality);

#endif
