/* SPDX-License-Identifier: Apache-2.0 */
/* store_pages.c — LMDB believes its pages. A damaged one ends the process by an assertion or a
 * wild read, for ever at the same place; in a delete it gives away pages that others use.
 *
 * So they are read before LMDB is opened, every page of every tree: number, kind, level, bounds of
 * its nodes, order of its keys between those of its parent, no page used twice or used and free.
 * What fails is fenced off: the number that leads to it gets its highest bit, which is outside of
 * any file. LMDB carries such a number along, copies and moves it, and answers
 * MDB_PAGE_NOTFOUND to whoever would follow it, readers and writers alike. A fence takes nothing
 * away: the page stays as it is, and so does all it leads to, which was never given back. What is
 * sound at a later start is let in again. (decisions/0014)
 *
 * Reads are pread, not a map: a sector that the disk cannot read is then damage like any other,
 * and a page that lies outside the file cannot be touched. The page that leads to all tables
 * cannot be fenced off: then the store is refused. A damaged list of free pages is replaced by an
 * empty one: space is lost, never a page that is in use.
 */
#include "memory/store_pages.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "memory/page.h"
#include "memory/page_claims.h"

enum {
    TABLES_MAX = 64,
    FREE_BEHIND = 1 << 20, /* pages that were freed before they were ever written */
    LISTED_MAX = PAGES_LISTED_MAX + TABLES_MAX + 2, /* and roots of all tables, list, meta page */
    ROUNDS_MAX = 8,
};
#define TWICE_USED "it is used twice"
#define TWICE "its pages are used twice"
#define OUTSIDE "its number lies outside of the file"
#define NO_LIST "a list of free pages makes no sense"
#define MAGIC UINT32_C(0xBEEFC0DE)
#define NO_ROOT UINT64_MAX
#define FENCE (UINT64_C(1) << 47) /* the highest bit that a node has room for */

struct tree {
    enum page_role role;
    char name[32];
    unsigned depth;
    uint64_t root;
    uint64_t root_at; /* where in the file */
    struct page_range range;
};

struct patch {
    uint64_t at;   /* in the file, of a page number */
    uint16_t high; /* its bits 32 to 47 */
};

struct check {
    int fd;
    size_t page_bytes;
    uint64_t next;       /* pages of the snapshot */
    uint64_t file_pages; /* of the file, which may end before */
    uint64_t meta_page;
    bool apart;               /* the two meta pages are not of one commit and the one before */
    unsigned char txns[2][8]; /* the first there was, the one after the newest */
    struct claims claims;
    unsigned char *pages; /* (PAGE_DEPTH_MAX, page_bytes): the way from the root */
    struct tree *tree;    /* the one that is walked */
    struct tree main, free, tables[TABLES_MAX];
    size_t table_count;
    struct patch *patches; /* owned */
    size_t patch_count, patch_room;
    struct pages_report report;
    const char *fatal, *not_free; /* why */
    uint64_t fatal_page, not_free_page;
    bool no_memory;
};

static void fini_check(struct check *check)
{
    close_fd(&check->fd);
    claims_fini(&check->claims);
    free(check->pages);
    free(check->patches);
    pages_fini(&check->report);
}

static bool inside(const struct check *check, uint64_t page, uint64_t count)
{
    uint64_t end = check->next < check->file_pages ? check->next : check->file_pages;
    return page >= 2 && page < end && count <= end - page;
}

/* A number in the file leads to a page, or to the pages of a value. */
struct lead {
    uint64_t at;    /* where it stands */
    uint64_t found; /* as it stands there, a fence included */
    struct page_range range;
};

static void copy_key(struct page_key key, unsigned char *ret_bytes, size_t *ret_count)
{
    *ret_count = key.data == NULL ? 0 : key.bytes;
    assert(*ret_count <= PAGE_KEY_BYTES_MAX);
    if (*ret_count > 0) memcpy(ret_bytes, key.data, *ret_count);
}

static void list_damage(struct check *check, const struct lead *lead, const char *why)
{
    struct pages_report *report = &check->report;
    bool root = lead->range.first.data == NULL && lead->range.end.data == NULL;
    report->total++;
    if (report->count >= PAGES_LISTED_MAX && !root) return;
    if (report->list == NULL) report->list = calloc(LISTED_MAX, sizeof *report->list);
    if (report->list == NULL) {
        check->no_memory = true;
        return;
    }
    assert(report->count < LISTED_MAX);
    struct pages_damage *damage = &report->list[report->count++];
    memcpy(damage->table, check->tree->name, sizeof damage->table);
    damage->why = why;
    damage->page = lead->found & ~FENCE;
    copy_key(lead->range.first, damage->first, &damage->first_bytes);
    copy_key(lead->range.end, damage->end, &damage->end_bytes);
}

static void add_patch(struct check *check, const struct lead *lead, uint64_t wanted)
{
    if (check->patch_count == check->patch_room) {
        size_t room = 2 * check->patch_room + 16;
        struct patch *patches = realloc(check->patches, room * sizeof *patches);
        if (patches == NULL) {
            check->no_memory = true;
            return;
        }
        check->patches = patches;
        check->patch_room = room;
    }
    uint16_t high = (uint16_t)(wanted >> 32);
    check->patches[check->patch_count++] = (struct patch){ lead->at, high };
}

/* What was found at the end of a lead; `why` is NULL when all is well there. */
static void conclude(struct check *check, const struct lead *lead, const char *why)
{
    uint64_t number = lead->found & ~FENCE;
    if (why != NULL && check->tree->role == PAGE_ROLE_MAIN) {
        check->fatal = why;
        check->fatal_page = number;
    } else if (why != NULL && check->tree->role == PAGE_ROLE_FREE) {
        check->not_free = why;
        check->not_free_page = number;
    } else {
        uint64_t wanted = why != NULL ? number | FENCE : number;
        if (why != NULL) list_damage(check, lead, why);
        if (wanted != lead->found) add_patch(check, lead, wanted);
    }
}

/* Behind the last page of the snapshot is nothing that a lead could lead to. Where just that stands
 * there, the number of the last page is wrong, and the next commit would write over everything
 * behind it. What a commit left there that was cut short has another number, or other keys; where
 * it happens to fit, a fence says that the lead was wrong before. */
static bool stands_behind(const struct check *check, const struct lead *lead, uint64_t count)
{
    uint64_t page = lead->found; /* with a fence behind any file */
    return page >= 2 && page < check->file_pages && count <= check->file_pages - page;
}

static void refuse_last_page(struct check *check)
{
    check->fatal = "its number of the last page is too small";
    check->fatal_page = check->meta_page;
}

/* How many pages a value has by what stands in front of it; 0: no value begins there. */
static uint64_t head_pages(const struct check *check, uint64_t number)
{
    unsigned char head[PAGE_NODES];
    off_t at = (off_t)(number * check->page_bytes);
    if (pread(check->fd, head, sizeof head, at) != (ssize_t)sizeof head) return 0;
    bool begins = page_u64(head) == number && page_u16(head + PAGE_FLAGS) == PAGE_IS_OVERFLOW;
    return begins ? page_u32(head + PAGE_VALUE_PAGES) : 0;
}

/* Heads are read where there is doubt. Of lists of free pages always: LMDB gives their pages back
 * by it without asking anybody, and may have left them longer than they need be. */
static const char *claim_value(struct check *check, const struct lead *lead, uint64_t bytes)
{
    uint64_t number = lead->found & ~FENCE;
    uint64_t count = (PAGE_NODES - 1 + bytes) / check->page_bytes + 1;
    if (!inside(check, number, count)) {
        if (stands_behind(check, lead, count) && head_pages(check, number) == count)
            refuse_last_page(check);
        return OUTSIDE;
    }
    if (check->tree->role == PAGE_ROLE_FREE) {
        uint64_t pages = head_pages(check, number);
        if (pages < count || !inside(check, number, pages)) return NO_LIST;
        return claims_list(&check->claims, number, pages) ? NULL : TWICE;
    }
    enum claims_state state = claims_ask(&check->claims, number, count);
    if (state == CLAIMS_LOST) return TWICE;
    if (state == CLAIMS_DOUBTED && (lead->found != number || head_pages(check, number) != count))
        return "its pages are another's";
    return claims_value(&check->claims, number, count) ? NULL : TWICE;
}

/* One record of the list: a count, and so many numbers, the largest first. */
static const char *claim_free(struct check *check, const unsigned char *list, size_t bytes)
{
    if (bytes < 8 || page_u64(list) > bytes / 8 - 1) return NO_LIST;
    uint64_t count = page_u64(list), before = check->next;
    const char *why = NULL;
    for (uint64_t i = 1; i <= count; i++) {
        uint64_t page = page_u64(list + 8 * i);
        if (page < 2 || page >= before) return NO_LIST;
        if (!claims_free_page(&check->claims, page)) why = "a free page is in use";
        before = page;
    }
    return why;
}

static const char *read_free(struct check *check, const unsigned char *node, uint64_t number)
{
    size_t bytes = page_u32(node);
    if (page_u16(node + PAGE_NODE_FLAGS) == 0)
        return claim_free(check, page_node_value(node), bytes);
    CLEANUP(free_ptr) unsigned char *list = malloc(bytes + 1);
    if (list == NULL) {
        check->no_memory = true;
        return NULL;
    }
    off_t at = (off_t)(number * check->page_bytes + PAGE_NODES);
    if (pread(check->fd, list, bytes, at) != (ssize_t)bytes) return "it cannot be read";
    return claim_free(check, list, bytes);
}

/* The tables that the main tree names are looked at when it was. */
static void add_table(struct check *check, const unsigned char *node, uint64_t at)
{
    const unsigned char *record = page_node_value(node);
    struct page_key name = page_node_key(node);
    struct tree tree = { .role = PAGE_ROLE_TABLE, .depth = page_u16(record + PAGE_TREE_DEPTH) };
    tree.root = page_u64(record + PAGE_TREE_ROOT);
    tree.root_at = at + PAGE_TREE_ROOT;
    bool empty = tree.root == NO_ROOT;
    if (check->table_count == TABLES_MAX || name.bytes >= sizeof tree.name ||
        page_u16(record + PAGE_TREE_FLAGS) != 0 || tree.depth > PAGE_DEPTH_MAX ||
        empty != (tree.depth == 0)) {
        check->fatal = "what it says of a table makes no sense";
        check->fatal_page = check->tree->root;
        return;
    }
    memcpy(tree.name, name.data, name.bytes);
    check->tables[check->table_count++] = tree;
}

/* Node `i` of a sound leaf, which stands at `at` in the file. */
static void follow_leaf(struct check *check, const unsigned char *node, uint64_t at)
{
    unsigned flags = page_u16(node + PAGE_NODE_FLAGS);
    uint64_t value_at = at + (uint64_t)(page_node_value(node) - node), number = 0;
    if (check->tree->role == PAGE_ROLE_MAIN) {
        add_table(check, node, value_at);
        return;
    }
    struct page_key key = page_node_key(node);
    unsigned char end[PAGE_KEY_BYTES_MAX];
    memcpy(end, key.data, key.bytes);
    end[key.bytes] = 0; /* the next possible key */
    struct lead lead = { .at = value_at, .range = { key, { end, key.bytes + 1 } } };
    const char *why = NULL;
    if (flags == PAGE_HAS_PAGES) {
        lead.found = page_u64(page_node_value(node));
        number = lead.found & ~FENCE;
        why = claim_value(check, &lead, page_u32(node));
    } else {
        lead.found = at / check->page_bytes; /* what is wrong with it is wrong there */
    }
    if (why == NULL && check->tree->role == PAGE_ROLE_FREE) why = read_free(check, node, number);
    conclude(check, &lead, why);
}

/* The kernel reads all children while the first is looked at. */
static void read_ahead(const struct check *check, const unsigned char *page)
{
    for (size_t i = 0; i < page_count(page); i++) {
        uint64_t at = (page_u48(page_node(page, i)) & ~FENCE) * check->page_bytes;
        posix_fadvise(check->fd, (off_t)at, (off_t)check->page_bytes, POSIX_FADV_WILLNEED);
    }
}

/* A page on the way from the root to where the walk is. */
struct step {
    uint64_t number;
    struct page_range range;
    size_t node; /* the next to look at */
};

/* Read the page at the end of a lead, `level` below the root. What is wrong with it. */
static const char *enter(struct check *check, const struct lead *lead, size_t level)
{
    uint64_t number = lead->found & ~FENCE, at = number * check->page_bytes;
    unsigned char *page = check->pages + level * check->page_bytes;
    const struct tree *tree = check->tree;
    bool there = inside(check, number, 1);
    if (!there && !stands_behind(check, lead, 1)) return OUTSIDE;
    if (pread(check->fd, page, check->page_bytes, (off_t)at) != (ssize_t)check->page_bytes)
        return "it cannot be read";
    struct page_place place = { number, tree->role, level + 1 == tree->depth, lead->range };
    const char *why = page_check(page, check->page_bytes, &place);
    if (!there) {
        if (why == NULL) refuse_last_page(check);
        return OUTSIDE;
    }
    if (why != NULL) return why;
    bool fenced = lead->found != number;
    if (fenced && claims_ask(&check->claims, number, 1) == CLAIMS_DOUBTED) return TWICE_USED;
    bool alone = tree->role == PAGE_ROLE_FREE ? claims_free_tree(&check->claims, number)
                                              : claims_tree(&check->claims, number);
    if (!alone) return TWICE_USED;
    if (!place.leaf) read_ahead(check, page);
    return NULL;
}

/* From a branch to one of its children. */
static struct lead lead_down(const struct check *check, const struct step *step,
                             const unsigned char *page)
{
    const unsigned char *node = page_node(page, step->node);
    struct lead lead = { .at = step->number * check->page_bytes + (uint64_t)(node - page),
                         .found = page_u48(node),
                         .range = step->range };
    if (step->node > 0) lead.range.first = page_node_key(node);
    if (step->node + 1 < page_count(page))
        lead.range.end = page_node_key(page_node(page, step->node + 1));
    return lead;
}

static void check_tree(struct check *check, struct tree *tree)
{
    struct step steps[PAGE_DEPTH_MAX];
    size_t depth = 0;
    check->tree = tree;
    if (tree->root == NO_ROOT) return;
    struct lead lead = { .at = tree->root_at, .found = tree->root, .range = tree->range };
    const char *why = enter(check, &lead, 0);
    conclude(check, &lead, why);
    if (why == NULL) steps[depth++] = (struct step){ tree->root & ~FENCE, tree->range, 0 };
    while (depth > 0) {
        struct step *step = &steps[depth - 1];
        const unsigned char *page = check->pages + (depth - 1) * check->page_bytes;
        if (step->node == page_count(page)) {
            depth--;
        } else if (depth == tree->depth) {
            const unsigned char *node = page_node(page, step->node++);
            follow_leaf(check, node, step->number * check->page_bytes + (uint64_t)(node - page));
        } else {
            lead = lead_down(check, step, page);
            step->node++;
            why = enter(check, &lead, depth);
            conclude(check, &lead, why);
            if (why == NULL) steps[depth++] = (struct step){ lead.found & ~FENCE, lead.range, 0 };
        }
    }
}

static bool sound_tree(const unsigned char *record, unsigned flags)
{
    unsigned depth = page_u16(record + PAGE_TREE_DEPTH);
    return (page_u16(record + PAGE_TREE_FLAGS) & ~PAGE_WAS_FILE) == flags &&
           depth <= PAGE_DEPTH_MAX &&
           (depth == 0) == (page_u64(record + PAGE_TREE_ROOT) == NO_ROOT);
}

/* Its root is never fenced off; a bit that looks like a fence is taken away. */
static struct tree meta_tree(const struct check *check, enum page_role role, size_t offset,
                             const unsigned char *meta)
{
    const unsigned char *record = meta + offset;
    return (struct tree){ .role = role,
                          .depth = page_u16(record + PAGE_TREE_DEPTH),
                          .root = page_u64(record + PAGE_TREE_ROOT),
                          .root_at = check->meta_page * check->page_bytes + offset +
                                     PAGE_TREE_ROOT };
}

/* 0: LMDB will refuse the file, or make it. LMDB goes by the page of the parity of the newest
 * transaction. Nothing else says which it is, so a damaged number brings back the commit before;
 * but then the other page is not of the commit before that. Two alike are new, or restored
 * (store_synced.c). */
static int read_meta(struct check *check, unsigned char ret_meta[PAGE_META_BYTES],
                     struct error *err)
{
    unsigned char metas[2][PAGE_META_BYTES];
    for (size_t i = 0; i < 2; i++) {
        uint64_t at = i * check->page_bytes;
        if (pread(check->fd, metas[i], PAGE_META_BYTES, (off_t)at) != PAGE_META_BYTES) return 0;
        if ((page_u16(metas[i] + PAGE_FLAGS) & PAGE_IS_META) == 0 ||
            page_u32(metas[i] + PAGE_META_MAGIC) != MAGIC ||
            page_u32(metas[i] + PAGE_META_VERSION) != 1)
            return 0;
        size_t bytes = page_u32(metas[i] + PAGE_META_FREE + PAGE_TREE_PAGE_BYTES);
        if (bytes < PAGE_BYTES_MIN || bytes > PAGE_BYTES_MAX || (bytes & (bytes - 1)) != 0 ||
            (i > 0 && bytes != check->page_bytes))
            return error_set(err, MEMD_ECORRUPT, "data.mdb: its pages cannot have %zu bytes",
                             bytes);
        check->page_bytes = bytes;
    }
    uint64_t first = page_u64(metas[0] + PAGE_META_TXN),
             second = page_u64(metas[1] + PAGE_META_TXN);
    uint64_t newest = first > second ? first : second;
    const unsigned char *meta = metas[newest & 1];
    check->next = page_u64(meta + PAGE_META_LAST_PAGE) + 1;
    if (page_u64(meta + PAGE_META_TXN) != newest || check->next < 2 || check->next >= FENCE ||
        !sound_tree(meta + PAGE_META_FREE, PAGE_INTEGER_KEYS) ||
        !sound_tree(meta + PAGE_META_MAIN, 0))
        return error_set(err, MEMD_ECORRUPT, "data.mdb: the meta page %" PRIu64 " is damaged",
                         newest & 1);
    const unsigned char *other = metas[1 - (newest & 1)];
    size_t number = sizeof(uint64_t); /* in which they differ anyway */
    check->apart = newest - page_u64(other + PAGE_META_TXN) != 1 &&
                   memcmp(meta + number, other + number, PAGE_META_BYTES - number) != 0;
    memcpy(ret_meta, meta, PAGE_META_BYTES);
    check->meta_page = newest & 1;
    uint64_t txns[2] = { 1, newest + 1 };
    memcpy(check->txns, txns, sizeof txns);
    return 1;
}

/* The list of free pages becomes empty; every page that it named is lost until the contexts are
 * moved to a new store. */
static bool forget_free(struct check *check)
{
    unsigned char record[PAGE_TREE_BYTES] = { 0 };
    uint64_t root = NO_ROOT;
    memcpy(record + PAGE_TREE_ROOT, &root, sizeof root);
    size_t kept = PAGE_TREE_DEPTH; /* page size and flags */
    off_t at = (off_t)(check->meta_page * check->page_bytes + PAGE_META_FREE + kept);
    return pwrite(check->fd, record + kept, PAGE_TREE_BYTES - kept, at) ==
           (ssize_t)(PAGE_TREE_BYTES - kept);
}

static int write_fences(struct check *check, struct error *err)
{
    bool done = check->not_free == NULL || forget_free(check);
    for (size_t i = 0; done && i < check->patch_count; i++) {
        const struct patch *patch = &check->patches[i];
        done = pwrite(check->fd, &patch->high, sizeof patch->high, (off_t)patch->at + 4) ==
               sizeof patch->high;
    }
    if (check->patch_count > 0 || check->not_free != NULL) done = done && fsync(check->fd) == 0;
    if (done) return 0;
    return error_set(err, MEMD_EIO, "cannot fence off damaged pages of data.mdb: %s",
                     strerror(errno));
}

static void check_round(struct check *check, const unsigned char *meta)
{
    claims_begin(&check->claims);
    check->main = meta_tree(check, PAGE_ROLE_MAIN, PAGE_META_MAIN, meta);
    check->free = meta_tree(check, PAGE_ROLE_FREE, PAGE_META_FREE, meta);
    check->free.range = (struct page_range){ { check->txns[0], sizeof check->txns[0] },
                                             { check->txns[1], sizeof check->txns[1] } };
    check->table_count = check->patch_count = check->report.count = check->report.total = 0;
    check->not_free = NULL;
    check_tree(check, &check->main);
    for (size_t i = 0; check->fatal == NULL && i < check->table_count; i++)
        check_tree(check, &check->tables[i]);
    if (check->fatal == NULL) check_tree(check, &check->free);
    struct lead list = { .found = check->not_free_page }, meta_page = { .found = check->meta_page };
    if (check->not_free != NULL) list_damage(check, &list, check->not_free);
    if (check->apart)
        list_damage(check, &meta_page, "the meta pages are not of two commits in a row");
}

static int check_all(struct check *check, const unsigned char *meta, struct error *err)
{
    check->pages = malloc(PAGE_DEPTH_MAX * check->page_bytes);
    check->no_memory = !claims_init(&check->claims, check->next) || check->pages == NULL;
    check->claims.again = true;
    for (size_t i = 0; i < ROUNDS_MAX && check->claims.again; i++) {
        if (!check->no_memory && check->fatal == NULL) check_round(check, meta);
    }
    if (check->no_memory) return error_set(err, MEMD_ENOMEM, "no memory to check the pages");
    if (check->fatal == NULL) return write_fences(check, err);
    return error_set(err, MEMD_ECORRUPT,
                     "data.mdb: page %" PRIu64 ", which leads to all tables, is damaged: %s",
                     check->fatal_page, check->fatal);
}

int pages_check(const char *path, struct pages_report *ret_report, struct error *err)
{
    CLEANUP(fini_check) struct check check = { .fd = -1 };
    unsigned char meta[PAGE_META_BYTES] = { 0 };
    char name[PATH_MAX];
    struct stat file;
    int length = snprintf(name, sizeof name, "%s/data.mdb", path);
    if (length < 0 || (size_t)length >= sizeof name) return 0; /* LMDB says it */
    check.fd = open(name, O_RDWR | O_CLOEXEC);
    if (check.fd < 0 && errno == ENOENT) return 0;
    if (check.fd < 0 || fstat(check.fd, &file) != 0)
        return error_set(err, MEMD_EIO, "cannot open data.mdb: %s", strerror(errno));
    int rc = read_meta(&check, meta, err);
    if (rc <= 0) return rc;
    check.file_pages = (uint64_t)file.st_size / check.page_bytes;
    if (check.next / 2 > check.file_pages + FREE_BEHIND)
        return error_set(err, MEMD_ECORRUPT, "data.mdb: %" PRIu64 " pages where %" PRIu64 " are",
                         check.next, check.file_pages);
    rc = check_all(&check, meta, err);
    if (rc < 0) return rc;
    *ret_report = check.report;
    check.report = (struct pages_report){ 0 };
    return 0;
}

void pages_fini(struct pages_report *report)
{
    free(report->list);
    *report = (struct pages_report){ 0 };
}
