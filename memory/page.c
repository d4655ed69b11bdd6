/* SPDX-License-Identifier: Apache-2.0 */
/* page.c — what LMDB asserts of a page or takes for granted, asked beforehand.
 *
 * Nodes stand in any order at the end of the page, without gaps, one behind the other: a fence that
 * is written into a node must not be written into another's key. Keys must ascend, between
 * those of the parent: that finds a page that is sound and of another place.
 */
#include "memory/page.h"

static int compare(enum page_role role, struct page_key a, struct page_key b)
{
    if (role == PAGE_ROLE_FREE) {
        uint64_t x = page_u64(a.data), y = page_u64(b.data);
        return (x > y) - (x < y);
    }
    int order = memcmp(a.data, b.data, a.bytes < b.bytes ? a.bytes : b.bytes);
    return order != 0 ? order : (a.bytes > b.bytes) - (a.bytes < b.bytes);
}

/* A leaf's node of these flags, whose value has `bytes`: what it takes of the page; 0 = it cannot
 * be. */
static size_t value_bytes(enum page_role role, unsigned flags, size_t bytes)
{
    if (flags == PAGE_HAS_TREE)
        return role == PAGE_ROLE_MAIN && bytes == PAGE_TREE_BYTES ? bytes : 0;
    if (role == PAGE_ROLE_MAIN) return 0;
    if (flags == PAGE_HAS_PAGES) return sizeof(uint64_t);
    return flags == 0 && bytes < PAGE_BYTES_MAX ? bytes : 0;
}

/* What a node takes of the page, when its flags are right. */
static size_t node_bytes(const unsigned char *node, const struct page_place *place)
{
    size_t bytes = PAGE_NODE_KEY + page_u16(node + PAGE_NODE_KEY_BYTES);
    if (place->leaf)
        bytes += value_bytes(place->role, page_u16(node + PAGE_NODE_FLAGS), page_u32(node));
    return bytes + bytes % 2;
}

static const char *check_node(const unsigned char *node, size_t room, size_t i,
                              const struct page_place *place)
{
    size_t key_bytes = page_u16(node + PAGE_NODE_KEY_BYTES);
    unsigned flags = page_u16(node + PAGE_NODE_FLAGS);
    bool empty = place->role == PAGE_ROLE_TABLE && page_u32(node) == 0 && flags == 0;
    if (place->leaf && !empty && value_bytes(place->role, flags, page_u32(node)) == 0)
        return "a node is of no kind";
    if (node_bytes(node, place) > room) return "a node lies outside of the page";
    bool numbered = place->role == PAGE_ROLE_FREE && (place->leaf || i > 0);
    if (key_bytes >= PAGE_KEY_BYTES_MAX || (place->leaf && key_bytes == 0) ||
        (numbered && key_bytes != sizeof(uint64_t)))
        return "a key is too long or too short";
    return NULL;
}

/* All nodes lie inside the page. Gone through from the lowest, each begins where the one before
 * ends. */
static const char *check_nodes(const unsigned char *page, size_t page_bytes,
                               const struct page_place *place)
{
    uint64_t begins[PAGE_BYTES_MAX / 2 / 64]; /* a bit for two bytes */
    size_t upper = page_u16(page + PAGE_UPPER), count = page_count(page), at = 0;
    memset(begins, 0, page_bytes / 2 / 8);
    for (size_t i = 0; i < count; i++) {
        at = page_u16(page + PAGE_NODES + 2 * i);
        if (at < upper || at % 2 != 0 || at + PAGE_NODE_KEY > page_bytes)
            return "a node lies outside of the page";
        const char *why = check_node(page + at, page_bytes - at, i, place);
        if (why != NULL) return why;
        begins[at / 2 / 64] |= UINT64_C(1) << at / 2 % 64;
    }
    at = upper;
    for (size_t i = 0; i < count; i++) {
        if (at >= page_bytes || (begins[at / 2 / 64] >> at / 2 % 64 & 1) == 0) break;
        at += node_bytes(page + at, place);
        if (i + 1 == count && at == page_bytes) return NULL;
    }
    return "its nodes overlap or leave gaps";
}

/* The first key of a branch is not used. */
static const char *check_keys(const unsigned char *page, const struct page_place *place)
{
    size_t count = page_count(page), from = place->leaf ? 0 : 1;
    const struct page_key *end = &place->range.end;
    struct page_key before = place->range.first;
    for (size_t i = from; i < count; i++) {
        struct page_key key = page_node_key(page_node(page, i));
        int order = before.data == NULL ? 1 : compare(place->role, key, before);
        if (order < 0 || (order == 0 && i > from)) return "its keys are out of order";
        if (end->data != NULL && compare(place->role, key, *end) >= 0)
            return "it has keys of its neighbour";
        before = key;
    }
    return NULL;
}

const char *page_check(const unsigned char *page, size_t page_bytes, const struct page_place *place)
{
    if (page_u64(page) != place->number) return "it bears another number";
    if (page_u16(page + PAGE_FLAGS) != (place->leaf ? PAGE_IS_LEAF : PAGE_IS_BRANCH))
        return "it is of another kind";
    size_t lower = page_u16(page + PAGE_LOWER), upper = page_u16(page + PAGE_UPPER);
    size_t least = place->leaf || place->role == PAGE_ROLE_FREE ? 1 : 2;
    if (lower < PAGE_NODES + 2 * least || lower % 2 != 0 || lower > upper || upper > page_bytes)
        return "its header makes no sense";
    const char *why = check_nodes(page, page_bytes, place);
    return why != NULL ? why : check_keys(page, place);
}
