/* SPDX-License-Identifier: Apache-2.0 */
/* accelerator_state.h — the inside of an accelerator; for the files of attention/cuda/, and for
 * index/progressive_device.c, which keeps planes on it.
 *
 * One lock, `lock`, is held while anything is asked of the device: the device does one batch at a
 * time anyhow. Who wants a step meanwhile stands in the queue, whose lock is held only to look at
 * it; the thread that finds nobody leading leads, and takes along whoever stands there.
 */
#ifndef MEMD_ATTENTION_CUDA_ACCELERATOR_STATE_H
#define MEMD_ATTENTION_CUDA_ACCELERATOR_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "attention/attend.h"
#include "attention/cuda/accelerator.h"
#include "attention/rope.h"
#include "attention/scan.h"
#include "base/error.h"
#include "base/list.h"

enum {
    STEP_ITEMS_MAX = 64,
    STEP_QUERY_FLOATS = 1 << 20,  /* (Q, D) of a batch */
    STEP_QUERIES_MAX = STEP_QUERY_FLOATS / 8,
    STEP_RUNS_MAX = 8192,         /* of a kind */
    STEP_POOL_FLOATS = 8 << 20,   /* (R, D) */
    STEP_POOL_ROWS_MAX = STEP_RUNS_MAX * LAUNCH_QUERIES,
    STEP_TRAVEL_ROWS_MAX = 8192,  /* of an item, each of all KV heads */
    STEP_SPLIT_ROWS = 128,        /* of a run: what one block reads */
    STEP_ALIGN = 256,
    TURNS_MAX = LAUNCH_HEAD_DIM / 2,
};

struct planes_device;

struct window {
    struct accelerator *accelerator;
    struct window_shape shape;
    struct list_link link;        /* in accelerator.windows while it has memory */
    uint64_t turns[TURNS_MAX];    /* of rope */
    size_t key_row_bytes, value_row_bytes; /* of one token, all heads */
    uint32_t key_dtype;           /* fp32 where keys are rotated when they come */
    unsigned char *keys, *values; /* (sinks + ring, G, D) on the device; NULL: demoted */
    /* Written with lock held; who looks without it learns what was so a moment ago. */
    _Atomic uint64_t sinks;       /* tokens 0 … sinks-1 are there */
    _Atomic uint64_t from, to;    /* tokens from … to-1 are in the ring, token t in slot t % ring */
    uint64_t batch;               /* number of the latest batch that reads it */
};

/* One step that somebody waits for; on the waiting thread's stack. Locked by queue_lock, but for
 * what its leader does with it. */
struct step_item {
    struct list_link link;
    const struct attend_args *args;
    size_t first_view, view_end; /* of args' views, per KV head: what this step is about */
    struct window *window;       /* or NULL */
    struct partial partial;      /* of the caller */
    bool adds;                   /* to what stands in `partial` */
    struct scan scan;
    uint32_t first_answer; /* its rows in the batch's answer */
    uint64_t resident;     /* tokens that are read in the window */
    int rc;
    struct error err;
    bool done;
};

/* What a batch is made of, before it is sent off; allocated once. */
struct step_batch {
    uint64_t number;
    uint32_t head_dim;
    const struct rope *rope; /* of the items; travelling keys are rotated with it */
    struct step_item *items[STEP_ITEMS_MAX];
    uint32_t item_count;
    float *q;                     /* (Q, D) */
    uint64_t *limits;             /* (Q) */
    struct partial_run *window_runs;
    struct gather_run *travel_runs;
    uint32_t *travel_first;       /* of each travel run: its first row in travel_positions */
    uint64_t *positions;          /* of travelling rows */
    uint32_t *begin, *parts;      /* struct merge_launch */
    uint32_t queries, window_count, travel_count, position_count, part_count, pool_rows;
    size_t travel_used;           /* bytes */
};

struct accelerator {
    const struct device_table *table;
    struct device *device;
    struct device_info info;
    struct accelerator_config config;
    atomic_bool on, lost;

    pthread_mutex_t queue_lock;
    pthread_cond_t moved;
    struct list_link queue; /* struct step_item; locked by queue_lock */
    bool leading;           /* locked by queue_lock */

    pthread_mutex_t lock;
    char why[ERROR_TEXT_BYTES]; /* written before `lost` is set, once */
    _Atomic uint64_t window_bytes, window_count; /* written with lock held */
    /* locked by lock */
    struct list_link windows; /* with memory, least recently used first */
    struct step_batch batch;
    unsigned char *control, *control_device; /* what a batch sends along: pinned, device */
    unsigned char *travel, *travel_device;   /* travelling rows: pinned, device */
    unsigned char *staging;                  /* rows on their way into windows; pinned */
    size_t staging_used;
    uint32_t *identity;                      /* (STEP_TRAVEL_ROWS_MAX) 0, 1, 2 …; device */
    float *pool_o, *pool_lse;                /* device */
    float *answer_o, *answer_lse;            /* pinned: the merge writes them there */
    uint64_t *turns;                         /* (TURNS_MAX) of the batch's rope; pinned */
    uint64_t turn; /* grows whenever somebody writes into what stands above */
    struct planes_device *planes;            /* what index/ keeps there, or NULL */
    void (*free_planes)(struct accelerator *accelerator);

    struct {
#define X(name) _Atomic uint64_t name;
        ACCELERATOR_COUNTER_MAP(X)
#undef X
    } counters;
};

#define ACCELERATOR_COUNT(accelerator, name, amount) \
    atomic_fetch_add_explicit(&(accelerator)->counters.name, (amount), memory_order_relaxed)

enum { STEP_STAGING_BYTES = 32 << 20, STEP_CONTROL_BYTES = 16 << 20 };

/* Frequencies as kernels want them. turns (TURNS_MAX) gets rope->rotary_dims / 2 of them. */
struct launch_rope accelerator_rope(const struct rope *rope, uint64_t *turns);

/* The device did not do what it was asked. With lock held. */
void accelerator_failed(struct accelerator *accelerator, int code, const char *what);

/* Room for `bytes` of rows on their way into windows, or NULL when the device is lost. With lock
 * held. */
void *accelerator_stage(struct accelerator *accelerator, size_t bytes);

/* Rows of a view, a piece at a time: all in the item's window or all not. */
struct step_piece {
    const struct view *view; /* NULL before the first */
    size_t row, count;
    bool resident;
};
/* The next one below `limit`; false behind the last. */
bool step_next_piece(const struct step_item *item, const struct view *view, uint64_t limit,
                     struct step_piece *piece);

/* What the item's window is filled from: its views, or more of the same layer. */
const struct attend_args *step_source(const struct step_item *item);

/* Do both turn alike? Contexts have their own. */
bool step_same_rope(const struct rope *rope, const struct rope *other);

/* Tokens that the window would take from the item's views, if it were brought up to date now:
 * sinks … ret_sinks_end-1 and ret_from … ret_end-1. A guess without the lock. */
void window_wanted(const struct window *window, const struct step_item *item,
                   uint64_t *ret_sinks_end, uint64_t *ret_from, uint64_t *ret_end);
/* Has the item rows that its window lacks? */
bool window_is_behind(const struct window *window, const struct step_item *item);
/* Bring the window up to the rows that the item's views have. False: it cannot be used now. With
 * lock held. */
bool window_update(struct window *window, struct step_item *item);

/* Queue an item behind a batch: MEMD_ELIMIT when it does not fit behind what is there. With lock
 * held. */
int step_add(struct accelerator *accelerator, struct step_item *item);
/* Send the batch off, wait, give every item its rows. With lock held. */
int step_run(struct accelerator *accelerator);

#endif
