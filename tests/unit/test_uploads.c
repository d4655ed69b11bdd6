/* SPDX-License-Identifier: Apache-2.0 */
/* test_uploads.c — tensors that clients upload: checked, durable, in use at once, of one context or
 * of a named set, and what was folded with the old ones gone.
 *
 * They are looked at through a fold that takes them in (fold_method.h).
 */
#include "tests/unit/fold_fixture.h"

#include <pthread.h>
#include <stdatomic.h>

#include "memory/catalog_state.h"
#include "memory/uploads.h"
#include "tests/unit/method_table.h"

METHOD_TABLE(FOLD_METHODS);

static struct tensor vector(const float *numbers, size_t count)
{
    return (struct tensor){ .data = numbers, .dtype = DTYPE_FP32, .dims = 1, .shape = { count } };
}

/* The fold of each layer begins with these numbers. */
static void expect_numbers(struct fixture *fx, struct context *context, uint32_t layer,
                           const float *numbers, size_t count)
{
    struct fold_past past = { fx->salt, fx->salt, 0, NULL, numbers, count };
    fold_expect_layer(fx, context, layer, &past);
}

static void begin(struct fixture *fx)
{
    fixture_begin(fx);
    fx->method = "test-forgets";
}

static void put(struct context *context, uint32_t layer, const float *numbers, size_t count)
{
    struct error err = { 0 };
    struct tensor value = vector(numbers, count);
    ASSERT_OK(context_put_param(context, "salt", layer, &value, &err), err);
}

static void test_own(void **state)
{
    (void)state;
    static const float first[3] = { 1, -2, 0.5f }, second[3] = { 4, 5, 6 };
    struct fixture fx;
    struct error err = { 0 };
    uint64_t id = 0, tokens = 0, bytes = 0;
    begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 5000);
    wait_built(&fx, context);
    fold_expect(&fx, context);
    put(context, PARAM_ALL_LAYERS, first, 3);
    expect_numbers(&fx, context, 0, first, 3);
    expect_numbers(&fx, context, 1, first, 3);
    put(context, 1, second, 3); /* that of the layer itself comes first */
    expect_numbers(&fx, context, 0, first, 3);
    expect_numbers(&fx, context, 1, second, 3);
    wait_built(&fx, context); /* a checkpoint made with these */
    ASSERT_OK(catalog_fork(fx.catalog, context,
                           &(struct fork_args){ .name = "branch" }, &id, &tokens, &err), err);
    put(context, 1, first, 3);
    expect_numbers(&fx, context, 1, first, 3);
    fixture_restart(&fx); /* the checkpoint is of other tensors */
    context = fixture_context(&fx, "book");
    expect_numbers(&fx, context, 1, first, 3);
    expect_numbers(&fx, fixture_context(&fx, "branch"), 1, second, 3);
    expect_clean(&fx);
    assert_int_equal(context->uploads->params.version, 3);
    assert_int_equal(context->uploads->params.count, 2);
    id = context_id(context);
    arena_reset(&fx.arena);
    ASSERT_OK(catalog_drop(fx.catalog, id, &bytes, &err), err);
    expect_clean(&fx);
    expect_numbers(&fx, fixture_context(&fx, "branch"), 0, first, 3);
    fixture_end(&fx);
}

static void test_checks(void **state)
{
    (void)state;
    static const float numbers[4 * 16] = { 1, 2, 3 };
    struct fixture fx;
    struct error err = { 0 };
    begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    struct tensor value = vector(numbers, 3);
    ASSERT_CODE(MEMD_EINVAL, context_put_param(context, "salt", 2, &value, &err), err);
    ASSERT_CODE(MEMD_EINVAL, context_put_param(context, "pepper", 0, &value, &err), err);
    ASSERT_CODE(MEMD_ESHAPE, context_put_param(context, "turn", 0, &value, &err), err);
    put(context, 0, numbers, 3);
    value.shape[0] = 4; /* the same everywhere: other has its rows from it */
    ASSERT_CODE(MEMD_ESHAPE, context_put_param(context, "salt", 1, &value, &err), err);
    struct tensor other = { .data = numbers, .dtype = DTYPE_FP32, .dims = 2, .shape = { 3, 16 } };
    ASSERT_OK(context_put_param(context, "other", 1, &other, &err), err);
    other.shape[0] = 4;
    ASSERT_CODE(MEMD_ESHAPE, context_put_param(context, "other", 1, &other, &err), err);
    float *many = calloc(17 << 20, sizeof *many);
    assert_non_null(many);
    struct context *fresh = fixture_context(&fx, "fresh");
    value = vector(many, 17 << 20);
    ASSERT_CODE(MEMD_ELIMIT, context_put_param(fresh, "salt", 0, &value, &err), err);
    free(many);
    value = vector(numbers, 3);
    fx.method = "full";
    ASSERT_CODE(MEMD_EUNSUPPORTED, context_put_param(fixture_context(&fx, "plain"), "salt", 0,
                                                     &value, &err), err);
    fixture_end(&fx);
}

static int open_with_set(struct fixture *fx, const char *name, const char *set,
                         struct context **context, struct error *err)
{
    struct parameter parameter = { .name = "params" };
    snprintf(parameter.value, sizeof parameter.value, "%s", set);
    struct open_args args = { .name = name, .model = &fx->model, .method = fx->method,
                              .parameters = &parameter, .parameter_count = 1, .create = true };
    bool created = false;
    return catalog_open_context(fx->catalog, &args, &fx->arena, context, &created, err);
}

static void put_shared(struct fixture *fx, const float *numbers, size_t count)
{
    struct error err = { 0 };
    struct tensor value = vector(numbers, count);
    struct shared_param param = { .set = "house", .model = &fx->model, .method = fx->method,
                                  .name = "salt", .layer = PARAM_ALL_LAYERS, .value = &value };
    ASSERT_OK(catalog_put_shared_param(fx->catalog, &param, &err), err);
}

/* Many contexts, one set: they share its memory, and change with it. */
static void test_shared(void **state)
{
    (void)state;
    static const float first[2] = { 1, -2 }, second[2] = { 4, 5 }, third[2] = { 8, 9 };
    struct fixture fx;
    struct error err = { 0 };
    struct context *a = NULL, *b = NULL, *c = NULL;
    uint64_t bytes = 0, id = 0, tokens = 0;
    begin(&fx);
    ASSERT_CODE(MEMD_EINVAL, open_with_set(&fx, "a", "house", &a, &err), err);
    put_shared(&fx, first, 2);
    ASSERT_OK(open_with_set(&fx, "a", "house", &a, &err), err);
    ASSERT_OK(open_with_set(&fx, "b", "house", &b, &err), err);
    assert_ptr_equal(a->uploads, b->uploads);
    fixture_append(&fx, a, 0, 2000);
    fixture_append(&fx, b, 0, 3000);
    expect_numbers(&fx, a, 1, first, 2);
    put_shared(&fx, second, 2);
    expect_numbers(&fx, a, 1, second, 2);
    expect_numbers(&fx, b, 0, second, 2);
    assert_ptr_equal(a->uploads, b->uploads);
    struct tensor value = vector(first, 2);
    ASSERT_CODE(MEMD_EUNSUPPORTED, context_put_param(a, "salt", 0, &value, &err), err);
    ASSERT_CODE(MEMD_EBUSY, catalog_drop_shared_params(fx.catalog, "house", &bytes, &err), err);
    expect_clean(&fx);
    fixture_restart(&fx);
    put_shared(&fx, third, 2); /* nobody is resident */
    ASSERT_OK(open_with_set(&fx, "a", "house", &a, &err), err);
    expect_numbers(&fx, a, 1, third, 2);
    ASSERT_OK(catalog_fork(fx.catalog, a,
                           &(struct fork_args){ .name = "fork" }, &id, &tokens, &err), err);
    c = fixture_context(&fx, "fork");
    expect_numbers(&fx, c, 1, third, 2);
    struct model other = fx.model;
    other.head_dim = 32;
    struct shared_param param = { .set = "house", .model = &other, .method = fx.method,
                                  .name = "salt", .layer = 0, .value = &value };
    ASSERT_CODE(MEMD_EMISMATCH, catalog_put_shared_param(fx.catalog, &param, &err), err);
    param.model = &fx.model;
    param.method = "test-reads-back";
    ASSERT_CODE(MEMD_EMISMATCH, catalog_put_shared_param(fx.catalog, &param, &err), err);
    expect_clean(&fx);
    uint64_t ids[3] = { context_id(a), context_id(c), context_id(fixture_context(&fx, "b")) };
    arena_reset(&fx.arena);
    for (size_t i = 0; i < 3; i++)
        ASSERT_OK(catalog_drop(fx.catalog, ids[i], &bytes, &err), err);
    ASSERT_OK(catalog_drop_shared_params(fx.catalog, "house", &bytes, &err), err);
    assert_true(bytes > 2 * sizeof(float));
    ASSERT_CODE(MEMD_EINVAL, catalog_drop_shared_params(fx.catalog, "house", &bytes, &err), err);
    expect_clean(&fx);
    assert_int_equal(stats_of(&fx).stored_bytes, 0);
    assert_int_equal(fx.catalog->state_bytes, 0);
    fixture_end(&fx);
}

struct crowd {
    struct fixture *fx;
    atomic_bool done;
};

/* One generation at a time: the sum is that of one of the uploads, or of none. */
static void *crowd_asks(void *arg)
{
    struct crowd *crowd = arg;
    struct fixture mine = *crowd->fx;
    struct error err = { 0 };
    arena_init(&mine.arena, (size_t)64 << 20);
    while (!crowd->done) {
        struct answer answer;
        struct context *context = fixture_context(&mine, "book");
        uint64_t said = 0;
        int rc = fixture_attend(&mine, context, 1, UINT64_MAX, &answer, &err);
        if (rc < 0) fail_msg("attend: %s (%s)", err.text, error_name(rc));
        for (size_t i = 0; i < 4; i++) said |= (uint64_t)answer.o[FOLD_SAYS_SUM + i] << 16 * i;
        bool known = false;
        for (int i = 0; i < 8; i++) {
            float numbers[1] = { (float)i };
            struct fold_past past = { mine.salt, mine.salt, 0, NULL, numbers, i > 0 };
            known |= said == fold_expected(&mine, &past, 1, fold_reach(400));
        }
        if (!known) fail_msg("the sum %016llx is of no generation", (unsigned long long)said);
        arena_reset(&mine.arena);
    }
    arena_fini(&mine.arena);
    return NULL;
}

static void test_crowd(void **state)
{
    (void)state;
    struct fixture fx;
    begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 400);
    struct crowd crowd = { .fx = &fx };
    pthread_t threads[3];
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, crowd_asks, &crowd), 0);
    for (int i = 0; i < 100; i++) {
        float numbers[1] = { (float)(1 + i % 7) };
        put(context, 1, numbers, 1);
    }
    crowd.done = true;
    for (size_t i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    fixture_end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_own),
        cmocka_unit_test(test_checks),
        cmocka_unit_test(test_shared),
        cmocka_unit_test(test_crowd),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
