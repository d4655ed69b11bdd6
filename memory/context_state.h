/* SPDX-License-Identifier: Apache-2.0 */
/* context_state.h — what a resident context consists of; for the files of memory/ alone.
 *
 * A layer is an array of slots, one per 1,024 tokens: token t lives in row t % 1024 of slot t /
 * 1024. A slot is either a block in memory (the open tail, or full and not yet committed) or a
 * sealed segment in the map.
 *
 * Locks, in the order in which they are taken:
 *   append_lock  serialises appends
 *   use          shared while rows are read or written, exclusive while rows are taken away
 *                (truncate, rollback); whoever holds it shared never waits for the writer thread
 *   map_lock     serialises the first mapping of segments
 *   lock         the fields that say so; held for microseconds, never across I/O
 * Only the writer thread takes rows away or replaces a block by its segment, so the writer reads
 * blocks without holding references.
 */
#ifndef MEMD_MEMORY_CONTEXT_STATE_H
#define MEMD_MEMORY_CONTEXT_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "attention/rope.h"
#include "base/list.h"
#include "index/options.h"
#include "memory/block.h"
#include "memory/context.h"
#include "memory/record.h"
#include "memory/store.h"

struct catalog;
struct method;

struct slot {                     /* locked by lock */
    struct block *block;          /* NULL once sealed and mapped */
    uint64_t segment;             /* 0 until sealed */
    uint64_t writing;             /* segment in the running transaction; writer */
    const unsigned char **values; /* (2, G) row 0 of K, then V; NULL until first needed */
    const unsigned char *ids;     /* (1024) u32 or NULL; valid when mapped */
    bool mapped; /* values are filled and were verified or written by this process */
};

struct layer {
    struct slot *slots; /* locked by lock */
    size_t slot_count, slot_capacity;
    size_t unmapped;            /* sealed slots that are not mapped; locked by lock */
    _Atomic uint64_t tokens;    /* visible; written under lock */
    uint64_t committed, synced; /* locked by lock */
    uint64_t round_tokens;      /* what the round is to reach; writer */
    uint64_t writing;           /* what `committed` becomes with the running transaction; writer */
};

enum { FAILURES_MAX = 16 };
struct failure { /* appends with first ≤ sequence ≤ last were taken back */
    uint64_t first, last;
    int code;
};

struct context {
    struct catalog *catalog;
    uint64_t id;
    struct record *record; /* immutable but for the times (catalog.lock); NULL while dropped */
    struct block_shape shape;
    const struct method *method;
    double options[OPTIONS_MAX]; /* of the method; immutable */
    struct rope *rope; /* NULL: nothing is rotated while reading */

    pthread_mutex_t append_lock, map_lock, lock;
    pthread_rwlock_t use;
    struct layer *layers; /* (L) */

    /* locked by lock */
    uint64_t sequence, committed_sequence, synced_sequence;
    int unreported_code; /* of a failed commit that nobody has been told about; 0 = none */
    struct failure failures[FAILURES_MAX];
    size_t failure_count;
    /* writer: a round is what is committed for one look at the token counts, in one transaction
     * or more */
    uint64_t writing_sequence, round_sequence;
    bool in_round;

    /* locked by the writer's lock; batch_link: writer */
    struct list_link dirty_link, unsynced_link, batch_link;

    /* locked by catalog.lock */
    struct list_link lru_link; /* least recently used first */
    size_t pins;
    bool dropping;
    _Atomic uint64_t used_unix_ms;
};

/* A context without rows from a checked record, which it takes over whatever happens. */
int context_new(struct catalog *catalog, uint64_t id, struct record *record,
                struct context **ret_context, struct error *err);
/* Nothing may pin it or have it in a list. NULL is fine. */
void context_free(struct context *context);
void context_freep(struct context **context);

/* Build from the store. */
int context_load(struct catalog *catalog, uint64_t id, struct context **ret_context,
                 struct error *err);

/* Room for slots up to and including `idx`, all zero. With lock held. */
int context_grow(struct layer *layer, size_t idx, struct error *err);

/* Forget the rows from `tokens` on. With use held exclusively and lock held. */
void context_cut_layer(struct context *context, struct layer *layer, uint64_t tokens);

/* Take back what is not committed, after a commit failed with `code`; returns the bytes. Writer. */
uint64_t context_roll_back(struct context *context, int code);

/* Least count over the layers in use. With lock held. */
uint64_t context_common(const struct context *context,
                        uint64_t (*count)(const struct layer *layer));
uint64_t layer_tokens(const struct layer *layer);
uint64_t layer_committed(const struct layer *layer);
uint64_t layer_synced(const struct layer *layer);

/* Addresses of a segment's values: ret_values (2, G), ret_ids; headers are always checked,
 * checksums when `verify`. Counts checksum failures. */
struct segment_values {
    uint64_t segment, position;   /* which, and where it is to begin */
    const unsigned char **values; /* (2, G) */
    const unsigned char *ids;
};
int context_find_values(struct context *context, struct store_txn *txn, bool verify,
                        struct segment_values *values, struct error *err);

/* Make every sealed slot below `slot_count` mapped. With use held. */
int context_map(struct context *context, struct layer *layer, size_t slot_count, struct error *err);

/* Rows of one layer as views, held against everything but truncate (use must be held shared). */
struct snapshot {
    const struct view *views; /* (G, view_count) arena */
    size_t view_count;
    uint64_t tokens;       /* of the layer */
    uint64_t seen;         /* of them, in the views */
    struct block **blocks; /* references */
    size_t block_count;
};
/* Tokens below `limit`. */
int snapshot_take(struct context *context, uint32_t layer, uint64_t limit, struct arena *arena,
                  struct snapshot *ret_snapshot, struct error *err);
void snapshot_release(struct snapshot *snapshot);

#endif
