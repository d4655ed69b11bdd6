/* SPDX-License-Identifier: Apache-2.0 */
/* neighbour.h — memory of other processes that an accelerator reaches: shared memory of the host,
 * pinned, and memory of the device that somebody else allocated and exported.
 *
 * What a neighbour shares it can also change at any time. So nothing that is kept (windows, planes)
 * is made from these bytes: they are read into memory of our own, once, or written to.
 *
 * Order    what a neighbour's own streams write must be finished before it asks; what
 *          neighbour_write wrote is on the device when it returns
 * Cost     pinning takes its time by the page, and the accelerator answers nobody meanwhile
 * Threads  any
 * Errors   MEMD_EINVAL what was handed over is no memory of this device, or smaller than said ·
 *          MEMD_ENOMEM · MEMD_EDEVICE the device is lost
 * Tests    tests/simt/test_neighbour.c, tests/daemon/test_shared_device.py, over a device that is
 *          not there; not yet measured on a GPU
 */
#ifndef MEMD_ATTENTION_CUDA_NEIGHBOUR_H
#define MEMD_ATTENTION_CUDA_NEIGHBOUR_H

#include <stdbool.h>
#include <stddef.h>

#include "attention/cuda/device.h"

struct accelerator;
struct error;

/* Can memory of the device be handed to it now? Not when it is lost or switched off. */
bool neighbour_is_offered(struct accelerator *accelerator);

/* `bytes` of mapped memory of the host at `at`, a multiple of the page: copies between there and
 * the device need no staging, kernels can read it in place. Until neighbour_unpin, before it is
 * unmapped. */
int neighbour_pin(struct accelerator *accelerator, void *at, size_t bytes, struct error *err);
void neighbour_unpin(struct accelerator *accelerator, void *at);

/* Memory of the device that another process exported; *ret_memory is its address for
 * neighbour_read and neighbour_write. The descriptor stays the caller's. */
int neighbour_import(struct accelerator *accelerator, const struct device_export *from,
                     void **ret_memory, struct error *err);
void neighbour_release(struct accelerator *accelerator, void *memory);

/* `bytes` from the device's memory to the host's, and back. */
int neighbour_read(struct accelerator *accelerator, const void *from, size_t bytes, void *to,
                   struct error *err);
int neighbour_write(struct accelerator *accelerator, const void *from, size_t bytes, void *to,
                    struct error *err);

#endif
