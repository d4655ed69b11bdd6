/* SPDX-License-Identifier: Apache-2.0 */
/* write_format.c — makes a data directory for read_format.py to disagree with: sealed segments,
 * tails of several records, planes, a fork that shares and a fork that was cut, columns and states.
 * The rows follow the rule of store_fixture.h, which test_format.py computes again.
 */
#include "tests/unit/method_fixture.h"

METHOD_TABLE(METHOD_FIXTURES);

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
    for (size_t i = 0; i < 3; i++) {
        static const char *const methods[] = { "test-marks", "test-both", "test-all" };
        method_use(&fx, methods[i]);
        struct context *context = fixture_context(&fx, methods[i]);
        fixture_append(&fx, context, 0, 1100);
        ASSERT_OK(catalog_sync(fx.catalog, &err), err);
        fixture_append(&fx, context, 1100, 7);
    }
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
