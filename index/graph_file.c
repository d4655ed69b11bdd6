/* SPDX-License-Identifier: Apache-2.0 */
/* graph_file.c — a version as bytes, and the checks of both forms.
 *
 * Layout, little-endian:
 *
 *     u32 magic, u16 format, u16 m, u32 kv_heads, u32 nodes, u64 first, u64 tokens, u64 0
 *     per KV head: u32 entry, u32 edges, u32 one_way, u32 0
 *                  near (nodes) u8, count (nodes) u8, edges u32 each, node by node
 *
 * Bytes are believed to be whole (they lie in a value with a checksum) but nothing else: load
 * checks what a search relies on, ids in range, numbers of links within limits, the length to the
 * byte. It also checks two promises of the build, which damage is likely to break: every node can
 * be reached from the entry, and `one_way` counts the links without a link back (most have one;
 * pruning takes some away).
 */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "index/graph.h"
#include "index/graph_version.h"

#define GRAPH_MAGIC UINT32_C(0x48504752) /* "RGPH" */

enum { FORMAT = 1, HEADER_BYTES = 40, HEAD_BYTES = 16 };

static uint32_t count_one_way(const struct graph_links *links)
{
    uint32_t count = 0;
    for (uint32_t node = 0; node < links->nodes; node++) {
        const uint32_t *edges = links->edges + links->begin[node];
        for (size_t i = 0; i < links->count[node]; i++)
            if (!graph_links_has(links, edges[i], node)) count++;
    }
    return count;
}

static void put_head(struct bytes_writer *out, const struct graph_links *links)
{
    bytes_put_le32(out, links->entry);
    bytes_put_le32(out, (uint32_t)graph_links_edges(links));
    bytes_put_le32(out, count_one_way(links));
    bytes_put_le32(out, 0);
    bytes_put(out, links->near, links->nodes);
    bytes_put(out, links->count, links->nodes);
    for (uint32_t node = 0; node < links->nodes; node++)
        for (size_t i = 0; i < links->count[node]; i++)
            bytes_put_le32(out, links->edges[links->begin[node] + i]);
}

size_t graph_save(const struct layer_index *base, unsigned char *ret_data)
{
    const struct graph_version *version = (const struct graph_version *)base;
    size_t bytes = HEADER_BYTES;
    for (size_t g = 0; g < version->kv_heads && version->nodes > 0; g++)
        bytes += HEAD_BYTES + 2 * (size_t)version->nodes +
                 graph_links_edges(&version->links[g]) * sizeof(uint32_t);
    if (ret_data == NULL) return bytes;
    struct bytes_writer out = bytes_writer(ret_data, bytes);
    bytes_put_le32(&out, GRAPH_MAGIC);
    bytes_put_le16(&out, FORMAT);
    bytes_put_le16(&out, (uint16_t)version->m);
    bytes_put_le32(&out, (uint32_t)version->kv_heads);
    bytes_put_le32(&out, version->nodes);
    bytes_put_le64(&out, version->first);
    bytes_put_le64(&out, version->base.tokens);
    bytes_put_le64(&out, 0);
    for (size_t g = 0; g < version->kv_heads && version->nodes > 0; g++)
        put_head(&out, &version->links[g]);
    assert(!out.bad && out.offset == bytes);
    return bytes;
}

/* Every node can be reached. */
static int check_reach(const struct graph_links *links, size_t g, struct error *err)
{
    CLEANUP(free_ptr) uint64_t *bits = calloc(links->nodes / 64 + 1, sizeof *bits);
    CLEANUP(free_ptr) uint32_t *stack = calloc(links->nodes + 1, sizeof *stack);
    if (bits == NULL || stack == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a check");
    uint32_t reached = graph_links_reach(links, links->entry, bits, stack);
    if (reached == links->nodes) return 0;
    return error_set(err, MEMD_ECORRUPT, "graph of KV head %zu: %u of %u nodes can be reached", g,
                     reached, links->nodes);
}

/* What stands in the arrays. */
static int check_links(const struct graph_links *links, size_t m, size_t g, struct error *err)
{
    for (uint32_t node = 0; node < links->nodes; node++) {
        const uint32_t *edges = links->edges + links->begin[node];
        size_t near = links->near[node], count = links->count[node];
        if (near > m || near > count || count - near > 2 * m)
            return error_set(err, MEMD_ECORRUPT, "graph of KV head %zu: node %u has %zu links, %zu "
                             "of queries; M is %zu", g, node, count, near, m);
        for (size_t i = 0; i < count; i++) {
            bool twice = edges[i] == node;
            for (size_t j = 0; j < i; j++) twice = twice || edges[j] == edges[i];
            if (edges[i] >= links->nodes || twice)
                return error_set(err, MEMD_ECORRUPT, "graph of KV head %zu: link %zu of node %u "
                                 "goes to %u of %u", g, i, node, edges[i], links->nodes);
        }
    }
    return check_reach(links, g, err);
}

int graph_validate(const struct layer_index *base, struct error *err)
{
    const struct graph_version *version = (const struct graph_version *)base;
    if (version->nodes > 0 && version->first + version->nodes > version->base.tokens)
        return error_set(err, MEMD_ECORRUPT, "graph: nodes %" PRIu64 " + %u of %" PRIu64 " tokens",
                         version->first, version->nodes, version->base.tokens);
    for (size_t g = 0; g < version->kv_heads && version->nodes > 0; g++) {
        const struct graph_links *links = &version->links[g];
        if (links->nodes != version->nodes || links->entry >= links->nodes)
            return error_set(err, MEMD_ECORRUPT, "graph of KV head %zu: entry %u of %u nodes", g,
                             links->entry, links->nodes);
        int rc = check_links(links, version->m, g, err);
        if (rc < 0) return rc;
    }
    return 0;
}

static uint32_t get_near(struct bytes_reader *in, struct graph_links *links)
{
    const unsigned char *near = bytes_get(in, links->nodes);
    const unsigned char *count = bytes_get(in, links->nodes);
    uint32_t edges = 0;
    for (uint32_t node = 0; count != NULL && node < links->nodes; node++) {
        links->near[node] = near[node];
        links->count[node] = count[node];
        links->begin[node] = edges;
        edges += count[node]; /* below 2^31 nodes of 255 links: checked by the caller */
    }
    return edges;
}

static int get_head(struct bytes_reader *in, const struct graph_version *version, size_t g,
                    struct graph_links *ret_links, struct error *err)
{
    uint32_t entry = bytes_get_le32(in), edges = bytes_get_le32(in);
    uint32_t one_way = bytes_get_le32(in), zero = bytes_get_le32(in);
    size_t left = in->bad ? 0 : in->size_bytes - in->offset;
    if (zero != 0 || left < 2 * (size_t)version->nodes + edges * sizeof(uint32_t))
        return error_set(err, MEMD_ECORRUPT, "graph of KV head %zu: %zu bytes for %u nodes and %u "
                         "links", g, left, version->nodes, edges);
    if (!graph_links_alloc(ret_links, version->nodes, edges))
        return error_set(err, MEMD_ENOMEM, "no memory for a graph of %u nodes", version->nodes);
    ret_links->entry = entry;
    if (get_near(in, ret_links) != edges)
        return error_set(err, MEMD_ECORRUPT, "graph of KV head %zu: the nodes have not %u links", g,
                         edges);
    for (uint32_t i = 0; i < edges; i++) ret_links->edges[i] = bytes_get_le32(in);
    for (uint32_t i = 0; i < edges; i++)
        if (ret_links->edges[i] >= version->nodes)
            return error_set(err, MEMD_ECORRUPT, "graph of KV head %zu: link %u goes to %u of %u",
                             g, i, ret_links->edges[i], version->nodes);
    uint32_t found = count_one_way(ret_links);
    if (found == one_way) return 0;
    return error_set(err, MEMD_ECORRUPT, "graph of KV head %zu: %u links have no link back, not %u",
                     g, found, one_way);
}

static int get_version(struct bytes_reader *in, const struct layer_source *shape,
                       struct graph_version **ret_version, struct error *err)
{
    uint32_t magic = bytes_get_le32(in);
    uint16_t format = bytes_get_le16(in), m = bytes_get_le16(in);
    uint32_t kv_heads = bytes_get_le32(in), nodes = bytes_get_le32(in);
    uint64_t first = bytes_get_le64(in), tokens = bytes_get_le64(in), zero = bytes_get_le64(in);
    if (in->bad || magic != GRAPH_MAGIC || zero != 0)
        return error_set(err, MEMD_ECORRUPT, "these %zu bytes are no graph", in->size_bytes);
    if (format != FORMAT)
        return error_set(err, MEMD_EVERSION, "graph of format %u, known is %d", format, FORMAT);
    uint64_t links = (uint64_t)nodes * 3 * m;
    if (m == 0 || 3 * (size_t)m > GRAPH_LINKS_MAX || kv_heads != shape->kv_heads ||
        tokens != shape->tokens || nodes >= GRAPH_NONE || links > UINT32_MAX ||
        (nodes > 0 && (first >= tokens || nodes > tokens - first)))
        return error_set(err, MEMD_ECORRUPT, "graph of %u KV heads, %u nodes from %" PRIu64 " on, %"
                         PRIu64 " tokens, M %u: not one of %zu KV heads and %" PRIu64 " tokens",
                         kv_heads, nodes, first, tokens, m, shape->kv_heads, shape->tokens);
    *ret_version = graph_version_new(shape, first, nodes, m);
    if (*ret_version == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a graph");
    return 0;
}

int graph_load(const struct layer_source *shape, const void *data, size_t bytes,
               struct layer_index **ret_version, struct error *err)
{
    struct bytes_reader in = bytes_reader(data, bytes);
    CLEANUP(graph_version_freep) struct graph_version *version = NULL;
    int rc = get_version(&in, shape, &version, err);
    for (size_t g = 0; rc == 0 && version->nodes > 0 && g < version->kv_heads; g++)
        rc = get_head(&in, version, g, &version->links[g], err);
    if (rc == 0 && !bytes_done(&in))
        rc = error_set(err, MEMD_ECORRUPT, "graph: %zu of %zu bytes are left over",
                       bytes - in.offset, bytes);
    if (rc == 0) rc = graph_validate((struct layer_index *)version, err);
    if (rc < 0) return rc;
    graph_version_finish(version);
    *ret_version = (struct layer_index *)TAKE(version);
    return 0;
}
