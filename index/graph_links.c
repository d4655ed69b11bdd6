/* SPDX-License-Identifier: Apache-2.0 */
/* graph_links.c — four plain arrays, so that a version is copied, saved and checked by loops.
 *
 * Lists are short (tens of links) and searched linearly: that is one or two cache lines.
 */
#include "index/graph_links.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

bool graph_links_alloc(struct graph_links *ret_links, uint32_t nodes, size_t edges)
{
    size_t room = nodes == 0 ? 1 : nodes; /* malloc(0) may be NULL */
    struct graph_links *links = ret_links;
    *links = (struct graph_links){ .nodes = nodes };
    links->edges = malloc((edges == 0 ? 1 : edges) * sizeof *links->edges);
    links->begin = calloc(room, sizeof *links->begin);
    links->near = calloc(room, sizeof *links->near);
    links->count = calloc(room, sizeof *links->count);
    if (links->edges != NULL && links->begin != NULL && links->near != NULL && links->count != NULL)
        return true;
    graph_links_fini(links);
    return false;
}

bool graph_links_grow(struct graph_links *ret_links, const struct graph_links *before,
                      uint32_t nodes, size_t m)
{
    assert(m > 0 && 3 * m <= GRAPH_LINKS_MAX);
    assert((uint64_t)nodes * 3 * m <= UINT32_MAX);
    struct graph_links links = { 0 };
    if (!graph_links_alloc(&links, nodes, nodes * 3 * m)) return false;
    for (uint32_t node = 0; node < nodes; node++) links.begin[node] = (uint32_t)(node * 3 * m);
    links.room = (uint32_t)(3 * m);
    if (before != NULL) {
        assert(before->nodes <= nodes);
        links.entry = before->entry;
        memcpy(links.near, before->near, before->nodes);
        memcpy(links.count, before->count, before->nodes);
        for (uint32_t node = 0; node < before->nodes; node++)
            memcpy(links.edges + links.begin[node], before->edges + before->begin[node],
                   links.count[node] * sizeof *links.edges);
    }
    *ret_links = links;
    return true;
}

size_t graph_links_edges(const struct graph_links *links)
{
    size_t edges = 0;
    for (uint32_t node = 0; node < links->nodes; node++) edges += links->count[node];
    return edges;
}

size_t graph_links_bytes(const struct graph_links *links)
{
    return graph_links_edges(links) * sizeof *links->edges +
           links->nodes * (sizeof *links->begin + sizeof *links->near + sizeof *links->count);
}

bool graph_links_pack(struct graph_links *links)
{
    size_t edges = graph_links_edges(links);
    uint32_t *packed = malloc((edges == 0 ? 1 : edges) * sizeof *packed);
    if (packed == NULL) return false;
    uint32_t at = 0;
    for (uint32_t node = 0; node < links->nodes; node++) {
        memcpy(packed + at, links->edges + links->begin[node],
               links->count[node] * sizeof *packed);
        links->begin[node] = at;
        at += links->count[node];
    }
    free(links->edges);
    links->edges = packed;
    links->room = 0;
    return true;
}

void graph_links_fini(struct graph_links *links)
{
    free(links->edges);
    free(links->begin);
    free(links->near);
    free(links->count);
    *links = (struct graph_links){ 0 };
}

static bool among(const uint32_t *ids, size_t count, uint32_t id)
{
    for (size_t i = 0; i < count; i++)
        if (ids[i] == id) return true;
    return false;
}

bool graph_links_has(const struct graph_links *links, uint32_t node, uint32_t other)
{
    return among(links->edges + links->begin[node], links->count[node], other);
}

void graph_links_set_near(struct graph_links *links, uint32_t node, const uint32_t *ids,
                          size_t count)
{
    uint32_t extra[GRAPH_LINKS_MAX];
    uint32_t *edges = links->edges + links->begin[node];
    size_t extras = (size_t)(links->count[node] - links->near[node]);
    memcpy(extra, edges + links->near[node], extras * sizeof *extra);
    assert(count <= links->room / 3);
    memcpy(edges, ids, count * sizeof *edges);
    links->near[node] = links->count[node] = (uint8_t)count;
    graph_links_set_extra(links, node, extra, extras);
}

void graph_links_set_extra(struct graph_links *links, uint32_t node, const uint32_t *ids,
                           size_t count)
{
    uint32_t *edges = links->edges + links->begin[node];
    size_t near = links->near[node], at = near;
    assert(count <= links->room - links->room / 3); /* 2 M */
    for (size_t i = 0; i < count; i++)
        if (!among(edges, near, ids[i])) edges[at++] = ids[i]; /* at most near + count */
    assert(at <= links->room);
    links->count[node] = (uint8_t)at;
}

uint32_t graph_links_reach(const struct graph_links *links, uint32_t start, uint64_t *bits,
                           uint32_t *stack)
{
    if (graph_bit(bits, start)) return 0;
    uint32_t reached = 1;
    size_t depth = 0;
    graph_bit_set(bits, start);
    stack[depth++] = start;
    while (depth > 0) {
        uint32_t node = stack[--depth];
        const uint32_t *edges = links->edges + links->begin[node];
        for (size_t i = 0; i < links->count[node]; i++) {
            if (graph_bit(bits, edges[i])) continue;
            graph_bit_set(bits, edges[i]);
            stack[depth++] = edges[i];
            reached++;
        }
    }
    return reached;
}
