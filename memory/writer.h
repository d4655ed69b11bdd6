/* SPDX-License-Identifier: Apache-2.0 */
/* writer.h — the one thread that commits: groups what was appended, runs jobs, syncs.
 *
 * Threads  any, but writer_run not from the writer itself, and writer_run_here only from there
 * Errors   MEMD_EBUSY too much uncommitted · MEMD_EFULL · MEMD_ENOMEM · MEMD_EIO
 * Tests    tests/unit/test_catalog.c, tests/unit/test_recovery.c
 */
#ifndef MEMD_MEMORY_WRITER_H
#define MEMD_MEMORY_WRITER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/list.h"

struct catalog;
struct catalog_config;
struct context;
struct writer;

int writer_open(struct catalog *catalog, const struct catalog_config *config,
                struct writer **ret_writer, struct error *err);
/* Commit and sync what is left, stop the thread. NULL is fine. */
void writer_close(struct writer *writer);
void writer_reconfigure(struct writer *writer, const struct catalog_config *config);

/* Ask for room for bytes that will be uncommitted; MEMD_EBUSY at once when there is none: who
 * waited here would hold a worker. Everything that is reserved is released by writer_release, or
 * by the commit (or failure) of the rows it became. */
int writer_reserve(struct writer *writer, uint64_t bytes, struct error *err);
void writer_release(struct writer *writer, uint64_t bytes);
uint64_t writer_pending_bytes(struct writer *writer);

/* The context has uncommitted rows. */
void writer_mark(struct writer *writer, struct context *context);
/* Somebody waits for a sync. */
void writer_wish_sync(struct writer *writer);

/* Nothing of it is uncommitted or unsynced. With catalog.lock held. */
bool writer_is_clean(struct writer *writer, struct context *context);
/* Something of it is uncommitted. */
bool writer_is_dirty(struct writer *writer, struct context *context);
/* Take it out of every list. Writer, in a job. */
void writer_forget(struct writer *writer, struct context *context);

/* A piece of work in a transaction of its own. It runs after everything that was appended before
 * writer_run has been committed (or has failed and was taken back). */
struct writer_job {
    int (*run)(struct writer_job *job, struct error *err);
    struct catalog *catalog;
    bool sync;  /* sync afterwards */
    bool frees; /* takes rows away: where the store is full it runs once more when pages were had */
    struct list_link link;
    int rc;
    bool done;
    struct error err;
};
int writer_run(struct writer *writer, struct writer_job *job, struct error *err);
/* The same from the writer itself, at once; without `sync`. */
int writer_run_here(struct writer *writer, struct writer_job *job, struct error *err);

/* A drop has failed after its first transaction: count that, go on some time (drop_resume). */
void writer_wish_drops(struct writer *writer);
bool writer_owes_drops(struct writer *writer);

#endif
