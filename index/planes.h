/* SPDX-License-Identifier: Apache-2.0 */
/* planes.h — one KV head of one sealed segment in three levels of precision: 64 clusters of exactly
 * 16 tokens, 4-bit codes (hi), 8-bit codes (hi + lo).
 *
 * Data-independent codes: nothing is trained, nothing drifts, a segment is coded once when it is
 * sealed and never again. Two payloads, so that the coarse one can be resident without the other:
 *
 *     hi   head (64 bytes), per-channel vectors, order of tokens, clusters, scales, K-hi, V-hi
 *     lo   K-lo and V-lo, row by row
 *
 * Space of keys      k' = H S diag(t) (k - key_mean)     t_c ~ sqrt(rms_q,c / rms_k,c); rms_q,c is
 *                                                        1 where no queries were observed
 * Space of queries   q' = H S diag(1/t) q                q·k = q'·k' + q·key_mean
 * Space of values    v' = H S v
 * H S is the signed Hadamard rotation of rotation.h. Keys are coded *rotated by RoPE* at their
 * positions, whatever form is stored.
 *
 * Order    tokens stand in cluster order: place p = 16 c + i is token i of cluster c; rows[p] is
 *          its row in the segment (0 … 1023). Clusters are balanced: repeated halving (bisect.h),
 *          in the metric of the observed queries.
 * Codes    mid-rise: x ≈ s (n - 127.5), n = 16 h + l in 0 … 255; hi alone is 16 s (h - 7.5), lo
 *          adds s (l - 7.5). 16 s is fp16, rounded up, one per token; 0 where all of x is 0.
 *          Values are coded as the residual to the decoded mean value of their cluster, so that
 *          Σ w v = Σ_c W_c mean_c + Σ w r.
 * Range    t carries a power of two that keeps steps of keys far from the ends of fp16, whatever
 *          the norm of keys. Steps of values end at 65504 (residuals above 522,000), and products
 *          of fp32 rows above 1e17 overflow: such a segment is refused, never saturated.
 * Layout   K-hi: a tile of 16 tokens (one cluster) is [D/8][16][4] bytes: byte 64 v + 4 t + j holds
 *          dimension 8v+j of token t in the low nibble, dimension 8v+4+j in the high one.
 *          V-hi: a tile is [2][D][4] bytes: byte (o D + d) 4 + j holds dimension d of token 8o+j in
 *          the low nibble, of token 8o+4+j in the high one.
 *          Centroids: 7-bit codes s (n - 63.5), n in 0 … 127, tiles of 16 clusters [D/4][16][4].
 *          Mean values: int8 s n, n in -127 … 127, row by row.
 *          Lo: per place, D/2 bytes of K then D/2 bytes of V; byte i holds dimension 2i in the low
 *          nibble, 2i+1 in the high one.
 * Checks   room for checksums of a 64th each of K, V and lo, so that whoever keeps them can prove a
 *          few rows without reading the others (memory/derived.h). Zero when coded
 * Cost     (1.125 D + 8.5) bytes per token hi, D bytes lo; at D = 128 29.8% and 25% of fp16 K and V
 * Head     u32 magic, u16 version, u16 D, u64 queries, 48 bytes 0; all little-endian
 * Errors   MEMD_ECORRUPT from planes_open: rows are not a permutation, a scale is not finite ·
 *          MEMD_EVERSION a newer format · MEMD_EUNSUPPORTED from planes_encode: out of range, the
 *          segment has to stay exact
 * Tests    tests/unit/test_planes.c; docs/FORMAT.md
 */
#ifndef MEMD_INDEX_PLANES_H
#define MEMD_INDEX_PLANES_H

#include <stddef.h>
#include <stdint.h>

struct arena;
struct error;
struct rope;
struct view;

#define PLANES_MAGIC UINT32_C(0x4E4C504D) /* "MPLN" */

enum {
    PLANES_VERSION = 2,
    PLANES_HEAD_BYTES = 64,
    PLANES_TOKENS = 1024, /* of a segment */
    PLANES_CLUSTER = 16,  /* tokens of a cluster, and of a tile */
    PLANES_CLUSTERS = PLANES_TOKENS / PLANES_CLUSTER,
};

/* Offsets into the two payloads, all multiples of 64. */
struct planes_layout {
    size_t head_dim;
    size_t balance;        /* (D) f32: t */
    size_t query_square;   /* (D) f32: mean of q_c² of the queries observed so far; 0 = none */
    size_t key_mean;       /* (D) f32 */
    size_t rows;           /* (1024) u16 */
    size_t centroid_scale; /* (64) f32 */
    size_t key_spread;     /* (64) f32: mean over the tokens of Σ_c query_square_c *
                            * (k - centroid)_c², with query_square 1 where none were observed: the
                            * variance of q·k inside the cluster for a query like the observed
                            * ones, before scale */
    size_t mean_scale;     /* (64) f32 */
    size_t value_spread;   /* (64) f32: mean over the tokens of |v - mean|² */
    size_t centroids;      /* 64 D bytes */
    size_t means;          /* (64, D) s8 */
    size_t key_scale;      /* (1024) f16: 16 s of K, the step of hi */
    size_t value_scale;    /* (1024) f16: 16 s of V */
    size_t key_hi;         /* 512 D bytes */
    size_t value_hi;       /* 512 D bytes */
    size_t checks;         /* (3, 64) u64: of 16 rows of K, of V, of 16 places of lo */
    size_t hi_bytes, lo_bytes;
};
void planes_layout_init(size_t head_dim, struct planes_layout *ret_layout);

/* What codes of keys are relative to. */
struct planes_space {
    uint64_t queries; /* observed; 0: query_square says nothing */
    const float *balance, *query_square, *key_mean; /* (D) */
};

/* The centroids of a segment in a table (centroid_table.h); all NULL: it is in none. */
struct planes_entry {
    const struct planes_space *space;
    const uint8_t *codes;    /* at 4 bits: 4 tiles, as K-hi */
    const uint16_t *steps;   /* (64) fp16 */
    const float *key_spread; /* (64) for queries of the space, the rounding of `codes` in it */
    float root;              /* of the largest of those */
    const uint8_t *rows;     /* (64, D): centroids as in `struct planes`, but row by row */
    const float *row_scale;  /* (64) */
};

/* One head of one segment, opened: pointers into the payloads. lo may be NULL (not resident,
 * damaged): hi still answers. */
struct planes {
    uint64_t queries; /* observed when this was coded; 0: t and query_square say nothing */
    const float *balance, *query_square, *key_mean;                      /* (D) */
    const uint16_t *rows;                                                /* (1024) */
    const float *centroid_scale, *key_spread, *mean_scale, *value_spread; /* (64) */
    const uint8_t *centroids;
    const int8_t *means;                      /* (64, D) */
    const uint16_t *key_scale, *value_scale;  /* (1024) fp16 */
    const uint8_t *key_hi, *value_hi, *lo;
    const uint64_t *checks; /* (3, 64) */
    struct planes_entry entry;
};

/* hi: hi_bytes at a multiple of 64; lo: lo_bytes or NULL. Everything is checked, codes excepted
 * (every code is valid). */
int planes_open(const struct planes_layout *layout, const void *hi, const void *lo,
                struct planes *ret_planes, struct error *err);

struct planes_source {
    const struct view *view;   /* 1,024 tokens of one KV head */
    const struct rope *rope;   /* not NULL: rotate keys at their positions first */
    const float *query_square; /* (D) mean of q_c² of observed queries (rotated, before scale), or
                                * NULL */
    uint64_t queries;          /* how many */
};

/* Write both payloads. Scratch (0.55 MB at D = 128) from the arena, given back by the caller.
 * MEMD_ENOMEM, MEMD_EUNSUPPORTED. */
int planes_encode(const struct planes_layout *layout, const struct planes_source *source,
                  struct arena *arena, unsigned char *ret_hi, unsigned char *ret_lo,
                  struct error *err);

/* One token decoded into fp32 in the original spaces, rotated keys: the reference of every kernel.
 * `level` is INDEX_CLUSTERS, INDEX_HI or INDEX_LO. ret_k, ret_v (D). */
void planes_decode(const struct planes_layout *layout, const struct planes *planes, size_t place,
                   int level, float *ret_k, float *ret_v);

#endif
