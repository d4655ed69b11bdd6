/* SPDX-License-Identifier: Apache-2.0 */
/* test_map.c — a long random life beside a plain array that cannot be wrong.
 *
 * Keys come from a small range, so that insertion, replacement and removal meet often:
 * backward-shift deletion is wrong in corners that only long runs of neighbours have.
 */
#include "base/map.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/random.h"

enum { KEYS = 1000, STEPS = 200000 };

static void an_empty_map_has_nothing(void **state)
{
    (void)state;
    struct map map = { 0 };
    size_t cursor = 0;
    assert_null(map_get(&map, 0));
    assert_null(map_remove(&map, 7));
    assert_null(map_next(&map, &cursor));
    map_fini(&map);
}

static void all_keys_are_possible(void **state)
{
    (void)state;
    struct map map = { 0 };
    int values[3] = { 0 };
    const uint64_t keys[3] = { 0, UINT64_MAX, UINT64_C(1) << 63 };
    for (size_t i = 0; i < 3; i++) assert_int_equal(map_put(&map, keys[i], &values[i]), 0);
    for (size_t i = 0; i < 3; i++) assert_ptr_equal(map_get(&map, keys[i]), &values[i]);
    assert_int_equal(map.count, 3);
    map_fini(&map);
    assert_int_equal(map.count, 0);
}

/* Every entry is met once, and nothing else. */
static void compare(const struct map *map, void *const *shadow)
{
    size_t cursor = 0, met = 0, live = 0;
    while (map_next(map, &cursor) != NULL) met++;
    for (size_t key = 0; key < KEYS; key++) {
        assert_ptr_equal(map_get(map, key * 8), shadow[key]);
        live += shadow[key] != NULL;
    }
    assert_int_equal(met, live);
    assert_int_equal(map->count, live);
}

static void a_long_life_equals_an_array(void **state)
{
    (void)state;
    static void *shadow[KEYS];
    static char targets[STEPS];
    struct map map = { 0 };
    uint64_t random = random_seed();
    for (size_t step = 0; step < STEPS; step++) {
        uint64_t key = random_below(&random, KEYS);
        if (random_below(&random, 2) == 0) {
            assert_int_equal(map_put(&map, key * 8, &targets[step]), 0);
            shadow[key] = &targets[step];
        } else {
            assert_ptr_equal(map_remove(&map, key * 8), shadow[key]);
            shadow[key] = NULL;
        }
        if (step % 20000 == 0) compare(&map, shadow);
    }
    compare(&map, shadow);
    map_fini(&map);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_map_has_nothing),
        cmocka_unit_test(all_keys_are_possible),
        cmocka_unit_test(a_long_life_equals_an_array),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
