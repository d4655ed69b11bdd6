/* SPDX-License-Identifier: Apache-2.0 */
/* write_format.c — makes a data directory for read_format.py to disagree with: sealed segments,
 * tails of several records, planes, a fork that shares and a fork that was cut, columns and states,
 * a ring, notes and uploaded tensors.
 * The rows follow the rule of store_fixture.h, which test_format.py computes again.
 */
#include "tests/unit/fold_method.h"
#include "tests/unit/method_fixture.h"

METHOD_TABLE(METHOD_FIXTURES, FOLD_METHODS);

/* Mass of token t and head h: (t + h) % 7 / 8 with its append, and 1 more from token 920 on in layer
 * 1. A third of 900 tokens is kept. Of the tensors one was replaced. */
static void write_notes(struct fixture *fx)
{
    struct error err = { 0 };
    struct progress progress;
    float mass[500 * 4], ones[100 * 4], numbers[3] = { 1, 2, 3 };
    for (size_t i = 0; i < 100 * 4; i++) ones[i] = 1;
    fx->method = "test-reads-back";
    fx->parameter_count = 0;
    struct context *context = fixture_context(fx, "notes");
    for (uint32_t layer = 0; layer < 2; layer++) {
        for (size_t at = 0; at < 1000; at += 500) {
            for (size_t i = 0; i < 500 * 4; i++) mass[i] = (float)((at + i / 4 + i % 4) % 7) / 8;
            void *k = fixture_rows(fx, layer, at, 500, 0), *v = fixture_rows(fx, layer, at, 500, 1);
            struct append_layer part = {
                .layer = layer, .position = at,
                .k = fixture_tensor(fx, k, 500), .v = fixture_tensor(fx, v, 500),
                .scores = { .data = mass, .dtype = DTYPE_FP32, .dims = 2, .shape = { 500, 4 } } };
            ASSERT_OK(context_append(context, &part, 1, &progress, &err), err);
            free(k);
            free(v);
        }
    }
    struct tensor more = { .data = ones, .dtype = DTYPE_FP32, .dims = 2, .shape = { 80, 4 } };
    ASSERT_OK(context_add_mass(context, 1, 920, &more, &err), err);
    struct compress_args args = { .layer = 1, .tokens = 900,
                                  .q = { .data = ones, .dtype = DTYPE_FP32, .dims = 3,
                                         .shape = { 1, 4, 16 } } };
    uint64_t kept = 0;
    ASSERT_OK(context_compress(context, &args, &fx->arena, &kept, &err), err);
    struct tensor salt = { .data = numbers, .dtype = DTYPE_FP32, .dims = 1, .shape = { 3 } };
    struct shared_param shared = { .set = "house", .model = &fx->model, .method = fx->method,
                                   .name = "salt", .layer = UINT16_MAX, .value = &salt };
    for (size_t i = 0; i < 3; i++) {
        numbers[0] = (float)(10 * i);
        ASSERT_OK(context_put_param(context, "salt", i == 1 ? 1 : 0, &salt, &err), err);
        ASSERT_OK(catalog_put_shared_param(fx->catalog, &shared, &err), err);
    }
}

static void write_all(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct error err = { 0 };
    struct context *book = fixture_context(&fx, "book");
    fixture_append(&fx, book, 0, 2400);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    fixture_append(&fx, book, 2400, 100);
    uint64_t id = 0, tokens = 0;
    ASSERT_OK(catalog_fork(fx.catalog, book,
                           &(struct fork_args){ .name = "fork" }, &id, &tokens, &err), err);
    struct context *fork = fixture_context(&fx, "fork");
    ASSERT_OK(context_truncate(fork, 1500, &err), err);
    fx.salt = 5;
    fixture_append(&fx, fork, 1500, 600);
    struct build_progress built = { 0 };
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    ASSERT_OK(catalog_wait_built(fx.catalog, context_id(book), NULL, NULL, &built, &err), err);
    assert_int_equal(built.built, 4);
    ASSERT_OK(catalog_wait_built(fx.catalog, id, NULL, NULL, &built, &err), err);
    assert_int_equal(built.built, 4);
    fx.salt = 1;
    for (size_t i = 0; i < 4; i++) {
        static const char *const methods[] = { "test-marks", "test-both", "test-all", "test-ring" };
        struct answer answer;
        method_use(&fx, methods[i]);
        struct context *context = fixture_context(&fx, methods[i]);
        fixture_append(&fx, context, 0, 1100);
        ASSERT_OK(catalog_sync(fx.catalog, &err), err);
        if (i == 3) ASSERT_OK(fixture_attend(&fx, context, 1, UINT64_MAX, &answer, &err), err);
        fixture_append(&fx, context, 1100, 7);
    }
    struct fixture plain = fx;
    plain.state_width = 0;
    write_notes(&plain);
    fx.arena = plain.arena;
    arena_fini(&fx.arena);
    catalog_close(fx.catalog);
    char name[128], to[256];
    static const char *const files[] = { "data.mdb", "lock.mdb", "lock" };
    for (size_t i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%s/%s", fx.path, files[i]);
        snprintf(to, sizeof to, "%s", files[i]);
        FILE *from = fopen(name, "rb"), *out = fopen(to, "wb");
        assert_non_null(from);
        assert_non_null(out);
        char block[65536];
        for (size_t got; (got = fread(block, 1, sizeof block, from)) > 0;)
            assert_int_equal(fwrite(block, 1, got, out), got);
        assert_int_equal(fclose(out), 0);
        fclose(from);
    }
    fixture_remove(fx.path);
}

int main(int argc, char **argv)
{
    if (argc != 2 || chdir(argv[1]) != 0) {
        fprintf(stderr, "usage: write_format DIR\n");
        return 2;
    }
    const struct CMUnitTest tests[] = { cmocka_unit_test(write_all) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
