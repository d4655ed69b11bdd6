/* SPDX-License-Identifier: Apache-2.0 */
/* json.h — write JSON to a stream, value by value, without building a tree.
 *
 *     json_open(json, NULL, '{');
 *     json_text(json, "name", name);
 *     json_close(json);
 *
 * `key` names a member of an object and is NULL for elements of an array and for the outermost
 * value; using the wrong one is an assert. Two spaces of indent per level; empty containers on
 * one line. Strings are written as UTF-8 with control characters escaped; bytes that are not
 * UTF-8 become U+FFFD, so that the output is always JSON. NaN and infinities become null.
 *
 * Memory   none beyond the struct; the stream belongs to the caller.
 * Tests    tests/memctl/test_json.c
 */
#ifndef MEMD_CLIENTS_MEMCTL_JSON_H
#define MEMD_CLIENTS_MEMCTL_JSON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { JSON_DEPTH_MAX = 16 };

struct json {
    FILE *out;
    unsigned depth;                 /* open containers */
    char closers[JSON_DEPTH_MAX];   /* '}' or ']' of each */
    bool filled[JSON_DEPTH_MAX];    /* it has a member already */
};

struct json json_writer(FILE *out);
/* bracket: '{' or '['. */
void json_open(struct json *json, const char *key, char bracket);
void json_close(struct json *json);
void json_text(struct json *json, const char *key, const char *value); /* NULL becomes null */
void json_uint(struct json *json, const char *key, uint64_t value);
void json_int(struct json *json, const char *key, int64_t value);
void json_real(struct json *json, const char *key, double value);
void json_bool(struct json *json, const char *key, bool value);
void json_null(struct json *json, const char *key);

#endif
