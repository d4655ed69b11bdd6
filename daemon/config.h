/* SPDX-License-Identifier: Apache-2.0 */
/* config.h — what an operator may decide, declared once.
 *
 * One table (options.c) holds every option: name, type, default, range, whether SIGHUP may change
 * it, meaning. The file parser, the command line (`map_size` in the file is `--map-size` there),
 * `--help`, memd.conf.example and the report of a reload are all made from it.
 *
 * The file is `key = value` lines; `#` starts a comment at the beginning of a line; unknown keys,
 * keys given twice and bad values are errors that name file and line. Values: sizes `4096`,
 * `64KiB`, `2GiB`; durations `500ms`, `10s`, `5min`; modes octal.
 *
 * Memory   plain data without pointers: a config is copied by assignment
 * Threads  immutable after config_load; the loop replaces its copy on SIGHUP
 * Errors   MEMD_EINVAL bad key or value · MEMD_EIO file cannot be read · MEMD_ELIMIT too long
 * Tests    tests/unit/test_config.c, tests/fuzz/fuzz_config.c
 */
#ifndef MEMD_DAEMON_CONFIG_H
#define MEMD_DAEMON_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/log.h"
#include "memory/catalog.h"
#include "proto/method.h"

struct error;

enum { CONFIG_TEXT_BYTES = 512, CONFIG_UIDS_MAX = 16, CONFIG_FILE_BYTES_MAX = 1 << 20 };

struct sync_choice {
    enum sync_mode mode;
    uint64_t interval_ms; /* SYNC_INTERVAL */
};

struct uid_list {
    size_t count;
    uint32_t uids[CONFIG_UIDS_MAX];
};

struct config {
    char data[CONFIG_TEXT_BYTES];
    char socket[CONFIG_TEXT_BYTES]; /* "" = none */
    uint64_t socket_mode;
    char listen[CONFIG_TEXT_BYTES]; /* "HOST:PORT", "" = no TCP */
    char token_file[CONFIG_TEXT_BYTES];
    uint64_t workers; /* 0 = one per CPU */
    uint64_t map_size, budget, tail_memory;
    uint64_t contexts_resident_max;
    uint64_t resident_memory;
    struct sync_choice sync;
    uint64_t connections_max, requests_in_flight_max;
    uint64_t memory_in_flight, request_memory_max, output_buffer_max;
    uint64_t shared_memory;                              /* 0: clients share none */
    uint64_t idle_timeout, frame_timeout, write_timeout; /* ms; idle 0 = never */
    uint64_t default_deadline;                           /* ms, 0 = none */
    uint64_t drain_timeout;                              /* ms */
    enum role other_role;
    struct uid_list admin_uids, read_uids;
    char backend[CONFIG_TEXT_BYTES];     /* "auto", "cpu" */
    char accelerator[CONFIG_TEXT_BYTES]; /* "auto", a path, "" = none */
    uint64_t device_memory, device_window, device_planes;
    enum log_level log_level;
};

enum option_type {
    OPTION_TEXT,
    OPTION_COUNT,
    OPTION_BYTES,
    OPTION_DURATION,
    OPTION_MODE,
    OPTION_SYNC,
    OPTION_ROLE,
    OPTION_UIDS,
    OPTION_LEVEL,
};

struct option_info {
    const char *name;
    enum option_type type;
    size_t offset; /* in struct config */
    const char *default_text;
    uint64_t min, max;
    bool reload; /* takes effect on SIGHUP */
    const char *meaning;
};

enum { OPTION_TEXT_BYTES = CONFIG_TEXT_BYTES };

extern const struct option_info option_table[];
extern const size_t option_count;

/* NULL when there is no such key. */
const struct option_info *option_find(const char *name, size_t bytes);

/* Parse `value` into the option's field. The text of err has no file or line yet. */
int option_set(const struct option_info *option, const char *value, struct config *config,
               struct error *err);

/* The value in force, in the syntax of the file. */
void option_print(const struct option_info *option, const struct config *config,
                  char ret_text[OPTION_TEXT_BYTES]);

/* A value from the command line: stronger than the file. */
struct config_override {
    const struct option_info *option;
    const char *value;
};

void config_defaults(struct config *ret_config);

/* Apply the lines of a file's text to *config. `name` is the file's, for error texts. On failure
 * *config is half changed: the caller throws it away. */
int config_parse(const char *text, size_t bytes, const char *name, struct config *config,
                 struct error *err);

/* Defaults, then the file (when path is not NULL), then the overrides, then checks that span
 * options. */
int config_load(const char *path, const struct config_override *overrides, size_t override_count,
                struct config *ret_config, struct error *err);

/* "read", "write", "admin", "none" → role; -1 otherwise. */
int config_role_parse(const char *text);
const char *config_role_name(enum role role);

#endif
