/* SPDX-License-Identifier: Apache-2.0 */
/* neighbour.c — thin: whose memory it is, and that calls for the device do not overlap.
 *
 * Bytes pass through the staging that windows are fed from: it is pinned, and it is there. They
 * travel on the compute stream, whose `finish` is waited for in any case, so that the transfer
 * stream stays with the rows that travel.
 */
#include "attention/cuda/neighbour.h"

#include <string.h>

#include "attention/cuda/accelerator_state.h"
#include "base/error.h"

enum { CHUNK_BYTES = 4 << 20 };

static int lost(const struct accelerator *accelerator, struct error *err)
{
    return error_set(err, MEMD_EDEVICE, "%s", accelerator->why);
}

bool neighbour_is_offered(struct accelerator *accelerator)
{
    return atomic_load(&accelerator->on) && !atomic_load(&accelerator->lost);
}

int neighbour_pin(struct accelerator *accelerator, void *at, size_t bytes, struct error *err)
{
    pthread_mutex_lock(&accelerator->lock);
    int rc = atomic_load(&accelerator->lost)
                 ? lost(accelerator, err)
                 : accelerator->table->pin(accelerator->device, at, bytes, err);
    pthread_mutex_unlock(&accelerator->lock);
    return rc;
}

void neighbour_unpin(struct accelerator *accelerator, void *at)
{
    pthread_mutex_lock(&accelerator->lock);
    accelerator->table->unpin(accelerator->device, at);
    pthread_mutex_unlock(&accelerator->lock);
}

int neighbour_import(struct accelerator *accelerator, const struct device_export *from,
                     void **ret_memory, struct error *err)
{
    pthread_mutex_lock(&accelerator->lock);
    int rc = atomic_load(&accelerator->lost)
                 ? lost(accelerator, err)
                 : accelerator->table->import(accelerator->device, from, ret_memory, err);
    pthread_mutex_unlock(&accelerator->lock);
    return rc;
}

void neighbour_release(struct accelerator *accelerator, void *memory)
{
    pthread_mutex_lock(&accelerator->lock);
    accelerator->table->release(accelerator->device, memory);
    pthread_mutex_unlock(&accelerator->lock);
}

/* One copy, waited for. With lock held. */
static int copy(struct accelerator *accelerator, void *to, const void *from, size_t bytes)
{
    const struct device_table *table = accelerator->table;
    struct error err = { 0 };
    int rc = table->copy(accelerator->device, DEVICE_COMPUTE, to, from, bytes);
    if (rc < 0) error_set(&err, rc, "a copy of shared memory could not be queued");
    if (rc == 0) rc = table->finish(accelerator->device, DEVICE_COMPUTE, &err);
    if (rc < 0) accelerator_failed(accelerator, rc, err.text);
    if (rc == 0) accelerator->staging_used = 0; /* everything on the stream is done */
    return rc;
}

/* Piece by piece through the staging, in one direction or the other. */
static int move(struct accelerator *accelerator, const unsigned char *from, size_t bytes,
                unsigned char *to, bool to_device)
{
    for (size_t at = 0; at < bytes; at += CHUNK_BYTES) {
        size_t count = bytes - at < CHUNK_BYTES ? bytes - at : CHUNK_BYTES;
        void *stage = accelerator_stage(accelerator, count);
        if (stage == NULL) return MEMD_EDEVICE;
        if (to_device) memcpy(stage, from + at, count);
        int rc = to_device ? copy(accelerator, to + at, stage, count)
                           : copy(accelerator, stage, from + at, count);
        if (rc < 0) return rc;
        if (!to_device) memcpy(to + at, stage, count);
    }
    return 0;
}

static int move_locked(struct accelerator *accelerator, const void *from, size_t bytes, void *to,
                       bool to_device, struct error *err)
{
    pthread_mutex_lock(&accelerator->lock);
    int rc = atomic_load(&accelerator->lost) ? MEMD_EDEVICE
                                             : move(accelerator, from, bytes, to, to_device);
    pthread_mutex_unlock(&accelerator->lock);
    if (rc == 0) return 0;
    return rc == MEMD_EDEVICE
               ? lost(accelerator, err)
               : error_set(err, rc, "%zu bytes of shared memory of the device", bytes);
}

int neighbour_read(struct accelerator *accelerator, const void *from, size_t bytes, void *to,
                   struct error *err)
{
    return move_locked(accelerator, from, bytes, to, false, err);
}

int neighbour_write(struct accelerator *accelerator, const void *from, size_t bytes, void *to,
                    struct error *err)
{
    return move_locked(accelerator, from, bytes, to, true, err);
}
