/* SPDX-License-Identifier: Apache-2.0 */
/* zones_bytes.c — a version as bytes, and whether it is what it says.
 *
 * What is loaded is judged by the same function that verify uses, so that nothing a query relies on
 * is taken from a disk unseen.
 */
#include <math.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/half.h"
#include "index/zones.h"
#include "proto/limits.h"

#define MAGIC UINT32_C(0x454e4f5a) /* "ZONE" */

enum { VERSION = 1, HEADER_BYTES = 2 * 4 + 4 * 8 + 2 * 4 };

static size_t body_bytes(const struct zones *zones)
{
    size_t heads = zones->kv_heads, vectors = heads * zones->clusters * zones->head_dim;
    return 4 * heads * (zones->clusters + 1) + 4 * heads * zones_covered(zones) + 2 * 2 * vectors;
}

size_t zones_save(const struct layer_index *version, unsigned char *ret_data)
{
    const struct zones *zones = (const struct zones *)(const void *)version;
    size_t bytes = HEADER_BYTES + body_bytes(zones), heads = zones->kv_heads;
    if (ret_data == NULL) return bytes;
    struct bytes_writer out = bytes_writer(ret_data, bytes);
    bytes_put_le32(&out, MAGIC);
    bytes_put_le32(&out, VERSION);
    bytes_put_le64(&out, zones->base.tokens);
    bytes_put_le64(&out, zones->sinks);
    bytes_put_le64(&out, zones->prompt);
    bytes_put_le64(&out, zones->clusters);
    bytes_put_le32(&out, (uint32_t)heads);
    bytes_put_le32(&out, (uint32_t)zones->head_dim);
    for (size_t i = 0; i < heads * (zones->clusters + 1); i++)
        bytes_put_le32(&out, zones->begin[i]);
    for (size_t i = 0; i < heads * zones_covered(zones); i++)
        bytes_put_le32(&out, zones->members[i]);
    size_t vectors = heads * zones->clusters * zones->head_dim;
    for (size_t i = 0; i < vectors; i++) bytes_put_le16(&out, zones->centroids[i]);
    for (size_t i = 0; i < vectors; i++) bytes_put_le16(&out, zones->means[i]);
    return bytes;
}

/* Every position sinks … tokens-1 in exactly one cluster of KV head g, ascending in each. seen
 * (covered): scratch */
static int check_members(const struct zones *zones, size_t g, unsigned char *seen,
                         struct error *err)
{
    const uint32_t *begin = zones->begin + g * (zones->clusters + 1);
    const uint32_t *members = zones->members + g * zones_covered(zones);
    size_t covered = zones_covered(zones), clusters = zones->clusters;
    memset(seen, 0, covered);
    if (begin[0] != 0 || begin[clusters] != covered)
        return error_set(err, MEMD_ECORRUPT, "zones of KV head %zu hold %u members of %zu", g,
                         begin[clusters], covered);
    for (size_t c = 0; c < clusters; c++) {
        if (begin[c] > begin[c + 1] || begin[c + 1] > covered)
            return error_set(err, MEMD_ECORRUPT, "KV head %zu: cluster %zu of zones ends at %u", g,
                             c, begin[c + 1]);
        for (size_t i = begin[c]; i < begin[c + 1]; i++) {
            uint64_t place = members[i] - zones->sinks;
            bool fits = members[i] >= zones->sinks && place < covered && seen[place] == 0 &&
                        (i == begin[c] || members[i] > members[i - 1]);
            if (!fits)
                return error_set(err, MEMD_ECORRUPT, "KV head %zu: cluster %zu of zones holds "
                                 "position %u wrongly", g, c, members[i]);
            seen[place] = 1;
        }
    }
    return 0;
}

int zones_validate(const struct layer_index *version, struct error *err)
{
    const struct zones *zones = (const struct zones *)(const void *)version;
    CLEANUP(free_ptr) unsigned char *seen = malloc(zones_covered(zones) + 1);
    if (seen == NULL) return error_set(err, MEMD_ENOMEM, "no memory to check zones");
    if (zones_covered(zones) > 0 && zones->clusters == 0)
        return error_set(err, MEMD_ECORRUPT, "zones without clusters over %zu tokens",
                         zones_covered(zones));
    if (zones->prompt > zones->base.tokens)
        return error_set(err, MEMD_ECORRUPT, "zones of %" PRIu64 " tokens with a prompt of %"
                         PRIu64, zones->base.tokens, zones->prompt);
    size_t vectors = zones->kv_heads * zones->clusters * zones->head_dim, bad = 0;
    if (half_find_nonfinite(zones->centroids, DTYPE_FP16, vectors, &bad) < vectors ||
        half_find_nonfinite(zones->means, DTYPE_BF16, vectors, &bad) < vectors)
        return error_set(err, MEMD_ECORRUPT, "zones with %zu elements that are not finite", bad);
    int rc = 0;
    for (size_t g = 0; rc == 0 && g < zones->kv_heads; g++)
        rc = check_members(zones, g, seen, err);
    return rc;
}

static void put_zones(struct zones **zones)
{
    if (*zones != NULL) layer_index_put(&(*zones)->base);
}

/* Header of `in` against the shape; fields of *ret_head that decide sizes. */
static int load_header(struct bytes_reader *in, const struct layer_source *shape,
                       struct zones *ret_head, struct error *err)
{
    uint32_t magic = bytes_get_le32(in), format = bytes_get_le32(in);
    ret_head->base.tokens = bytes_get_le64(in);
    ret_head->sinks = bytes_get_le64(in);
    ret_head->prompt = bytes_get_le64(in);
    uint64_t clusters = bytes_get_le64(in);
    ret_head->kv_heads = bytes_get_le32(in);
    ret_head->head_dim = bytes_get_le32(in);
    if (in->bad || magic != MAGIC || format != VERSION)
        return error_set(err, MEMD_ECORRUPT, "%zu bytes are no zones of version %d",
                         in->size_bytes, VERSION);
    if (ret_head->kv_heads != shape->kv_heads || ret_head->head_dim != shape->head_dim)
        return error_set(err, MEMD_ECORRUPT, "zones of %zu KV heads of %zu, expected %zu of %zu",
                         ret_head->kv_heads, ret_head->head_dim, shape->kv_heads,
                         shape->head_dim);
    if (ret_head->base.tokens > LIMIT_TOKENS || clusters > LIMIT_TOKENS)
        return error_set(err, MEMD_ECORRUPT, "zones of %" PRIu64 " tokens in %" PRIu64 " clusters",
                         ret_head->base.tokens, clusters);
    ret_head->clusters = (size_t)clusters;
    if (body_bytes(ret_head) != in->size_bytes - in->offset)
        return error_set(err, MEMD_ECORRUPT, "%zu bytes of zones, expected %zu", in->size_bytes,
                         in->offset + body_bytes(ret_head));
    return 0;
}

int zones_load(const struct layer_source *shape, const void *data, size_t bytes,
               struct layer_index **ret_version, struct error *err)
{
    struct bytes_reader in = bytes_reader(data, bytes);
    struct zones head = { 0 };
    int rc = load_header(&in, shape, &head, err);
    if (rc < 0) return rc;
    CLEANUP(put_zones) struct zones *zones = zones_new(shape, head.base.tokens, head.sinks,
                                                       head.clusters);
    if (zones == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu bytes of zones", bytes);
    zones->prompt = head.prompt;
    size_t heads = zones->kv_heads;
    for (size_t i = 0; i < heads * (zones->clusters + 1); i++)
        zones->begin[i] = bytes_get_le32(&in);
    for (size_t i = 0; i < heads * zones_covered(zones); i++)
        zones->members[i] = bytes_get_le32(&in);
    size_t vectors = heads * zones->clusters * zones->head_dim;
    for (size_t i = 0; i < vectors; i++) zones->centroids[i] = bytes_get_le16(&in);
    for (size_t i = 0; i < vectors; i++) zones->means[i] = bytes_get_le16(&in);
    if (!bytes_done(&in)) return error_set(err, MEMD_ECORRUPT, "zones end too early");
    rc = zones_validate(&zones->base, err);
    if (rc == 0) *ret_version = &TAKE(zones)->base;
    return rc;
}
