/* SPDX-License-Identifier: Apache-2.0 */
/* histogram.c — the same interpolation as Prometheus' histogram_quantile, so that memctl and a
 * dashboard show the same number. */
#include "clients/memctl/histogram.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Did `now` grow out of `before`? A daemon that was restarted counts from zero again. */
static bool continues(const struct memd_histogram *now, const struct memd_histogram *before)
{
    if (before == NULL || before->bound_count != now->bound_count) return false;
    for (size_t i = 0; i <= now->bound_count; i++) {
        if (before->counts[i] > now->counts[i]) return false;
    }
    return true;
}

/* Samples of bucket `i`, without those of `before` unless that is NULL. */
static uint64_t bucket(const struct memd_histogram *now, const struct memd_histogram *before,
                       size_t i)
{
    return now->counts[i] - (before == NULL ? 0 : before->counts[i]);
}

uint64_t histogram_count(const struct memd_histogram *histogram)
{
    uint64_t count = 0;
    for (size_t i = 0; i <= histogram->bound_count; i++) count += histogram->counts[i];
    return count;
}

double histogram_quantile(const struct memd_histogram *now, const struct memd_histogram *before,
                          double share)
{
    assert(share >= 0.0 && share <= 1.0);
    if (!continues(now, before)) before = NULL;
    uint64_t total = 0;
    for (size_t i = 0; i <= now->bound_count; i++) total += bucket(now, before, i);
    if (total == 0 || now->bound_count == 0) return (double)NAN;
    double rank = share * (double)total, below = 0.0;
    for (size_t i = 0; i < now->bound_count; i++) {
        double count = (double)bucket(now, before, i);
        double low = i == 0 ? 0.0 : now->bounds[i - 1];
        if (count > 0.0 && below + count >= rank) {
            return low + (now->bounds[i] - low) * (rank - below) / count;
        }
        below += count;
    }
    return now->bounds[now->bound_count - 1];
}

const struct memd_histogram *histogram_find(const struct memd_stats *stats, const char *name)
{
    for (size_t i = 0; i < stats->histogram_count; i++) {
        if (strcmp(stats->histograms[i].name, name) == 0) return &stats->histograms[i];
    }
    return NULL;
}
