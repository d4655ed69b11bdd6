/* SPDX-License-Identifier: Apache-2.0 */
/* test_lru.c — the rule by hand; then against a ring that is written token by token and searched
 * for the least each time; against the newest tokens where it is large enough; cut and stored. */
#include "index/lru.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "index/index.h"
#include "tests/random.h"

enum { MOST = 40, ROUNDS = 3000 };

struct room {
    uint64_t bytes[2 * MOST];
};

static struct lru empty(size_t slots, struct room *room)
{
    struct lru lru;
    assert_true(lru_room(slots) <= sizeof *room);
    lru_init(&lru, slots, room);
    return lru;
}

static void expect(const struct lru *lru, const uint64_t *positions, const uint64_t *stamps,
                   size_t count)
{
    assert_int_equal(lru->count, count);
    for (size_t i = 0; i < count; i++) {
        if (lru->positions[i] != positions[i] || lru->stamps[i] != stamps[i])
            fail_msg("slot %zu holds %zu of %zu, expected %zu of %zu", i,
                     (size_t)lru->positions[i], (size_t)lru->stamps[i], (size_t)positions[i],
                     (size_t)stamps[i]);
    }
}

#define EXPECT(lru, ...)                                                    \
    do {                                                                    \
        static const uint64_t pairs[][4] = { __VA_ARGS__ };                 \
        expect(lru, pairs[0], pairs[1], (lru)->count < 4 ? (lru)->count : 4); \
    } while (0)

/* Four slots. 0 1 2 3 written, 1 and 0 found: 4 drives out 2, 5 drives out 3. Then 0 and 1 have
 * stamp 4, as 4 has, so that 0 leaves first, and then 1; of 5 … 8 all are younger than 4. */
static void test_by_hand(void **state)
{
    (void)state;
    struct room room;
    struct lru lru = empty(4, &room);
    lru_advance(&lru, 4);
    EXPECT(&lru, { 0, 1, 2, 3 }, { 0, 1, 2, 3 });
    assert_true(lru_use(&lru, 4, (const uint64_t[]){ 1, INDEX_NONE, 0, 1 }, 4));
    assert_false(lru_use(&lru, 4, (const uint64_t[]){ 0, INDEX_NONE, 9 }, 3));
    EXPECT(&lru, { 0, 1, 2, 3 }, { 4, 4, 2, 3 });
    lru_advance(&lru, 6);
    EXPECT(&lru, { 0, 1, 4, 5 }, { 4, 4, 4, 5 });
    lru_advance(&lru, 7);
    EXPECT(&lru, { 1, 4, 5, 6 }, { 4, 4, 5, 6 });
    assert_true(lru_use(&lru, 7, (const uint64_t[]){ 5 }, 1));
    lru_advance(&lru, 10);
    EXPECT(&lru, { 5, 7, 8, 9 }, { 7, 7, 8, 9 });
    lru_advance(&lru, 100);
    EXPECT(&lru, { 96, 97, 98, 99 }, { 96, 97, 98, 99 });
    assert_int_equal(lru_below(&lru, 98), 2);
    assert_int_equal(lru_below(&lru, UINT64_MAX), 4);
}

/* The same by the definition. */
static void write_one(struct lru *lru)
{
    if (lru->count == lru->slots) {
        size_t least = 0;
        for (size_t i = 1; i < lru->count; i++)
            if (lru->stamps[i] < lru->stamps[least]) least = i;
        for (size_t i = least; i + 1 < lru->count; i++) {
            lru->positions[i] = lru->positions[i + 1];
            lru->stamps[i] = lru->stamps[i + 1];
        }
        lru->count--;
    }
    lru->positions[lru->count] = lru->stamps[lru->count] = lru->tokens++;
    lru->count++;
}

static void use_one(struct lru *lru, uint64_t position)
{
    for (size_t i = 0; i < lru->count; i++)
        if (lru->positions[i] == position) lru->stamps[i] = lru->tokens;
}

static void test_against_definition(void **state)
{
    (void)state;
    uint64_t random = 41, dropped_used = 0;
    for (size_t round = 0; round < 60; round++) {
        struct room room, expected_room;
        size_t slots = 1 + random_below(&random, MOST);
        struct lru lru = empty(slots, &room), expected = empty(slots, &expected_room);
        for (size_t step = 0; step < ROUNDS / 60; step++) {
            uint64_t fresh = random_below(&random, 3) == 0 ? random_below(&random, 3 * slots)
                                                           : random_below(&random, 3);
            for (uint64_t i = 0; i < fresh; i++) write_one(&expected);
            uint64_t uses[8];
            for (size_t i = 0; i < 8; i++)
                uses[i] = expected.count == 0 || random_below(&random, 3) == 0
                              ? INDEX_NONE
                              : expected.positions[random_below(&random, expected.count)];
            /* Looked at beforehand or not, and in any order. */
            if (random_below(&random, 2) == 0) lru_advance(&lru, expected.tokens);
            lru_use(&lru, expected.tokens, uses + 4, 4);
            lru_use(&lru, expected.tokens, uses, 4);
            for (size_t i = 0; i < 8; i++) use_one(&expected, uses[i]);
            lru_advance(&lru, expected.tokens);
            expect(&lru, expected.positions, expected.stamps, expected.count);
            dropped_used += expected.count > 0 && expected.count == slots &&
                            expected.positions[0] + slots < expected.tokens;
        }
    }
    assert_true(dropped_used > 500); /* rings that are not the newest tokens */
}

/* As long as nothing has to leave it is the ring of the newest, whatever was found; and when
 * nothing was found it always is. */
static void test_is_fifo(void **state)
{
    (void)state;
    uint64_t random = 43;
    struct room room;
    for (uint64_t tokens = 0; tokens < 3 * MOST; tokens++) {
        struct lru lru = empty(MOST, &room);
        for (uint64_t at = 0; at < tokens; at += 1 + random_below(&random, 9)) {
            lru_advance(&lru, at);
            uint64_t use = at == 0 ? 0 : random_below(&random, at);
            if (tokens <= MOST) lru_use(&lru, at, &use, 1);
        }
        lru_advance(&lru, tokens);
        assert_int_equal(lru.count, tokens < MOST ? tokens : MOST);
        for (size_t i = 0; i < lru.count; i++)
            assert_int_equal(lru.positions[i], tokens - lru.count + i);
    }
}

static void test_cut(void **state)
{
    (void)state;
    struct room room;
    struct lru lru = empty(4, &room);
    lru_advance(&lru, 3);
    lru_use(&lru, 3, (const uint64_t[]){ 0 }, 1);
    assert_true(lru_can_cut(&lru, 7)); /* nothing was read since 3 */
    assert_true(lru_can_cut(&lru, 2)); /* nothing has left */
    lru_use(&lru, 6, (const uint64_t[]){ 4 }, 1); /* 1 and 2 have left: 0 3 4 5 */
    assert_true(lru_can_cut(&lru, 6));
    assert_true(lru_can_cut(&lru, 1)); /* 0 is all there would be */
    for (uint64_t tokens = 2; tokens < 6; tokens++) assert_false(lru_can_cut(&lru, tokens));
    lru_cut(&lru, 9);
    EXPECT(&lru, { 0, 3, 4, 5 }, { 3, 3, 6, 5 });
    lru_cut(&lru, 5); /* by force: what there is */
    assert_int_equal(lru.count, 3);
    EXPECT(&lru, { 0, 3, 4 }, { 3, 3, 5 });
    lru_advance(&lru, 6);
    EXPECT(&lru, { 0, 3, 4, 5 }, { 3, 3, 5, 5 });
    lru_cut(&lru, 0);
    assert_int_equal(lru.count, 0);
}

static void test_stored(void **state)
{
    (void)state;
    struct room room, other_room;
    struct error err = { 0 };
    unsigned char data[24 + 16 * 4 + 1];
    struct lru lru = empty(4, &room), other = empty(4, &other_room);
    lru_advance(&lru, 3);
    lru_use(&lru, 8, (const uint64_t[]){ 6 }, 1);
    size_t bytes = lru_encoded_bytes(&lru);
    assert_int_equal(bytes, 24 + 16 * 4);
    lru_encode(&lru, data);
    assert_int_equal(lru_decode(data, bytes, &other, &err), 0);
    expect(&other, lru.positions, lru.stamps, lru.count);
    assert_int_equal(other.tokens, 8);
    uint64_t tokens = 0;
    assert_int_equal(lru_decode(data, bytes - 1, &other, &err), MEMD_ECORRUPT);
    assert_int_equal(lru_decode(data, bytes + 1, &other, &err), MEMD_ECORRUPT);
    assert_int_equal(other.count, 0);
    static const size_t spoilt[] = { 0, 8, 16, 24, 32 + 7, 24 + 32 };
    static const unsigned char with[] = { 7, 3, 3, 9, 1, 3 };
    for (size_t i = 0; i < sizeof spoilt / sizeof spoilt[0]; i++) {
        unsigned char before = data[spoilt[i]];
        data[spoilt[i]] = with[i];
        if (lru_is_sound(data, bytes, &tokens)) fail_msg("byte %zu as %d", spoilt[i], with[i]);
        data[spoilt[i]] = before;
    }
    struct lru larger = empty(5, &other_room);
    assert_int_equal(lru_decode(data, bytes, &larger, &err), MEMD_ECORRUPT);
    larger = empty(2, &other_room);
    assert_int_equal(lru_decode(data, bytes, &larger, &err), MEMD_ECORRUPT);
    assert_true(lru_is_sound(data, bytes, &tokens));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand), cmocka_unit_test(test_against_definition),
        cmocka_unit_test(test_is_fifo), cmocka_unit_test(test_cut),
        cmocka_unit_test(test_stored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
