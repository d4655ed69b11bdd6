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

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attention/cuda/device.h"

extern const struct device_table fake_device_table;

/* The n-th finish from now on, and every one behind it, finds the device lost; 0: never. */
void fake_device_lose(uint64_t finishes);
/* Memory of the device; more is MEMD_ENOMEM. */
void fake_device_limit(uint64_t bytes);

/* The n-th call from now on fails, and every one behind it if `go_on`: calls for memory with
 * MEMD_ENOMEM, others with MEMD_EDEVICE; 0: none. Has it come to that? */
void fake_device_fail(uint64_t call, bool go_on);
bool fake_device_has_failed(void);

/* What is asked of the device while it is watched. */
enum fake_call_kind {
    FAKE_OPEN, /* and describe */
    FAKE_ALLOC,
    FAKE_FREE,
    FAKE_COPY,
    FAKE_RECORD,
    FAKE_AWAIT,
    FAKE_FINISH,
    FAKE_PARTIAL,
    FAKE_GATHER,
    FAKE_MERGE,
    FAKE_ROPE,
    FAKE_PLANES,
};
struct fake_call {
    enum fake_call_kind kind;
    enum device_stream stream;
    unsigned event; /* or stage */
    size_t bytes;   /* of a copy */
    bool pageable;  /* a copy from or to what is neither the device's nor pinned */
};
void fake_device_watch(bool on); /* on: begins anew */
size_t fake_device_watched(const struct fake_call **ret_calls);

struct fake_device_counts {
    uint64_t allocs, copies, copied_bytes, launches, finishes;
    uint64_t bytes, devices; /* that are there now; bytes of device memory */
    uint64_t pinned_bytes, imports; /* of others' memory, now */
};
struct fake_device_counts fake_device_counts(void);

/* No call fails any more, and everybody has closed what they had of the device (asserted). Had one
 * failed? */
static inline bool fake_device_recover(void)
{
    bool failed = fake_device_has_failed();
    struct fake_device_counts left = fake_device_counts();
    fake_device_fail(0, false);
    assert(left.devices == 0 && left.bytes == 0);
    return failed;
}

#endif
