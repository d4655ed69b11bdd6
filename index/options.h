/* SPDX-License-Identifier: Apache-2.0 */
/* options.h — the parameters of a method: a table of named values with types, defaults and ranges.
 *
 * A parameter is a real number, a whole number (a switch is 0 or 1) or one of some names. All are
 * doubles once parsed, a name by its place among the choices, so that one table serves parsing,
 * error texts, help and the benchmark's sweeps. Values come as text because they come from the
 * wire and are stored as text: choices may be put in another order later, their names stay.
 *
 * Threads  pure
 * Errors   MEMD_EINVAL unknown name, not a number, out of range, no such choice: the text names
 *          what is allowed
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
    const char *const *choices; /* (most + 1) the names that may be given; NULL: a number */
};

#define OPTION_REAL(name, help, fallback, least, most) \
    { name, help, fallback, least, most, false, NULL }
#define OPTION_WHOLE(name, help, fallback, least, most) \
    { name, help, fallback, least, most, true, NULL }
/* names: an array of strings; fallback: the place of one of them */
#define OPTION_CHOICE(name, help, fallback, names) \
    { name, help, fallback, 0, (size_t)(sizeof(names) / sizeof((names)[0]) - 1), true, names }

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
