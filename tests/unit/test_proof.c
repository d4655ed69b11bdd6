/* SPDX-License-Identifier: Apache-2.0 */
/* test_proof.c — after a restart nothing is read that an answer does not need, and nothing is used
 * that was not verified: bytes changed on the disk fail the requests that touch them, or are worked
 * around, and no other.
 */
#include "tests/unit/builder_fixture.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>

#include "memory/format.h"

enum { SEGMENTS = 5, TOKENS = SEGMENTS * 1024 + 200, VALUE_BYTES = 1024 * 16 * 2, ROW_BYTES = 32 };

/* Planes are used however short the context is. */
static struct context *open_book(struct fixture *fx)
{
    struct error err = { 0 };
    struct context *context = NULL;
    bool created = false;
    const struct parameter parameter = { "exact_below", "0" };
    struct open_args args = { .name = "book", .model = &fx->model, .method = "progressive",
                              .parameters = &parameter, .parameter_count = 1, .create = true };
    ASSERT_OK(catalog_open_context(fx->catalog, &args, &fx->arena, &context, &created, &err), err);
    return context;
}

static void begin(struct fixture *fx)
{
    fixture_begin(fx);
    struct context *context = open_book(fx);
    fixture_append(fx, context, 0, TOKENS);
    expect_built(fx, context, 2 * SEGMENTS);
}

/* The file of a closed catalog: change it. */
static void edit(const struct fixture *fx, void (*change)(unsigned char *, size_t, const void *),
                 const void *arg)
{
    char name[128];
    snprintf(name, sizeof name, "%s/data.mdb", fx->path);
    int fd = open(name, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    struct stat file;
    assert_int_equal(fstat(fd, &file), 0);
    size_t size = (size_t)file.st_size;
    unsigned char *data = malloc(size);
    assert_non_null(data);
    assert_int_equal(pread(fd, data, size, 0), size);
    change(data, size, arg);
    assert_int_equal(pwrite(fd, data, size, 0), size);
    close(fd);
    free(data);
}

/* Every copy of a row. */
static void change_row(unsigned char *data, size_t size, const void *row)
{
    size_t count = 0;
    for (unsigned char *at = data;
         (at = memmem(at, size - (size_t)(at - data), row, ROW_BYTES)) != NULL;) {
        at[ROW_BYTES / 2] ^= 0x10;
        count++;
    }
    assert_true(count >= 1);
}

/* Of layer 1, head 1. */
static void damage_row(struct fixture *fx, uint64_t position, enum format_kind kind)
{
    fixture_close(fx);
    unsigned char *rows = fixture_rows(fx, 1, position, 1, kind == FORMAT_KIND_V);
    edit(fx, change_row, rows + ROW_BYTES);
    free(rows);
    fixture_open(fx);
}

/* One byte in every piece of the n-th value of lo. */
static void change_lo(unsigned char *data, size_t size, const void *arg)
{
    const unsigned char wanted[6] = { 'M', 'E', 'M', 'V', 2, FORMAT_KIND_LO };
    size_t nth = *(const size_t *)arg;
    for (size_t at = 16; at + 64 < size; at += 4096) {
        if (memcmp(data + at, wanted, sizeof wanted) != 0 || nth-- > 0) continue;
        for (size_t i = 0; i < 64; i++) data[at + FORMAT_HEADER_BYTES + i * 256 + 7] ^= 0x40;
        return;
    }
    fail_msg("no such value of lo");
}

static uint64_t proven(struct fixture *fx)
{
    return stats_of(fx).proven_bytes_total;
}

/* What is read is what is used, once. */
static void test_little_is_read(void **state)
{
    (void)state;
    struct fixture fx;
    float o[QUERIES * 4 * 64];
    struct quality quality;
    begin(&fx);
    assert_int_equal(proven(&fx), 0); /* it wrote everything itself, and coded from what it read */
    ask(&fx, open_book(&fx), 0, o, &quality);
    assert_int_equal(proven(&fx), 0);
    fixture_restart(&fx);
    struct context *context = open_book(&fx); /* the builder need not have been there */
    ask(&fx, context, 0.3, o, &quality);
    assert_false(quality.exact);
    uint64_t all = UINT64_C(4) * SEGMENTS * VALUE_BYTES, coarse = proven(&fx);
    assert_true(coarse < all / 20);
    ask(&fx, context, 0.01, o, &quality);
    uint64_t fine = proven(&fx), lo = UINT64_C(2) * SEGMENTS * 1024 * 16;
    assert_true(fine > coarse && fine < all + lo);
    ask(&fx, context, 0.01, o, &quality);
    assert_int_equal(proven(&fx), fine);
    ask(&fx, context, 0, o, &quality);
    assert_in_range(proven(&fx), all, all + lo);
    fine = proven(&fx);
    ask(&fx, context, 0, o, &quality);
    assert_int_equal(proven(&fx), fine);
    fixture_end(&fx);
}

static int fetch_one(struct context *context, uint64_t position, struct error *err)
{
    unsigned char k[2 * ROW_BYTES], v[2 * ROW_BYTES];
    uint32_t id;
    struct fetch_out out = { .k = k, .v = v, .token_ids = &id };
    return context_fetch(context, 1, &position, 1, &out, err);
}

static int attend_exactly(struct fixture *fx, struct context *context, uint64_t limit,
                          struct error *err)
{
    float q[4 * 16] = { 1 }, o[4 * 16], lse[4];
    uint64_t position = TOKENS;
    struct query query = { .layer = 1,
                           .q = { .data = q, .dtype = DTYPE_FP32, .dims = 3,
                                  .shape = { 1, 4, 16 } },
                           .positions = &position,
                           .limits = &limit };
    struct partial partial = { .o = o, .lse = lse, .rows = 4, .head_dim = 16 };
    struct quality quality;
    return context_attend(context, &query, &fx->arena, &partial, &quality, err);
}

static int search_exactly(struct fixture *fx, struct context *context, struct error *err)
{
    float q[4 * 16] = { 1 }, scores[4];
    uint64_t position = TOKENS, ids[4];
    struct query query = { .layer = 1,
                           .q = { .data = q, .dtype = DTYPE_FP32, .dims = 3,
                                  .shape = { 1, 4, 16 } },
                           .positions = &position };
    struct index_hits hits = { .ids = ids, .scores = scores, .k = 1 };
    struct quality quality;
    return context_search(context, &query, &fx->arena, &hits, &quality, err);
}

/* A changed row of layer 1 in segment 2: whoever reads it is told, nobody else. */
static void test_damaged_row(void **state)
{
    (void)state;
    static const enum format_kind kinds[] = { FORMAT_KIND_K, FORMAT_KIND_V };
    for (size_t i = 0; i < 2; i++) {
        struct fixture fx;
        struct error err = { 0 };
        struct answer answer;
        struct quality quality;
        float before[QUERIES * 4 * 64], after[QUERIES * 4 * 64];
        char text[256];
        begin(&fx);
        ask(&fx, open_book(&fx), 0.3, before, &quality);
        damage_row(&fx, 2500, kinds[i]);
        struct context *context = open_book(&fx);
        expect_built(&fx, context, 2 * SEGMENTS);
        ask(&fx, context, 0.3, after, &quality);
        assert_memory_equal(before, after, QUERIES * 4 * 16 * sizeof *before);
        ASSERT_OK(fixture_attend(&fx, context, 0, UINT64_MAX, &answer, &err), err);
        ASSERT_OK(fetch_one(context, 2040, &err), err);
        ASSERT_OK(attend_exactly(&fx, context, 2048 - 1, &err), err);
        assert_int_equal(stats_of(&fx).checksum_failures_total, 0);
        uint64_t limit = 2600; /* segment 2 in part, so its rows are read */
        ASSERT_CODE(MEMD_ECORRUPT, attend_exactly(&fx, context, limit, &err), err);
        assert_non_null(strstr(err.text, kinds[i] == FORMAT_KIND_K ? "head 1 kind 1: checksum"
                                                                   : "head 1 kind 2: checksum"));
        ASSERT_CODE(MEMD_ECORRUPT, attend_exactly(&fx, context, limit, &err), err);
        ASSERT_CODE(MEMD_ECORRUPT, fetch_one(context, 2049, &err), err);
        int code = search_exactly(&fx, context, &err);
        if (kinds[i] == FORMAT_KIND_V) assert_int_equal(code, 0); /* it reads keys */
        struct progress progress;
        ASSERT_CODE(MEMD_ECORRUPT, fixture_append_layer(&fx, context, (struct place){ 1, 2060 }, 9,
                                                        &progress, &err), err);
        ASSERT_CODE(MEMD_ECORRUPT, context_truncate(context, 2100, &err), err);
        ask(&fx, context, 0.3, after, &quality);
        assert_memory_equal(before, after, QUERIES * 4 * 16 * sizeof *before);
        assert_int_equal(verify(&fx, text), 1);
        assert_non_null(strstr(text, "checksum"));
        ASSERT_OK(context_truncate(context, 2048, &err), err); /* and so it is gone */
        ASSERT_OK(attend_exactly(&fx, context, TOKENS, &err), err);
        expect_clean(&fx);
        fixture_end(&fx);
    }
}

/* Changed low nibbles: rows instead, and new planes. */
static void test_damaged_lo(void **state)
{
    (void)state;
    size_t met = 0;
    for (size_t nth = 0; nth < 4 * SEGMENTS; nth += 3) {
        struct fixture fx;
        char text[256];
        begin(&fx);
        fixture_close(&fx);
        edit(&fx, change_lo, &nth);
        fixture_open(&fx);
        struct context *context = open_book(&fx);
        expect_built(&fx, context, 2 * SEGMENTS);
        assert_int_equal(stats_of(&fx).damaged_derived_total, 0); /* nobody read it */
        assert_int_equal(verify(&fx, text), 1);
        expect_answers(&fx, context, 0.003);
        expect_built(&fx, context, 2 * SEGMENTS);
        struct catalog_stats stats = stats_of(&fx);
        assert_true(stats.damaged_derived_total <= 1);
        assert_int_equal(stats.built_segments_total, stats.damaged_derived_total);
        assert_int_equal(verify(&fx, text), 1 - stats.damaged_derived_total);
        expect_answers(&fx, context, 0.003);
        assert_int_equal(stats_of(&fx).checksum_failures_total,
                         2 - stats.damaged_derived_total); /* of verify */
        met += stats.damaged_derived_total;
        fixture_end(&fx);
    }
    assert_true(met >= 2); /* those of layer 1, which is asked */
}

struct crowd {
    struct fixture *fx;
    struct context *context;
    double target;
    float o[QUERIES * 4 * 64];
    atomic_bool done;
};

static void *crowd_asks(void *arg)
{
    struct crowd *crowd = arg;
    struct fixture mine = *crowd->fx;
    struct quality quality;
    arena_init(&mine.arena, (size_t)64 << 20);
    ask(&mine, crowd->context, crowd->target, crowd->o, &quality);
    arena_fini(&mine.arena);
    return NULL;
}

/* All at once over what nobody has read yet, one value of it damaged. */
static void test_crowd(void **state)
{
    (void)state;
    enum { CROWD = 4 };
    struct fixture fx;
    float exact[QUERIES * 4 * 64];
    struct quality quality;
    begin(&fx);
    ask(&fx, open_book(&fx), 0, exact, &quality);
    for (size_t nth = 0; nth < 4; nth++) {
        fixture_close(&fx);
        edit(&fx, change_lo, &nth);
        fixture_open(&fx);
        static const double targets[CROWD] = { 0, 0, 0.003, 0.003 };
        struct crowd crowd[CROWD];
        pthread_t threads[CROWD];
        struct context *context = open_book(&fx);
        if (nth % 2 == 0) expect_built(&fx, context, 2 * SEGMENTS);
        for (size_t i = 0; i < CROWD; i++) {
            crowd[i] = (struct crowd){ .fx = &fx, .context = context, .target = targets[i] };
            assert_int_equal(pthread_create(&threads[i], NULL, crowd_asks, &crowd[i]), 0);
        }
        for (size_t i = 0; i < CROWD; i++) pthread_join(threads[i], NULL);
        for (size_t i = 0; i < CROWD; i++) {
            if (targets[i] > 0) continue;
            assert_memory_equal(exact, crowd[i].o, QUERIES * 4 * 16 * sizeof *exact);
        }
        expect_built(&fx, context, 2 * SEGMENTS);
        expect_answers(&fx, context, 0.003);
    }
    fixture_end(&fx);
}

static void *rebuilds(void *arg)
{
    struct crowd *crowd = arg;
    struct fixture mine = *crowd->fx;
    struct error err = { 0 };
    arena_init(&mine.arena, (size_t)64 << 20);
    while (!atomic_load(&crowd->done)) {
        struct walk_args walk = { .context_id = context_id(crowd->context) };
        struct rebuild_step step;
        ASSERT_OK(catalog_rebuild(mine.catalog, &walk, &mine.arena, &step, &err), err);
        arena_reset(&mine.arena);
    }
    arena_fini(&mine.arena);
    return NULL;
}

/* Planes that a new context finds in the store, while they are deleted and made again. */
static void test_found_and_deleted(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    begin(&fx);
    struct crowd crowd = { .fx = &fx, .context = open_book(&fx) };
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, rebuilds, &crowd), 0);
    for (size_t i = 0; i < 20; i++) {
        struct fixture mine = fx; /* pins of its own */
        uint64_t id = 0, tokens = 0, bytes = 0;
        arena_init(&mine.arena, (size_t)64 << 20);
        ASSERT_OK(catalog_fork(fx.catalog, crowd.context,
                               &(struct fork_args){ .name = "fork" }, &id, &tokens, &err), err);
        expect_answers(&mine, fixture_context(&mine, "fork"), 0.02);
        arena_fini(&mine.arena);
        ASSERT_OK(catalog_drop(fx.catalog, id, &bytes, &err), err);
    }
    atomic_store(&crowd.done, true);
    pthread_join(thread, NULL);
    expect_built(&fx, crowd.context, 2 * SEGMENTS);
    expect_clean(&fx);
    fixture_end(&fx);
}

/* Without planes there are no pieces: the whole value is read, and fails. */
static void test_without_planes(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    begin(&fx);
    struct walk_args walk = { .context_id = context_id(open_book(&fx)) };
    struct rebuild_step step;
    fx.config.budget_bytes = SEGMENT_BYTES; /* nothing derived fits beside the rows */
    catalog_reconfigure(fx.catalog, &fx.config);
    ASSERT_OK(catalog_rebuild(fx.catalog, &walk, &fx.arena, &step, &err), err);
    assert_int_equal(wait_built(&fx, open_book(&fx)).built, 0);
    fx.config.budget_bytes = stats_of(&fx).stored_bytes + 1; /* but the rows do */
    catalog_reconfigure(fx.catalog, &fx.config);
    wait_built(&fx, open_book(&fx)); /* the writer has seen that, and evicts nothing */
    damage_row(&fx, 1500, FORMAT_KIND_V);
    struct context *context = open_book(&fx);
    ASSERT_OK(attend_exactly(&fx, context, 1024, &err), err);
    assert_int_equal(proven(&fx), 4 * (VALUE_BYTES + FORMAT_HEADER_BYTES));
    ASSERT_CODE(MEMD_ECORRUPT, attend_exactly(&fx, context, 1025, &err), err);
    fixture_end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_little_is_read), cmocka_unit_test(test_damaged_row),
        cmocka_unit_test(test_damaged_lo),     cmocka_unit_test(test_crowd),
        cmocka_unit_test(test_without_planes), cmocka_unit_test(test_found_and_deleted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
