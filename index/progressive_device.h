/* SPDX-License-Identifier: Apache-2.0 */
/* progressive_device.h — progressive attention with the planes on a device.
 *
 * K-hi and V-hi of all segments are read there (index/kernels/planes_launch.h). Rows without planes
 * are a step of their own, over the resident window as far as it has them, and merged in; so are
 * all rows in the window where the query insists on it. Tokens that the error rule picks travel as
 * the exact rows they are, asked for like all rows (`admit`). Two waits: for what was picked, and
 * for the answer; in between others may use the device.
 *
 * The quality record is that of progressive.h: nothing is answered from clusters, predicted_error
 * is that of codes, and `limited` is never set, because what would be cut short is declined.
 *
 * Declined  where no segment is seen whole by all queries, planes have no room or no checksums,
 *           more is picked than may travel, max_bytes is asked for; and whenever the accelerator is
 *           off or lost. Then the CPU answers, as if nobody had asked
 * Shapes    as progressive_attend
 * Tests     tests/simt/test_progressive_device.c
 */
#ifndef MEMD_INDEX_PROGRESSIVE_DEVICE_H
#define MEMD_INDEX_PROGRESSIVE_DEVICE_H

#include "index/progressive.h"

/* Everything lies in the window that the query insists on: there is nothing to be approximated. */
bool progressive_device_has_all(const struct progressive_args *args);

/* 0, ACCELERATOR_DECLINED, or an error of the caller's own. `target` is what codes may leave. */
int progressive_device_attend(const struct progressive_args *args, float target,
                              struct arena *arena, const struct index_answer *ret_answer,
                              struct error *err);

#endif
