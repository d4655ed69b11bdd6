/* SPDX-License-Identifier: Apache-2.0 */
/* options.c — the table of options and the syntax of their values.
 *
 * Parsing and printing stand next to each other, per type, so that what option_print writes is what
 * option_set reads: tests/unit/test_config.c turns every default around that way.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "daemon/config.h"

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)
#define TIB (1024 * GIB)
#define SECOND UINT64_C(1000)
#define DAY (24 * 3600 * SECOND)

#define FIELD(member) offsetof(struct config, member)

const struct option_info option_table[] = {
    { "data", OPTION_TEXT, FIELD(data), "/var/lib/memd", 1, 0, false,
      "directory of the store; one daemon each" },
    { "socket", OPTION_TEXT, FIELD(socket), "/run/memd/memd.sock", 0, 0, false,
      "path of the Unix socket; empty = none" },
    { "socket_mode", OPTION_MODE, FIELD(socket_mode), "0660", 0, 0777, false,
      "who may open the Unix socket" },
    { "listen", OPTION_TEXT, FIELD(listen), "", 0, 0, false,
      "HOST:PORT for TCP; empty = no TCP; needs token_file" },
    { "token_file", OPTION_TEXT, FIELD(token_file), "", 0, 0, true,
      "lines `TOKEN [read|write|admin]` that TCP clients must show; not readable by others" },
    { "workers", OPTION_COUNT, FIELD(workers), "0", 0, 1024, false,
      "threads that compute; 0 = one per CPU" },
    { "map_size", OPTION_BYTES, FIELD(map_size), "64GiB", 1 * MIB, 64 * TIB, false,
      "most bytes that the store may ever hold (address space, not allocated)" },
    { "budget", OPTION_BYTES, FIELD(budget), "0", 0, 64 * TIB, true,
      "evict least recently used contexts above this many stored bytes; 0 = never" },
    { "tail_memory", OPTION_BYTES, FIELD(tail_memory), "512MiB", 1 * MIB, 64 * TIB, false,
      "memory for tokens that are not sealed yet; appends above are answered MEMD_EBUSY" },
    { "contexts_resident_max", OPTION_COUNT, FIELD(contexts_resident_max), "1024", 1, 1 << 20,
      false, "contexts open in memory at once" },
    { "resident_memory", OPTION_BYTES, FIELD(resident_memory), "4GiB", 1 * MIB, 64 * TIB, false,
      "memory for the open tails of contexts; above it those that rest are put away" },
    { "sync", OPTION_SYNC, FIELD(sync), "interval 1s", 0, 0, true,
      "`always`, `never` or `interval DURATION`: how soon commits reach the disk" },
    { "connections_max", OPTION_COUNT, FIELD(connections_max), "4096", 1, 1 << 20, true,
      "clients at once; more are closed at once" },
    { "requests_in_flight_max", OPTION_COUNT, FIELD(requests_in_flight_max), "64", 1, 65536, true,
      "requests of one connection that are not answered; then its socket is not read" },
    { "memory_in_flight", OPTION_BYTES, FIELD(memory_in_flight), "1GiB", 1 * MIB, 64 * TIB, true,
      "bytes of requests and replies in all; then sockets with large requests are not read" },
    { "request_memory_max", OPTION_BYTES, FIELD(request_memory_max), "512MiB", 64 * KIB, 64 * TIB,
      true, "bytes that one request may use besides its own frame; more is MEMD_ENOMEM" },
    { "output_buffer_max", OPTION_BYTES, FIELD(output_buffer_max), "16MiB", 4 * KIB, 64 * TIB, true,
      "bytes of replies a connection may leave unread; then its socket is not read" },
    { "shared_memory", OPTION_BYTES, FIELD(shared_memory), "4GiB", 0, 64 * TIB, true,
      "bytes of memory that clients may share with the daemon, in all; 0 = none" },
    { "idle_timeout", OPTION_DURATION, FIELD(idle_timeout), "0", 0, DAY, true,
      "close a connection that asks nothing for so long; 0 = never" },
    { "frame_timeout", OPTION_DURATION, FIELD(frame_timeout), "10s", 10, DAY, true,
      "a begun frame must arrive within this and 1 s for each MiB" },
    { "write_timeout", OPTION_DURATION, FIELD(write_timeout), "1min", 10, DAY, true,
      "close a connection that reads nothing of its replies for so long" },
    { "default_deadline", OPTION_DURATION, FIELD(default_deadline), "0", 0, DAY, true,
      "deadline of requests that name none; 0 = none" },
    { "drain_timeout", OPTION_DURATION, FIELD(drain_timeout), "20s", 0, DAY, true,
      "time that SIGTERM gives running requests before they are cancelled" },
    { "other_role", OPTION_ROLE, FIELD(other_role), "write", 0, 0, true,
      "`none`, `read`, `write` or `admin`: local users besides root and the daemon's own" },
    { "admin_uids", OPTION_UIDS, FIELD(admin_uids), "", 0, 0, true,
      "user ids with role admin, besides root and the daemon's own" },
    { "read_uids", OPTION_UIDS, FIELD(read_uids), "", 0, 0, true, "user ids that may only read" },
    { "backend", OPTION_TEXT, FIELD(backend), "cpu", 1, 0, true,
      "`auto`: a device where there is one (code that has not run on a GPU yet); `cpu`: never" },
    { "accelerator", OPTION_TEXT, FIELD(accelerator), "auto", 0, 0, false,
      "plugin for a device: a path, `auto` = the installed one, empty = none" },
    { "device_memory", OPTION_BYTES, FIELD(device_memory), "2GiB", 1 * MIB, 64 * TIB, false,
      "memory of the device for the newest tokens of contexts" },
    { "device_window", OPTION_COUNT, FIELD(device_window), "8192", 64, 1 << 24, false,
      "newest tokens of a layer that are kept on the device, besides the first 4" },
    { "device_planes", OPTION_BYTES, FIELD(device_planes), "2GiB", 0, 64 * TIB, false,
      "memory of the device for planes of sealed segments; 0 = they stay with the CPU" },
    { "log_level", OPTION_LEVEL, FIELD(log_level), "info", 0, 0, true,
      "`debug`, `info`, `warn` or `error`" },
};
const size_t option_count = sizeof option_table / sizeof option_table[0];

const struct option_info *option_find(const char *name, size_t bytes)
{
    for (size_t i = 0; i < option_count; i++)
        if (strlen(option_table[i].name) == bytes && memcmp(option_table[i].name, name, bytes) == 0)
            return &option_table[i];
    return NULL;
}

static const char *const role_names[] = {
    [ROLE_NONE] = "none", [ROLE_READ] = "read", [ROLE_WRITE] = "write", [ROLE_ADMIN] = "admin"
};

int config_role_parse(const char *text)
{
    for (int i = 0; i <= (int)ROLE_ADMIN; i++)
        if (strcmp(role_names[i], text) == 0) return i;
    return -1;
}

const char *config_role_name(enum role role)
{
    assert(role <= ROLE_ADMIN);
    return role_names[role];
}

struct unit {
    const char *name;
    uint64_t factor;
};
/* The largest unit that divides a value is how it is printed; order matters. */
static const struct unit byte_units[] = { { "TiB", TIB }, { "GiB", GIB }, { "MiB", MIB },
                                          { "KiB", KIB }, { "", 1 } };
static const struct unit time_units[] = { { "h", 3600 * SECOND }, { "min", 60 * SECOND },
                                          { "s", SECOND }, { "ms", 1 } };
static const struct unit no_units[] = { { "", 1 } };
enum { BYTE_UNITS = 5, TIME_UNITS = 4 };

static int parse_number(const char *text, const struct unit *units, size_t unit_count,
                        uint64_t *ret_value, struct error *err)
{
    char *end = NULL;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || errno != 0)
        return error_set(err, MEMD_EINVAL, "'%.60s' is not a number", text);
    while (*end == ' ') end++;
    for (size_t i = 0; i < unit_count; i++) {
        if (strcmp(end, units[i].name) != 0 && !(number == 0 && *end == '\0')) continue;
        uint64_t value = 0;
        if (__builtin_mul_overflow(number, units[i].factor, &value))
            return error_set(err, MEMD_EINVAL, "'%.60s' is too large", text);
        *ret_value = value;
        return 0;
    }
    return error_set(err, MEMD_EINVAL, "'%.60s' needs a unit such as '%s' or '%s'", text,
                     units[0].name, units[unit_count / 2].name);
}

static int parse_count(const char *text, uint64_t *ret_value, struct error *err)
{
    uint64_t value = 0;
    int rc = parse_number(text, no_units, 1, &value, NULL);
    if (rc < 0) return error_set(err, MEMD_EINVAL, "'%.60s' is not a count", text);
    *ret_value = value;
    return 0;
}

static int parse_mode(const char *text, uint64_t *ret_value, struct error *err)
{
    size_t digits = strspn(text, "01234567");
    if (digits == 0 || digits > 5 || text[digits] != '\0')
        return error_set(err, MEMD_EINVAL, "'%.60s' is not an octal mode such as 0660", text);
    *ret_value = strtoull(text, NULL, 8);
    return 0;
}

static int parse_sync(const char *text, struct sync_choice *ret_sync, struct error *err)
{
    struct sync_choice sync = { .mode = SYNC_INTERVAL, .interval_ms = 1000 };
    if (strcmp(text, "always") == 0) {
        sync.mode = SYNC_ALWAYS;
    } else if (strcmp(text, "never") == 0) {
        sync.mode = SYNC_NEVER;
    } else if (strncmp(text, "interval ", 9) == 0) {
        const char *duration = text + 9 + strspn(text + 9, " ");
        int rc = parse_number(duration, time_units, TIME_UNITS, &sync.interval_ms, err);
        if (rc < 0) return rc;
        if (sync.interval_ms < 1 || sync.interval_ms > DAY)
            return error_set(err, MEMD_EINVAL, "interval '%.60s' is not in 1ms … 24h", duration);
    } else {
        return error_set(err, MEMD_EINVAL, "'%.60s' is none of always, never, interval DURATION",
                         text);
    }
    *ret_sync = sync;
    return 0;
}

static int parse_uids(const char *text, struct uid_list *ret_uids, struct error *err)
{
    struct uid_list list = { 0 };
    const char *at = text + strspn(text, " ,");
    while (*at != '\0') {
        char *end = NULL;
        errno = 0;
        unsigned long long uid = strtoull(at, &end, 10);
        bool number = *at >= '0' && *at <= '9' && errno == 0 && uid <= UINT32_MAX;
        if (!number || (*end != '\0' && strchr(" ,", *end) == NULL))
            return error_set(err, MEMD_EINVAL, "'%.60s' is not a list of user ids", text);
        if (list.count == CONFIG_UIDS_MAX)
            return error_set(err, MEMD_EINVAL, "more than %d user ids", CONFIG_UIDS_MAX);
        list.uids[list.count++] = (uint32_t)uid;
        at = end + strspn(end, " ,");
    }
    *ret_uids = list;
    return 0;
}

static int set_text(const struct option_info *option, const char *value, char *field,
                    struct error *err)
{
    size_t bytes = strlen(value);
    if (bytes >= CONFIG_TEXT_BYTES)
        return error_set(err, MEMD_EINVAL, "%s has %zu bytes, limit %d", option->name, bytes,
                         CONFIG_TEXT_BYTES - 1);
    if (bytes < option->min) return error_set(err, MEMD_EINVAL, "%s is empty", option->name);
    memcpy(field, value, bytes + 1);
    return 0;
}

/* What is wrong with a value does not know whose it is. */
static int of_option(const struct option_info *option, const struct error *detail,
                     struct error *err)
{
    if (detail->code == 0) return 0;
    return error_set(err, detail->code, "%s: %s", option->name, detail->text);
}

static int set_number(const struct option_info *option, const char *value, uint64_t *field,
                      struct error *err)
{
    struct error detail = { 0 };
    uint64_t number = 0;
    int rc = 0;
    if (option->type == OPTION_BYTES)
        rc = parse_number(value, byte_units, BYTE_UNITS, &number, &detail);
    else if (option->type == OPTION_DURATION)
        rc = parse_number(value, time_units, TIME_UNITS, &number, &detail);
    else if (option->type == OPTION_MODE)
        rc = parse_mode(value, &number, &detail);
    else
        rc = parse_count(value, &number, &detail);
    if (rc < 0) return of_option(option, &detail, err);
    if (number < option->min || number > option->max)
        return error_set(err, MEMD_EINVAL, "%s = %.60s is not in %" PRIu64 " … %" PRIu64,
                         option->name, value, option->min, option->max);
    *field = number;
    return 0;
}

int option_set(const struct option_info *option, const char *value, struct config *config,
               struct error *err)
{
    void *field = (char *)config + option->offset;
    struct error detail = { 0 };
    int choice = 0;
    switch (option->type) {
    case OPTION_TEXT: return set_text(option, value, field, err);
    case OPTION_COUNT:
    case OPTION_BYTES:
    case OPTION_DURATION:
    case OPTION_MODE: return set_number(option, value, field, err);
    case OPTION_SYNC: parse_sync(value, field, &detail); return of_option(option, &detail, err);
    case OPTION_UIDS: parse_uids(value, field, &detail); return of_option(option, &detail, err);
    case OPTION_ROLE:
        choice = config_role_parse(value);
        if (choice < 0) break;
        *(enum role *)field = (enum role)choice;
        return 0;
    case OPTION_LEVEL:
        choice = log_level_parse(value);
        if (choice < 0) break;
        *(enum log_level *)field = (enum log_level)choice;
        return 0;
    }
    return error_set(err, MEMD_EINVAL, "%s = '%.60s' is none of %s", option->name, value,
                     option->type == OPTION_ROLE ? "none, read, write, admin"
                                                 : "debug, info, warn, error");
}

static void print_number(uint64_t value, const struct unit *units, size_t unit_count,
                         char ret_text[OPTION_TEXT_BYTES])
{
    size_t i = 0;
    while (i < unit_count - 1 && value % units[i].factor != 0) i++;
    snprintf(ret_text, OPTION_TEXT_BYTES, "%" PRIu64 "%s", value / units[i].factor,
             value == 0 ? "" : units[i].name);
}

static void print_sync(const struct sync_choice *sync, char ret_text[OPTION_TEXT_BYTES])
{
    char interval[OPTION_TEXT_BYTES] = "";
    print_number(sync->interval_ms, time_units, TIME_UNITS, interval);
    if (sync->mode == SYNC_INTERVAL)
        snprintf(ret_text, OPTION_TEXT_BYTES, "interval %.64s", interval);
    else
        snprintf(ret_text, OPTION_TEXT_BYTES, "%s", sync->mode == SYNC_ALWAYS ? "always" : "never");
}

static void print_uids(const struct uid_list *list, char ret_text[OPTION_TEXT_BYTES])
{
    size_t used = 0;
    ret_text[0] = '\0';
    for (size_t i = 0; i < list->count; i++)
        used += (size_t)snprintf(ret_text + used, OPTION_TEXT_BYTES - used, "%s%" PRIu32,
                                 i > 0 ? " " : "", list->uids[i]);
    assert(used < OPTION_TEXT_BYTES);
}

static const char *level_name(enum log_level level)
{
    static const char *const names[] = {
        [LOG_DEBUG] = "debug", [LOG_INFO] = "info", [LOG_WARN] = "warn", [LOG_ERROR] = "error"
    };
    return names[level];
}

void option_print(const struct option_info *option, const struct config *config,
                  char ret_text[OPTION_TEXT_BYTES])
{
    const void *field = (const char *)config + option->offset;
    switch (option->type) {
    case OPTION_TEXT: snprintf(ret_text, OPTION_TEXT_BYTES, "%s", (const char *)field); break;
    case OPTION_COUNT: print_number(*(const uint64_t *)field, no_units, 1, ret_text); break;
    case OPTION_BYTES:
        print_number(*(const uint64_t *)field, byte_units, BYTE_UNITS, ret_text);
        break;
    case OPTION_DURATION:
        print_number(*(const uint64_t *)field, time_units, TIME_UNITS, ret_text);
        break;
    case OPTION_MODE:
        snprintf(ret_text, OPTION_TEXT_BYTES, "%04" PRIo64, *(const uint64_t *)field);
        break;
    case OPTION_SYNC: print_sync(field, ret_text); break;
    case OPTION_UIDS: print_uids(field, ret_text); break;
    case OPTION_ROLE:
        snprintf(ret_text, OPTION_TEXT_BYTES, "%s", config_role_name(*(const enum role *)field));
        break;
    case OPTION_LEVEL:
        snprintf(ret_text, OPTION_TEXT_BYTES, "%s", level_name(*(const enum log_level *)field));
        break;
    }
}
