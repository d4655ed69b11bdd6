/* SPDX-License-Identifier: Apache-2.0 */
/* test_identity.c — who is let in, and above all who is not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "daemon/config.h"
#include "daemon/identity.h"

static int load(const char *text, mode_t mode, struct identity *ret_identity, struct error *err)
{
    char path[] = "/tmp/memd-test-tokens-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
    *err = (struct error){ 0 };
    int rc = identity_load(path, ret_identity, err);
    unlink(path);
    return rc;
}

static void test_tokens(void **state)
{
    (void)state;
    struct identity identity;
    struct error err;
    int rc = load("# two, for a change of keys\n\n"
                  "aaaaaaaaaaaaaaaa\n"
                  "  bbbbbbbbbbbbbbbbb \tread\n"
                  "cccccccccccccccc admin",
                  0640, &identity, &err);
    if (rc < 0) fail_msg("%s", err.text);
    assert_int_equal(identity.token_count, 3);
    assert_int_equal(identity_of_token(&identity, "aaaaaaaaaaaaaaaa"), ROLE_WRITE);
    assert_int_equal(identity_of_token(&identity, "bbbbbbbbbbbbbbbbb"), ROLE_READ);
    assert_int_equal(identity_of_token(&identity, "cccccccccccccccc"), ROLE_ADMIN);
    static const char *const wrong[] = { "", "a", "aaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaaa",
                                         "aaaaaaaaaaaaaaab", "#", "bbbbbbbbbbbbbbbbb read" };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        if (identity_of_token(&identity, wrong[i]) != ROLE_NONE) fail_msg("'%s' passed", wrong[i]);
    char longest[IDENTITY_TOKEN_BYTES_MAX + 2];
    memset(longest, 'a', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    assert_int_equal(identity_of_token(&identity, longest), ROLE_NONE);
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *text, *reason;
        mode_t mode;
        int code;
    } cases[] = {
        { "", "holds no token", 0600, MEMD_EINVAL },
        { "# nothing\n", "holds no token", 0600, MEMD_EINVAL },
        { "short\n", ":1: token of 5 bytes", 0600, MEMD_EINVAL },
        { "\naaaaaaaaaaaaaaaa none\n", ":2: expected 'TOKEN", 0600, MEMD_EINVAL },
        { "aaaaaaaaaaaaaaaa read more\n", ":1: expected 'TOKEN", 0600, MEMD_EINVAL },
        { "aaaaaaaaaaaaaaaa\n", "lets everybody read it", 0604, MEMD_EIO },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct identity identity;
        struct error err;
        assert_int_equal(load(cases[i].text, cases[i].mode, &identity, &err), cases[i].code);
        if (strstr(err.text, cases[i].reason) == NULL) fail_msg("case %zu: %s", i, err.text);
    }
    struct identity identity;
    struct error err = { 0 };
    assert_int_equal(identity_load("/nonexistent/file", &identity, &err), MEMD_EIO);
    assert_int_equal(identity_load("", &identity, &err), 0);
    assert_int_equal(identity.token_count, 0);
    assert_int_equal(identity_of_token(&identity, ""), ROLE_NONE);
}

static void test_many_tokens(void **state)
{
    (void)state;
    char text[17 * (IDENTITY_TOKENS_MAX + 1) + 1] = "";
    for (size_t i = 0; i <= IDENTITY_TOKENS_MAX; i++)
        memcpy(text + 17 * i, "aaaaaaaaaaaaaaaa\n", 17);
    struct identity identity;
    struct error err;
    assert_int_equal(load(text, 0600, &identity, &err), MEMD_EINVAL);
    assert_non_null(strstr(err.text, "more than 16 tokens"));
}

static void test_uids(void **state)
{
    (void)state;
    struct config config;
    config_defaults(&config);
    config.other_role = ROLE_WRITE;
    config.admin_uids = (struct uid_list){ .count = 2, .uids = { 70001, 70002 } };
    config.read_uids = (struct uid_list){ .count = 2, .uids = { 70003, 70001 } };
    assert_int_equal(identity_of_uid(&config, 0), ROLE_ADMIN);
    assert_int_equal(identity_of_uid(&config, (uint32_t)geteuid()), ROLE_ADMIN);
    assert_int_equal(identity_of_uid(&config, 70001), ROLE_ADMIN);
    assert_int_equal(identity_of_uid(&config, 70003), ROLE_READ);
    assert_int_equal(identity_of_uid(&config, 70004), ROLE_WRITE);
    config.other_role = ROLE_NONE;
    assert_int_equal(identity_of_uid(&config, 70004), ROLE_NONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_many_tokens),
        cmocka_unit_test(test_uids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
