/* SPDX-License-Identifier: Apache-2.0 */
/* accelerator.c — opening, losing and describing a device.
 *
 * A device is lost for good: errors of CUDA that reach `finish` are sticky, and the context of the
 * process with the driver is broken. Running out of memory is not: a window goes without.
 */
#include "attention/cuda/accelerator.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention/cuda/accelerator_state.h"
#include "base/cleanup.h"
#include "base/error.h"

struct launch_rope accelerator_rope(const struct rope *rope, uint64_t *turns)
{
    const double two_pi = 6.283185307179586476925;
    if (rope == NULL) return (struct launch_rope){ .turns = NULL };
    for (size_t i = 0; i < rope->rotary_dims / 2; i++)
        turns[i] = (uint64_t)(rope->inv_freq[i] / two_pi * 0x1p64);
    return (struct launch_rope){ .turns = turns, .rotary_dims = (uint32_t)rope->rotary_dims,
                                 .pairing = (uint32_t)rope->pairing,
                                 .magnitude = (float)rope->magnitude };
}

void accelerator_failed(struct accelerator *accelerator, int code, const char *what)
{
    ACCELERATOR_COUNT(accelerator, failures_total, 1);
    if (code == MEMD_ENOMEM || atomic_load(&accelerator->lost)) return;
    snprintf(accelerator->why, sizeof accelerator->why, "%.80s was lost: %.150s",
             accelerator->info.name, what);
    atomic_store(&accelerator->lost, true);
    if (accelerator->config.on_lost != NULL)
        accelerator->config.on_lost(accelerator->config.on_lost_arg, accelerator->why);
}

void *accelerator_stage(struct accelerator *accelerator, size_t bytes)
{
    assert(bytes <= STEP_STAGING_BYTES);
    if (accelerator->staging_used + bytes > STEP_STAGING_BYTES) {
        struct error err = { 0 };
        int rc = accelerator->table->finish(accelerator->device, DEVICE_COMPUTE, &err);
        if (rc < 0) {
            accelerator_failed(accelerator, rc, err.text);
            return NULL;
        }
        accelerator->staging_used = 0;
    }
    void *at = accelerator->staging + accelerator->staging_used;
    accelerator->staging_used += (bytes + STEP_ALIGN - 1) / STEP_ALIGN * STEP_ALIGN;
    return at;
}

/* ---- opening ---- */

static int open_batch(struct step_batch *batch, struct error *err)
{
    batch->q = malloc(STEP_QUERY_FLOATS * sizeof *batch->q);
    batch->limits = malloc(STEP_QUERIES_MAX * sizeof *batch->limits);
    batch->window_runs = malloc(STEP_RUNS_MAX * sizeof *batch->window_runs);
    batch->travel_runs = malloc(STEP_RUNS_MAX * sizeof *batch->travel_runs);
    batch->travel_first = malloc(STEP_RUNS_MAX * sizeof *batch->travel_first);
    batch->positions = malloc(STEP_TRAVEL_ROWS_MAX * sizeof *batch->positions);
    batch->begin = malloc((STEP_QUERIES_MAX + 1) * sizeof *batch->begin);
    batch->parts = malloc(STEP_POOL_ROWS_MAX * sizeof *batch->parts);
    bool whole = batch->q != NULL && batch->limits != NULL && batch->window_runs != NULL &&
                 batch->travel_runs != NULL && batch->travel_first != NULL &&
                 batch->positions != NULL && batch->begin != NULL && batch->parts != NULL;
    return whole ? 0 : error_set(err, MEMD_ENOMEM, "no memory for the lists of an accelerator");
}

static void close_batch(struct step_batch *batch)
{
    void *all[] = { batch->q, batch->limits, batch->window_runs, batch->travel_runs,
                    batch->travel_first, batch->positions, batch->begin, batch->parts };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

/* Everything but the memory of windows. */
static int allocate(struct accelerator *accelerator, struct error *err)
{
    const struct device_table *table = accelerator->table;
    size_t travel = (size_t)accelerator->config.travel_bytes;
    struct {
        void **at;
        size_t bytes;
        bool host;
    } wanted[] = {
        { (void **)&accelerator->control, STEP_CONTROL_BYTES, true },
        { (void **)&accelerator->control_device, STEP_CONTROL_BYTES, false },
        { (void **)&accelerator->travel, travel, true },
        { (void **)&accelerator->travel_device, travel, false },
        { (void **)&accelerator->staging, STEP_STAGING_BYTES, true },
        { (void **)&accelerator->identity, STEP_TRAVEL_ROWS_MAX * sizeof(uint32_t), false },
        { (void **)&accelerator->pool_o, STEP_POOL_FLOATS * sizeof(float), false },
        { (void **)&accelerator->pool_lse, STEP_POOL_ROWS_MAX * sizeof(float), false },
        { (void **)&accelerator->answer_o, STEP_QUERY_FLOATS * sizeof(float), true },
        { (void **)&accelerator->answer_lse, STEP_QUERIES_MAX * sizeof(float), true },
        { (void **)&accelerator->turns, TURNS_MAX * sizeof(uint64_t), true },
    };
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < sizeof wanted / sizeof wanted[0]; i++)
        rc = (wanted[i].host ? table->alloc_host : table->alloc)(
            accelerator->device, wanted[i].bytes, wanted[i].at, err);
    return rc;
}

static int send_identity(struct accelerator *accelerator, struct error *err)
{
    uint32_t *numbers = accelerator_stage(accelerator, STEP_TRAVEL_ROWS_MAX * sizeof *numbers);
    for (uint32_t i = 0; i < STEP_TRAVEL_ROWS_MAX; i++) numbers[i] = i;
    int rc = accelerator->table->copy(accelerator->device, DEVICE_COMPUTE, accelerator->identity,
                                      numbers, STEP_TRAVEL_ROWS_MAX * sizeof *numbers);
    if (rc < 0) return error_set(err, rc, "the first copy to the device failed");
    return accelerator->table->finish(accelerator->device, DEVICE_COMPUTE, err);
}

static void close_half(struct accelerator **half)
{
    accelerator_close(*half);
}

int accelerator_open(const struct device_table *table, const struct accelerator_config *config,
                     struct accelerator **ret_accelerator, struct error *err)
{
    CLEANUP(close_half) struct accelerator *accelerator = calloc(1, sizeof *accelerator);
    if (accelerator == NULL) return error_set(err, MEMD_ENOMEM, "no memory for an accelerator");
    accelerator->table = table;
    accelerator->config = *config;
    list_init(&accelerator->queue);
    list_init(&accelerator->windows);
    pthread_mutex_init(&accelerator->queue_lock, NULL);
    pthread_mutex_init(&accelerator->lock, NULL);
    pthread_cond_init(&accelerator->moved, NULL);
    int rc = table->open(config->ordinal, &accelerator->device, err);
    if (rc == 0) rc = table->describe(accelerator->device, &accelerator->info, err);
    if (rc == 0) rc = open_batch(&accelerator->batch, err);
    if (rc == 0) rc = allocate(accelerator, err);
    if (rc == 0) rc = send_identity(accelerator, err);
    if (rc < 0) return rc;
    atomic_store(&accelerator->on, true);
    *ret_accelerator = TAKE(accelerator);
    return 0;
}

void accelerator_close(struct accelerator *accelerator)
{
    if (accelerator == NULL) return;
    assert(list_empty(&accelerator->windows) && list_empty(&accelerator->queue));
    if (accelerator->planes != NULL) accelerator->free_planes(accelerator);
    if (accelerator->device != NULL) {
        const struct device_table *table = accelerator->table;
        void *host[] = { accelerator->control, accelerator->travel, accelerator->staging,
                         accelerator->answer_o, accelerator->answer_lse, accelerator->turns };
        void *device[] = { accelerator->control_device, accelerator->travel_device,
                           accelerator->identity, accelerator->pool_o, accelerator->pool_lse };
        for (size_t i = 0; i < sizeof host / sizeof host[0]; i++)
            if (host[i] != NULL) table->free_host(accelerator->device, host[i]);
        for (size_t i = 0; i < sizeof device / sizeof device[0]; i++)
            if (device[i] != NULL) table->free(accelerator->device, device[i]);
        table->close(accelerator->device);
    }
    close_batch(&accelerator->batch);
    pthread_mutex_destroy(&accelerator->queue_lock);
    pthread_mutex_destroy(&accelerator->lock);
    pthread_cond_destroy(&accelerator->moved);
    free(accelerator);
}

void accelerator_switch(struct accelerator *accelerator, bool on)
{
    atomic_store(&accelerator->on, on);
}

void accelerator_get_stats(struct accelerator *accelerator, struct accelerator_stats *ret_stats)
{
    *ret_stats = (struct accelerator_stats){
#define X(name) .name = atomic_load_explicit(&accelerator->counters.name, memory_order_relaxed),
        ACCELERATOR_COUNTER_MAP(X)
#undef X
        .window_bytes = atomic_load_explicit(&accelerator->window_bytes, memory_order_relaxed),
        .windows = atomic_load_explicit(&accelerator->window_count, memory_order_relaxed),
    };
}

bool accelerator_describe(struct accelerator *accelerator, char *ret_name, char *ret_why,
                          size_t bytes)
{
    bool lost = atomic_load(&accelerator->lost), on = atomic_load(&accelerator->on);
    snprintf(ret_name, bytes, "%s", accelerator->info.name);
    snprintf(ret_why, bytes, "%s",
             lost ? accelerator->why : on ? "" : "the device is switched off");
    return on && !lost;
}

const char *accelerator_backend(const struct accelerator *accelerator)
{
    return accelerator->table->name;
}
