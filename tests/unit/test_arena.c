/* SPDX-License-Identifier: Apache-2.0 */
/* test_arena.c — the limit, alignment, hooks on every path, and a random stretch against a shadow
 * copy.
 *
 * Overlap cannot be seen from outside, so each allocation is filled with its own byte and all are
 * compared at the end; under a sanitizer the edges of the blocks are checked too.
 */
#include "base/arena.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "tests/random.h"

struct trace {
    int order[8];
    int count;
};

struct hook {
    struct trace *trace;
    int number;
};

static void note(void *object)
{
    struct hook *hook = object;
    hook->trace->order[hook->trace->count++] = hook->number;
}

static void the_limit_holds(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 10000);
    assert_non_null(arena_alloc(&arena, 6000));
    assert_null(arena_alloc(&arena, 6000));
    assert_non_null(arena_alloc(&arena, 1000)); /* a refusal changes nothing */
    assert_true(arena.used_bytes <= 10000);
    assert_null(arena_alloc(&arena, SIZE_MAX));
    assert_null(arena_alloc_aligned(&arena, SIZE_MAX - 3, 64));
    assert_null(arena_calloc(&arena, SIZE_MAX / 2, 3));
    assert_null(arena_strndup(&arena, "x", SIZE_MAX));
    arena_fini(&arena);
    assert_int_equal(arena.used_bytes, 0);
}

static void results_are_aligned(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 1 << 20);
    for (size_t align = 1; align <= 4096; align *= 2) {
        void *odd = arena_alloc_aligned(&arena, 1, 1);
        void *memory = arena_alloc_aligned(&arena, 3, align);
        assert_non_null(odd);
        assert_int_equal((uintptr_t)memory % align, 0);
    }
    assert_int_equal((uintptr_t)arena_alloc(&arena, 5) % 16, 0);
    assert_non_null(arena_alloc(&arena, 0));
    arena_fini(&arena);
}

static void contents_are_what_was_asked(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 1 << 16);
    unsigned char *dirty = arena_alloc(&arena, 1000);
    memset(dirty, 0xAA, 1000);
    arena_reset(&arena);
    const unsigned char *zeroed = arena_calloc(&arena, 10, 100);
    for (size_t i = 0; i < 1000; i++) assert_int_equal(zeroed[i], 0);
    assert_string_equal(arena_strndup(&arena, "memory", 3), "mem");
    assert_string_equal(arena_strndup(&arena, "", 0), "");
    arena_fini(&arena);
}

static void hooks_run_newest_first(void **state)
{
    (void)state;
    struct arena arena;
    struct trace trace = { .count = 0 };
    struct hook hooks[3] = { { &trace, 1 }, { &trace, 2 }, { &trace, 3 } };
    arena_init(&arena, 1 << 16);
    for (size_t i = 0; i < 3; i++) assert_int_equal(arena_on_reset(&arena, note, &hooks[i]), 0);
    char *kept = arena_strndup(&arena, "kept", 4);
    arena_release(&arena);
    assert_string_equal(kept, "kept");
    assert_int_equal(trace.count, 3);
    for (int i = 0; i < 3; i++) assert_int_equal(trace.order[i], 3 - i);
    arena_reset(&arena);
    assert_int_equal(trace.count, 3); /* once only */
    assert_int_equal(arena_on_reset(&arena, note, &hooks[0]), 0);
    arena_fini(&arena);
    assert_int_equal(trace.count, 4);
}

static void a_hook_without_room_is_run_at_once(void **state)
{
    (void)state;
    struct arena arena;
    struct trace trace = { .count = 0 };
    struct hook hook = { &trace, 7 };
    arena_init(&arena, 8);
    assert_int_equal(arena_on_reset(&arena, note, &hook), MEMD_ENOMEM);
    assert_int_equal(trace.count, 1);
    arena_fini(&arena);
    assert_int_equal(trace.count, 1);
}

static void a_reset_keeps_one_small_block(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 1 << 22);
    void *first = arena_alloc(&arena, 100);
    for (int i = 0; i < 100; i++) assert_non_null(arena_alloc(&arena, 20000));
    arena_reset(&arena);
    assert_int_equal(arena.used_bytes, 4096);
    assert_ptr_equal(arena_alloc(&arena, 100), first);
    arena_fini(&arena);
    arena_fini(&arena);
}

static void random_pieces_do_not_overlap(void **state)
{
    (void)state;
    enum { PIECES = 2000 };
    static struct {
        unsigned char *at;
        size_t bytes;
    } pieces[PIECES];
    uint64_t random = random_seed();
    struct arena arena;
    arena_init(&arena, SIZE_MAX);
    for (size_t i = 0; i < PIECES; i++) {
        size_t large = random_below(&random, 20) == 0 ? 100000 : 300;
        pieces[i].bytes = random_below(&random, large);
        pieces[i].at = arena_alloc_aligned(&arena, pieces[i].bytes,
                                           (size_t)1 << random_below(&random, 13));
        assert_non_null(pieces[i].at);
        memset(pieces[i].at, (int)(i & 0xFF), pieces[i].bytes);
    }
    for (size_t i = 0; i < PIECES; i++)
        for (size_t b = 0; b < pieces[i].bytes; b++)
            if (pieces[i].at[b] != (i & 0xFF)) fail_msg("piece %zu byte %zu was overwritten", i, b);
    arena_fini(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_limit_holds),
        cmocka_unit_test(results_are_aligned),
        cmocka_unit_test(contents_are_what_was_asked),
        cmocka_unit_test(hooks_run_newest_first),
        cmocka_unit_test(a_hook_without_room_is_run_at_once),
        cmocka_unit_test(a_reset_keeps_one_small_block),
        cmocka_unit_test(random_pieces_do_not_overlap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
