/* SPDX-License-Identifier: Apache-2.0 */
/* test_config.c — values survive printing, bad ones name file, line and reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "daemon/config.h"

static int parse(const char *text, struct config *config, struct error *err)
{
    config_defaults(config);
    *err = (struct error){ 0 };
    return config_parse(text, strlen(text), "memd.conf", config, err);
}

static void refuses(const char *text, const char *reason)
{
    struct config config;
    struct error err;
    int rc = parse(text, &config, &err);
    if (rc >= 0) fail_msg("accepted: %s", text);
    if (strstr(err.text, reason) == NULL) fail_msg("'%s' is not in '%s'", reason, err.text);
}

static void test_defaults_survive_printing(void **state)
{
    (void)state;
    struct config config;
    config_defaults(&config);
    for (size_t i = 0; i < option_count; i++) {
        char text[OPTION_TEXT_BYTES];
        option_print(&option_table[i], &config, text);
        assert_string_equal(text, option_table[i].default_text);
    }
}

static void test_values(void **state)
{
    (void)state;
    struct config config;
    struct error err;
    int rc = parse("# comment\n"
                   "\n"
                   "  data = /srv/a b  \r\n"
                   "map_size=2TiB\n"
                   "budget = 1500\n"
                   "socket_mode = 0600\n"
                   "sync = interval 20ms\n"
                   "drain_timeout = 5min\n"
                   "admin_uids = 7, 8 9\n"
                   "other_role = read\n"
                   "log_level = debug\n"
                   "listen =\n",
                   &config, &err);
    if (rc < 0) fail_msg("%s", err.text);
    assert_string_equal(config.data, "/srv/a b");
    assert_int_equal(config.map_size, UINT64_C(2) << 40);
    assert_int_equal(config.budget, 1500);
    assert_int_equal(config.socket_mode, 0600);
    assert_int_equal(config.sync.mode, SYNC_INTERVAL);
    assert_int_equal(config.sync.interval_ms, 20);
    assert_int_equal(config.drain_timeout, 300000);
    assert_int_equal(config.admin_uids.count, 3);
    assert_int_equal(config.admin_uids.uids[2], 9);
    assert_int_equal(config.other_role, ROLE_READ);
    assert_int_equal(config.log_level, LOG_DEBUG);
    assert_string_equal(config.listen, "");
}

static void test_units(void **state)
{
    (void)state;
    static const struct {
        const char *key, *text, *again;
    } cases[] = {
        { "budget", "0", "0" },
        { "budget", "1024", "1KiB" },
        { "budget", "1025", "1025" },
        { "budget", "4096MiB", "4GiB" },
        { "idle_timeout", "0s", "0" },
        { "idle_timeout", "60000ms", "1min" },
        { "idle_timeout", "90s", "90s" },
        { "idle_timeout", "2 h", "2h" },
        { "workers", "12", "12" },
        { "sync", "interval   1000ms", "interval 1s" },
        { "read_uids", "1,,2", "1 2" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct option_info *option = option_find(cases[i].key, strlen(cases[i].key));
        struct config config;
        struct error err = { 0 };
        char text[OPTION_TEXT_BYTES];
        config_defaults(&config);
        if (option_set(option, cases[i].text, &config, &err) < 0) fail_msg("%s", err.text);
        option_print(option, &config, text);
        assert_string_equal(text, cases[i].again);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    refuses("a = 1\n", "memd.conf:1: unknown key 'a'");
    refuses("\n\nworkers 1\n", "memd.conf:3: expected 'key = value'");
    refuses("workers = 1\nworkers = 1\n", "memd.conf:2: key 'workers' was given before");
    refuses("workers = -1\n", "is not a count");
    refuses("workers = 1.5\n", "is not a count");
    refuses("workers = 1025\n", "is not in 0 … 1024");
    refuses("budget = 1GB\n", "memd.conf:1: budget: '1GB' needs a unit such as");
    refuses("budget = 99999999999999999999\n", "is not a number");
    refuses("budget = 18446744073709551615KiB\n", "is too large");
    refuses("budget = GiB\n", "is not a number");
    refuses("map_size = 1KiB\n", "map_size = 1KiB is not in");
    refuses("drain_timeout = 5\n", "needs a unit such as");
    refuses("socket_mode = 0888\n", "is not an octal mode");
    refuses("socket_mode = 1777\n", "is not in");
    refuses("data =\n", "data is empty");
    refuses("sync = sometimes\n",
            "memd.conf:1: sync: 'sometimes' is none of always, never, interval");
    refuses("sync = interval 0s\n", "sync: interval '0s' is not in 1ms … 24h");
    refuses("sync = interval 5\n", "sync: '5' needs a unit such as");
    refuses("other_role = root\n", "none of none, read, write, admin");
    refuses("log_level = loud\n", "none of debug, info, warn, error");
    refuses("admin_uids = root\n", "admin_uids: 'root' is not a list of user ids");
    refuses("read_uids = 4294967296\n", "read_uids: '4294967296' is not a list of user ids");
    refuses("admin_uids = 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n",
            "admin_uids: more than 16 user ids");
}

static void test_long_values(void **state)
{
    (void)state;
    char line[CONFIG_TEXT_BYTES + 32];
    memset(line, 'x', sizeof line);
    memcpy(line, "data = ", 7);
    line[sizeof line - 1] = '\0';
    refuses(line, "too long");
    struct config config;
    struct error err;
    line[7 + CONFIG_TEXT_BYTES - 1] = '\0';
    if (parse(line, &config, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(strlen(config.data), CONFIG_TEXT_BYTES - 1);
}

static void test_loading(void **state)
{
    (void)state;
    struct config config;
    struct error err = { 0 };
    const struct option_info *socket = option_find("socket", 6), *listen = option_find("listen", 6);
    struct config_override none[] = { { socket, "" } };
    assert_int_equal(config_load(NULL, none, 1, &config, &err), MEMD_EINVAL);
    assert_non_null(strstr(err.text, "nobody could connect"));
    struct config_override open[] = { { listen, "127.0.0.1:1" } };
    assert_int_equal(config_load(NULL, open, 1, &config, &err), MEMD_EINVAL);
    assert_non_null(strstr(err.text, "token_file"));
    assert_int_equal(config_load("/nonexistent", NULL, 0, &config, &err), MEMD_EIO);
    struct config_override good[] = { { socket, "/tmp/x" } };
    assert_int_equal(config_load(NULL, good, 1, &config, &err), 0);
    assert_string_equal(config.socket, "/tmp/x");
}

static void test_every_option_has_a_meaning(void **state)
{
    (void)state;
    for (size_t i = 0; i < option_count; i++) {
        const struct option_info *option = &option_table[i];
        assert_true(strlen(option->meaning) > 10);
        assert_ptr_equal(option_find(option->name, strlen(option->name)), option);
    }
    assert_null(option_find("dat", 3));
    assert_null(option_find("", 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_survive_printing),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_units),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_long_values),
        cmocka_unit_test(test_loading),
        cmocka_unit_test(test_every_option_has_a_meaning),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
