/* SPDX-License-Identifier: Apache-2.0 */
/* json.c — separators and indent follow from one stack of open containers, so that callers cannot
 * place a comma wrong. The outermost value ends with a newline: output is one document per
 * invocation, or one per line group for commands that print a sample after the other. */
#include "clients/memctl/json.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>

struct json json_writer(FILE *out)
{
    return (struct json){ .out = out };
}

static void indent(const struct json *json)
{
    fputc('\n', json->out);
    for (unsigned i = 0; i < json->depth; i++) fputs("  ", json->out);
}

/* Bytes of the well-formed UTF-8 sequence at `s` (1 … 4), or 0. Overlong forms, surrogates and
 * values past U+10FFFF are not well-formed. */
static unsigned sequence_bytes(const unsigned char *s)
{
    if (s[0] < 0x80) return 1;
    if (s[0] < 0xC2 || s[0] > 0xF4) return 0;
    unsigned bytes = s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    for (unsigned i = 1; i < bytes; i++) {
        if ((s[i] & 0xC0) != 0x80) return 0;
    }
    if (s[0] == 0xE0 && s[1] < 0xA0) return 0;
    if (s[0] == 0xED && s[1] > 0x9F) return 0;
    if (s[0] == 0xF0 && s[1] < 0x90) return 0;
    if (s[0] == 0xF4 && s[1] > 0x8F) return 0;
    return bytes;
}

static void put_string(FILE *out, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    fputc('"', out);
    while (*s != 0) {
        unsigned bytes = sequence_bytes(s);
        if (bytes == 0) {
            fputs("\\ufffd", out);
            s++;
        } else if (*s == '"' || *s == '\\') {
            fprintf(out, "\\%c", *s++);
        } else if (*s < 0x20 || *s == 0x7F) {
            fprintf(out, "\\u%04x", *s++);
        } else {
            fwrite(s, 1, bytes, out);
            s += bytes;
        }
    }
    fputc('"', out);
}

/* Everything that stands before a value: comma, line, key. */
static void begin_value(struct json *json, const char *key)
{
    bool inside = json->depth > 0;
    assert((key != NULL) == (inside && json->closers[json->depth - 1] == '}'));
    if (!inside) return;
    if (json->filled[json->depth - 1]) fputc(',', json->out);
    json->filled[json->depth - 1] = true;
    indent(json);
    if (key != NULL) {
        put_string(json->out, key);
        fputs(": ", json->out);
    }
}

static void end_value(const struct json *json)
{
    if (json->depth == 0) fputc('\n', json->out);
}

void json_open(struct json *json, const char *key, char bracket)
{
    assert(bracket == '{' || bracket == '[');
    assert(json->depth < JSON_DEPTH_MAX);
    begin_value(json, key);
    fputc(bracket, json->out);
    json->closers[json->depth] = bracket == '{' ? '}' : ']';
    json->filled[json->depth] = false;
    json->depth++;
}

void json_close(struct json *json)
{
    assert(json->depth > 0);
    json->depth--;
    if (json->filled[json->depth]) indent(json);
    fputc(json->closers[json->depth], json->out);
    end_value(json);
}

void json_text(struct json *json, const char *key, const char *value)
{
    if (value == NULL) {
        json_null(json, key);
        return;
    }
    begin_value(json, key);
    put_string(json->out, value);
    end_value(json);
}

void json_uint(struct json *json, const char *key, uint64_t value)
{
    begin_value(json, key);
    fprintf(json->out, "%" PRIu64, value);
    end_value(json);
}

void json_int(struct json *json, const char *key, int64_t value)
{
    begin_value(json, key);
    fprintf(json->out, "%" PRId64, value);
    end_value(json);
}

void json_real(struct json *json, const char *key, double value)
{
    if (!isfinite(value)) {
        json_null(json, key);
        return;
    }
    begin_value(json, key);
    fprintf(json->out, "%.9g", value);
    end_value(json);
}

void json_bool(struct json *json, const char *key, bool value)
{
    begin_value(json, key);
    fputs(value ? "true" : "false", json->out);
    end_value(json);
}

void json_null(struct json *json, const char *key)
{
    begin_value(json, key);
    fputs("null", json->out);
    end_value(json);
}
