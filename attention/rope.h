/* SPDX-License-Identifier: Apache-2.0 */
/* rope.h — rotary position embedding: which angle, which pairs, which scaling.
 *
 * A pair (a, b) of a vector at position p turns by p * inv_freq[i]: (a cos - b sin, b cos + a sin).
 * Pairing `half` joins dimension i with i + R/2, `interleaved` joins 2i with 2i+1, R = rotary_dims;
 * the remaining dimensions stay as they are. Angles are formed in double: at position 10^6 a float
 * angle is off by 0.06 rad.
 *
 * Scaling: none; linear (inv_freq / factor); llama3 (HF modeling_rope_utils: long waves divided by
 * factor, short ones kept, smooth in between); yarn (arXiv 2309.00071 §3: NTK-by-parts ramp between
 * beta_fast and beta_slow, vectors multiplied by attention_factor).
 *
 * Memory   a table of inv_freq lives inside the struct (no allocation)
 * Threads  immutable after rope_init
 * Errors   MEMD_EINVAL parameters out of range (stated in the text)
 * Tests    tests/unit/test_rope.c against values of an independent float64 implementation
 */
#ifndef MEMD_ATTENTION_ROPE_H
#define MEMD_ATTENTION_ROPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

enum rope_pairing { ROPE_PAIR_HALF = 0, ROPE_PAIR_INTERLEAVED = 1 };
enum rope_scaling {
    ROPE_SCALE_NONE = 0,
    ROPE_SCALE_LINEAR = 1,
    ROPE_SCALE_LLAMA3 = 2,
    ROPE_SCALE_YARN = 3
};

/* As declared by the client; zero means the default where one is named. Mirrors memd.Rope of the
 * wire. */
struct rope_config {
    double theta;
    uint32_t pairing; /* enum rope_pairing */
    uint32_t scaling; /* enum rope_scaling */
    double factor;
    double low_freq_factor, high_freq_factor; /* llama3 */
    uint64_t original_context;                /* llama3, yarn */
    double beta_fast, beta_slow;              /* yarn, 0 = 32 and 1 */
    double attention_factor;                  /* yarn, 0 = 0.1 ln(factor) + 1 */
    uint32_t rotary_dims;                     /* 0 = head_dim */
};

enum { ROPE_PAIRS_MAX = 512 };

struct rope {
    enum rope_pairing pairing;
    size_t head_dim, rotary_dims;
    double magnitude; /* 1 but for yarn */
    double inv_freq[ROPE_PAIRS_MAX];
    double step_cos[ROPE_PAIRS_MAX], step_sin[ROPE_PAIRS_MAX]; /* from one position to the next */
};

int rope_init(const struct rope_config *config, size_t head_dim, struct rope *ret_rope,
              struct error *err);

/* cos and sin (times magnitude) of every pair at one position: (R/2) each. */
void rope_angles(const struct rope *rope, uint64_t position, float *ret_cos, float *ret_sin);

/* Rotate `rows` vectors in place, x (rows, D) fp32, all with the angles of one position. */
void rope_apply(const struct rope *rope, const float *cos, const float *sin, float *x, size_t rows);

#endif
