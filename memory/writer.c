/* SPDX-License-Identifier: Apache-2.0 */
/* writer.c — group commit by taking the whole list: what arrives while a transaction is written
 * waits for the next one, so the batch grows with the load and nothing waits for a timer.
 *
 * Every write transaction of the process runs here. That makes LMDB's writer mutex uncontended,
 * and makes "the writer" the only thread that takes rows away, which is what lets it read blocks
 * without references. Jobs (create, truncate, fork, drop step, retain) queue up behind the rows
 * that were appended before them.
 *
 * Sync modes: `always` lets LMDB sync in each commit; the others commit without, and store_sync
 * runs when the interval is over or somebody waits for it. A context stands in `unsynced` from
 * its commit to the sync.
 *
 * A drop that fails half-way (the disk is full, say) has given its name away and cannot be had
 * back. It is gone on with from here, after a wait that doubles from a tenth of a second to a
 * minute, until it is done; what a process leaves undone the next one begins with. No other context
 * is evicted meanwhile: whatever stops one drop would stop the next. Damage does not, and no wait
 * mends it: what fails by that twice is counted and left to the next process (drop_resume).
 */
#include "memory/writer.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "base/clock.h"
#include "memory/catalog_state.h"
#include "memory/commit.h"

#define MS_NS UINT64_C(1000000)
/* Between attempts to go on with what was left of drops. */
#define DROPS_WAIT_MIN_NS (100 * MS_NS)
#define DROPS_WAIT_MAX_NS (60000 * MS_NS)

struct writer {
    struct catalog *catalog;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work, job_done;
    /* locked by lock */
    struct list_link dirty, unsynced, jobs;
    uint64_t pending_bytes, pending_bytes_max;
    enum sync_mode sync;
    uint64_t sync_interval_ns;
    bool stopping, sync_wished;
    uint64_t drops_due_ns;  /* when to go on with drops; UINT64_MAX: none is left undone */
    uint64_t drops_wait_ns; /* from a failure to the next attempt */
    /* writer */
    enum sync_mode applied;     /* what the store runs in */
    uint64_t unsynced_since_ns; /* 0: nothing is unsynced */
    void (*on_progress)(void *arg);
    void *on_progress_arg;
};

/* When the next sync is due, UINT64_MAX = not by time. With lock held. */
static uint64_t sync_due_ns(const struct writer *writer)
{
    if (writer->unsynced_since_ns == 0) return UINT64_MAX;
    if (writer->sync_wished) return 0;
    if (writer->sync == SYNC_NEVER) return UINT64_MAX;
    return writer->sync == SYNC_ALWAYS ? 0 : writer->unsynced_since_ns + writer->sync_interval_ns;
}

/* With lock held. */
static void wait_for_work(struct writer *writer)
{
    while (!writer->stopping && list_empty(&writer->dirty) && list_empty(&writer->jobs)) {
        uint64_t due = sync_due_ns(writer);
        if (writer->drops_due_ns < due) due = writer->drops_due_ns;
        if (due <= clock_monotonic_ns()) return;
        if (due == UINT64_MAX)
            pthread_cond_wait(&writer->work, &writer->lock);
        else
            clock_cond_wait(&writer->work, &writer->lock, due);
    }
}

/* Move all of `from` behind `to`, both lists of struct context by the given links. With lock
 * held. */
static void take_dirty(struct writer *writer, struct list_link *batch)
{
    for (struct list_link *link; (link = list_take_first(&writer->dirty)) != NULL;) {
        list_append(batch, &LIST_ENTRY(link, struct context, dirty_link)->batch_link);
    }
}

static void mark_synced(struct writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    for (struct list_link *link; (link = list_take_first(&writer->unsynced)) != NULL;) {
        struct context *context = LIST_ENTRY(link, struct context, unsynced_link);
        pthread_mutex_lock(&context->lock);
        context->synced_sequence = context->committed_sequence;
        for (uint32_t i = 0; i < context->record->model.layers; i++) {
            context->layers[i].synced = context->layers[i].committed;
        }
        pthread_mutex_unlock(&context->lock);
    }
    writer->sync_wished = false;
    writer->unsynced_since_ns = 0;
    pthread_mutex_unlock(&writer->lock);
}

static int sync_now(struct writer *writer, struct error *err)
{
    if (writer->unsynced_since_ns == 0) return 0;
    uint64_t start = clock_monotonic_ns();
    int rc = store_sync(writer->catalog->store, err);
    CATALOG_COUNT(writer->catalog, sync_ns_total, clock_monotonic_ns() - start);
    if (rc < 0) {
        CATALOG_COUNT(writer->catalog, commit_failures_total, 1);
        pthread_mutex_lock(&writer->lock);
        writer->sync_wished = false; /* try again after the interval, not at once */
        writer->unsynced_since_ns = clock_monotonic_ns();
        pthread_mutex_unlock(&writer->lock);
        return rc;
    }
    CATALOG_COUNT(writer->catalog, syncs_total, 1);
    mark_synced(writer);
    return 0;
}

/* The store has a commit that no sync covers yet. */
static void note_commit(struct writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    if (writer->unsynced_since_ns == 0) writer->unsynced_since_ns = clock_monotonic_ns();
    pthread_mutex_unlock(&writer->lock);
}

static void commit_batch(struct writer *writer, struct list_link *batch)
{
    if (list_empty(batch)) return;
    pthread_mutex_lock(&writer->lock);
    LIST_FOR(link, batch)
    {
        struct context *context = LIST_ENTRY(link, struct context, batch_link);
        if (!list_linked(&context->unsynced_link))
            list_append(&writer->unsynced, &context->unsynced_link);
    }
    pthread_mutex_unlock(&writer->lock);
    if (commit_contexts(writer->catalog, batch, NULL) < 0)
        CATALOG_COUNT(writer->catalog, commit_failures_total, 1);
    note_commit(writer);
}

static int attempt(struct writer *writer, struct writer_job *job)
{
    int rc = job->run(job, &job->err);
    if (rc == MEMD_EFULL && job->frees && commit_turn_pages(job->catalog))
        rc = job->run(job, &job->err);
    if (rc == 0) note_commit(writer);
    return rc;
}

static void run_job(struct writer *writer, struct writer_job *job)
{
    int rc = attempt(writer, job);
    if (rc == 0 && job->sync) rc = sync_now(writer, &job->err);
    pthread_mutex_lock(&writer->lock);
    job->rc = rc;
    job->done = true;
    pthread_cond_broadcast(&writer->job_done);
    pthread_mutex_unlock(&writer->lock);
}

static void resume_drops(struct writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    bool due = writer->drops_due_ns <= clock_monotonic_ns();
    if (due) { /* whoever fails from here on says so again, and waits for longer */
        uint64_t wait_ns = 2 * writer->drops_wait_ns;
        writer->drops_wait_ns = wait_ns < DROPS_WAIT_MAX_NS ? wait_ns : DROPS_WAIT_MAX_NS;
        writer->drops_due_ns = UINT64_MAX;
    }
    pthread_mutex_unlock(&writer->lock);
    if (!due || drop_resume(writer->catalog, NULL) < 0) return;
    pthread_mutex_lock(&writer->lock);
    writer->drops_wait_ns = DROPS_WAIT_MIN_NS;
    pthread_mutex_unlock(&writer->lock);
}

/* A mode that was changed takes effect before the next commit; if it cannot, it is tried again
 * then. */
static void apply_mode(struct writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    enum sync_mode wanted = writer->sync;
    pthread_mutex_unlock(&writer->lock);
    if (wanted == writer->applied) return;
    if (store_set_mode(writer->catalog->store, catalog_store_mode(wanted), NULL) < 0) {
        CATALOG_COUNT(writer->catalog, commit_failures_total, 1);
        return;
    }
    writer->applied = wanted;
    mark_synced(writer);
}

static void *writer_main(void *arg)
{
    struct writer *writer = arg;
    pthread_mutex_lock(&writer->lock);
    for (;;) {
        wait_for_work(writer);
        if (writer->stopping && list_empty(&writer->dirty) && list_empty(&writer->jobs)) break;
        struct list_link batch, jobs;
        list_init(&batch);
        list_init(&jobs);
        take_dirty(writer, &batch);
        for (struct list_link *link; (link = list_take_first(&writer->jobs)) != NULL;)
            list_append(&jobs, link);
        pthread_mutex_unlock(&writer->lock);
        apply_mode(writer);
        resume_drops(writer);
        commit_batch(writer, &batch);
        for (struct list_link *link; (link = list_take_first(&jobs)) != NULL;) {
            run_job(writer, LIST_ENTRY(link, struct writer_job, link));
        }
        evict_run(writer->catalog);
        pthread_mutex_lock(&writer->lock);
        bool due = sync_due_ns(writer) <= clock_monotonic_ns();
        pthread_mutex_unlock(&writer->lock);
        if (due) sync_now(writer, NULL); /* a failure is counted and tried again */
        if (writer->on_progress != NULL) writer->on_progress(writer->on_progress_arg);
        pthread_mutex_lock(&writer->lock);
    }
    pthread_mutex_unlock(&writer->lock);
    sync_now(writer, NULL);
    return NULL;
}

static int start_thread(struct writer *writer)
{
    sigset_t all, before; /* signals belong to the loop thread */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int rc = pthread_create(&writer->thread, NULL, writer_main, writer);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

static void free_writer(struct writer *writer)
{
    pthread_cond_destroy(&writer->work);
    pthread_cond_destroy(&writer->job_done);
    pthread_mutex_destroy(&writer->lock);
    free(writer);
}

int writer_open(struct catalog *catalog, const struct catalog_config *config,
                struct writer **ret_writer, struct error *err)
{
    struct writer *writer = calloc(1, sizeof *writer);
    if (writer == NULL) return error_set(err, MEMD_ENOMEM, "no memory for the writer");
    clock_cond_init(&writer->work);
    pthread_cond_init(&writer->job_done, NULL);
    pthread_mutex_init(&writer->lock, NULL);
    list_init(&writer->dirty);
    list_init(&writer->unsynced);
    list_init(&writer->jobs);
    writer->catalog = catalog;
    writer->on_progress = config->on_progress;
    writer->on_progress_arg = config->on_progress_arg;
    writer->applied = config->sync;
    writer->drops_due_ns = UINT64_MAX;
    writer->drops_wait_ns = DROPS_WAIT_MIN_NS;
    writer_reconfigure(writer, config);
    int rc = start_thread(writer);
    if (rc != 0) {
        free_writer(writer);
        return error_set(err, MEMD_EIO, "cannot start the writer thread: error %d", rc);
    }
    *ret_writer = writer;
    return 0;
}

void writer_close(struct writer *writer)
{
    if (writer == NULL) return;
    pthread_mutex_lock(&writer->lock);
    writer->stopping = true;
    pthread_cond_signal(&writer->work);
    pthread_mutex_unlock(&writer->lock);
    pthread_join(writer->thread, NULL);
    assert(list_empty(&writer->dirty) && list_empty(&writer->jobs));
    for (struct list_link *link; (link = list_take_first(&writer->unsynced)) != NULL;) continue;
    free_writer(writer);
}

void writer_reconfigure(struct writer *writer, const struct catalog_config *config)
{
    pthread_mutex_lock(&writer->lock);
    writer->sync = config->sync;
    writer->sync_interval_ns = config->sync_interval_ms * MS_NS;
    writer->pending_bytes_max = config->tail_bytes_max;
    pthread_cond_signal(&writer->work);
    pthread_mutex_unlock(&writer->lock);
}

int writer_reserve(struct writer *writer, uint64_t bytes, struct error *err)
{
    pthread_mutex_lock(&writer->lock);
    uint64_t pending = writer->pending_bytes;
    /* One append larger than the whole allowance is taken when nothing else is pending. */
    bool room = pending == 0 || pending + bytes <= writer->pending_bytes_max;
    if (room) writer->pending_bytes += bytes;
    pthread_mutex_unlock(&writer->lock);
    if (room) return 0;
    return error_set(err, MEMD_EBUSY,
                     "%llu bytes wait to be committed, %llu more do not fit below %llu",
                     (unsigned long long)pending, (unsigned long long)bytes,
                     (unsigned long long)writer->pending_bytes_max);
}

void writer_release(struct writer *writer, uint64_t bytes)
{
    if (bytes == 0) return;
    pthread_mutex_lock(&writer->lock);
    assert(writer->pending_bytes >= bytes);
    writer->pending_bytes -= bytes;
    pthread_mutex_unlock(&writer->lock);
}

uint64_t writer_pending_bytes(struct writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    uint64_t bytes = writer->pending_bytes;
    pthread_mutex_unlock(&writer->lock);
    return bytes;
}

void writer_mark(struct writer *writer, struct context *context)
{
    pthread_mutex_lock(&writer->lock);
    if (!list_linked(&context->dirty_link)) list_append(&writer->dirty, &context->dirty_link);
    pthread_cond_signal(&writer->work);
    pthread_mutex_unlock(&writer->lock);
}

void writer_wish_sync(struct writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    writer->sync_wished = true;
    pthread_cond_signal(&writer->work);
    pthread_mutex_unlock(&writer->lock);
}

bool writer_is_clean(struct writer *writer, struct context *context)
{
    pthread_mutex_lock(&writer->lock);
    bool clean = !list_linked(&context->dirty_link) && !list_linked(&context->unsynced_link) &&
                 !list_linked(&context->batch_link);
    pthread_mutex_unlock(&writer->lock);
    return clean;
}

bool writer_is_dirty(struct writer *writer, struct context *context)
{
    pthread_mutex_lock(&writer->lock);
    bool dirty = list_linked(&context->dirty_link) || list_linked(&context->batch_link);
    pthread_mutex_unlock(&writer->lock);
    return dirty;
}

void writer_forget(struct writer *writer, struct context *context)
{
    pthread_mutex_lock(&writer->lock);
    list_remove(&context->dirty_link);
    list_remove(&context->unsynced_link);
    pthread_mutex_unlock(&writer->lock);
    assert(!list_linked(&context->batch_link));
}

void writer_wish_drops(struct writer *writer)
{
    CATALOG_COUNT(writer->catalog, commit_failures_total, 1);
    pthread_mutex_lock(&writer->lock);
    if (writer->drops_due_ns == UINT64_MAX)
        writer->drops_due_ns = clock_monotonic_ns() + writer->drops_wait_ns;
    pthread_cond_signal(&writer->work);
    pthread_mutex_unlock(&writer->lock);
}

bool writer_owes_drops(struct writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    bool owes = writer->drops_due_ns != UINT64_MAX;
    pthread_mutex_unlock(&writer->lock);
    return owes;
}

int writer_run_here(struct writer *writer, struct writer_job *job, struct error *err)
{
    assert(pthread_equal(pthread_self(), writer->thread));
    job->err = (struct error){ 0 };
    int rc = attempt(writer, job);
    return rc < 0 ? error_set(err, rc, "%s", job->err.text) : 0;
}

int writer_run(struct writer *writer, struct writer_job *job, struct error *err)
{
    assert(!pthread_equal(pthread_self(), writer->thread));
    job->done = false;
    job->err = (struct error){ 0 };
    pthread_mutex_lock(&writer->lock);
    assert(!writer->stopping);
    list_append(&writer->jobs, &job->link);
    pthread_cond_signal(&writer->work);
    while (!job->done) pthread_cond_wait(&writer->job_done, &writer->lock);
    pthread_mutex_unlock(&writer->lock);
    if (job->rc < 0) return error_set(err, job->rc, "%s", job->err.text);
    return 0;
}
