/* SPDX-License-Identifier: Apache-2.0 */
/* config.c — a file of `key = value` lines: parsed whole before anything is believed.
 *
 * config_parse takes bytes, not a path, so that the fuzzer needs no files. Every error carries
 * `file:line`, because an operator reads it at three in the morning.
 */
#include "daemon/config.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"

void config_defaults(struct config *ret_config)
{
    struct config config;
    memset(&config, 0,
           sizeof config); /* padding too: configs are compared by their text, but be exact */
    for (size_t i = 0; i < option_count; i++) {
        struct error err = { 0 };
        int rc = option_set(&option_table[i], option_table[i].default_text, &config, &err);
        assert(rc == 0);
    }
    *ret_config = config;
}

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

static void trim(const char **start, const char **end)
{
    while (*start < *end && is_blank(**start)) (*start)++;
    while (*start < *end && is_blank((*end)[-1])) (*end)--;
}

/* One line without its newline; `seen` has one flag per option. */
static int parse_line(const char *start, const char *end, struct config *config, bool *seen,
                      struct error *err)
{
    trim(&start, &end);
    if (start == end || *start == '#') return 0;
    const char *equals = memchr(start, '=', (size_t)(end - start));
    if (equals == NULL) return error_set(err, MEMD_EINVAL, "expected 'key = value'");
    const char *key = start, *key_end = equals, *value = equals + 1;
    trim(&key, &key_end);
    trim(&value, &end);
    size_t key_bytes = (size_t)(key_end - key), value_bytes = (size_t)(end - value);
    const struct option_info *option = option_find(key, key_bytes);
    if (option == NULL)
        return error_set(err, MEMD_EINVAL, "unknown key '%.*s'",
                         key_bytes > 60 ? 60 : (int)key_bytes, key);
    if (seen[option - option_table])
        return error_set(err, MEMD_EINVAL, "key '%s' was given before", option->name);
    seen[option - option_table] = true;
    char text[CONFIG_TEXT_BYTES];
    if (value_bytes >= sizeof text || memchr(value, '\0', value_bytes) != NULL)
        return error_set(err, MEMD_EINVAL, "value of '%s' is too long or holds a zero byte",
                         option->name);
    memcpy(text, value, value_bytes);
    text[value_bytes] = '\0';
    return option_set(option, text, config, err);
}

int config_parse(const char *text, size_t bytes, const char *name, struct config *config,
                 struct error *err)
{
    CLEANUP(free_ptr) bool *seen = calloc(option_count, sizeof *seen);
    if (seen == NULL) return error_set(err, MEMD_ENOMEM, "no memory for the configuration");
    const char *at = text, *end = text + bytes;
    for (unsigned line = 1; at < end; line++) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        if (stop == NULL) stop = end;
        struct error detail = { 0 };
        int rc = parse_line(at, stop, config, seen, &detail);
        if (rc < 0) return error_set(err, rc, "%s:%u: %s", name, line, detail.text);
        at = stop + 1;
    }
    return 0;
}

static void close_file(FILE **file)
{
    if (*file != NULL) fclose(*file);
}

static int parse_file(const char *path, struct config *config, struct error *err)
{
    CLEANUP(close_file) FILE *file = fopen(path, "re");
    if (file == NULL) return error_set(err, MEMD_EIO, "%s: %s", path, strerror(errno));
    CLEANUP(free_ptr) char *text = malloc(CONFIG_FILE_BYTES_MAX);
    if (text == NULL) return error_set(err, MEMD_ENOMEM, "no memory to read %s", path);
    size_t bytes = fread(text, 1, CONFIG_FILE_BYTES_MAX, file);
    if (ferror(file)) return error_set(err, MEMD_EIO, "%s: %s", path, strerror(errno));
    if (bytes == CONFIG_FILE_BYTES_MAX)
        return error_set(err, MEMD_ELIMIT, "%s: more than %d bytes", path, CONFIG_FILE_BYTES_MAX);
    return config_parse(text, bytes, path, config, err);
}

static int check_together(const struct config *config, struct error *err)
{
    if (config->listen[0] != '\0' && config->token_file[0] == '\0')
        return error_set(err, MEMD_EINVAL,
                         "listen = %s needs a token_file: TCP is never open to all",
                         config->listen);
    if (config->listen[0] != '\0' && strrchr(config->listen, ':') == NULL)
        return error_set(err, MEMD_EINVAL, "listen = %s is not HOST:PORT", config->listen);
    if (config->socket[0] == '\0' && config->listen[0] == '\0')
        return error_set(err, MEMD_EINVAL,
                         "neither socket nor listen is set: nobody could connect");
    if (strcmp(config->backend, "auto") != 0 && strcmp(config->backend, "cpu") != 0)
        return error_set(err, MEMD_EINVAL, "backend = '%.60s' is none of auto, cpu",
                         config->backend);
    return 0;
}

int config_load(const char *path, const struct config_override *overrides, size_t override_count,
                struct config *ret_config, struct error *err)
{
    struct config config;
    config_defaults(&config);
    int rc = path == NULL ? 0 : parse_file(path, &config, err);
    for (size_t i = 0; rc == 0 && i < override_count; i++) {
        struct error detail = { 0 };
        rc = option_set(overrides[i].option, overrides[i].value, &config, &detail);
        if (rc < 0) error_set(err, rc, "command line: %s", detail.text);
    }
    if (rc == 0) rc = check_together(&config, err);
    if (rc == 0) *ret_config = config;
    return rc;
}
