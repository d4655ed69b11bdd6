/* SPDX-License-Identifier: Apache-2.0 */
/* evict.c — what happens when there is too much: least recently used contexts go, down to eight
 * tenths of the budget, so that one eviction makes room for many appends. Retained ones, pinned
 * ones and ones with rows on the way are passed over, and nobody goes while a drop is left undone
 * (writer.c), unless damage is why: then others go instead. Retention ends by itself
 * (catalog_retain), so nothing can wedge the store for good, but for damage everywhere: an eviction
 * gives away a name before it removes rows, and where drop after drop gives nothing back, as many
 * contexts are lost for it as DAMAGED_MAX, and no more.
 *
 * The table of contexts is scanned for each victim: eviction writes megabytes, reading a few
 * thousand records of 300 bytes does not show, and there is no second list that could disagree
 * with the records.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "memory/catalog_state.h"
#include "memory/commit.h"

/* Rows leave so much of the map and of the disk alone. A delete writes new pages before it frees
 * old ones, so a disk that rows had filled to its last page could not be emptied. */
enum { MARGIN_BYTES = 1 << 20 };
enum { DAMAGED_MAX = 8 };

/* What the file may grow by: the disk's rest, and what the file has beyond its last page. */
static uint64_t disk_room(struct store *store, const struct store_space *space)
{
    uint64_t disk = store_disk_bytes(store);
    uint64_t rest = space->file_bytes > space->used_bytes ? space->file_bytes - space->used_bytes
                                                          : 0;
    return disk > UINT64_MAX - rest ? UINT64_MAX : disk + rest;
}

struct room {
    uint64_t grow;        /* what the file may grow by */
    const char *of;       /* what ends that */
    struct store_ask ask; /* of the pages that are free inside: what growing alone would not do */
    struct store_free pages;
};

/* What finds no free pages side by side makes the file grow, and that must leave the margin, or
 * fragments would eat it. */
static struct store_ask missing(const struct room_wish *wish, uint64_t grow)
{
    uint64_t bytes = wish->bytes + MARGIN_BYTES;
    bytes = bytes > grow ? bytes - grow : 0;
    uint64_t run_bytes = bytes < wish->bytes ? bytes : wish->bytes;
    return (struct store_ask){ wish->value_bytes, bytes, run_bytes };
}

static struct room find_room(struct catalog *catalog, const struct room_wish *wish)
{
    struct store_space space;
    store_get_space(catalog->store, &space);
    uint64_t map = space.map_bytes > space.used_bytes ? space.map_bytes - space.used_bytes : 0;
    uint64_t disk = disk_room(catalog->store, &space);
    struct room room = { .grow = map < disk ? map : disk, .of = map < disk ? "map" : "disk" };
    room.ask = missing(wish, room.grow);
    if (room.ask.bytes > 0) store_find_free(catalog->store, &room.ask, &room.pages);
    return room;
}

/* `held`: with the pages that readers hold. */
static bool fits(const struct room *room, bool held)
{
    uint64_t more = held ? room->pages.held_bytes : 0;
    return room->pages.usable_bytes + more >= room->ask.bytes &&
           room->pages.run_bytes + more >= room->ask.run_bytes;
}

int evict_check(struct catalog *catalog, const struct room_wish *wish, struct error *err)
{
    uint64_t budget = atomic_load(&catalog->budget_bytes),
             stored = atomic_load(&catalog->stored_bytes),
             damaged = atomic_load(&catalog->damaged_drops);
    if (budget > 0 && stored > budget)
        return error_set(err, MEMD_EFULL,
                         "%" PRIu64 " bytes are stored, the budget is %" PRIu64
                         ", and nothing can be evicted (damage has stopped %" PRIu64 " drops)",
                         stored, budget, damaged);
    struct room_wish whole = { wish->bytes + wish->bytes / 32, wish->value_bytes };
    struct room room = find_room(catalog, &whole);
    if (!fits(&room, false) && fits(&room, true) && commit_turn_pages(catalog))
        room = find_room(catalog, &whole);
    if (fits(&room, false)) return 0;
    return error_set(err, MEMD_EFULL,
                     "%" PRIu64 " bytes and %d for deletes do not fit into the %" PRIu64
                     " that the %s has left and %" PRIu64 " that were freed; readers hold %" PRIu64
                     " more",
                     wish->bytes, MARGIN_BYTES, room.grow, room.of, room.pages.run_bytes,
                     room.pages.held_bytes);
}

struct candidate {
    uint64_t id, used_unix_ms;
};

/* Is this record older than the best so far, and may it go? */
static void consider(struct catalog *catalog, uint64_t id, const struct record *record,
                     uint64_t now_ms, struct candidate *best)
{
    uint64_t used = record->used_unix_ms, retained = record->retained_until_unix_ms;
    bool free_to_go = !record->dropping;
    pthread_mutex_lock(&catalog->lock);
    struct context *context = map_get(&catalog->residents, id);
    if (context != NULL && context->record != NULL) {
        used = atomic_load(&context->used_unix_ms);
        retained = context->record->retained_until_unix_ms;
    }
    if (context != NULL)
        free_to_go = !context->dropping && context->pins == context->builder_pins &&
                     !writer_is_dirty(catalog->writer, context);
    pthread_mutex_unlock(&catalog->lock);
    if (!free_to_go || retained > now_ms || used >= best->used_unix_ms) return;
    *best = (struct candidate){ id, used };
}

static bool find_victim(struct catalog *catalog, uint64_t *ret_id)
{
    CLEANUP(free_ptr) struct record *record = malloc(sizeof *record);
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    if (record == NULL || store_begin(catalog->store, false, &txn, NULL) < 0) return false;
    struct candidate best = { .used_unix_ms = UINT64_MAX };
    uint64_t now_ms = catalog_now_ms(), id = 0;
    struct store_cursor cursor;
    bool found = store_seek(&txn, STORE_CONTEXTS, (struct slice){ NULL, 0 }, &cursor);
    for (; found; found = store_next(&cursor)) {
        if (!format_read_id(cursor.key.data, cursor.key.bytes, &id)) continue;
        if (record_decode(cursor.value.data, cursor.value.bytes, record, NULL) < 0) continue;
        consider(catalog, id, record, now_ms, &best);
    }
    store_cursor_close(&cursor);
    if (best.id == 0) return false;
    *ret_id = best.id;
    return true;
}

static int drop_victim(struct catalog *catalog, uint64_t id)
{
    struct context *context = NULL;
    /* A worker that loads a context may be waiting for this thread: never wait for it. */
    if (pthread_mutex_trylock(&catalog->load_lock) != 0) return MEMD_EBUSY;
    int rc = drop_claim(catalog, id, true, &context, NULL);
    pthread_mutex_unlock(&catalog->load_lock);
    if (rc < 0) return rc;
    rc = drop_here(catalog, context, NULL);
    if (rc == 0) CATALOG_COUNT(catalog, evicted_contexts_total, 1);
    return rc;
}

void evict_run(struct catalog *catalog)
{
    uint64_t budget = atomic_load(&catalog->budget_bytes), id = 0;
    if (budget == 0 || atomic_load(&catalog->stored_bytes) <= budget) return;
    uint64_t target = budget / 10 * 8; /* and planes for them: rebuild.c keeps a tenth free */
    while (atomic_load(&catalog->stored_bytes) > target && !writer_owes_drops(catalog->writer) &&
           atomic_load(&catalog->damaged_drops) < DAMAGED_MAX) {
        if (!find_victim(catalog, &id) || drop_victim(catalog, id) < 0) return;
    }
}
