/* SPDX-License-Identifier: Apache-2.0 */
/* planes.c — the layout, its checks, and the reference decoder, which reads it as planes.h tells
 * it and shares nothing with the encoder (planes_encode.c) but that header.
 */
#include "index/planes.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/half.h"
#include "index/index.h"
#include "index/rotation.h"

enum { ALIGN = 64, HEAD_DIM_MAX = 1024 };

/* The offset of `bytes` more bytes. */
static size_t take(size_t *end, size_t bytes)
{
    size_t offset = *end;
    *end += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return offset;
}

void planes_layout_init(size_t head_dim, struct planes_layout *ret_layout)
{
    assert(head_dim >= 8 && head_dim <= HEAD_DIM_MAX && head_dim % 8 == 0);
    size_t end = PLANES_HEAD_BYTES;
    struct planes_layout layout = { .head_dim = head_dim };
    layout.balance = take(&end, head_dim * sizeof(float));
    layout.query_square = take(&end, head_dim * sizeof(float));
    layout.key_mean = take(&end, head_dim * sizeof(float));
    layout.rows = take(&end, PLANES_TOKENS * sizeof(uint16_t));
    layout.centroid_scale = take(&end, PLANES_CLUSTERS * sizeof(float));
    layout.key_spread = take(&end, PLANES_CLUSTERS * sizeof(float));
    layout.mean_scale = take(&end, PLANES_CLUSTERS * sizeof(float));
    layout.value_spread = take(&end, PLANES_CLUSTERS * sizeof(float));
    layout.centroids = take(&end, PLANES_CLUSTERS * head_dim);
    layout.means = take(&end, PLANES_CLUSTERS * head_dim);
    layout.key_scale = take(&end, PLANES_TOKENS * sizeof(uint16_t));
    layout.value_scale = take(&end, PLANES_TOKENS * sizeof(uint16_t));
    layout.key_hi = take(&end, PLANES_TOKENS * head_dim / 2);
    layout.value_hi = take(&end, PLANES_TOKENS * head_dim / 2);
    layout.checks = take(&end, (size_t)3 * PLANES_CLUSTERS * sizeof(uint64_t));
    layout.hi_bytes = end;
    layout.lo_bytes = PLANES_TOKENS * head_dim;
    *ret_layout = layout;
}

static int check_head(const struct planes_layout *layout, const void *hi, uint64_t *ret_queries,
                      struct error *err)
{
    struct bytes_reader in = bytes_reader(hi, PLANES_HEAD_BYTES);
    uint32_t magic = bytes_get_le32(&in);
    uint16_t version = bytes_get_le16(&in), head_dim = bytes_get_le16(&in);
    uint64_t queries = bytes_get_le64(&in);
    if (magic != PLANES_MAGIC)
        return error_set(err, MEMD_ECORRUPT, "planes: magic %08" PRIx32, magic);
    if (version != PLANES_VERSION)
        return error_set(err, MEMD_EVERSION, "planes: version %u, known is %d", version,
                         PLANES_VERSION);
    if (head_dim != layout->head_dim)
        return error_set(err, MEMD_ECORRUPT, "planes: head_dim %u, expected %zu", head_dim,
                         layout->head_dim);
    *ret_queries = queries;
    return 0;
}

static int check_rows(const uint16_t *rows, struct error *err)
{
    uint8_t seen[PLANES_TOKENS] = { 0 };
    for (size_t place = 0; place < PLANES_TOKENS; place++) {
        if (rows[place] >= PLANES_TOKENS || seen[rows[place]] != 0)
            return error_set(err, MEMD_ECORRUPT, "planes: row %u of place %zu is %s", rows[place],
                             place, rows[place] >= PLANES_TOKENS ? "out of range" : "there twice");
        seen[rows[place]] = 1;
    }
    return 0;
}

/* Finite and ≥ least. values (count) */
static int check_floats(const char *name, const float *values, size_t count, float least,
                        struct error *err)
{
    for (size_t i = 0; i < count; i++)
        if (!isfinite(values[i]) || values[i] < least)
            return error_set(err, MEMD_ECORRUPT, "planes: %s[%zu] is %g", name, i,
                             (double)values[i]);
    return 0;
}

/* Finite and not negative: below the bit pattern of infinity. steps (1024) */
static int check_steps(const char *name, const uint16_t *steps, struct error *err)
{
    for (size_t i = 0; i < PLANES_TOKENS; i++)
        if (steps[i] >= 0x7c00)
            return error_set(err, MEMD_ECORRUPT, "planes: %s[%zu] is %04x", name, i, steps[i]);
    return 0;
}

static int check_vectors(const struct planes *planes, size_t head_dim, struct error *err)
{
    int rc = check_floats("balance", planes->balance, head_dim, 1e-38F, err);
    if (rc == 0) rc = check_floats("query_square", planes->query_square, head_dim, 0.0F, err);
    if (rc == 0) rc = check_floats("key_mean", planes->key_mean, head_dim, -INFINITY, err);
    return rc;
}

static int check_clusters(const struct planes *planes, struct error *err)
{
    const struct {
        const char *name;
        const float *values;
    } numbers[] = { { "centroid_scale", planes->centroid_scale },
                    { "key_spread", planes->key_spread },
                    { "mean_scale", planes->mean_scale },
                    { "value_spread", planes->value_spread } };
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < sizeof numbers / sizeof numbers[0]; i++)
        rc = check_floats(numbers[i].name, numbers[i].values, PLANES_CLUSTERS, 0.0F, err);
    if (rc == 0) rc = check_steps("key_scale", planes->key_scale, err);
    if (rc == 0) rc = check_steps("value_scale", planes->value_scale, err);
    return rc;
}

static const void *at(const void *data, size_t offset)
{
    return (const unsigned char *)data + offset;
}

int planes_open(const struct planes_layout *layout, const void *hi, const void *lo,
                struct planes *ret_planes, struct error *err)
{
    assert((uintptr_t)hi % ALIGN == 0);
    struct planes planes = {
        .balance = at(hi, layout->balance), .query_square = at(hi, layout->query_square),
        .key_mean = at(hi, layout->key_mean), .rows = at(hi, layout->rows),
        .centroid_scale = at(hi, layout->centroid_scale), .key_spread = at(hi, layout->key_spread),
        .mean_scale = at(hi, layout->mean_scale), .value_spread = at(hi, layout->value_spread),
        .centroids = at(hi, layout->centroids), .means = at(hi, layout->means),
        .key_scale = at(hi, layout->key_scale), .value_scale = at(hi, layout->value_scale),
        .key_hi = at(hi, layout->key_hi), .value_hi = at(hi, layout->value_hi), .lo = lo,
        .checks = at(hi, layout->checks) };
    int rc = check_head(layout, hi, &planes.queries, err);
    if (rc == 0) rc = check_rows(planes.rows, err);
    if (rc == 0) rc = check_vectors(&planes, layout->head_dim, err);
    if (rc == 0) rc = check_clusters(&planes, err);
    if (rc == 0) *ret_planes = planes;
    return rc;
}

static unsigned nibble(uint8_t byte, bool high)
{
    return high ? byte >> 4 : byte & 15U;
}

/* hi alone, or all of the code. */
static float decode_code(uint16_t step, unsigned hi, unsigned lo, int level)
{
    float wide = half_from_fp16(step);
    if (level == INDEX_HI) return wide * ((float)hi - 7.5F);
    return wide * 0.0625F * ((float)(16 * hi + lo) - 127.5F);
}

/* What of k' and v' is coded per token. ret_k, ret_v (D) */
static void decode_token(const struct planes *planes, size_t head_dim, size_t place, int level,
                         float *ret_k, float *ret_v)
{
    size_t tile = place / 16, token = place % 16;
    const uint8_t *key_hi = planes->key_hi + tile * 8 * head_dim;
    const uint8_t *value_hi = planes->value_hi + tile * 8 * head_dim;
    const uint8_t *lo = level == INDEX_HI ? NULL : planes->lo + place * head_dim;
    for (size_t d = 0; d < head_dim; d++) {
        unsigned k_hi = nibble(key_hi[64 * (d / 8) + 4 * token + d % 4], d % 8 >= 4);
        unsigned v_hi = nibble(value_hi[(token / 8 * head_dim + d) * 4 + token % 4],
                               token % 8 >= 4);
        unsigned k_lo = lo == NULL ? 0 : nibble(lo[d / 2], d % 2 == 1);
        unsigned v_lo = lo == NULL ? 0 : nibble(lo[head_dim / 2 + d / 2], d % 2 == 1);
        ret_k[d] = decode_code(planes->key_scale[place], k_hi, k_lo, level);
        ret_v[d] = decode_code(planes->value_scale[place], v_hi, v_lo, level);
    }
}

static float decode_centroid(const struct planes *planes, size_t head_dim, size_t cluster,
                             size_t d)
{
    const uint8_t *tile = planes->centroids + cluster / 16 * 16 * head_dim;
    uint8_t code = tile[64 * (d / 4) + 4 * (cluster % 16) + d % 4];
    return planes->centroid_scale[cluster] * ((float)code - 63.5F);
}

void planes_decode(const struct planes_layout *layout, const struct planes *planes, size_t place,
                   int level, float *ret_k, float *ret_v)
{
    assert(place < PLANES_TOKENS);
    assert(level == INDEX_CLUSTERS || level == INDEX_HI || level == INDEX_LO);
    assert(level != INDEX_LO || planes->lo != NULL);
    const size_t head_dim = layout->head_dim, cluster = place / PLANES_CLUSTER;
    if (level == INDEX_CLUSTERS) {
        for (size_t d = 0; d < head_dim; d++)
            ret_k[d] = decode_centroid(planes, head_dim, cluster, d);
        memset(ret_v, 0, head_dim * sizeof *ret_v);
    } else {
        decode_token(planes, head_dim, place, level, ret_k, ret_v);
    }
    for (size_t d = 0; d < head_dim; d++)
        ret_v[d] += planes->mean_scale[cluster] * (float)planes->means[cluster * head_dim + d];
    rotation_invert(ret_k, 1, head_dim);
    rotation_invert(ret_v, 1, head_dim);
    for (size_t d = 0; d < head_dim; d++)
        ret_k[d] = ret_k[d] / planes->balance[d] + planes->key_mean[d];
}
