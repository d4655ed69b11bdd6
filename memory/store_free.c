/* SPDX-License-Identifier: Apache-2.0 */
/* store_free.c — is enough free? Where the file cannot grow this is asked before every
 * transaction, and after a large drop the list of free pages is as long as what was dropped, so it
 * is read no further than to the answer.
 *
 * LMDB has, by the transaction that freed them, lists of page numbers, and uses them in that order.
 * What it does not use it writes back over several of these lists, lowest pages first. So a value
 * that was freed is found as a run within one list, or on from one list to the next, and the walk
 * looks for those. Pages side by side that stand in lists apart show only in a map of all of them.
 * That is counted when twice as much as is wanted has been read without finding it (and so much
 * that counting is as quick as reading was), and again whenever that has doubled: whatever their
 * order, it is read about twice as far as has to be at most, and to its end where there is not
 * enough.
 */
#include "memory/store_free.h"

#include <lmdb.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

enum { WORD_BITS = 64 };

struct walk {
    const struct free_list *list;
    uint64_t *bits;              /* by page: free, and no reader is older */
    size_t words;                /* of these */
    uint64_t wanted, wanted_runs; /* pages; the latter in runs of `group` */
    uint64_t read, runs, held;   /* pages; `runs`: of `read` in runs of `group` */
    uint64_t next_count;         /* when `read` is that: look at the map */
    size_t page, run;            /* last one, and how many stand side by side up to it */
};

/* In runs of `group`. */
static uint64_t count_runs(const uint64_t *bits, size_t words, size_t group)
{
    uint64_t sum = 0, run = 0;
    for (size_t i = 0; i < words; i++) {
        uint64_t rest = bits[i];
        if (rest == UINT64_MAX) {
            run += WORD_BITS;
            continue;
        }
        for (int left = WORD_BITS; left > 0;) {
            int ones = __builtin_ctzll(~rest);
            run += (uint64_t)ones;
            left -= ones;
            if (left == 0) break;
            if (run >= group) sum += run / group * group;
            run = 0;
            rest >>= ones;
            int zeros = rest == 0 ? left : __builtin_ctzll(rest);
            left -= zeros;
            rest = left == 0 ? 0 : rest >> zeros;
        }
    }
    return sum + run / group * group;
}

static bool is_enough(const struct walk *walk)
{
    return walk->read >= walk->wanted && walk->runs >= walk->wanted_runs;
}

static void count_again(struct walk *walk)
{
    walk->runs = count_runs(walk->bits, walk->words, walk->list->group);
    walk->run = 0; /* it is counted */
    walk->next_count = 2 * walk->read;
}

/* `list` has them from the highest down. */
static bool take_pages(struct walk *walk, const size_t *list, size_t count)
{
    for (size_t i = count; i > 0 && !is_enough(walk); i--) {
        size_t page = list[i];
        if (page >= walk->list->pages) continue; /* damaged */
        walk->bits[page / WORD_BITS] |= UINT64_C(1) << page % WORD_BITS;
        walk->run = page == walk->page + 1 ? walk->run + 1 : 1;
        walk->page = page;
        walk->read++;
        if (walk->run == walk->list->group) {
            walk->runs += walk->run;
            walk->run = 0;
        }
        if (walk->read >= walk->next_count) count_again(walk);
    }
    return is_enough(walk);
}

static void walk_lists(struct walk *walk, MDB_cursor *cursor)
{
    MDB_val key, value;
    bool enough = is_enough(walk);
    while (!enough && mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0) {
        const size_t *list = value.mv_data;
        size_t id, count = value.mv_size / sizeof *list;
        if (key.mv_size != sizeof id || count == 0 || list[0] >= count) continue; /* damaged */
        memcpy(&id, key.mv_data, sizeof id);
        if (id < walk->list->oldest)
            enough = take_pages(walk, list, list[0]);
        else
            walk->held += list[0];
    }
}

bool free_list_read(const struct free_list *list, MDB_cursor *cursor, const struct store_ask *ask,
                    struct store_free *ret_free)
{
    struct walk walk = { .list = list, .words = list->pages / WORD_BITS + 1 };
    *ret_free = (struct store_free){ 0 };
    CLEANUP(free_ptr) uint64_t *bits = calloc(walk.words, sizeof *bits);
    if (bits == NULL) return true;
    walk.bits = bits;
    walk.wanted = ask->bytes / list->page_bytes + (ask->bytes % list->page_bytes != 0);
    walk.wanted_runs = ask->run_bytes / list->page_bytes + (ask->run_bytes % list->page_bytes != 0);
    walk.next_count = walk.words > 2 * walk.wanted ? walk.words : 2 * walk.wanted;
    walk_lists(&walk, cursor);
    if (!is_enough(&walk)) count_again(&walk);
    ret_free->usable_bytes = walk.read * list->page_bytes;
    ret_free->held_bytes = walk.held * list->page_bytes;
    ret_free->run_bytes = walk.runs * list->page_bytes;
    ret_free->read_pages = walk.read;
    return is_enough(&walk);
}
