/* SPDX-License-Identifier: Apache-2.0 */
/* options.h — the parameters of an index: a table of named numbers with defaults and ranges.
 *
 * Everything that can be set is a number (a switch is 0 or 1), so that one table serves parsing,
 * error texts, help and the benchmark's sweeps. Values come as text because they come from the
 * wire and are stored as text.
 *
 * Threads  pure
 * Errors   MEMD_EINVAL unknown name, not a number, out of range: the text names what is allowed
 * Tests    tests/unit/test_options.c
 */
#ifndef MEMD_INDEX_OPTIONS_H
#define MEMD_INDEX_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

struct error;

enum { OPTIONS_MAX = 16 };

struct option_spec {
    const char *name, *help;
    double fallback, least, most;
    bool whole; /* only whole numbers */
};

struct option_table {
    const char *owner; /* "retrieval-attention", for error texts */
    const struct option_spec *specs;
    size_t count; /* ≤ OPTIONS_MAX */
};

struct option_text {
    const char *name, *value;
};

/* ret_values (table->count): the fallbacks, then what the texts say. */
int options_parse(const struct option_table *table, const struct option_text *texts, size_t count,
                  double *ret_values, struct error *err);

#endif
