/* SPDX-License-Identifier: Apache-2.0 */
/* test_fork.c — one past read by several methods: which forks are possible, and that what belongs
 * to a method stays with it. That forks share and part is in test_catalog.c. */
#include "tests/unit/store_fixture.h"

#include "memory/methods/methods.h"

enum { TOKENS = 2500, WINDOW = 100 };

static int fork_as(struct fixture *fx, struct context *parent, const struct fork_args *args,
                   struct error *err)
{
    uint64_t id = 0, tokens = 0;
    int rc = catalog_fork(fx->catalog, parent, args, &id, &tokens, err);
    if (rc == 0) assert_int_equal(tokens, context_tokens(parent));
    return rc;
}

/* One query over everything; bytes that were read. */
static uint64_t ask(struct fixture *fx, const char *name, float *ret_o)
{
    const struct model *model = &fx->model;
    size_t values = (size_t)model->query_heads * model->head_dim;
    float q[256], lse[16];
    assert_true(values <= 256);
    for (size_t i = 0; i < values; i++) q[i] = fixture_value(7, 0, 9, i);
    struct query query = { .q = { q, DTYPE_FP32, 3, { 1, model->query_heads, model->head_dim } },
                           .positions = (uint64_t[]){ TOKENS }, .target_error = -1 };
    struct partial partial = { ret_o, lse, model->query_heads, model->head_dim };
    struct quality quality;
    struct error err = { 0 };
    ASSERT_OK(context_attend(fixture_context(fx, name), &query, &fx->arena, &partial, &quality,
                             &err), err);
    return quality.bytes_read;
}

static void test_other_methods(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fx.method = "full";
    struct context *full = fixture_context(&fx, "full");
    fixture_append(&fx, full, 0, TOKENS);
    struct error err = { 0 };
    const struct parameter window[] = { { "window", "100" }, { "sinks", "0" } };
    struct fork_args near = { "near", "streaming", window, 2 };
    ASSERT_OK(fork_as(&fx, full, &near, &err), err);
    fixture_restart(&fx);
    float truth[256], o[256];
    uint64_t token_bytes = (uint64_t)2 * fx.model.kv_heads * fx.model.head_dim * 2;
    fx.method = "";
    assert_int_equal(ask(&fx, "full", truth), TOKENS * token_bytes);
    assert_int_equal(ask(&fx, "near", o), WINDOW * token_bytes);
    assert_memory_not_equal(o, truth, 64 * sizeof *o);
    /* and back: parameters do not follow to another method */
    struct context *streaming = fixture_context(&fx, "near");
    ASSERT_OK(fork_as(&fx, streaming, &(struct fork_args){ "back", "full", NULL, 0 }, &err), err);
    assert_int_equal(ask(&fx, "back", o), TOKENS * token_bytes);
    assert_memory_equal(o, truth, 64 * sizeof *o);
    /* the same method, said nothing and said anew */
    ASSERT_OK(fork_as(&fx, streaming, &(struct fork_args){ .name = "same" }, &err), err);
    assert_int_equal(ask(&fx, "same", o), WINDOW * token_bytes);
    const struct parameter wider[] = { { "window", "200" }, { "sinks", "0" } };
    ASSERT_OK(fork_as(&fx, streaming, &(struct fork_args){ "wider", NULL, wider, 2 }, &err), err);
    assert_int_equal(ask(&fx, "wider", o), 2 * WINDOW * token_bytes);
    fixture_end(&fx);
}

static void test_refused(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fx.method = "full";
    struct context *full = fixture_context(&fx, "full");
    fixture_append(&fx, full, 0, TOKENS);
    const struct parameter odd[] = { { "odd", "1" } };
    const struct {
        struct fork_args args;
        int code;
    } cases[] = {
        { { "x", "none", NULL, 0 }, MEMD_EUNSUPPORTED },                /* no such method */
        { { "x", "streaming", odd, 1 }, MEMD_EINVAL },                  /* no such parameter */
        { { "x", NULL, odd, 1 }, MEMD_EINVAL },
        { { "x", "retrieval-attention", NULL, 0 }, MEMD_EUNSUPPORTED }, /* no kept queries */
        { { "x", "longheads", NULL, 0 }, MEMD_EUNSUPPORTED },           /* no queries */
        { { "x", "extended-mind", NULL, 0 }, MEMD_EUNSUPPORTED },       /* no marks */
        { { "x", "neurocache", NULL, 0 }, MEMD_EUNSUPPORTED },          /* rows, not states */
        { { "full", "streaming", NULL, 0 }, MEMD_EEXIST },
        { { "", "streaming", NULL, 0 }, MEMD_EINVAL },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct error err = { 0 };
        int rc = fork_as(&fx, full, &cases[i].args, &err);
        if (rc != cases[i].code) fail_msg("case %zu: %s, %s", i, error_name(rc), err.text);
    }
    uint64_t id = 0;
    assert_int_equal(catalog_find(fx.catalog, "x", &id, NULL), MEMD_ENOCONTEXT);
    fixture_end(&fx);
}

/* A compressed prompt stays compressed in a fork of the same method, and only there. */
static void test_selection_stays(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fx.method = "l2norm";
    fx.parameters = (const struct parameter[]){ { "ratio", "0.25" }, { "prune_after", "10" },
                                                { "skip_layers", "0" } };
    fx.parameter_count = 3;
    struct context *pruned = fixture_context(&fx, "pruned");
    fixture_append(&fx, pruned, 0, TOKENS);
    struct error err = { 0 };
    uint64_t kept = 0;
    ASSERT_OK(context_compress(pruned, &(struct compress_args){ .layer = 0 }, &fx.arena, &kept,
                               &err), err);
    ASSERT_OK(fork_as(&fx, pruned, &(struct fork_args){ .name = "same" }, &err), err);
    ASSERT_OK(fork_as(&fx, pruned, &(struct fork_args){ "full", "full", NULL, 0 }, &err), err);
    ASSERT_OK(fork_as(&fx, pruned, &(struct fork_args){ "again", "l2norm", fx.parameters, 3 },
                      &err), err);
    fx.method = "";
    fx.parameter_count = 0;
    float o[256];
    uint64_t all = TOKENS * (uint64_t)2 * fx.model.kv_heads * fx.model.head_dim * 2;
    assert_int_equal(kept, TOKENS / 4 * fx.model.kv_heads);
    assert_int_equal(ask(&fx, "pruned", o), all / 4);
    assert_int_equal(ask(&fx, "same", o), all / 4);
    assert_int_equal(ask(&fx, "full", o), all);
    assert_int_equal(ask(&fx, "again", o), all);
    ASSERT_CODE(MEMD_EUNSUPPORTED, context_truncate(fixture_context(&fx, "same"), 100, &err), err);
    ASSERT_OK(context_truncate(fixture_context(&fx, "full"), 100, &err), err);
    fixture_end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_other_methods),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_selection_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
