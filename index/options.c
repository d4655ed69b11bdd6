/* SPDX-License-Identifier: Apache-2.0 */
/* options.c — one pass over the texts; every refusal names what would have been accepted.
 *
 * A number is plain decimal, with or without fraction and exponent. strtod alone would also take
 * blanks, hexadecimal, "inf" and "nan": a stranger's text has to look like what a human would
 * write. A name that comes twice is refused instead of one of the two being dropped silently.
 */
#include "index/options.h"

#include <assert.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

static void check_table(const struct option_table *table)
{
    assert(table->count <= OPTIONS_MAX);
    for (size_t i = 0; i < table->count; i++) {
        const struct option_spec *spec = &table->specs[i];
        assert(spec->least <= spec->fallback && spec->fallback <= spec->most);
    }
}

static const struct option_spec *find(const struct option_table *table, const char *name)
{
    for (size_t i = 0; i < table->count; i++)
        if (strcmp(table->specs[i].name, name) == 0) return &table->specs[i];
    return NULL;
}

/* Append " word" to a sentence as long as there is room. */
static void add_word(char text[static ERROR_TEXT_BYTES], size_t *used, const char *word)
{
    size_t bytes = strlen(word);
    if (*used + bytes + 2 > ERROR_TEXT_BYTES) return;
    text[(*used)++] = ' ';
    memcpy(text + *used, word, bytes + 1);
    *used += bytes;
}

static int unknown(const struct option_table *table, const char *name, struct error *err)
{
    char known[ERROR_TEXT_BYTES] = "";
    size_t used = 0;
    for (size_t i = 0; i < table->count; i++) add_word(known, &used, table->specs[i].name);
    return error_set(err, MEMD_EINVAL, "%s has no option \"%.40s\"; it has%s", table->owner, name,
                     used == 0 ? " none" : known);
}

static int parse_number(const struct option_table *table, const struct option_spec *spec,
                        const char *text, double *ret_value, struct error *err)
{
    char *end = NULL;
    bool plain = text[0] != '\0' && strspn(text, "0123456789.eE+-") == strlen(text);
    double value = plain ? strtod(text, &end) : 0.0;
    if (!plain || *end != '\0')
        return error_set(err, MEMD_EINVAL, "%s: %s is \"%.40s\", which is not a number",
                         table->owner, spec->name, text);
    if (!(value >= spec->least && value <= spec->most))
        return error_set(err, MEMD_EINVAL, "%s: %s is %.40s, allowed is %.9g to %.9g", table->owner,
                         spec->name, text, spec->least, spec->most);
    if (spec->whole && value != floor(value))
        return error_set(err, MEMD_EINVAL, "%s: %s is %.40s, allowed are whole numbers from %.9g "
                         "to %.9g", table->owner, spec->name, text, spec->least, spec->most);
    *ret_value = value;
    return 0;
}

static int parse_choice(const struct option_table *table, const struct option_spec *spec,
                        const char *text, double *ret_value, struct error *err)
{
    char known[ERROR_TEXT_BYTES] = "";
    size_t used = 0;
    for (size_t i = 0; i <= (size_t)spec->most; i++) {
        if (strcmp(spec->choices[i], text) == 0) {
            *ret_value = (double)i;
            return 0;
        }
        add_word(known, &used, spec->choices[i]);
    }
    return error_set(err, MEMD_EINVAL, "%s: %s is \"%.40s\", allowed is one of%s", table->owner,
                     spec->name, text, known);
}

int options_parse(const struct option_table *table, const struct option_text *texts, size_t count,
                  double *ret_values, struct error *err)
{
    check_table(table);
    double values[OPTIONS_MAX];
    uint32_t given = 0;
    for (size_t i = 0; i < table->count; i++) values[i] = table->specs[i].fallback;
    for (size_t i = 0; i < count; i++) {
        const struct option_spec *spec = find(table, texts[i].name);
        if (spec == NULL) return unknown(table, texts[i].name, err);
        size_t at = (size_t)(spec - table->specs);
        if ((given >> at & 1) != 0)
            return error_set(err, MEMD_EINVAL, "%s: %s is given twice", table->owner, spec->name);
        given |= UINT32_C(1) << at;
        int rc = spec->choices != NULL
                     ? parse_choice(table, spec, texts[i].value, &values[at], err)
                     : parse_number(table, spec, texts[i].value, &values[at], err);
        if (rc < 0) return rc;
    }
    for (size_t i = 0; i < table->count; i++) ret_values[i] = values[i];
    return 0;
}
