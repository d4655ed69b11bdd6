/* SPDX-License-Identifier: Apache-2.0 */
/* test_list.c — order, removal while walking, and links that know whether they are in a list. */
#include "base/list.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

struct item {
    int number;
    struct list_link link;
};

static void fill(struct list_link *head, struct item *items, int count)
{
    list_init(head);
    for (int i = 0; i < count; i++) {
        items[i] = (struct item){ .number = i };
        list_append(head, &items[i].link);
    }
}

static void links_keep_their_order(void **state)
{
    (void)state;
    struct list_link head;
    struct item items[5];
    fill(&head, items, 5);
    int want = 0;
    LIST_FOR(link, &head) assert_int_equal(LIST_ENTRY(link, struct item, link)->number, want++);
    assert_int_equal(want, 5);
    for (want = 0; want < 5; want++) {
        struct list_link *first = list_take_first(&head);
        assert_int_equal(LIST_ENTRY(first, struct item, link)->number, want);
        assert_false(list_linked(first));
    }
    assert_true(list_empty(&head));
    assert_null(list_take_first(&head));
}

static void links_may_leave_while_walking(void **state)
{
    (void)state;
    struct list_link head;
    struct item items[6];
    fill(&head, items, 6);
    LIST_FOR_SAFE(link, after, &head)
        if (LIST_ENTRY(link, struct item, link)->number % 2 == 0) list_remove(link);
    int want = 1;
    LIST_FOR(link, &head) {
        assert_int_equal(LIST_ENTRY(link, struct item, link)->number, want);
        want += 2;
    }
    assert_int_equal(want, 7);
}

static void removing_twice_is_harmless(void **state)
{
    (void)state;
    struct list_link head;
    struct item items[1];
    fill(&head, items, 1);
    assert_true(list_linked(&items[0].link));
    list_remove(&items[0].link);
    list_remove(&items[0].link);
    assert_true(list_empty(&head));
    list_append(&head, &items[0].link);
    assert_false(list_empty(&head));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(links_keep_their_order),
        cmocka_unit_test(links_may_leave_while_walking),
        cmocka_unit_test(removing_twice_is_harmless),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
