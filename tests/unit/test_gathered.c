/* SPDX-License-Identifier: Apache-2.0 */
/* test_gathered.c — the best of a stream against sorting all of it: streams in any order, cut into
 * parts that tell one another how good the worst wanted score is, with scores that are often the
 * same. */
#include "index/gathered.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/random.h"
#include "tests/ranked.h"

enum { MOST = 5000, ROOM_MOST = 300, PARTS = 3 };

static struct ranked all[MOST], got[GATHERED_TIMES * ROOM_MOST];
static uint64_t ids[PARTS][GATHERED_TIMES * ROOM_MOST];
static float scores[MOST + 64], kept[PARTS][GATHERED_TIMES * ROOM_MOST];

/* What lies in begin … end-1, in blocks of 64 or as one run. */
static void feed(struct gathered *part, size_t begin, size_t end, bool in_blocks)
{
    if (!in_blocks) {
        gathered_offer(part, scores + begin, end - begin, begin);
        return;
    }
    for (size_t at = begin; at < end; at += 64) {
        uint64_t bits = 0, entries[64];
        for (size_t i = 0; i < 64; i++) entries[i] = at + i;
        for (size_t i = 0; i < 64 && at + i < end; i++)
            if (scores[at + i] >= part->least) bits |= (uint64_t)1 << i;
        gathered_take(part, scores + at, bits, entries);
    }
}

static void check(size_t count, size_t room, uint64_t *random)
{
    struct gathered parts[PARTS];
    size_t step = (count + PARTS - 1) / PARTS;
    for (size_t p = 0; p < PARTS; p++) {
        size_t begin = p * step < count ? p * step : count;
        size_t end = begin + step < count ? begin + step : count;
        gathered_clear(&parts[p], ids[p], kept[p], room);
        if (p > 0) gathered_raise(&parts[p], parts[p - 1].least);
        feed(&parts[p], begin, end, random_below(random, 2) == 0);
    }
    for (size_t p = 1; p < PARTS; p++)
        for (size_t i = 0; i < parts[p].count; i++)
            gathered_offer(&parts[0], kept[p] + i, 1, ids[p][i]);
    gathered_keep(&parts[0]);
    size_t wanted = count < room ? count : room;
    if (parts[0].count != wanted) fail_msg("%zu of %zu, not %zu", parts[0].count, count, wanted);
    for (size_t i = 0; i < wanted; i++) got[i] = (struct ranked){ kept[0][i], ids[0][i] };
    for (size_t i = 0; i < count; i++) all[i] = (struct ranked){ scores[i], i };
    qsort(got, wanted, sizeof *got, better_first);
    qsort(all, count, sizeof *all, better_first);
    for (size_t i = 0; i < wanted; i++)
        if (got[i].id != all[i].id || got[i].score != all[i].score)
            fail_msg("count %zu room %zu rank %zu: %zu (%g), not %zu (%g)", count, room, i,
                     (size_t)got[i].id, (double)got[i].score, (size_t)all[i].id,
                     (double)all[i].score);
}

static void test_best(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const size_t rooms[] = { 1, 2, 16, 64, ROOM_MOST };
    for (size_t turn = 0; turn < 200; turn++) {
        size_t count = (size_t)random_below(&random, turn % 4 == 0 ? 100 : MOST) + 1;
        for (size_t i = 0; i < count; i++) {
            float drawn = random_float(&random);
            scores[i] = turn % 5 == 0   ? floorf(4.0F * drawn) /* many alike */
                        : turn % 5 == 1 ? (float)i             /* each better than those before */
                        : turn % 5 == 2 ? -(float)i
                        : turn % 5 == 3 ? expf(20.0F * drawn) /* of very different size */
                                        : drawn;
        }
        check(count, rooms[turn % 5 == 0 ? random_below(&random, 5) : turn / 5 % 5], &random);
    }
    for (size_t i = 0; i < MOST; i++) scores[i] = 1.0F; /* all alike */
    check(MOST, 64, &random);
    for (size_t i = 0; i < MOST; i++) scores[i] = i % 3 == 0 ? -INFINITY : -1e30F;
    check(MOST, 64, &random);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_best) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
