/* SPDX-License-Identifier: Apache-2.0 */
/* methods.h — memory methods: which of the stored tokens a query reads.
 *
 * A method is one file in this folder and one line in methods.c. It never touches storage or
 * arithmetic: it is given what the layer holds, as views, and answers with the plan that attend
 * executes. To add one see docs/HACKING.md.
 *
 * Threads  any worker, concurrently; a method keeps nothing between calls
 * Errors   MEMD_EINVAL parameters · MEMD_ENOMEM
 * Tests    tests/unit/test_catalog.c
 */
#ifndef MEMD_MEMORY_METHODS_H
#define MEMD_MEMORY_METHODS_H

#include <stdbool.h>
#include <stddef.h>

struct arena;
struct error;
struct parameter;
struct query;
struct snapshot;
struct view;

struct plan {
    const struct view *views; /* (G, view_count) */
    size_t view_count;
    bool exact; /* every token below the limits is among them */
};

struct method {
    const char *name;
    /* Are these the parameters of this method, and in range? */
    int (*check)(const struct parameter *parameters, size_t count, struct error *err);
    int (*plan)(const struct snapshot *snapshot, const struct query *query, struct arena *arena,
                struct plan *ret_plan, struct error *err);
};

extern const struct method method_full;

/* NULL when there is no such method. */
const struct method *method_find(const char *name);

#endif
