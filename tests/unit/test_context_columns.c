/* SPDX-License-Identifier: Apache-2.0 */
/* test_context_columns.c — what is kept of a token besides K and V, or instead of them: it comes
 * with the rows, stays with them and goes with them, whatever happens to them.
 */
#include "tests/unit/method_fixture.h"

#include <pthread.h>
#include <stdatomic.h>

#include "tests/unit/builder_fixture.h"

METHOD_TABLE(METHOD_FIXTURES);

static const char *const all_methods[] = { "test-marks", "test-queries", "test-both",
                                           "test-planes", "test-states", "test-all" };
enum { ALL_METHODS = sizeof all_methods / sizeof all_methods[0] };

/* Blocks, tails of several records, segments; in memory, committed and from the disk. */
static void check_life(const char *method)
{
    struct fixture fx;
    struct error err = { 0 };
    method_begin(&fx, method);
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 3);
    method_expect(&fx, context, UINT64_MAX);
    fixture_append(&fx, context, 3, 1500);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    fixture_append(&fx, context, 1503, 545);
    fixture_append(&fx, context, 2048, 100);
    method_expect(&fx, context, UINT64_MAX);
    method_expect(&fx, context, 1030);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    fixture_append(&fx, context, 2148, 52);
    method_expect(&fx, context, UINT64_MAX);
    for (int i = 0; i < 2; i++) {
        for (uint32_t layer = 0; layer < fx.model.layers; layer++)
            fixture_expect(&fx, context, layer, 0, 2200);
        fixture_restart(&fx);
        expect_clean(&fx);
        context = fixture_context(&fx, "book");
        method_expect(&fx, context, UINT64_MAX);
    }
    fixture_append(&fx, context, 2200, 900);
    method_expect(&fx, context, UINT64_MAX);
    fixture_end(&fx);
}

static void test_life(void **state)
{
    (void)state;
    for (size_t i = 0; i < ALL_METHODS; i++) check_life(all_methods[i]);
}

/* One append or hundreds. */
static void test_split_appends(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    method_begin(&fx, "test-all");
    struct context *context = fixture_context(&fx, "parts");
    uint64_t position = 0;
    for (size_t count = 1; position < 2100; count = count * 7 % 61) {
        fixture_append(&fx, context, position, count);
        position += count;
        if (count % 5 == 0) ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    }
    method_expect(&fx, context, UINT64_MAX);
    fixture_restart(&fx);
    method_expect(&fx, fixture_context(&fx, "parts"), UINT64_MAX);
    fixture_end(&fx);
}

/* Into the tail and into sealed segments; then other tokens follow. */
static void check_truncate(const char *method, uint64_t position)
{
    struct fixture fx;
    struct error err = { 0 };
    method_begin(&fx, method);
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 2600);
    ASSERT_OK(context_truncate(context, position, &err), err);
    method_expect(&fx, context, UINT64_MAX);
    fixture_restart(&fx);
    context = fixture_context(&fx, "book");
    method_expect(&fx, context, UINT64_MAX);
    method_salts.above = fx.salt = 9;
    method_salts.cut = position;
    fixture_append(&fx, context, position, 1200);
    method_expect(&fx, context, UINT64_MAX);
    fixture_restart(&fx);
    expect_clean(&fx);
    context = fixture_context(&fx, "book");
    method_expect(&fx, context, UINT64_MAX);
    fixture_expect(&fx, context, 1, position, position + 1200);
    fixture_end(&fx);
}

static void test_truncate(void **state)
{
    (void)state;
    static const uint64_t positions[] = { 0, 1, 1000, 1024, 1025, 2500, 2600 };
    for (size_t i = 0; i < sizeof positions / sizeof positions[0]; i++) {
        check_truncate("test-marks", positions[i]);
        check_truncate("test-all", positions[i]);
    }
}

static void test_fork(void **state)
{
    (void)state;
    for (size_t i = 0; i < ALL_METHODS; i++) {
        struct fixture fx;
        struct error err = { 0 };
        uint64_t id = 0, tokens = 0, bytes = 0;
        method_begin(&fx, all_methods[i]);
        struct context *parent = fixture_context(&fx, "parent");
        fixture_append(&fx, parent, 0, 2500);
        ASSERT_OK(catalog_fork(fx.catalog, parent,
                               &(struct fork_args){ .name = "child" }, &id, &tokens, &err), err);
        struct context *child = fixture_context(&fx, "child");
        method_expect(&fx, child, UINT64_MAX);
        ASSERT_OK(context_truncate(child, 1500, &err), err);
        method_salts.above = fx.salt = 3;
        method_salts.cut = 1500;
        fixture_append(&fx, child, 1500, 1000);
        method_expect(&fx, child, UINT64_MAX);
        method_salts.above = 1;
        method_expect(&fx, parent, UINT64_MAX);
        uint64_t parent_id = context_id(parent);
        arena_reset(&fx.arena);
        ASSERT_OK(catalog_drop(fx.catalog, parent_id, &bytes, &err), err);
        method_salts.above = 3;
        method_expect(&fx, fixture_context(&fx, "child"), UINT64_MAX);
        expect_clean(&fx);
        fixture_end(&fx);
    }
}

/* An append of two tokens to layer 0, for the tests to spoil. */
struct pair {
    void *k, *v, *states;
    float *q;
    uint8_t *marks;
    struct append_layer part;
};

static void make_pair(struct fixture *fx, uint64_t position, struct pair *pair)
{
    struct place place = { 0, position };
    size_t width = fx->state_width;
    fx->state_width = width > 0 ? width : 32;
    *pair = (struct pair){ .k = fixture_rows(fx, 0, position, 2, 0),
                           .v = fixture_rows(fx, 0, position, 2, 1),
                           .states = fixture_states(fx, place, 2),
                           .q = fixture_queries(fx, place, 2),
                           .marks = fixture_marks(fx, place, 2) };
    pair->part.position = position;
    if (width == 0) {
        pair->part.k = fixture_tensor(fx, pair->k, 2);
        pair->part.v = fixture_tensor(fx, pair->v, 2);
    }
    if (width > 0)
        pair->part.states = (struct tensor){ .data = pair->states, .dtype = fx->model.dtype,
                                             .dims = 2, .shape = { 2, width } };
    pair->part.q = (struct tensor){ .data = pair->q, .dtype = DTYPE_FP32, .dims = 3,
                                    .shape = { 2, 4, 16 } };
    pair->part.marks = pair->marks;
    fx->state_width = width;
}

static void free_pair(struct pair *pair)
{
    free(pair->k);
    free(pair->v);
    free(pair->states);
    free(pair->q);
    free(pair->marks);
}

static void expect_refused(struct context *context, const struct append_layer *part, int code,
                           const char *text)
{
    struct progress progress = { 0 };
    struct error err = { 0 };
    uint64_t tokens = context_layer_tokens(context, 0);
    ASSERT_CODE(code, context_append(context, part, 1, &progress, &err), err);
    if (strstr(err.text, text) == NULL) fail_msg("\"%s\" does not say \"%s\"", err.text, text);
    assert_int_equal(context_layer_tokens(context, 0), tokens);
}

static void test_refused_columns(void **state)
{
    (void)state;
    struct fixture fx;
    struct pair pair;
    struct progress progress = { 0 };
    struct error err = { 0 };
    method_begin(&fx, "test-both");
    struct context *context = fixture_context(&fx, "book");
    make_pair(&fx, 0, &pair);
    struct append_layer part = pair.part;
    part.q = (struct tensor){ 0 };
    expect_refused(context, &part, MEMD_EINVAL, "keeps the query of every token");
    part = pair.part;
    pair.marks[1] = 4;
    expect_refused(context, &part, MEMD_EINVAL, "position 1: mark 4");
    pair.marks[1] = 3;
    const float bad[] = { NAN, -INFINITY, 65520.0F };
    for (size_t i = 0; i < 3; i++) {
        pair.q[64 + 2 * 16 + 5] = bad[i];
        expect_refused(context, &part, MEMD_ENONFINITE,
                       "layer 0 q at position 1 head 2 dimension 5 is NaN, infinite or beyond");
    }
    pair.q[64 + 2 * 16 + 5] = 65519.0F; /* rounds to 65504 */
    struct catalog_stats stats = stats_of(&fx);
    assert_int_equal(stats.nonfinite_rejected_total, 3);
    assert_int_equal(stats.tail_bytes, 0);
    ASSERT_OK(context_append(context, &part, 1, &progress, &err), err);
    ASSERT_OK(context_append(context, &part, 1, &progress, &err), err); /* a retry */
    assert_int_equal(progress.tokens, 2);
    free_pair(&pair);
    fixture_end(&fx);
}

/* Two tokens that are stored are taken again, and not with one thing changed. */
static void check_repeat(struct fixture *fx, struct context *context, uint64_t position)
{
    struct progress progress = { 0 };
    struct error err = { 0 };
    struct pair pair;
    make_pair(fx, position, &pair);
    if ((fx->columns & COLUMNS_QUERIES) == 0) pair.part.q = (struct tensor){ 0 };
    ASSERT_OK(context_append(context, &pair.part, 1, &progress, &err), err);
    pair.marks[1] ^= MARK_SPECIAL;
    expect_refused(context, &pair.part, MEMD_EPOSITION, "other bytes");
    pair.marks[1] ^= MARK_SPECIAL;
    pair.q[127] += 1;
    if ((fx->columns & COLUMNS_QUERIES) != 0)
        expect_refused(context, &pair.part, MEMD_EPOSITION, "other bytes");
    pair.q[127] -= 1;
    ((unsigned char *)pair.states)[2 * fx->state_width] ^= 1;
    if (fx->state_width > 0)
        expect_refused(context, &pair.part, MEMD_EPOSITION, "other bytes");
    free_pair(&pair);
}

/* In a block, and in a segment. */
static void test_repeats(void **state)
{
    (void)state;
    static const char *const kinds[] = { "test-marks", "test-both", "test-all" };
    for (size_t i = 0; i < 3; i++) {
        struct fixture fx;
        method_begin(&fx, kinds[i]);
        struct context *context = fixture_context(&fx, "book");
        fixture_append(&fx, context, 0, 1300);
        for (int restarted = 0; restarted < 2; restarted++) {
            check_repeat(&fx, context, 10);
            check_repeat(&fx, context, 1210);
            fixture_restart(&fx);
            context = fixture_context(&fx, "book");
        }
        fixture_end(&fx);
    }
}

/* What a method does not keep. A query is no offence: others look at it. */
static void test_unwanted(void **state)
{
    (void)state;
    struct fixture fx;
    struct pair pair;
    struct progress progress = { 0 };
    struct error err = { 0 };
    method_begin(&fx, "test-queries");
    struct context *context = fixture_context(&fx, "book");
    make_pair(&fx, 0, &pair);
    expect_refused(context, &pair.part, MEMD_EUNSUPPORTED, "keeps no marks");
    fx.method = "full";
    context = fixture_context(&fx, "plain");
    expect_refused(context, &pair.part, MEMD_EUNSUPPORTED, "keeps no marks");
    pair.part.marks = NULL;
    ASSERT_OK(context_append(context, &pair.part, 1, &progress, &err), err);
    pair.part = (struct append_layer){ .states = { .data = pair.states, .dtype = DTYPE_FP16,
                                                   .dims = 2, .shape = { 2, 32 } } };
    expect_refused(context, &pair.part, MEMD_EUNSUPPORTED, "keeps keys and values");
    free_pair(&pair);
    fixture_end(&fx);
}

/* No marks are marks of zero, and repeat them. */
static void test_absent_marks(void **state)
{
    (void)state;
    struct fixture fx;
    struct pair pair;
    struct progress progress = { 0 };
    struct error err = { 0 };
    method_begin(&fx, "test-marks");
    struct context *context = fixture_context(&fx, "book");
    make_pair(&fx, 0, &pair);
    pair.part.q = (struct tensor){ 0 };
    pair.part.marks = NULL;
    ASSERT_OK(context_append(context, &pair.part, 1, &progress, &err), err);
    pair.marks[0] = pair.marks[1] = 0;
    pair.part.marks = pair.marks;
    ASSERT_OK(context_append(context, &pair.part, 1, &progress, &err), err);
    assert_int_equal(progress.tokens, 2);
    pair.marks[1] = MARK_LANDMARK;
    expect_refused(context, &pair.part, MEMD_EPOSITION, "other bytes");
    free_pair(&pair);
    fixture_end(&fx);
}

static void test_refused_states(void **state)
{
    (void)state;
    struct fixture fx;
    struct pair pair;
    struct progress progress = { 0 };
    struct error err = { 0 };
    method_begin(&fx, "test-states");
    struct context *context = fixture_context(&fx, "book");
    make_pair(&fx, 0, &pair);
    pair.part.marks = NULL;
    struct append_layer part = pair.part;
    part.k = part.v = fixture_tensor(&fx, pair.k, 2);
    expect_refused(context, &part, MEMD_ESHAPE, "keys or values too");
    part.states = (struct tensor){ 0 };
    expect_refused(context, &part, MEMD_EINVAL, "keeps states");
    part = pair.part;
    part.states.shape[0] = 1;
    part.states.shape[1] = 64;
    expect_refused(context, &part, MEMD_ESHAPE, "(1, 64), not float16 (n, 32)");
    part = pair.part;
    part.states.dtype = DTYPE_BF16;
    expect_refused(context, &part, MEMD_ESHAPE, "bfloat16 (2, 32), not float16");
    ((uint16_t *)pair.states)[32 + 20] = 0xFC00;
    expect_refused(context, &pair.part, MEMD_ENONFINITE,
                   "layer 0 state at position 1 head 0 dimension 20");
    ((uint16_t *)pair.states)[32 + 20] = 0;
    ASSERT_OK(context_append(context, &pair.part, 1, &progress, &err), err);
    uint64_t id = 1;
    uint16_t got[32], rows[64];
    struct fetch_out out = { .k = rows, .v = rows };
    ASSERT_CODE(MEMD_EUNSUPPORTED, context_fetch(context, 0, &id, 1, &out, &err), err);
    out = (struct fetch_out){ .states = got };
    ASSERT_OK(context_fetch(context, 0, &id, 1, &out, &err), err);
    assert_memory_equal(got, (uint16_t *)pair.states + 32, sizeof got);
    assert_int_equal(context_state_width(context), 32);
    fx.method = "full";
    context = fixture_context(&fx, "plain");
    assert_int_equal(context_state_width(context), 0);
    out = (struct fetch_out){ .states = got };
    ASSERT_CODE(MEMD_EUNSUPPORTED, context_fetch(context, 0, &id, 0, &out, &err), err);
    free_pair(&pair);
    fixture_end(&fx);
}

/* Of queries: passed on where states are kept, refused elsewhere. */
static void test_states_of_queries(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    float q[64] = { 0 }, o[64], lse[4], states[32] = { 0 };
    uint64_t position = 100;
    method_begin(&fx, "test-states");
    struct query query = {
        .q = { .data = q, .dtype = DTYPE_FP32, .dims = 3, .shape = { 1, 4, 16 } },
        .positions = &position,
        .states = { .data = states, .dtype = DTYPE_FP32, .dims = 2, .shape = { 1, 32 } },
    };
    struct partial partial = { .o = o, .lse = lse, .rows = 4, .head_dim = 16 };
    struct quality quality;
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 100);
    ASSERT_OK(context_attend(context, &query, &fx.arena, &partial, &quality, &err), err);
    assert_int_equal(quality.bytes_exact, 100 * 32 * 2);
    query.states.shape[1] = 16;
    ASSERT_CODE(MEMD_ESHAPE,
                context_attend(context, &query, &fx.arena, &partial, &quality, &err), err);
    query.states.shape[1] = 32;
    states[31] = NAN;
    ASSERT_CODE(MEMD_ENONFINITE,
                context_attend(context, &query, &fx.arena, &partial, &quality, &err), err);
    fx.method = "full";
    ASSERT_CODE(MEMD_EUNSUPPORTED,
                context_attend(fixture_context(&fx, "plain"), &query, &fx.arena, &partial, &quality,
                               &err), err);
    struct recall_args recall = { .context_id = context_id(context) };
    struct recall_layer layer;
    ASSERT_CODE(MEMD_EUNSUPPORTED,
                catalog_recall(fx.catalog, &recall, &fx.arena, &layer, &err), err);
    fixture_end(&fx);
}

/* stored_bytes, worked out from FORMAT.md; what is pending; and planes beside columns. */
static void test_accounts(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    method_begin(&fx, "test-both");
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 1100);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    const uint64_t token = 4 * 16 * 2 + 2;
    uint64_t stored = 2 * (SEGMENT_BYTES + 48 + 1024 * token) +
                      2 * (48 + 76 * (2 * 2 * 16 * 2 + 4 + token));
    assert_int_equal(stats_of(&fx).stored_bytes, stored);
    assert_int_equal(stat_of(&fx, context).stored_bytes, stored);
    assert_int_equal(stats_of(&fx).tail_bytes, 0);
    assert_int_equal(stats_of(&fx).appended_bytes_total, 2 * 1100 * (2 * 2 * 16 * 2 + token));
    method_use(&fx, "test-planes");
    context = fixture_context(&fx, "planes");
    fixture_append(&fx, context, 0, 2100);
    expect_built(&fx, context, 4);
    method_expect(&fx, context, UINT64_MAX);
    fixture_restart(&fx);
    expect_clean(&fx);
    method_expect(&fx, fixture_context(&fx, "planes"), UINT64_MAX);
    fixture_end(&fx);
}

static void test_what_a_method_is_given(void **state)
{
    (void)state;
    struct fixture fx;
    method_begin(&fx, "test-marks");
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 1100);
    method_expect(&fx, context, 30);
    assert_int_equal(method_saw.tokens, 1100);
    assert_int_equal(method_saw.rows, 30);
    assert_int_equal(method_saw.layer, 1);
    assert_int_equal(method_saw.layers, 2);
    method_use(&fx, "test-sees-all");
    context = fixture_context(&fx, "all");
    fixture_append(&fx, context, 0, 1100);
    method_expect(&fx, context, 30);
    assert_int_equal(method_saw.rows, 1100);
    fixture_end(&fx);
}

static void test_dump(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    method_begin(&fx, "test-both");
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 1100);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    struct walk_args walk = { .context_id = 0 };
    struct dump_step dump;
    ASSERT_OK(catalog_dump(fx.catalog, &walk, &fx.arena, &dump, &err), err);
    size_t columns = 0, tails = 0;
    for (size_t i = 0; i < dump.record_count; i++) {
        const struct record_info *record = &dump.records[i];
        if (strstr(record->key, " columns") != NULL) {
            columns++;
            assert_int_equal(record->bytes, 48 + 1024 * 130);
        }
        tails += strcmp(record->table, "tails") == 0 && strstr(record->summary, "flags 3") != NULL;
    }
    assert_int_equal(columns, 2);
    assert_int_equal(tails, 2);
    fixture_end(&fx);
}

struct reader {
    const struct fixture *fx;
    struct context *context;
    atomic_bool stop;
    atomic_ulong answers;
};

/* Every answer compares every column. */
static void *read_on(void *arg)
{
    struct reader *reader = arg;
    struct fixture mine = *reader->fx;
    arena_init(&mine.arena, (size_t)64 << 20);
    struct error err = { 0 };
    bool failed = false;
    while (!failed && !atomic_load(&reader->stop)) {
        struct answer answer;
        failed = fixture_attend(&mine, reader->context, 0, UINT64_MAX, &answer, &err) < 0;
        if (failed) fprintf(stderr, "%s\n", err.text);
        arena_reset(&mine.arena);
        atomic_fetch_add(&reader->answers, 1);
    }
    arena_fini(&mine.arena);
    return failed ? arg : NULL;
}

/* While rows come, are committed, sealed and mapped. */
static void test_reading_while_appending(void **state)
{
    (void)state;
    for (size_t kind = 0; kind < 2; kind++) {
        struct fixture fx;
        method_begin(&fx, kind == 0 ? "test-marks" : "test-all");
        struct reader reader = { .fx = &fx, .context = fixture_context(&fx, "book") };
        pthread_t threads[2];
        for (size_t i = 0; i < 2; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, read_on, &reader), 0);
        uint64_t position = 0;
        while (position < 20000 && (position < 4000 || atomic_load(&reader.answers) < 20)) {
            size_t count = 1 + position % 97;
            fixture_append(&fx, reader.context, position, count);
            position += count;
        }
        atomic_store(&reader.stop, true);
        for (size_t i = 0; i < 2; i++) {
            void *failed = NULL;
            assert_int_equal(pthread_join(threads[i], &failed), 0);
            assert_null(failed);
        }
        method_expect(&fx, reader.context, UINT64_MAX);
        fixture_end(&fx);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_life),
        cmocka_unit_test(test_split_appends),
        cmocka_unit_test(test_truncate),
        cmocka_unit_test(test_fork),
        cmocka_unit_test(test_refused_columns),
        cmocka_unit_test(test_repeats),
        cmocka_unit_test(test_unwanted),
        cmocka_unit_test(test_absent_marks),
        cmocka_unit_test(test_refused_states),
        cmocka_unit_test(test_states_of_queries),
        cmocka_unit_test(test_accounts),
        cmocka_unit_test(test_what_a_method_is_given),
        cmocka_unit_test(test_dump),
        cmocka_unit_test(test_reading_while_appending),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
