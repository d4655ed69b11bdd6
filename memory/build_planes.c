/* SPDX-License-Identifier: Apache-2.0 */
/* build_planes.c — one sealed segment after the other: look whether the store has planes, else code
 * them, write them in a transaction of their own, and give their addresses to the slot.
 *
 * Coding reads the rows inside a read transaction and holds nothing of the context: neither a pin
 * nor `use`. Whoever truncates or drops meanwhile does not notice; the writing transaction finds
 * that nobody holds the segment any more, and writes nothing.
 *
 * Publishing happens with `use` held shared and after another look at the slot: a slot that still
 * names the segment holds it, so its values live, and only this thread deletes planes.
 *
 * Rejected: coding in the appender or the writer (a commit would wait 10 ms per head); holding
 * `use` while coding (a truncate, and everybody behind it, would).
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "attention/view.h"
#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "memory/build.h"
#include "memory/chain.h"
#include "memory/derived.h"

enum { ALIGN = 64, SCRATCH_BYTES_MAX = 256 << 20 };

/* One segment under way. */
struct task {
    struct build *build;
    uint32_t layer;
    size_t idx; /* of the slot */
    struct derived_place place;
    struct planes_layout layout;
    struct block_shape shape;
    bool has_rope;
    bool doubted;  /* somebody found its planes damaged */
    bool replaces; /* damaged planes */
    struct rope rope;
    uint64_t queries;
    float *square;              /* (G, D), valid when queries > 0 */
    const unsigned char **rows; /* (2, G) in the map, valid in the transaction */
    struct derived_planes *planes; /* (G) */
    unsigned char *values;      /* per head hi, then lo, each behind ALIGN bytes for its header */
    size_t head_bytes;          /* from one head's values to the next */
};

static void free_task(struct task **task)
{
    if (*task == NULL) return;
    free((*task)->square);
    free((*task)->rows);
    free((*task)->planes);
    free((*task)->values);
    free(*task);
}

static size_t lo_offset(const struct task *task)
{
    return ALIGN + (task->layout.hi_bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* The payload. */
static unsigned char *value_of(const struct task *task, uint32_t head, enum format_kind kind)
{
    unsigned char *at = task->values + head * task->head_bytes + ALIGN;
    return kind == FORMAT_KIND_HI ? at : at + lo_offset(task);
}

/* For a pass over one context. */
static struct task *new_task(struct build *build)
{
    const struct context *context = build->context;
    CLEANUP(free_task) struct task *task = calloc(1, sizeof *task);
    if (task == NULL) return NULL;
    task->build = build;
    task->layout = context->layout;
    task->shape = context->shape;
    task->has_rope = context->rope != NULL;
    if (task->has_rope) task->rope = *context->rope;
    size_t heads = task->shape.heads;
    task->place = (struct derived_place){ .model_hash = task->shape.model_hash,
                                          .heads = task->shape.heads,
                                          .layout = &task->layout };
    task->head_bytes = lo_offset(task) + ALIGN +
                       (task->layout.lo_bytes + ALIGN - 1) / ALIGN * ALIGN;
    task->square = calloc(heads * task->shape.head_dim, sizeof *task->square);
    task->rows = calloc(2 * heads, sizeof *task->rows);
    if (task->square == NULL || task->rows == NULL) return NULL;
    return TAKE(task);
}

/* The next slot to look at, from (layer, idx) of the task on. */
static bool next_slot(struct task *task, struct context *context)
{
    bool found = false;
    pthread_mutex_lock(&context->lock);
    for (; !found && task->layer < context->record->model.layers; task->layer++, task->idx = 0) {
        const struct layer *layer = &context->layers[task->layer];
        for (; task->idx < layer->slot_count; task->idx++) {
            const struct slot *slot = &layer->slots[task->idx];
            found = slot->segment != 0 &&
                    (slot->build == SLOT_UNSEEN || slot->build == SLOT_DOUBTED);
            if (found) break;
        }
        if (!found) continue;
        task->place.segment = layer->slots[task->idx].segment;
        task->doubted = layer->slots[task->idx].build == SLOT_DOUBTED;
        task->place.position = (uint64_t)task->idx * FORMAT_SEGMENT_TOKENS;
        break;
    }
    pthread_mutex_unlock(&context->lock);
    return found;
}

/* Say of the slot how it stands; hand the planes over when there are any. Doubted ones that could
 * not be replaced stay in use, and in doubt. */
static void publish(struct task *task, enum slot_build state)
{
    struct context *context = task->build->context;
    if (context == NULL) return;
    pthread_rwlock_rdlock(&context->use);
    pthread_mutex_lock(&context->lock);
    const struct layer *layer = &context->layers[task->layer];
    struct slot *slot = task->idx < layer->slot_count ? &layer->slots[task->idx] : NULL;
    if (slot != NULL && slot->segment == task->place.segment && slot->planes == NULL) {
        slot->build = state;
        if (state == SLOT_BUILT) slot->planes = TAKE(task->planes);
    }
    pthread_mutex_unlock(&context->lock);
    pthread_rwlock_unlock(&context->use);
}

/* Planes in the store: 1 opened, 0 none, negative. */
static int find(struct task *task, struct store_txn *txn, bool written, struct error *err)
{
    if (task->planes == NULL) task->planes = calloc(task->shape.heads, sizeof *task->planes);
    if (task->planes == NULL) return error_set(err, MEMD_ENOMEM, "no memory for planes");
    return derived_find(txn, &task->place, written, task->planes, err);
}

static int code_head(struct task *task, uint32_t head, struct arena *arena, struct error *err)
{
    struct view view = { .k = task->rows[head],
                         .v = task->rows[task->shape.heads + head],
                         .k_stride_bytes = task->shape.row_bytes,
                         .v_stride_bytes = task->shape.row_bytes,
                         .tokens = FORMAT_SEGMENT_TOKENS,
                         .position = task->place.position,
                         .dtype = task->shape.dtype };
    struct planes_source source = {
        .view = &view,
        .rope = task->has_rope ? &task->rope : NULL,
        .query_square = task->queries > 0 ? task->square + head * task->shape.head_dim : NULL,
        .queries = task->queries,
    };
    unsigned char *hi = value_of(task, head, FORMAT_KIND_HI),
                  *lo = value_of(task, head, FORMAT_KIND_LO);
    int rc = planes_encode(&task->layout, &source, arena, hi, lo, err);
    if (rc < 0) return rc;
    size_t rows_bytes = FORMAT_SEGMENT_TOKENS * task->shape.row_bytes;
    derived_put_checks(&task->layout, &(struct derived_payloads){
        .parts = { view.k, view.v, lo },
        .bytes = { rows_bytes, rows_bytes, task->layout.lo_bytes } }, hi);
    derived_seal(&task->place, FORMAT_KIND_HI, hi - FORMAT_HEADER_BYTES);
    derived_seal(&task->place, FORMAT_KIND_LO, lo - FORMAT_HEADER_BYTES);
    return 0;
}

static int code(struct task *task, struct error *err)
{
    if (task->values == NULL) {
        void *values = NULL;
        if (posix_memalign(&values, ALIGN, task->shape.heads * task->head_bytes) != 0)
            return error_set(err, MEMD_ENOMEM, "no memory for planes");
        task->values = values;
    }
    int rc = 0;
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, SCRATCH_BYTES_MAX);
    for (uint32_t head = 0; rc == 0 && head < task->shape.heads; head++) {
        if (build_must_stop(task->build))
            return error_set(err, MEMD_ECANCELLED, "the builder was asked to stop");
        rc = code_head(task, head, &arena, err);
        arena_reset(&arena);
    }
    return rc;
}

struct put_job {
    struct writer_job job;
    struct task *task;
    bool gone; /* nobody holds the segment */
};

static int run_put(struct writer_job *job, struct error *err)
{
    struct put_job *put = (struct put_job *)(void *)job;
    struct task *task = put->task;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(job->catalog->store, true, &txn, err);
    if (rc < 0) return rc;
    int64_t delta = 0;
    uint64_t bytes = task->shape.heads * derived_head_bytes(&task->layout);
    if (task->replaces) derived_delete(&txn, task->place.segment, &delta);
    put->gone = !chain_resize_segment(&txn, task->place.segment, (int64_t)bytes, &delta);
    if (put->gone) return store_failed(&txn, err);
    rc = build_check_room(job->catalog, bytes, err);
    if (rc < 0) return rc;
    for (uint32_t i = 0; i < 2 * task->shape.heads; i++) {
        enum format_kind kind = i % 2 == 0 ? FORMAT_KIND_HI : FORMAT_KIND_LO;
        unsigned char key[FORMAT_KEY_BYTES_MAX];
        size_t key_bytes = format_key_segment(task->place.segment, i / 2, kind, key);
        size_t payload = kind == FORMAT_KIND_HI ? task->layout.hi_bytes : task->layout.lo_bytes;
        store_put(&txn, STORE_SEGMENTS, (struct slice){ key, key_bytes },
                  (struct slice){ value_of(task, i / 2, kind) - FORMAT_HEADER_BYTES,
                                  FORMAT_HEADER_BYTES + payload });
    }
    rc = catalog_commit(job->catalog, &txn, delta, err);
    if (rc == 0) CATALOG_COUNT(job->catalog, built_bytes_total, bytes);
    return rc;
}

/* The context is not pinned. 1: written, 0: the segment is gone. */
static int write_planes(struct task *task, struct error *err)
{
    struct catalog *catalog = task->build->catalog;
    struct put_job put = { .job = { .run = run_put, .catalog = catalog }, .task = task };
    pthread_rwlock_wrlock(&catalog->planes_lock);
    int rc = task->replaces ? build_unpublish(catalog, &task->place.segment, 1, err) : 0;
    if (rc == 0) rc = writer_run(catalog->writer, &put.job, err);
    pthread_rwlock_unlock(&catalog->planes_lock);
    return rc < 0 ? rc : !put.gone;
}

/* Code the segment whose rows the transaction shows, and write it; unpins and pins the context.
 * 1: the store has planes now, 0: the segment is gone. */
static int make(struct task *task, struct store_txn *txn, struct error *err)
{
    struct build *build = task->build;
    uint64_t bytes = task->shape.heads * derived_head_bytes(&task->layout);
    struct segment_values values = { .segment = task->place.segment,
                                     .position = task->place.position,
                                     .values = task->rows };
    if (!chain_holds_segment(txn, task->place.segment)) return store_failed(txn, err);
    int rc = build_check_room(build->catalog, bytes, err);
    if (rc == 0) rc = context_find_values(build->context, txn, LOOK_ALL, &values, err);
    if (rc < 0) return rc;
    task->queries = context_copy_observed(build->context, task->layer, task->square);
    build_unpin(build);
    rc = code(task, err);
    store_abort(txn); /* the writer may wait for its end */
    if (rc == 0) rc = write_planes(task, err);
    build_pin(build);
    return rc;
}

/* Open what was just written. */
static int reopen(struct task *task, struct error *err)
{
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(task->build->catalog->store, false, &txn, err);
    return rc < 0 ? rc : find(task, &txn, true, err);
}

/* 1: task->planes are to be published. */
static int look_or_make_in(struct task *task, struct store_txn *txn, struct error *err)
{
    struct catalog *catalog = task->build->catalog;
    int rc = find(task, txn, false, err);
    if (rc > 0 && task->doubted) rc = MEMD_ECORRUPT; /* of lo, which `find` does not read */
    if (rc > 0) {
        context_recall_observed(task->build->context, task->layer, task->planes);
        return rc;
    }
    int broken = store_failed(txn, err);
    if (broken < 0 || rc == MEMD_ENOMEM) return broken < 0 ? broken : rc;
    task->replaces = rc < 0;
    if (task->replaces) CATALOG_COUNT(catalog, damaged_derived_total, 1);
    rc = make(task, txn, err);
    if (rc > 0) {
        CATALOG_COUNT(catalog, built_segments_total, 1);
        rc = reopen(task, err);
    }
    return rc;
}

static int look_or_make(struct task *task, struct error *err)
{
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(task->build->catalog->store, false, &txn, err);
    return rc < 0 ? rc : look_or_make_in(task, &txn, err);
}

static void retry_failed(struct context *context)
{
    pthread_mutex_lock(&context->lock);
    for (uint32_t i = 0; i < context->record->model.layers; i++) {
        const struct layer *layer = &context->layers[i];
        for (size_t j = 0; j < layer->slot_count; j++) {
            if (layer->slots[j].build == SLOT_FAILED) layer->slots[j].build = SLOT_UNSEEN;
        }
    }
    pthread_mutex_unlock(&context->lock);
}

void build_planes(struct build *build, bool retry)
{
    if (retry) retry_failed(build->context);
    CLEANUP(free_task) struct task *task = new_task(build);
    if (task == NULL) {
        build_failed(build, MEMD_ENOMEM);
        return;
    }
    bool end = false;
    while (!end && build->context != NULL && !build_must_stop(build) &&
           next_slot(task, build->context)) {
        int rc = look_or_make(task, NULL);
        if (rc < 0) end = build_failed(build, rc);
        if (rc != 0 && rc != MEMD_ECANCELLED) publish(task, rc > 0 ? SLOT_BUILT : SLOT_FAILED);
        if (rc > 0) build->done++;
        task->idx++;
    }
}
