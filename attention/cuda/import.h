/* SPDX-License-Identifier: Apache-2.0 */
/* import.h — memory of other processes for the table of CUDA (device.cu): the host's, pinned, and
 * the device's, imported.
 *
 * Of what is imported a list is kept, because giving it back wants more than its address.
 *
 * Errors   MEMD_EINVAL what was handed over cannot be used · MEMD_ENOMEM
 * Threads  as device.h; the device is current
 */
#ifndef MEMD_ATTENTION_CUDA_IMPORT_H
#define MEMD_ATTENTION_CUDA_IMPORT_H

#include "attention/cuda/device.h"

struct import;

int import_pin(int ordinal, void *at, size_t bytes, struct error *err);
void import_unpin(void *at);

int import_open(int ordinal, const struct device_export *from, struct import **list,
                void **ret_memory, struct error *err);
void import_close(struct import **list, void *memory);

#endif
