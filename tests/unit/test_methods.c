/* SPDX-License-Identifier: Apache-2.0 */
/* test_methods.c — the table of methods: names, parameters, and that each answers like `full` while
 * it has nothing to choose from.
 */
#include "tests/unit/store_fixture.h"

#include <math.h>

#include "index/layer_index.h"
#include "memory/methods/methods.h"

static void test_names(void **state)
{
    (void)state;
    const char *const *names = catalog_methods();
    for (size_t i = 0; names[i] != NULL; i++) {
        const struct method *method = method_find(names[i]);
        assert_non_null(method);
        assert_string_equal(method->name, names[i]);
        assert_string_equal(method_options(method)->owner, names[i]);
        if (method->layer != NULL) assert_string_equal(method->layer->name, names[i]);
        assert_true(strlen(names[i]) < METHOD_NAME_BYTES);
        assert_true(strlen(method->help) > 10);
    }
    assert_null(method_find("magic"));
    assert_string_equal(method_default()->name, "progressive");
}

static void test_parameters(void **state)
{
    (void)state;
    struct error err = { 0 };
    double options[OPTIONS_MAX];
    const struct method *method = method_find("progressive");
    ASSERT_OK(method_parse(method, NULL, 0, options, &err), err);
    assert_true(method_option(method, options, "target_error", 7) == 0.02);
    assert_true(method_option(method, options, "exact_below", 7) == -1);
    assert_true(method_option(method, options, "nothing", 7) == 7);
    struct parameter parameter = { "target_error", "0.1" };
    ASSERT_OK(method_parse(method, &parameter, 1, options, &err), err);
    assert_true(method_option(method, options, "target_error", 7) == 0.1);
    static const struct parameter wrong[] = {
        { "target_error", "1.1" }, { "target_error", "-1" }, { "target_error", "much" },
        { "max_bytes", "1.5" },    { "sinks", "4" },
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        ASSERT_CODE(MEMD_EINVAL, method_parse(method, &wrong[i], 1, options, &err), err);
    ASSERT_CODE(MEMD_EINVAL, method_parse(method_find("full"), &parameter, 1, options, &err), err);
}

/* A context with a bad parameter is not made. */
static void test_open_refuses(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    fixture_begin(&fx);
    struct parameter parameter = { "target_error", "2" };
    struct open_args args = { .name = "book", .model = &fx.model, .method = "progressive",
                              .parameters = &parameter, .parameter_count = 1, .create = true };
    struct context *context = NULL;
    bool created = false;
    uint64_t id = 0;
    ASSERT_CODE(MEMD_EINVAL, catalog_open_context(fx.catalog, &args, &fx.arena, &context, &created,
                                                  &err), err);
    ASSERT_CODE(MEMD_ENOCONTEXT, catalog_find(fx.catalog, "book", &id, &err), err);
    args.method = "magic";
    ASSERT_CODE(MEMD_EUNSUPPORTED, catalog_open_context(fx.catalog, &args, &fx.arena, &context,
                                                        &created, &err), err);
    args.method = "streaming"; /* this model's keys come rotated */
    parameter = (struct parameter){ "positions", "cache-index" };
    ASSERT_CODE(MEMD_EUNSUPPORTED, catalog_open_context(fx.catalog, &args, &fx.arena, &context,
                                                        &created, &err), err);
    assert_non_null(strstr(err.text, "positions is cache-index"));
    parameter = (struct parameter){ "positions", "nowhere" };
    ASSERT_CODE(MEMD_EINVAL, catalog_open_context(fx.catalog, &args, &fx.arena, &context, &created,
                                                  &err), err);
    fixture_end(&fx);
}

/* q = k for every row: enough for methods that are made from queries. */
static void append_queries(struct fixture *fx, struct context *context, uint64_t position,
                           size_t count)
{
    struct error err = { 0 };
    struct progress progress;
    size_t heads = fx->model.query_heads, dim = fx->model.head_dim;
    float *q = malloc(count * heads * dim * sizeof *q);
    assert_non_null(q);
    for (size_t i = 0; i < count * heads * dim; i++) q[i] = fixture_value(3, 0, position, i);
    for (uint32_t layer = 0; layer < fx->model.layers; layer++) {
        void *k = fixture_rows(fx, layer, position, count, 0),
             *v = fixture_rows(fx, layer, position, count, 1);
        struct append_layer part = {
            .layer = layer, .position = position,
            .k = fixture_tensor(fx, k, count), .v = fixture_tensor(fx, v, count),
            .q = { .data = q, .dtype = DTYPE_FP32, .dims = 3, .shape = { count, heads, dim } },
        };
        ASSERT_OK(context_append(context, &part, 1, &progress, &err), err);
        free(k);
        free(v);
    }
    free(q);
}

/* What a method needs to read everything, where its defaults do not let it. */
struct generous {
    const char *method;
    size_t count;
    struct parameter parameters[4];
};
static const struct generous generous[] = {
    { "extended-mind", 1, { { "k", "65536" } } },
    { "loki", 1, { { "calibration", "301" } } },
    { "camelot", 1, { { "window", "1024" } } },
    { "memorizing",
      4,
      { { "k", "65536" }, { "search", "exact" }, { "normalise", "0" }, { "zero_rows", "0" } } },
};

static void be_generous(struct fixture *fx, const char *method)
{
    fx->parameter_count = 0;
    for (size_t i = 0; i < sizeof generous / sizeof generous[0]; i++) {
        if (strcmp(generous[i].method, method) != 0) continue;
        fx->parameters = generous[i].parameters;
        fx->parameter_count = generous[i].count;
    }
}

static void expect_exact(struct fixture *fx, struct context *context)
{
    struct answer answer, expected;
    struct error err = { 0 };
    const char *method = fx->method;
    fx->method = "full";
    be_generous(fx, fx->method);
    ASSERT_OK(fixture_attend(fx, fixture_context(fx, "full"), 1, UINT64_MAX, &expected, &err), err);
    fx->method = method;
    be_generous(fx, method);
    ASSERT_OK(fixture_attend(fx, context, 1, UINT64_MAX, &answer, &err), err);
    for (size_t i = 0; i < 4 * fx->model.head_dim; i++) {
        if (fabsf(answer.o[i] - expected.o[i]) > 1e-5f)
            fail_msg("o[%zu] is %g, expected %g", i, (double)answer.o[i], (double)expected.o[i]);
    }
}

/* A method that moves keys wants a model whose keys memd rotates. */
static void choose_model(struct fixture *fx, const char *name)
{
    struct error err = { 0 };
    double options[OPTIONS_MAX];
    const struct method *method = method_find(name);
    ASSERT_OK(method_parse(method, NULL, 0, options, &err), err);
    if (method_check(method, &fx->model, options, NULL) != MEMD_EUNSUPPORTED) return;
    fx->model.has_rope = true;
    fx->model.rope = (struct rope_config){ .theta = 1e4 };
    ASSERT_OK(model_check(&fx->model, &err), err);
}

/* Every method: few tokens are read exactly; with more an index comes, is answered from, survives
 * a restart and a truncate, and the store stays sound. */
static void live(struct fixture *fx, const char *name)
{
    struct error err = { 0 };
    struct build_progress built;
    struct answer answer;
    choose_model(fx, name);
    fx->method = "full";
    append_queries(fx, fixture_context(fx, "full"), 0, 300);
    fx->method = name;
    be_generous(fx, name);
    struct context *context = fixture_context(fx, name);
    const struct method *method = method_find(name);
    append_queries(fx, context, 0, 300);
    expect_exact(fx, context);
    append_queries(fx, context, 300, 2300);
    bool indexed = method_builds(method);
    for (int i = 0; i < 3; i++) {
        ASSERT_OK(catalog_sync(fx->catalog, &err), err);
        ASSERT_OK(catalog_wait_built(fx->catalog, context_id(context), NULL, NULL, &built, &err),
                  err);
        if (built.last_failure != 0)
            fail_msg("%s: %s", name, error_name(built.last_failure));
        if (built.indexes != (indexed ? 2u : 0u))
            fail_msg("%s: %zu indexes in round %d", name, (size_t)built.indexes, i);
        if (built.built_indexes != built.indexes)
            fail_msg("%s: %zu of %zu indexes are built in round %d", name,
                     (size_t)built.built_indexes, (size_t)built.indexes, i);
        assert_int_equal(built.built, built.segments);
        ASSERT_OK(fixture_attend(fx, context, 1, UINT64_MAX, &answer, &err), err);
        /* What is consolidated cannot be taken out again. */
        bool forgets = method->fold != NULL && method->fold->forgets;
        int expected = forgets && i < 2 ? MEMD_EPOSITION : 0;
        ASSERT_CODE(expected, fixture_attend(fx, context, 1, 700, &answer, &err), err);
        if (i == 0) fixture_restart(fx);
        context = fixture_context(fx, name);
        if (i == 1) ASSERT_OK(context_truncate(context, 1500, &err), err);
    }
    struct walk_args walk = { .context_id = 0 };
    struct verify_step step;
    ASSERT_OK(catalog_verify(fx->catalog, &walk, &fx->arena, &step, &err), err);
    if (step.finding_count > 0) fail_msg("%s: verify: %s", name, step.findings[0]);
    struct rebuild_step rebuilt;
    walk.context_id = context_id(context);
    ASSERT_OK(catalog_rebuild(fx->catalog, &walk, &fx->arena, &rebuilt, &err), err);
    ASSERT_OK(context_truncate(context, 300, &err), err);
    expect_exact(fx, context);
}

static void test_life_of_each(void **state)
{
    (void)state;
    const char *const *names = catalog_methods();
    for (size_t i = 0; names[i] != NULL; i++) {
        struct fixture fx;
        fixture_begin(&fx);
        /* Those that keep states have a life in tests/python/test_neurocache.py. */
        bool rows = method_find(names[i])->state_width == NULL;
        if (rows && strcmp(names[i], "full") != 0) live(&fx, names[i]);
        fixture_end(&fx);
    }
}

/* An index of queries needs some from the start. */
static void test_queries_are_needed(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    struct progress progress;
    fixture_begin(&fx);
    fx.method = "retrieval-attention";
    struct context *context = fixture_context(&fx, "book");
    ASSERT_CODE(MEMD_EINVAL, fixture_append_layer(&fx, context, (struct place){ 0, 0 }, 10,
                                                  &progress, &err), err);
    assert_non_null(strstr(err.text, "queries"));
    append_queries(&fx, context, 0, 10);
    ASSERT_OK(fixture_append_layer(&fx, context, (struct place){ 0, 10 }, 5, &progress, &err), err);
    fixture_end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),        cmocka_unit_test(test_parameters),
        cmocka_unit_test(test_open_refuses), cmocka_unit_test(test_life_of_each),
        cmocka_unit_test(test_queries_are_needed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
