/* SPDX-License-Identifier: Apache-2.0 */
/* page.h — one page of LMDB's file: where things stand in it, and whether it can be believed.
 *
 * The layout is that of LMDB 0.9 (data version 1), in the machine's order, which for memd is
 * little-endian with 64 bits. LMDB itself has no function that would say it.
 *
 * Cost     page_check: each node once, two comparisons of keys for each
 * Memory   a key points into its page
 * Tests    tests/unit/test_pages.c
 */
#ifndef MEMD_MEMORY_PAGE_H
#define MEMD_MEMORY_PAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && sizeof(size_t) == 8, "layout");
enum {
    PAGE_KEY_BYTES_MAX = 512, /* with one byte more than a key may have */
    PAGE_BYTES_MIN = 512,
    PAGE_BYTES_MAX = 65536,
    PAGE_FLAGS = 10,       /* offsets in a page; its number is the first of it */
    PAGE_LOWER = 12,       /* where the offsets of its nodes end */
    PAGE_UPPER = 14,       /* where its nodes begin */
    PAGE_VALUE_PAGES = 12, /* instead: how many pages a value has */
    PAGE_NODES = 16,
    PAGE_NODE_FLAGS =
        4, /* in a node; before them the value's size, or a page number through them */
    PAGE_NODE_KEY_BYTES = 6,
    PAGE_NODE_KEY = 8,
    PAGE_META_MAGIC = 16, /* in the first two pages */
    PAGE_META_VERSION = 20,
    PAGE_META_FREE = 40, /* tree records */
    PAGE_META_MAIN = 88,
    PAGE_META_LAST_PAGE = 136,
    PAGE_META_TXN = 144,
    PAGE_META_BYTES = 152,
    PAGE_TREE_PAGE_BYTES = 0, /* in a tree record, of the first tree only */
    PAGE_TREE_FLAGS = 4,
    PAGE_TREE_DEPTH = 6,
    PAGE_TREE_ROOT = 40,
    PAGE_TREE_BYTES = 48,
    PAGE_IS_BRANCH = 1, /* page flags */
    PAGE_IS_LEAF = 2,
    PAGE_IS_OVERFLOW = 4, /* a value begins here */
    PAGE_IS_META = 8,
    PAGE_IS_DIRTY = 16,     /* in memory only */
    PAGE_HAS_PAGES = 1,     /* node flags: the value is a page number */
    PAGE_HAS_TREE = 2,      /* the value is a tree record */
    PAGE_INTEGER_KEYS = 8,  /* flags of a tree */
    PAGE_WAS_FILE = 0x4000, /* beside that: a copy by `mdb_copy -n -c` */
    PAGE_DEPTH_MAX = 32,
};

/* Which tree it is of. */
enum page_role { PAGE_ROLE_MAIN, PAGE_ROLE_TABLE, PAGE_ROLE_FREE };

struct page_key {
    const unsigned char *data; /* NULL: no bound */
    size_t bytes;
};

struct page_range {
    struct page_key first, end;
};

static inline uint16_t page_u16(const unsigned char *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint32_t page_u32(const unsigned char *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t page_u64(const unsigned char *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t page_u48(const unsigned char *at)
{
    return page_u32(at) | (uint64_t)page_u16(at + 4) << 32;
}

static inline const unsigned char *page_node(const unsigned char *page, size_t i)
{
    return page + page_u16(page + PAGE_NODES + 2 * i);
}

static inline size_t page_count(const unsigned char *page)
{
    return (size_t)(page_u16(page + PAGE_LOWER) - PAGE_NODES) / 2;
}

static inline struct page_key page_node_key(const unsigned char *node)
{
    return (struct page_key){ node + PAGE_NODE_KEY, page_u16(node + PAGE_NODE_KEY_BYTES) };
}

static inline const unsigned char *page_node_value(const unsigned char *node)
{
    return node + PAGE_NODE_KEY + page_u16(node + PAGE_NODE_KEY_BYTES);
}

/* What its parent says of it. */
struct page_place {
    uint64_t number;
    enum page_role role;
    bool leaf;
    struct page_range range;
};

/* NULL: it is the page that belongs there, every node lies inside, and LMDB may walk over it.
 * Otherwise what is wrong. */
const char *page_check(const unsigned char *page, size_t page_bytes,
                       const struct page_place *place);

#endif
