/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_state.h — the inside of a catalog; for the files of memory/ alone. */
#ifndef MEMD_MEMORY_CATALOG_STATE_H
#define MEMD_MEMORY_CATALOG_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/list.h"
#include "base/map.h"
#include "memory/catalog.h"
#include "memory/context_state.h"
#include "memory/store.h"
#include "memory/writer.h"

struct catalog {
    char *path;
    int lock_fd;
    struct store *store;
    struct writer *writer;
    struct builder *builder;
    struct pool *pool;
    struct accelerator *accelerator; /* or NULL */
    struct block_cache blocks;
    size_t contexts_max;
    uint64_t resident_bytes_max;
    uint64_t map_bytes;
    uint64_t generation; /* unclean starts so far; immutable after open */

    _Atomic uint64_t budget_bytes;
    _Atomic uint64_t context_count, resident_count, stored_bytes, map_used_bytes, file_bytes;
    _Atomic uint64_t build_waiting; /* contexts that the builder has not looked at yet */
    _Atomic uint64_t recent_bytes;  /* of rings of recent queries */
    _Atomic uint64_t state_bytes;   /* of folds, uploaded tensors and tables of
                                     * centroids in memory */
    _Atomic uint64_t folds_begun;
    _Atomic uint64_t damaged_drops; /* begun, and damage keeps them from being finished */
    struct {
#define X(name) _Atomic uint64_t name;
        CATALOG_COUNTER_MAP(X)
#undef X
    } counters;

    uint64_t next_context, next_segment; /* writer */

    /* Shared: planes are found in the store and put to use. Exclusive, the builder alone: they are
     * taken from all contexts and deleted. Nobody else waits for it. */
    pthread_rwlock_t planes_lock;
    pthread_mutex_t load_lock; /* serialises loading, and uploads of shared tensors; taken before
                                * lock */
    pthread_mutex_t lock;
    pthread_cond_t unpinned;
    struct map residents; /* id → context; locked by lock */
    struct list_link lru; /* residents, least recently used first; locked by lock */
};

#define CATALOG_COUNT(catalog, name, amount) \
    atomic_fetch_add_explicit(&(catalog)->counters.name, (amount), memory_order_relaxed)

uint64_t catalog_now_ms(void);

enum store_mode catalog_store_mode(enum sync_mode sync);

/* The record of a context, on the heap. MEMD_ENOCONTEXT when absent or being dropped. */
int catalog_read_record(struct catalog *catalog, struct store_txn *txn, uint64_t id,
                        struct record **ret_record, struct error *err);
void catalog_put_record(struct store_txn *txn, uint64_t id, const struct record *record);

/* Drop residents that nobody uses until the number fits. */
void catalog_unload_idle(struct catalog *catalog);
/* More is resident than may be. Cheap: no lock. */
bool catalog_is_crowded(struct catalog *catalog);

/* Commit a transaction that changed the stored bytes by `delta`, with the numbers that go along.
 * Writer. */
int catalog_commit(struct catalog *catalog, struct store_txn *txn, int64_t delta,
                   struct error *err);

/* The entry of the map that keeps others out while a context is dropped: the resident, or an
 * empty one in its place. MEMD_EBUSY when it has to be idle and is not. With load_lock held. */
int drop_claim(struct catalog *catalog, uint64_t id, bool only_idle, struct context **ret_context,
               struct error *err);
/* Drop what was claimed. 0: it is gone for everybody, although the writer may have to come back for
 * some of its bytes (writer_owes_drops). After an error it is as before. Writer. */
int drop_here(struct catalog *catalog, struct context *context, struct error *err);
/* Go on with all drops that failed, or that another process did not finish; what fails again is
 * left to the writer (writer_wish_drops), or counted when damage is the reason. Writer. */
int drop_resume(struct catalog *catalog, struct error *err);

/* When more is stored than the budget allows, drop least recently used contexts. Writer. */
void evict_run(struct catalog *catalog);
/* What is to be written: `bytes`, in values of `value_bytes` at most. */
struct room_wish {
    uint64_t bytes;
    size_t value_bytes;
};
/* Is there room for it? MEMD_EFULL. Waits where readers hold what would do (commit_turn_pages).
 * Writer, outside of a transaction. */
int evict_check(struct catalog *catalog, const struct room_wish *wish, struct error *err);

#endif
