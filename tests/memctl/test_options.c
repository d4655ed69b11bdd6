/* SPDX-License-Identifier: Apache-2.0 */
/* test_options.c — every form of the command line that is taken, and those that are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "clients/memctl/commands.h"
#include "clients/memctl/options.h"

enum { WORDS_MAX = 8 };

/* Parse words ended by NULL. */
static bool parse(struct options *options, char *text, const char *const words[WORDS_MAX])
{
    char *argv[WORDS_MAX];
    size_t count = 0;
    for (; words[count] != NULL; count++) argv[count] = (char *)(uintptr_t)words[count];
    return options_parse(count, argv, options, text, 128);
}

static void test_forms(void **state)
{
    (void)state;
    struct options options;
    char text[128] = "";
    const char *const forms[][WORDS_MAX] = {
        { "-s", "/s", "drop", "-f", "a", "b" },
        { "drop", "a", "--socket=/s", "b", "--force" },
        { "drop", "-fs/s", "a", "b" },
        { "drop", "--force", "--socket", "/s", "--", "a", "b" },
        { "drop", "-s", "/s", "-f", "a", "--", "b" },
    };
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        if (!parse(&options, text, forms[i])) fail_msg("form %zu: %s", i, text);
        assert_string_equal(options.command->name, "drop");
        assert_string_equal(options_global_value(&options, "socket"), "/s");
        assert_string_equal(options_value(&options, "force"), "");
        assert_null(options_global_value(&options, "json"));
        assert_int_equal(options.argument_count, 2);
        assert_string_equal(options.arguments[0], "a");
        assert_string_equal(options.arguments[1], "b");
    }
}

static void test_after_dashes(void **state)
{
    (void)state;
    struct options options;
    char text[128] = "";
    const char *const words[WORDS_MAX] = { "drop", "--", "--force", "-" };
    assert_true(parse(&options, text, words));
    assert_null(options_value(&options, "force"));
    assert_int_equal(options.argument_count, 2);
    assert_string_equal(options.arguments[0], "--force");
}

static void test_refused(void **state)
{
    (void)state;
    const struct {
        const char *words[WORDS_MAX];
        const char *text;
    } cases[] = {
        { { "nonsense" }, "no command 'nonsense'" },
        { { "--nonsense" }, "no option '--nonsense'" },
        { { "-x" }, "no option '-x'" },
        { { "--force", "drop", "a" }, "no option '--force'" },
        { { "drop", "--forc", "a" }, "no option '--forc'" },
        { { "status", "--json=yes" }, "no argument is taken by option '--json'" },
        { { "status", "--socket" }, "option '--socket' needs an argument: ADDRESS" },
        { { "status", "-s" }, "option '--socket' needs an argument: ADDRESS" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct options options;
        char text[128] = "";
        assert_false(parse(&options, text, cases[i].words));
        assert_string_equal(text, cases[i].text);
    }
}

static void test_table_is_sound(void **state)
{
    (void)state;
    for (const struct command *command = commands; command->name != NULL; command++) {
        assert_ptr_equal(commands_find(command->name), command);
        assert_non_null(command->run);
        assert_true(command->arguments_min <= command->arguments_max);
        assert_true(strlen(command->summary) <= 70);
        for (const struct option *own = command->options; own != NULL && own->name != NULL; own++) {
            for (const struct option *option = options_global; option->name != NULL; option++) {
                assert_string_not_equal(own->name, option->name);
                if (own->letter != 0) assert_int_not_equal(own->letter, option->letter);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forms),
        cmocka_unit_test(test_after_dashes),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_table_is_sound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
