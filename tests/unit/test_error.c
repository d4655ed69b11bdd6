/* SPDX-License-Identifier: Apache-2.0 */
/* test_error.c — the wire values are pinned by hand here: a renumbered code fails, a new one is
 * added. */
#include "base/error.h"

#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static const struct {
    int code, value;
    const char *name;
} pinned[] = {
    { MEMD_EINVAL, -1, "MEMD_EINVAL" },
    { MEMD_ESHAPE, -2, "MEMD_ESHAPE" },
    { MEMD_EPOSITION, -3, "MEMD_EPOSITION" },
    { MEMD_ENONFINITE, -4, "MEMD_ENONFINITE" },
    { MEMD_ENOCONTEXT, -5, "MEMD_ENOCONTEXT" },
    { MEMD_EEXIST, -6, "MEMD_EEXIST" },
    { MEMD_EMISMATCH, -7, "MEMD_EMISMATCH" },
    { MEMD_ENOROW, -8, "MEMD_ENOROW" },
    { MEMD_EPROTO, -9, "MEMD_EPROTO" },
    { MEMD_EVERSION, -10, "MEMD_EVERSION" },
    { MEMD_EUNSUPPORTED, -11, "MEMD_EUNSUPPORTED" },
    { MEMD_EPERM, -12, "MEMD_EPERM" },
    { MEMD_EBUSY, -13, "MEMD_EBUSY" },
    { MEMD_ELIMIT, -14, "MEMD_ELIMIT" },
    { MEMD_EFULL, -15, "MEMD_EFULL" },
    { MEMD_ENOMEM, -16, "MEMD_ENOMEM" },
    { MEMD_EIO, -17, "MEMD_EIO" },
    { MEMD_ECORRUPT, -18, "MEMD_ECORRUPT" },
    { MEMD_EDEADLINE, -19, "MEMD_EDEADLINE" },
    { MEMD_ECANCELLED, -20, "MEMD_ECANCELLED" },
    { MEMD_EDRAINING, -21, "MEMD_EDRAINING" },
    { MEMD_ECLOSED, -22, "MEMD_ECLOSED" },
    { MEMD_ELOCKED, -23, "MEMD_ELOCKED" },
    { MEMD_EDEVICE, -24, "MEMD_EDEVICE" },
};

static void values_and_names_are_pinned(void **state)
{
    (void)state;
    size_t count = 0;
#define X(name, value, text) count++;
    ERROR_MAP(X)
#undef X
    assert_int_equal(count, sizeof pinned / sizeof pinned[0]);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(pinned[i].code, pinned[i].value);
        assert_string_equal(error_name(pinned[i].code), pinned[i].name);
        assert_true(strlen(error_text(pinned[i].code)) > 3);
    }
}

static void unknown_codes_have_a_name_too(void **state)
{
    (void)state;
    const int strange[] = { 0, 1, -1000, INT_MAX, INT_MIN };
    for (size_t i = 1; i < sizeof strange / sizeof strange[0]; i++) {
        assert_string_equal(error_name(strange[i]), "MEMD_E?");
        assert_string_equal(error_text(strange[i]), "unknown error");
    }
}

static void the_text_is_formatted_and_cut(void **state)
{
    (void)state;
    struct error err = { 0 };
    assert_int_equal(error_set(&err, MEMD_EFULL, "%d of %s", 3, "four"), MEMD_EFULL);
    assert_int_equal(err.code, MEMD_EFULL);
    assert_string_equal(err.text, "3 of four");
    char longer[2 * ERROR_TEXT_BYTES];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    error_set(&err, MEMD_EIO, "%s", longer);
    assert_int_equal(strlen(err.text), ERROR_TEXT_BYTES - 1);
    assert_int_equal(error_set(NULL, MEMD_EIO, "nobody asks"), MEMD_EIO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_and_names_are_pinned),
        cmocka_unit_test(unknown_codes_have_a_name_too),
        cmocka_unit_test(the_text_is_formatted_and_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
