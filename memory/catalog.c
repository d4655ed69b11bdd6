/* SPDX-License-Identifier: Apache-2.0 */
/* catalog.c — opening and closing a data directory, and what all verbs share: records, numbers,
 * pins.
 *
 * The numbers of a store (next ids, stored bytes, unclean starts) live in the table meta and
 * change in the same transaction as what they count, so they cannot be wrong after a crash and
 * opening needs no scan.
 */
#include "memory/catalog.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "memory/builder.h"
#include "memory/catalog_state.h"
#include "memory/store_pages.h"
#include "memory/store_synced.h"

uint64_t catalog_now_ms(void)
{
    return clock_real_ns() / 1000000u;
}

int catalog_read_record(struct catalog *catalog, struct store_txn *txn, uint64_t id,
                        struct record **ret_record, struct error *err)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    struct slice value;
    if (!store_get(txn, STORE_CONTEXTS, (struct slice){ key, format_key_id(id, key) }, &value)) {
        int rc = store_failed(txn, err);
        return rc < 0 ? rc : error_set(err, MEMD_ENOCONTEXT, "there is no context %" PRIu64, id);
    }
    CLEANUP(free_ptr) struct record *record = malloc(sizeof *record);
    if (record == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a context");
    int rc = record_decode(value.data, value.bytes, record, err);
    if (rc < 0) {
        CATALOG_COUNT(catalog, checksum_failures_total, 1);
        return rc;
    }
    if (record->dropping)
        return error_set(err, MEMD_ENOCONTEXT, "context %" PRIu64 " is being dropped", id);
    *ret_record = TAKE(record);
    return 0;
}

void catalog_put_record(struct store_txn *txn, uint64_t id, const struct record *record)
{
    CLEANUP(free_ptr) unsigned char *value = malloc(RECORD_BYTES_MAX);
    if (value == NULL) {
        store_fail(txn, ENOMEM);
        return;
    }
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    size_t bytes = record_encode(record, value);
    store_put(txn, STORE_CONTEXTS, (struct slice){ key, format_key_id(id, key) },
              (struct slice){ value, bytes });
}

static void update_space(struct catalog *catalog)
{
    struct store_space space;
    store_get_space(catalog->store, &space);
    atomic_store(&catalog->map_used_bytes, space.used_bytes);
    atomic_store(&catalog->file_bytes, space.file_bytes);
}

int catalog_commit(struct catalog *catalog, struct store_txn *txn, int64_t delta, struct error *err)
{
    uint64_t stored = (uint64_t)((int64_t)atomic_load(&catalog->stored_bytes) + delta);
    store_put_number(txn, "next_context", catalog->next_context);
    store_put_number(txn, "next_segment", catalog->next_segment);
    store_put_number(txn, "stored_bytes", stored);
    uint64_t contexts = store_count(txn, STORE_NAMES);
    int rc = store_commit(txn, err);
    if (rc < 0) return rc;
    atomic_store(&catalog->stored_bytes, stored);
    atomic_store(&catalog->context_count, contexts);
    CATALOG_COUNT(catalog, commits_total, 1);
    update_space(catalog);
    return 0;
}

static int lock_directory(struct catalog *catalog, const char *path, struct error *err)
{
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return error_set(err, MEMD_EIO, "cannot make the directory %.180s: %s", path,
                         strerror(errno));
    CLEANUP(free_ptr) char *lock_path = NULL;
    if (asprintf(&lock_path, "%s/lock", path) < 0) {
        lock_path = NULL;
        return error_set(err, MEMD_ENOMEM, "no memory for a path");
    }
    catalog->lock_fd = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (catalog->lock_fd < 0)
        return error_set(err, MEMD_EIO, "cannot open %.180s: %s", lock_path, strerror(errno));
    if (flock(catalog->lock_fd, LOCK_EX | LOCK_NB) == 0) return 0;
    return error_set(err, MEMD_ELOCKED, "another daemon holds %.200s", lock_path);
}

/* First start: write the numbers. Later: check them. Marks the store as in use. */
static int begin_meta(struct catalog *catalog, struct store_txn *txn, struct error *err)
{
    uint64_t version = 0, order = 0, clean = 0, stored = 0;
    if (!store_get_number(txn, "format_version", &version)) {
        if (store_count(txn, STORE_CONTEXTS) > 0)
            return error_set(err, MEMD_ECORRUPT, "the store has contexts but no format version");
        version = FORMAT_VERSION;
        order = FORMAT_BYTE_ORDER;
        clean = 1;
        catalog->next_context = catalog->next_segment = 1;
        store_put_number(txn, "format_version", version);
        store_put_number(txn, "byte_order", order);
    } else {
        bool whole = store_get_number(txn, "byte_order", &order) &&
                     store_get_number(txn, "next_context", &catalog->next_context) &&
                     store_get_number(txn, "next_segment", &catalog->next_segment) &&
                     store_get_number(txn, "stored_bytes", &stored) &&
                     store_get_number(txn, "generation", &catalog->generation) &&
                     store_get_number(txn, "clean", &clean);
        if (!whole) return error_set(err, MEMD_ECORRUPT, "the table meta lacks a number");
    }
    if (version == 0 || version > FORMAT_VERSION)
        return error_set(err, MEMD_EVERSION,
                         "the store has format version %" PRIu64 ", this build reads 1 to %d",
                         version, FORMAT_VERSION);
    if (order != FORMAT_BYTE_ORDER)
        return error_set(err, MEMD_ECORRUPT, "the store's byte order witness is %016" PRIx64,
                         order);
    /* From here on it holds what an older build would not know. */
    if (version < FORMAT_VERSION) store_put_number(txn, "format_version", FORMAT_VERSION);
    if (clean == 0) catalog->generation++;
    store_put_number(txn, "generation", catalog->generation);
    store_put_number(txn, "clean", 0);
    atomic_init(&catalog->stored_bytes, stored);
    return 0;
}

/* With `never` there is no state to fall back to, and gigabytes may wait to be written. */
static int open_meta(struct catalog *catalog, enum sync_mode sync, struct error *err)
{
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(catalog->store, true, &txn, err);
    if (rc == 0) rc = begin_meta(catalog, &txn, err);
    if (rc == 0) rc = catalog_commit(catalog, &txn, 0, err);
    return rc < 0 || sync == SYNC_NEVER ? rc : store_sync(catalog->store, err);
}

enum store_mode catalog_store_mode(enum sync_mode sync)
{
    switch (sync) {
    case SYNC_ALWAYS: return STORE_DURABLE;
    case SYNC_INTERVAL: return STORE_PROTECTED;
    default: return STORE_LAZY;
    }
}

/* A kernel that does not say has always just been started: that may cost commits, never
 * consistency. */
static void read_boot_id(char *ret_id, size_t size)
{
    snprintf(ret_id, size, "unknown-%" PRIu64, clock_real_ns());
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (file == NULL) return;
    char line[SYNCED_BOOT_BYTES];
    if (fgets(line, sizeof line, file) != NULL)
        snprintf(ret_id, size, "%.*s", (int)strcspn(line, "\n"), line);
    fclose(file);
}

static int open_store(struct catalog *catalog, const struct catalog_config *config,
                      struct error *err)
{
    char boot_id[SYNCED_BOOT_BYTES];
    read_boot_id(boot_id, sizeof boot_id);
    struct store_config store = {
        .path = config->path,
        .map_bytes = config->map_bytes,
        .mode = catalog_store_mode(config->sync),
        .boot_id = boot_id,
    };
    return store_open(&store, &catalog->store, err);
}

static void free_catalog(struct catalog *catalog)
{
    builder_stop(catalog->builder);
    builder_close(catalog->builder);
    store_close(catalog->store);
    if (catalog->lock_fd >= 0) close(catalog->lock_fd);
    map_fini(&catalog->residents);
    block_cache_fini(&catalog->blocks);
    pthread_rwlock_destroy(&catalog->planes_lock);
    pthread_mutex_destroy(&catalog->load_lock);
    pthread_mutex_destroy(&catalog->lock);
    pthread_cond_destroy(&catalog->unpinned);
    free(catalog->path);
    free(catalog);
}

static void free_catalogp(struct catalog **catalog)
{
    if (*catalog != NULL) free_catalog(*catalog);
}

static int run_drops(struct writer_job *job, struct error *err)
{
    return drop_resume(job->catalog, err);
}

int catalog_open(const struct catalog_config *config, struct catalog **ret_catalog,
                 struct error *err)
{
    CLEANUP(free_catalogp) struct catalog *catalog = calloc(1, sizeof *catalog);
    if (catalog == NULL) return error_set(err, MEMD_ENOMEM, "no memory for the catalog");
    catalog->lock_fd = -1;
    catalog->pool = config->pool;
    catalog->accelerator = config->accelerator;
    catalog->map_bytes = config->map_bytes;
    catalog->contexts_max = config->contexts_max == 0 ? 1 : config->contexts_max;
    catalog->resident_bytes_max = config->resident_bytes_max;
    atomic_init(&catalog->budget_bytes, config->budget_bytes);
    pthread_rwlock_init(&catalog->planes_lock, NULL);
    pthread_mutex_init(&catalog->load_lock, NULL);
    pthread_mutex_init(&catalog->lock, NULL);
    pthread_cond_init(&catalog->unpinned, NULL);
    list_init(&catalog->lru);
    block_cache_init(&catalog->blocks, config->tail_bytes_max / 4);
    catalog->path = strdup(config->path);
    if (catalog->path == NULL) return error_set(err, MEMD_ENOMEM, "no memory for the catalog");
    int rc = lock_directory(catalog, config->path, err);
    if (rc == 0) rc = open_store(catalog, config, err);
    if (rc == 0) rc = open_meta(catalog, config->sync, err);
    if (rc == 0) rc = builder_open(catalog, &catalog->builder, err);
    if (rc == 0) rc = writer_open(catalog, config, &catalog->writer, err);
    if (rc < 0) return rc;
    /* What the process before left of drops; what stops them stops nobody else. */
    struct writer_job drops = { .run = run_drops, .catalog = catalog };
    writer_run(catalog->writer, &drops, NULL);
    *ret_catalog = TAKE(catalog);
    return 0;
}

/* Persist when contexts were last used, then that the end was clean. */
static int run_close(struct writer_job *job, struct error *err)
{
    struct catalog *catalog = job->catalog;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(catalog->store, true, &txn, err);
    if (rc < 0) return rc;
    size_t at = 0;
    for (struct context *context; (context = map_next(&catalog->residents, &at)) != NULL;) {
        if (context->record == NULL || context->record->used_unix_ms == context->used_unix_ms)
            continue;
        context->record->used_unix_ms = context->used_unix_ms;
        catalog_put_record(&txn, context->id, context->record);
    }
    store_put_number(&txn, "clean", 1);
    return catalog_commit(catalog, &txn, 0, err);
}

void catalog_close(struct catalog *catalog)
{
    if (catalog == NULL) return;
    builder_stop(catalog->builder);
    struct writer_job job = { .run = run_close, .catalog = catalog, .sync = true };
    writer_run(catalog->writer, &job,
               NULL); /* without it the next start recovers, nothing is lost */
    writer_close(catalog->writer);
    for (struct list_link *link; (link = list_take_first(&catalog->lru)) != NULL;) {
        struct context *context = LIST_ENTRY(link, struct context, lru_link);
        assert(context->pins == 0);
        builder_remove(catalog->builder, context);
        context_free(context);
    }
    free_catalog(catalog);
}

void catalog_reconfigure(struct catalog *catalog, const struct catalog_config *config)
{
    atomic_store(&catalog->budget_bytes, config->budget_bytes);
    writer_reconfigure(catalog->writer, config);
}

static int run_nothing(struct writer_job *job, struct error *err)
{
    (void)job;
    (void)err;
    return 0;
}

void catalog_trim(struct catalog *catalog)
{
    block_cache_trim(&catalog->blocks);
}

int catalog_sync(struct catalog *catalog, struct error *err)
{
    struct writer_job job = { .run = run_nothing, .catalog = catalog, .sync = true };
    return writer_run(catalog->writer, &job, err);
}

void catalog_get_stats(struct catalog *catalog, struct catalog_stats *ret_stats)
{
    *ret_stats = (struct catalog_stats){ .contexts = atomic_load(&catalog->context_count),
                                         .resident_contexts = atomic_load(&catalog->resident_count),
                                         .stored_bytes = atomic_load(&catalog->stored_bytes),
                                         .budget_bytes = atomic_load(&catalog->budget_bytes),
                                         .map_bytes = catalog->map_bytes,
                                         .map_used_bytes = atomic_load(&catalog->map_used_bytes),
                                         .file_bytes = atomic_load(&catalog->file_bytes),
                                         .tail_bytes = writer_pending_bytes(catalog->writer),
                                         .build_waiting = atomic_load(&catalog->build_waiting),
                                         .state_bytes = atomic_load(&catalog->state_bytes),
                                         .damaged_drops = atomic_load(&catalog->damaged_drops),
                                         .damaged_pages = store_damage(catalog->store)->total,
#define X(name) .name = atomic_load_explicit(&catalog->counters.name, memory_order_relaxed),
                                         CATALOG_COUNTER_MAP(X)
#undef X
    };
}
