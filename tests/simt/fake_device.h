/* SPDX-License-Identifier: Apache-2.0 */
/* fake_device.h — a device that is not there: a table of device.h over memory of the host and the
 * emulated kernels.
 *
 * It is as lazy as a device may be: what is queued on a stream happens only when somebody waits for
 * it, in `finish` or through an event. So memory that is used again too early, an event that is not
 * awaited, an answer that is read before it is there, all give wrong results here too. Pointers
 * that a device could not read are refused.
 *
 * Threads  as device.h: one at a time; the calls below when no other runs
 */
#ifndef MEMD_TESTS_SIMT_FAKE_DEVICE_H
#define MEMD_TESTS_SIMT_FAKE_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "attention/cuda/device.h"

extern const struct device_table fake_device_table;

/* The n-th finish from now on, and every one behind it, finds the device lost; 0: never. */
void fake_device_lose(uint64_t finishes);
/* Memory of the device; more is MEMD_ENOMEM. */
void fake_device_limit(uint64_t bytes);

struct fake_device_counts {
    uint64_t allocs, copies, copied_bytes, launches, finishes;
    uint64_t bytes, devices; /* that are there now; bytes of device memory */
};
struct fake_device_counts fake_device_counts(void);

#endif
