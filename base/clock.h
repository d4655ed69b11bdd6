/* SPDX-License-Identifier: Apache-2.0 */
/* clock.h — the two clocks: monotonic for durations and deadlines, real for what people read. */
#ifndef MEMD_BASE_CLOCK_H
#define MEMD_BASE_CLOCK_H

#include <stdint.h>

uint64_t clock_monotonic_ns(void);

/* Nanoseconds since 1970, UTC. */
uint64_t clock_real_ns(void);

#endif
