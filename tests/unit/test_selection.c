/* SPDX-License-Identifier: Apache-2.0 */
/* test_selection.c — bytes and back, and every byte string that is no selection. */
#include "index/selection.h"

#include <stdlib.h>
#include <string.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/error.h"

static struct selection *make(void)
{
    struct selection *selection = NULL;
    assert_int_equal(selection_new(300, 3, (uint64_t[]){ 2, 0, 3 }, &selection, NULL), 0);
    assert_int_equal(selection->first[3], 5);
    memcpy(selection->ids, (uint64_t[]){ 4, 299, 0, 1, 256 }, 5 * sizeof(uint64_t));
    return selection;
}

static void test_round_trip(void **state)
{
    (void)state;
    struct selection *selection = make(), *again = NULL;
    unsigned char bytes[128];
    size_t count = selection_encoded_bytes(selection);
    assert_int_equal(count, 16 + 3 * 8 + 5 * 4);
    selection_encode(selection, bytes);
    assert_int_equal(bytes[0], 300 & 255);
    assert_int_equal(bytes[16 + 24 + 16 + 1], 1); /* 256 */
    assert_int_equal(selection_decode(bytes, count, &again, NULL), 0);
    assert_int_equal(again->tokens, 300);
    assert_memory_equal(again->first, selection->first, 4 * sizeof(uint64_t));
    assert_memory_equal(again->ids, selection->ids, 5 * sizeof(uint64_t));
    selection_free(again);
    selection_free(selection);
}

/* Cut anywhere, or with one byte that makes it senseless. */
static void test_damage(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        unsigned char value;
    } wrong[] = {
        { 8, 0 },    /* no heads */
        { 8, 4 },    /* more heads than counts */
        { 10, 1 },   /* far too many heads */
        { 12, 1 },   /* not zero */
        { 16, 3 },   /* a count */
        { 22, 1 },   /* a count beyond the prompt */
        { 40, 255 }, /* 255 before 299 is fine, see below */
        { 44, 2 },   /* 258, still behind */
        { 45, 9 },   /* beyond the prompt */
        { 48, 2 },   /* 2 before 1 */
        { 7, 1 },    /* an impossible prompt */
    };
    struct selection *selection = make(), *again = NULL;
    unsigned char bytes[128], copy[128];
    size_t count = selection_encoded_bytes(selection);
    selection_encode(selection, bytes);
    for (size_t cut = 0; cut < count; cut++)
        assert_int_equal(selection_decode(bytes, cut, &again, NULL), MEMD_ECORRUPT);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        memcpy(copy, bytes, sizeof copy);
        copy[wrong[i].at] = wrong[i].value;
        bool fine = wrong[i].at == 40 || wrong[i].at == 44;
        int rc = selection_decode(copy, count, &again, NULL);
        if (rc != (fine ? 0 : MEMD_ECORRUPT)) fail_msg("case %zu: %d", i, rc);
        if (rc == 0) selection_free(again);
    }
    assert_int_equal(selection_decode(bytes, count + 1, &again, NULL), MEMD_ECORRUPT);
    selection_free(selection);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
