/* SPDX-License-Identifier: Apache-2.0 */
/* context_state.h — what a resident context consists of; for the files of memory/ alone.
 *
 * A layer is an array of slots, one per 1,024 tokens: token t lives in row t % 1024 of slot t /
 * 1024. A slot is either a block in memory (the open tail, or full and not yet committed) or a
 * sealed segment in the map.
 *
 * Locks, in the order in which they are taken:
 *   append_lock  serialises appends, and uploads of tensors
 *   use          shared while rows are read or written, exclusive while rows are taken away
 *                (truncate, rollback); whoever holds it shared never waits for the writer thread
 *   folding.lock of a layer; shared while its fold is read, exclusive while rows are taken into it.
 *                `use` is held too; whoever holds that exclusively needs it not
 *   map_lock     serialises the first mapping of segments, and the first look for their planes
 *   lock         the fields that say so; held for microseconds, never across I/O
 *   ring.lock    of a layer: what was retrieved from its ring (context_ring.c); the same
 * Only the writer thread takes rows away or replaces a block by its segment, so the writer reads
 * blocks without holding references.
 */
#ifndef MEMD_MEMORY_CONTEXT_STATE_H
#define MEMD_MEMORY_CONTEXT_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "attention/rope.h"
#include "base/error.h"
#include "base/list.h"
#include "index/options.h"
#include "index/planes.h"
#include "memory/block.h"
#include "memory/context.h"
#include "memory/derived.h"
#include "memory/methods/methods.h"
#include "memory/record.h"
#include "memory/store.h"

struct catalog;

/* Addresses of a segment's values: (2, G) row 0 of K, then V. Behind them what is known of each,
 * and of the ids; behind that copies of ids and columns where the store may move these. Zero; NULL
 * without memory; given back by free. */
const unsigned char **values_new(const struct context *context);
/* (2, G), then of the ids: which of 64 pieces (derived.h) were verified; bit p is piece p. Written
 * by anybody who uses the bytes. */
static inline _Atomic uint64_t *values_proofs(const unsigned char **values, uint32_t heads)
{
    return (_Atomic uint64_t *)(void *)(values + (size_t)2 * heads);
}

/* This process wrote them. */
void values_trust(const unsigned char **values, uint32_t heads);

/* Of a query of this context, (H, D): the model's, whatever is kept of a token. */
size_t context_query_values(const struct context *context);

/* What the builder knows of a sealed slot. */
enum slot_build {
    SLOT_UNSEEN, /* nothing: it has not looked yet */
    SLOT_FAILED, /* planes are wanted and could not be made; it will try again */
    SLOT_BUILT,
    SLOT_DOUBTED, /* its planes are in use, and a query found damage in them */
};

/* Queries of the rows in a slot that are kept for an index, until they are stored with the
 * segment. Written by the appender; the writer reads those of a full slot. */
struct kept {
    size_t count, capacity;
    uint16_t *rows; /* (count) ascending, rows of the slot */
    uint16_t *q;    /* (count, H, D) fp16, as the client sent them */
};

struct slot {                     /* locked by lock */
    struct block *block;          /* NULL once sealed and mapped */
    uint64_t segment;             /* 0 until sealed */
    uint64_t writing;             /* segment in the running transaction; writer */
    const unsigned char **values; /* values_new; NULL until first needed */
    const unsigned char *ids;     /* (1024) u32 or NULL; valid when mapped */
    const unsigned char *columns; /* (1024) records or NULL; valid when mapped */
    bool mapped;                  /* values are filled */
    enum slot_build build;
    struct derived_planes *planes; /* (G), or NULL; taken away only with use held exclusively */
    struct planes *tabled; /* (G) the same with entries in the layer's tables, or NULL; goes with
                            * them */
    struct kept *kept;     /* or NULL */
};

/* What is known of the queries of a layer, and the latest of them. */
struct observed {
    pthread_mutex_t lock;
    atomic_uint calls;  /* that brought queries */
    uint64_t queries;   /* in the means; locked by lock, as all below */
    float *square;      /* (G, D) mean of q_c² over the group's heads, rotated, unscaled; or NULL */
    uint16_t *recent_q; /* (RECENT_QUERIES, H, D) fp16 as sent; or NULL */
    uint64_t *recent_positions; /* (RECENT_QUERIES) */
    uint64_t recent_count;      /* ever put; the ring holds the last ones */
};
enum { RECENT_QUERIES = 32 };

/* What the method has made of a layer's rows (index/fold.h). */
struct folding {
    pthread_rwlock_t lock;
    struct fold *fold; /* NULL until somebody asks. As all below: changed with lock held
                        * exclusively, or use */
    size_t counted;    /* of its bytes, in catalog->state_bytes */
    _Atomic uint64_t begun; /* another number for every fold that was begun; 0 = there is none */
    uint64_t saved;    /* tokens in its checkpoint */
};

/* Attention mass of tokens that the store does not have yet (context_mass.c), in chunks of 128
 * tokens. Locked by lock. */
struct mass {
    struct mass_chunk **chunks; /* (count), or NULL */
    size_t count, resident;     /* of them, those that there are */
};

struct layer {
    struct slot *slots; /* locked by lock */
    struct centroid_table **tables; /* (table_count) of TABLE_SEGMENTS slots, or NULL. Builder */
    size_t table_count;
    size_t slot_count, slot_capacity;
    size_t unmapped;            /* sealed slots that are not mapped; locked by lock */
    size_t asked;               /* slots below it whose planes a query looked for; changed with
                                 * map_lock and lock held */
    _Atomic uint64_t tokens;    /* visible; written under lock */
    uint64_t committed, synced; /* locked by lock */
    uint64_t round_tokens;      /* what the round is to reach; writer */
    uint64_t writing;           /* what `committed` becomes with the running transaction; writer */
    struct layer_index *version; /* or NULL; replaced under lock */
    bool index_loaded, index_failed; /* the store was asked for one; the last build failed.
                                      * builder */
    struct observed observed;
    struct folding folding;
    struct mass mass;
    struct ring *ring; /* or NULL: nothing was retrieved yet. Set once, under lock */
    struct selection *selection; /* or NULL: not compressed. Set under lock, freed with use held
                                  * exclusively */
    struct window *window; /* its newest rows on a device, or NULL; immutable */
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
    struct planes_layout layout;

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
    struct uploads *uploads; /* tensors that were uploaded for the method, or NULL. Changed with use
                              * held exclusively and lock held */
    uint64_t upload_set;     /* whose they are; 0 = its own. Immutable */
    uint64_t cuts; /* truncates and rollbacks so far; locked by lock */

    /* locked by the writer's lock; batch_link: writer */
    struct list_link dirty_link, unsynced_link, batch_link;

    /* locked by catalog.lock */
    struct list_link lru_link; /* least recently used first */
    struct list_link build_link; /* in the builder's queue */
    size_t pins, builder_pins;   /* all, and those of them that the builder gives back when asked:
                                  * it never waits for the writer while it has one */
    atomic_bool dropping; /* written under catalog.lock */
    _Atomic uint64_t used_unix_ms;

    atomic_uint wish_alone; /* who waits to hold `use` exclusively; the builder then lets go */
    struct build_state {    /* locked by catalog.lock */
        bool woken;         /* there may be something new */
        uint64_t retry_ns;  /* when what failed is tried again; UINT64_MAX = nothing did */
        unsigned attempts;  /* failed ones in a row */
        uint64_t failures;
        int last_failure;
    } build;
};

/* Hold `use` exclusively; a background build is asked to end first. */
void context_lock_alone(struct context *context);
void context_unlock_alone(struct context *context);

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

/* build_tables.c: when the layer goes. */
void tables_free(struct context *context, struct layer *layer);

/* Planes of a slot are no longer in use. With use held exclusively and lock held. */
void slot_drop_planes(struct slot *slot);

/* Forget the rows from `tokens` on. With use held exclusively and lock held. */
void context_cut_layer(struct context *context, struct layer *layer, uint64_t tokens);

/* context_window.c: once layers and rope are there; after rows were published, with append_lock
 * held; after rows were cut off, with use held exclusively and lock not held. */
void context_open_windows(struct context *context);
void context_feed_window(struct context *context, const struct append_layer *part, size_t skip);
void context_cut_windows(struct context *context);

/* Take back what is not committed, after a commit failed with `code`; returns the bytes. Writer. */
uint64_t context_roll_back(struct context *context, int code);

/* Truncate, after an unclean end: before anybody else has the context. */
int context_even_out(struct context *context, uint64_t position, struct error *err);

/* Least count over the layers in use. With lock held. */
uint64_t context_common(const struct context *context,
                        uint64_t (*count)(const struct layer *layer));
uint64_t layer_tokens(const struct layer *layer);
uint64_t layer_committed(const struct layer *layer);
uint64_t layer_synced(const struct layer *layer);

/* Which value of a segment, and where it is to begin. */
struct value_place {
    uint64_t segment, position;
    uint32_t head;
    enum format_kind kind;
};
/* How much of it is looked at: nothing but its length (no page of it is read), the header too,
 * everything. */
enum value_look { LOOK_LENGTH, LOOK_HEADER, LOOK_ALL };
/* Is this the value? Counts checksum failures. */
int context_check_value(struct context *context, const struct value_place *place,
                        enum value_look look, struct slice value, struct error *err);

/* Addresses of a segment's values. */
struct segment_values {
    uint64_t segment, position;
    const unsigned char **values; /* (2, G) */
    const unsigned char *ids, *columns;
};
/* K and V. */
int context_find_values(struct context *context, struct store_txn *txn, enum value_look look,
                        struct segment_values *values, struct error *err);
/* Ids and columns, NULL where there are none; `values->values` is of values_new. Columns are
 * verified unless this process has `written` them, ids when they are used. */
int context_find_beside(struct context *context, struct store_txn *txn, bool written,
                        struct segment_values *values, struct error *err);

/* Make every sealed slot below `slot_count` mapped; verified too, but of methods with planes only
 * the columns. With use held. */
int context_map(struct context *context, struct layer *layer, size_t slot_count, struct error *err);

/* Put planes to use that the store has for slots below `slot_count`; once per slot. With use
 * held. */
void context_adopt(struct context *context, struct layer *layer, size_t slot_count);

/* A slot as it is for who holds `use`: what cannot change meanwhile. */
struct held {
    uint64_t segment, position;
    const unsigned char **values; /* NULL: its rows are in a block, and need no proof */
    const unsigned char *ids;
    struct derived_planes *planes; /* (G), or NULL */
};
/* With lock held. */
struct held held_slot(const struct layer *layer, size_t idx);

/* Of K or V of one head. */
struct value_pieces {
    uint32_t head;
    enum format_kind kind;
    uint64_t pieces; /* bits */
};

/* Before bytes of a value are used: it was verified since it was mapped, or written by this
 * process, or is verified now. MEMD_ECORRUPT. Any thread. */
int context_prove(struct context *context, const struct held *held, uint32_t head,
                  enum format_kind kind, struct error *err);
/* The same of pieces of it alone, where the slot has planes. */
int context_prove_pieces(struct context *context, const struct held *held,
                         const struct value_pieces *wanted, struct error *err);
int context_prove_all(struct context *context, const struct held *held, struct error *err);
/* Map and prove all values of the slots first … end-1. With use held. */
int context_prove_slots(struct context *context, struct layer *layer, size_t first, size_t end,
                        struct error *err);

/* Rows of one layer as views, held against everything but truncate (use must be held shared). */
struct snapshot {
    const struct view *views; /* (G, view_count) arena */
    size_t view_count;
    uint64_t tokens;       /* of the layer */
    uint64_t seen;         /* of them, in the views */
    struct block **blocks; /* references */
    size_t block_count;
    struct held *held; /* (view_count) arena */
    const struct planes **planes; /* (G, view_count) arena, of whole views; NULL when the method
                                   * wants none */
    struct layer_index *version;  /* a reference, or NULL */
    const struct selection *selection; /* of the prompt, or NULL */
};
/* Tokens below `limit`. */
int snapshot_take(struct context *context, uint32_t layer, uint64_t limit, struct arena *arena,
                  struct snapshot *ret_snapshot, struct error *err);
void snapshot_release(struct snapshot *snapshot);

/* Who wants the fold of a layer up to date. */
struct fold_wish {
    uint32_t layer;
    bool no_wait; /* rather MEMD_EBUSY than waiting, or folding */
    bool alone;   /* uses no other thread */
    int (*stop)(void *arg);
    void *stop_arg;
};
enum { FOLD_SCRATCH_BYTES_MAX = 64 << 20 };

/* Hold the fold of a layer shared, up to date for a snapshot of all rows; fold_let_go and
 * snapshot_release are due when it returns 0. With use held shared. Errors of fold_type.advance. */
int fold_hold(struct context *context, const struct fold_wish *wish, struct arena *arena,
              struct snapshot *ret_snapshot, struct error *err);
void fold_let_go(struct context *context, uint32_t layer);
/* Fold about `step` tokens. 1: there are more. With use held shared. */
int fold_step(struct context *context, const struct fold_wish *wish, uint64_t step,
              struct arena *arena, struct error *err);
/* Throw it away; if it is further than `tokens` tokens want it. With use held exclusively, or
 * before anybody else has the context. */
void fold_drop(struct context *context, struct layer *layer);
void fold_cut(struct context *context, struct layer *layer, uint64_t tokens);

/* Tokens position … position + count - 1 of a layer. */
struct mass_span {
    uint32_t layer;
    uint64_t position;
    size_t count;
};
/* May this (count, H) be added? */
int mass_check(struct context *context, const struct tensor *mass, size_t count, struct error *err);
/* Memory for what will be added to a span, which then cannot fail: mass_add or mass_unhold is due.
 * *bytes grows by what is now in memory until it is committed: of the writer's allowance, and at
 * most mass_reserved_bytes. With use held shared. */
int mass_hold(struct context *context, const struct mass_span *span, uint64_t *bytes,
              struct error *err);
uint64_t mass_reserved_bytes(const struct context *context, uint64_t count);
/* Rows skip … of `values` (…, H). */
void mass_add(struct context *context, const struct mass_span *span, const struct tensor *values,
              size_t skip);
void mass_unhold(struct context *context, const struct mass_span *span);
/* Writer: put what is not stored of a layer's first layer->writing tokens; after the commit, the
 * bytes that left memory (with lock held). */
void mass_put(struct context *context, uint32_t layer, struct store_txn *txn, int64_t *delta);
uint64_t mass_committed(struct context *context, struct layer *layer);
/* Forget what is not stored, all of it or that of tokens ≥ `tokens`; the bytes. With use held
 * exclusively. */
uint64_t mass_forget(struct context *context, struct layer *layer);
uint64_t mass_cut(struct context *context, struct layer *layer, uint64_t tokens);
/* In the store. Writer. */
int mass_cut_stored(struct context *context, uint32_t layer, uint64_t tokens, struct store_txn *txn,
                    int64_t *delta, struct error *err);

/* fold_source.mass, with a reader as argument; what went wrong is in `rc`. */
struct mass_reader {
    struct context *context;
    uint32_t layer;
    size_t idx;
    float *values; /* of chunk `idx`, or NULL */
    int rc;
    struct error err;
};
const float *mass_read(void *arg, uint64_t position);
void mass_reader_fini(struct mass_reader *reader);

/* The ring of a layer as of `tokens` tokens, a copy; NULL where the method has none. With use held
 * shared. */
int ring_take(struct context *context, uint32_t layer, uint64_t tokens, struct arena *arena,
              struct lru **ret_lru, struct error *err);
/* States were retrieved from one that was taken. With use held shared since then. */
void ring_use(struct context *context, uint32_t layer, const struct lru *taken,
              const struct ring_uses *uses);
/* Facts about it (context_describe); how many, or an error. */
int ring_describe(struct context *context, uint32_t layer, uint64_t tokens, struct arena *arena,
                  struct fold_fact *ret_facts, struct error *err);
/* Writer: when a round fixes what it is to reach (with lock held); in each of its transactions;
 * after the commit (with lock held); after it failed (with use held exclusively). */
void ring_begin(struct context *context);
void ring_put(struct context *context, uint32_t layer, struct store_txn *txn, int64_t *delta);
void ring_committed(struct layer *layer);
void ring_roll_back(struct layer *layer);
/* As it is loaded from a note. */
int context_load_ring(struct context *context, uint32_t layer, struct slice value,
                      struct error *err);
/* Truncate, on the writer with use held exclusively: may it be (MEMD_EUNSUPPORTED); in the store;
 * in memory, once that is committed. What is held of the first `tokens` tokens is kept. */
int ring_check_cut(const struct layer *layer, uint32_t idx, uint64_t tokens, struct error *err);
void ring_cut_stored(struct context *context, uint32_t layer, uint64_t tokens,
                     struct store_txn *txn, int64_t *delta);
void ring_cut(struct layer *layer, uint64_t tokens);
void ring_free(struct context *context, struct layer *layer);

/* The uploaded tensors of a context that is being loaded. */
int context_load_uploads(struct context *context, struct store_txn *txn, struct error *err);
/* The set that a context uses by its parameters; NULL = none. */
const char *record_upload_set(const struct record *record);
/* Its id, if it fits; 0 = the context uses none. */
int record_find_set(struct store_txn *txn, const struct record *record, uint64_t *ret_id,
                    struct error *err);
/* As methods see them; NULL = there are none. With use held. */
const struct params *context_params(const struct context *context);

/* What was kept of the prompt of a layer, as it is loaded from a note. */
int context_load_selection(struct context *context, uint32_t layer, struct slice value,
                           struct error *err);
/* Forget a selection that reaches behind `tokens`. With use held exclusively. */
void context_cut_selection(struct layer *layer, uint64_t tokens);
/* Remove it from the store. Writer. */
void context_remove_selection(struct context *context, uint32_t layer, struct store_txn *txn,
                              int64_t *delta);

/* The saved index of a layer, or checkpoint of its fold, verified. 1: ret_payload is in the
 * transaction. 0: there is none. */
int context_find_saved(struct context *context, uint32_t layer, struct store_txn *txn,
                       struct slice *ret_payload, uint64_t *ret_tokens, struct error *err);

/* One query under way: what the method is given, and what must be given back. */
struct asking {
    struct snapshot snapshot;
    struct lru *ring; /* or NULL */
    struct ring_uses uses;
    struct reading reading;
    struct index_quality quality; /* arrays are there */
    struct context *context;
    const struct rope *rope; /* of the model, or of the query; NULL: nothing is rotated */
    uint32_t layer;
    bool no_wait;       /* of the query */
    atomic_int refused; /* 0, or why rows may not be used; `why` says more */
    struct error why;
};
/* The reading's `admit` and `admit_lo`, with an asking as argument. */
int context_admit(void *arg, const struct view *view, size_t row, size_t count, unsigned parts);
bool context_admit_lo(void *arg, const struct view *view, size_t place);
/* What the method returned, or what was refused to it. */
int context_answered(const struct asking *asking, int rc, struct error *err);
/* Everything in front of the arithmetic; context_asked is due when it returns 0. */
int context_ask(struct context *context, const struct query *query, struct arena *arena,
                struct asking *ret_asking, struct error *err);
void context_asked(struct context *context, struct asking *asking);
/* context_attend, but the query is not remembered as one of the latest. */
int context_answer(struct context *context, const struct query *query, struct arena *arena,
                   const struct partial *ret_partial, struct quality *ret_quality,
                   struct error *err);

/* Note some of the queries q (n, H, D) of a layer, at `positions` or from `first` on. Cheap, and
 * does nothing rather than wait. */
struct observation {
    uint32_t layer;
    const struct tensor *q;
    const uint64_t *positions; /* (n), or NULL: first, first + 1, … */
    uint64_t first;
    bool appended; /* many at once, once */
};
void context_observe(struct context *context, const struct observation *seen);
/* Take over the statistics that planes (G) were coded with, if they know more. */
void context_recall_observed(struct context *context, uint32_t layer,
                             const struct derived_planes *planes);
/* A copy: ret_square (G, D). 0 queries: nothing was written. */
uint64_t context_copy_observed(struct context *context, uint32_t layer, float *ret_square);
/* The ring, oldest first: ret_q (RECENT_QUERIES, H, D) fp16; how many. */
size_t context_copy_recent(struct context *context, uint32_t layer, uint16_t *ret_q,
                           uint64_t *ret_positions);
void observed_fini(struct context *context, struct observed *observed);

/* Columns of an append of `count` tokens (index/columns.h): are they what the method wants?
 * MEMD_EUNSUPPORTED · MEMD_EINVAL · MEMD_ENONFINITE */
int columns_check(const struct context *context, const struct append_layer *part, size_t count,
                  struct error *err);
/* Records of tokens first … first+count-1 of the part, one behind the other. */
void columns_write(const struct context *context, const struct append_layer *part, size_t first,
                   size_t count, unsigned char *ret_records);
/* Are they these? */
bool columns_repeat(const struct context *context, const struct append_layer *part, size_t first,
                    size_t count, const unsigned char *records);

/* Queries kept for an index (methods with keeps_queries). */
int kept_add(struct context *context, struct layer *layer, const struct append_layer *part,
             size_t skip, struct error *err);
void kept_cut(struct kept *kept, size_t rows); /* forget those from row `rows` on; NULL is fine */
void kept_free(struct kept *kept);
size_t kept_value_bytes(const struct context *context, const struct kept *kept);
/* As a value of kind QUERIES; ret_value (kept_value_bytes). */
void kept_encode(const struct context *context, const struct kept *kept, uint64_t position,
                 unsigned char *ret_value);
/* Of a segment, checked; ret_kept is NULL when it has none. */
int kept_load(struct context *context, struct store_txn *txn, uint64_t segment,
              struct kept **ret_kept, struct error *err);

#endif
