/* SPDX-License-Identifier: Apache-2.0 */
/* histogram.h — what can be read from the buckets that the daemon counts in.
 *
 * Tests    tests/memctl/test_histogram.c
 */
#ifndef MEMD_CLIENTS_MEMCTL_HISTOGRAM_H
#define MEMD_CLIENTS_MEMCTL_HISTOGRAM_H

#include <stdint.h>

#include "clients/include/memd.h"

uint64_t histogram_count(const struct memd_histogram *histogram);

/* The value below which `share` of the samples lie, interpolated linearly in its bucket (the
 * first begins at 0; of the last, which has no end, the lower bound is given). With `before` not
 * NULL, of the samples since that earlier state of the same histogram. NaN when there are none. */
double histogram_quantile(const struct memd_histogram *now, const struct memd_histogram *before,
                          double share);

/* The histogram of that name, or NULL. */
const struct memd_histogram *histogram_find(const struct memd_stats *stats, const char *name);

#endif
