/* SPDX-License-Identifier: Apache-2.0 */
/* rope.c — frequencies once, angles in double, rotations in fp32. Runs of rows: kernels/rotate.h.
 *
 * The scalings follow Hugging Face's modeling_rope_utils, whose results models are trained with;
 * for yarn that code rounds the ends of the ramp (truncate=True is its default), the paper does
 * not.
 */
#include "attention/rope.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>

#include "base/error.h"
#include "proto/limits.h"

static const double two_pi = 6.283185307179586476925;

static int check(const struct rope_config *config, size_t head_dim, struct error *err)
{
    if (!(config->theta > 1.0) || !isfinite(config->theta))
        return error_set(err, MEMD_EINVAL, "rope theta %g must be above 1", config->theta);
    if (config->pairing > ROPE_PAIR_INTERLEAVED)
        return error_set(err, MEMD_EINVAL, "rope pairing %" PRIu32 " is unknown", config->pairing);
    if (config->scaling > ROPE_SCALE_YARN)
        return error_set(err, MEMD_EINVAL, "rope scaling %" PRIu32 " is unknown", config->scaling);
    if (config->rotary_dims % 2 != 0 || config->rotary_dims > head_dim)
        return error_set(err, MEMD_EINVAL, "rope rotary_dims %" PRIu32
                         " must be even and at most head_dim %zu", config->rotary_dims, head_dim);
    if (config->scaling == ROPE_SCALE_NONE) return 0;
    if (!(config->factor >= 1.0) || !isfinite(config->factor))
        return error_set(err, MEMD_EINVAL, "rope factor %g must be at least 1", config->factor);
    if (config->scaling == ROPE_SCALE_LINEAR) return 0;
    if (config->original_context == 0 || config->original_context > LIMIT_TOKENS)
        return error_set(err, MEMD_EINVAL, "rope original_context %" PRIu64
                         " must be between 1 and %" PRIu64, config->original_context, LIMIT_TOKENS);
    return 0;
}

static int check_llama3(const struct rope_config *config, struct error *err)
{
    double low = config->low_freq_factor, high = config->high_freq_factor;
    if (low > 0.0 && high > low && isfinite(high)) return 0;
    return error_set(err, MEMD_EINVAL, "rope low_freq_factor %g and high_freq_factor %g must be "
                     "positive and ascending", low, high);
}

static int check_yarn(double beta_fast, double beta_slow, double attention_factor,
                      struct error *err)
{
    if (!(beta_slow > 0.0 && beta_fast >= beta_slow && isfinite(beta_fast)))
        return error_set(err, MEMD_EINVAL, "rope beta_slow %g and beta_fast %g must be positive "
                         "and ascending", beta_slow, beta_fast);
    if (!(attention_factor > 0.0 && isfinite(attention_factor)))
        return error_set(err, MEMD_EINVAL, "rope attention_factor %g must be positive",
                         attention_factor);
    return 0;
}

static double llama3_frequency(const struct rope_config *config, double inv_freq)
{
    double wavelength = two_pi / inv_freq;
    double context = (double)config->original_context;
    double low = config->low_freq_factor, high = config->high_freq_factor;
    if (wavelength < context / high) return inv_freq;
    if (wavelength > context / low) return inv_freq / config->factor;
    double smooth = (context / wavelength - low) / (high - low);
    return (1.0 - smooth) * inv_freq / config->factor + smooth * inv_freq;
}

/* The (real-valued) pair that turns `rotations` times over the original context. */
static double yarn_pair(const struct rope_config *config, double rotary_dims, double rotations)
{
    double ratio = (double)config->original_context / (rotations * two_pi);
    return rotary_dims * log(ratio) / (2.0 * log(config->theta));
}

static int yarn(const struct rope_config *config, struct rope *rope, struct error *err)
{
    double beta_fast = config->beta_fast == 0.0 ? 32.0 : config->beta_fast;
    double beta_slow = config->beta_slow == 0.0 ? 1.0 : config->beta_slow;
    double magnitude = config->attention_factor;
    if (magnitude == 0.0) magnitude = 0.1 * log(config->factor) + 1.0;
    int rc = check_yarn(beta_fast, beta_slow, magnitude, err);
    if (rc < 0) return rc;
    rope->magnitude = magnitude;
    double dims = (double)rope->rotary_dims;
    double low = fmax(floor(yarn_pair(config, dims, beta_fast)), 0.0);
    double high = fmin(ceil(yarn_pair(config, dims, beta_slow)), dims - 1.0);
    if (low == high) high += 0.001; /* as HF: no division by zero */
    for (size_t i = 0; i < rope->rotary_dims / 2; i++) {
        double ramp = fmin(fmax(((double)i - low) / (high - low), 0.0), 1.0);
        double kept = rope->inv_freq[i];
        rope->inv_freq[i] = kept / config->factor * ramp + kept * (1.0 - ramp);
    }
    return 0;
}

int rope_init(const struct rope_config *config, size_t head_dim, struct rope *ret_rope,
              struct error *err)
{
    assert(head_dim >= 2 && head_dim <= (size_t)2 * ROPE_PAIRS_MAX && head_dim % 2 == 0);
    int rc = check(config, head_dim, err);
    if (rc == 0 && config->scaling == ROPE_SCALE_LLAMA3) rc = check_llama3(config, err);
    if (rc < 0) return rc;
    struct rope rope = { .pairing = (enum rope_pairing)config->pairing, .head_dim = head_dim,
                         .rotary_dims = config->rotary_dims, .magnitude = 1.0 };
    if (rope.rotary_dims == 0) rope.rotary_dims = head_dim;
    double dims = (double)rope.rotary_dims;
    for (size_t i = 0; i < rope.rotary_dims / 2; i++) {
        double inv_freq = pow(config->theta, -2.0 * (double)i / dims);
        if (config->scaling == ROPE_SCALE_LINEAR) inv_freq /= config->factor;
        if (config->scaling == ROPE_SCALE_LLAMA3) inv_freq = llama3_frequency(config, inv_freq);
        rope.inv_freq[i] = inv_freq;
    }
    if (config->scaling == ROPE_SCALE_YARN) rc = yarn(config, &rope, err);
    for (size_t i = 0; i < rope.rotary_dims / 2; i++) {
        rope.step_cos[i] = cos(rope.inv_freq[i]);
        rope.step_sin[i] = sin(rope.inv_freq[i]);
    }
    if (rc == 0) *ret_rope = rope;
    return rc;
}

void rope_angles(const struct rope *rope, uint64_t position, float *ret_cos, float *ret_sin)
{
    for (size_t i = 0; i < rope->rotary_dims / 2; i++) {
        double angle = (double)position * rope->inv_freq[i];
        ret_cos[i] = (float)(cos(angle) * rope->magnitude);
        ret_sin[i] = (float)(sin(angle) * rope->magnitude);
    }
}

/* cos, sin (pairs), x (D) */
static void rotate_half(const float *cos, const float *sin, float *restrict x, size_t pairs)
{
    float *restrict y = x + pairs;
    for (size_t i = 0; i < pairs; i++) {
        float a = x[i], b = y[i];
        x[i] = a * cos[i] - b * sin[i];
        y[i] = b * cos[i] + a * sin[i];
    }
}

static void rotate_interleaved(const float *cos, const float *sin, float *x, size_t pairs)
{
    for (size_t i = 0; i < pairs; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cos[i] - b * sin[i];
        x[2 * i + 1] = b * cos[i] + a * sin[i];
    }
}

void rope_apply(const struct rope *rope, const float *cos, const float *sin, float *x, size_t rows)
{
    size_t pairs = rope->rotary_dims / 2;
    for (size_t row = 0; row < rows; row++, x += rope->head_dim) {
        if (rope->pairing == ROPE_PAIR_HALF) rotate_half(cos, sin, x, pairs);
        else rotate_interleaved(cos, sin, x, pairs);
    }
}
