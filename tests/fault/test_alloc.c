/* SPDX-License-Identifier: Apache-2.0 */
/* test_alloc.c — the n-th allocation fails, for n = 1, 2, 3 … until a whole life of a context
 * (open, append, attend, fetch, fork, truncate, list, verify, drop, close) needs fewer than n.
 *
 * Every failure must come out as MEMD_ENOMEM, leave no leak (run it with the address sanitizer)
 * and a store that verifies.
 */
#include "tests/unit/method_fixture.h"

#include "memory/store.h"
#include "tests/fault/allocations.h"
#include "tests/unit/fold_method.h"

METHOD_TABLE(METHOD_FIXTURES, FOLD_METHODS);

enum { TOKENS = 1100, APPENDS = 2, LAYERS = 2 };

struct life {
    struct fixture *fx;
    struct tensor k, v;
    /* What the method keeps, of all positions; NULL when it is not asked for. */
    void *states[LAYERS];
    float *q[LAYERS];
    uint8_t *marks[LAYERS];
    float *mass; /* of TOKENS tokens, wherever; and tensors and a compression with them */
    uint32_t ids[TOKENS];
};

static int open_one(struct life *life, struct context **ret_context, struct error *err)
{
    struct open_args args = {
        .name = "book", .model = &life->fx->model, .method = life->fx->method, .create = true
    };
    bool created = false;
    return catalog_open_context(life->fx->catalog, &args, &life->fx->arena, ret_context, &created,
                                err);
}

/* TOKENS more of a layer. */
static struct append_layer part_of(const struct life *life, struct context *context, uint32_t layer)
{
    const struct fixture *fx = life->fx;
    size_t position = (size_t)context_layer_tokens(context, layer);
    struct append_layer part = { .layer = layer, .position = position, .token_ids = life->ids };
    size_t values = (size_t)fx->model.query_heads * fx->model.head_dim;
    if (life->states[layer] == NULL) {
        part.k = life->k;
        part.v = life->v;
    } else {
        part.states = (struct tensor){
            .data = (uint16_t *)life->states[layer] + position * fx->state_width,
            .dtype = DTYPE_FP16, .dims = 2, .shape = { TOKENS, fx->state_width } };
    }
    if (life->q[layer] != NULL)
        part.q = (struct tensor){ .data = life->q[layer] + position * values, .dtype = DTYPE_FP32,
                                  .dims = 3,
                                  .shape = { TOKENS, fx->model.query_heads, fx->model.head_dim } };
    if (life->marks[layer] != NULL) part.marks = life->marks[layer] + position;
    if (life->mass != NULL)
        part.scores = (struct tensor){ .data = life->mass, .dtype = DTYPE_FP32, .dims = 2,
                                       .shape = { TOKENS, fx->model.query_heads } };
    return part;
}

static int append_all(struct life *life, struct context *context, struct error *err)
{
    struct append_layer parts[LAYERS];
    for (uint32_t i = 0; i < LAYERS; i++) parts[i] = part_of(life, context, i);
    struct progress progress = { 0 };
    int rc = context_append(context, parts, 2, &progress, err);
    if (rc == 0) rc = catalog_sync(life->fx->catalog, err);
    if (rc == 0) rc = context_reached(context, progress.sequence, DURABLE_SYNCED, &progress, err);
    return rc < 0 ? rc : 0;
}

static int read_all(struct life *life, struct context *context, struct error *err)
{
    struct answer answer;
    uint64_t ids[] = { 0, 1099 };
    uint16_t k[2 * 32], v[2 * 32], states[2 * 48];
    uint32_t token_ids[2];
    struct fetch_out out = { .k = k, .v = v, .states = states, .token_ids = token_ids };
    int rc = fixture_attend(life->fx, context, 1, UINT64_MAX, &answer, err);
    return rc < 0 ? rc : context_fetch(context, 0, ids, 2, &out, err);
}

/* The builder's failures are nobody's errors: rows without planes are read exactly. */
static int build_all(struct life *life, struct context *context, struct error *err)
{
    struct build_progress built;
    struct recall_layer layer;
    struct recall_args recall = { .context_id = context_id(context), .target_error = -1 };
    int rc = catalog_wait_built(life->fx->catalog, recall.context_id, NULL, NULL, &built, err);
    if (rc == 0 && built.built != built.segments && !allocations_failed())
        fail_msg("%llu of %llu segments have planes", (unsigned long long)built.built,
                 (unsigned long long)built.segments);
    if (rc < 0 || life->fx->state_width > 0) return rc;
    return catalog_recall(life->fx->catalog, &recall, &life->fx->arena, &layer, err);
}

/* What is stored beside rows. */
static int note_all(struct life *life, struct context *context, struct error *err)
{
    struct fixture *fx = life->fx;
    if (life->mass == NULL) return 0;
    size_t heads = fx->model.query_heads, dim = fx->model.head_dim;
    uint64_t kept = 0;
    struct tensor mass = { .data = life->mass, .dtype = DTYPE_FP32, .dims = 2,
                           .shape = { 300, heads } };
    struct tensor salt = { .data = life->mass, .dtype = DTYPE_FP32, .dims = 1, .shape = { 5 } };
    struct compress_args args = { .layer = 0, .tokens = 900,
                                  .q = { .data = life->mass, .dtype = DTYPE_FP32, .dims = 3,
                                         .shape = { 2, heads, dim } } };
    struct shared_param shared = { .set = "house", .model = &fx->model, .method = fx->method,
                                   .name = "salt", .layer = 1, .value = &salt };
    int rc = context_add_mass(context, 1, 800, &mass, err);
    if (rc == 0) rc = context_put_param(context, "salt", 1, &salt, err);
    if (rc == 0) rc = catalog_put_shared_param(fx->catalog, &shared, err);
    return rc < 0 ? rc : context_compress(context, &args, &fx->arena, &kept, err);
}

static int look_around(struct life *life, struct error *err)
{
    struct list_args list = { .prefix = "", .after = "" };
    struct list_page page;
    struct walk_args walk = { .context_id = 0 };
    struct verify_step step;
    struct dump_step dump;
    struct arena *arena = &life->fx->arena;
    int rc = catalog_list(life->fx->catalog, &list, arena, &page, err);
    if (rc == 0) rc = catalog_verify(life->fx->catalog, &walk, arena, &step, err);
    if (rc == 0) rc = catalog_dump(life->fx->catalog, &walk, arena, &dump, err);
    return rc;
}

static int live(struct life *life, struct error *err)
{
    struct fixture *fx = life->fx;
    struct context *context = NULL;
    uint64_t fork_id = 0, tokens = 0, bytes = 0;
    int rc = catalog_open(&fx->config, &fx->catalog, err);
    if (rc == 0) rc = open_one(life, &context, err);
    if (rc == 0) rc = append_all(life, context, err);
    if (rc == 0) rc = build_all(life, context, err);
    if (rc == 0) rc = note_all(life, context, err);
    if (rc == 0) rc = read_all(life, context, err);
    if (rc == 0) rc = catalog_fork(fx->catalog, context,
                                   &(struct fork_args){ .name = "fork" }, &fork_id, &tokens, err);
    if (rc == 0) rc = context_truncate(context, 1000, err);
    if (rc == 0) rc = append_all(life, context, err);
    if (rc == 0) rc = look_around(life, err);
    if (rc == 0) rc = catalog_drop(fx->catalog, fork_id, &bytes, err);
    arena_fini(&fx->arena);
    catalog_close(fx->catalog);
    fx->catalog = NULL;
    return rc;
}

/* Once more with all the memory there is: clean, and loaded from the disk. */
static int live_again(struct life *life, struct error *err)
{
    struct fixture *fx = life->fx;
    struct context *context = NULL;
    struct walk_args walk = { .context_id = 0 };
    struct verify_step step = { 0 };
    allocations_forget();
    int rc = catalog_open(&fx->config, &fx->catalog, err);
    if (rc == 0) rc = catalog_verify(fx->catalog, &walk, &fx->arena, &step, err);
    if (rc == 0 && step.finding_count > 0) fail_msg("verify: %s", step.findings[0]);
    if (rc == 0) rc = open_one(life, &context, err);
    if (rc == 0) rc = build_all(life, context, err);
    if (rc == 0 && context_tokens(context) > 0) rc = read_all(life, context, err);
    arena_fini(&fx->arena);
    catalog_close(fx->catalog);
    fx->catalog = NULL;
    return rc == MEMD_ENOROW ? 0 : rc; /* the append never came */
}

static void make_kept(struct life *life)
{
    struct fixture *fx = life->fx;
    for (uint32_t i = 0; i < LAYERS; i++) {
        struct place place = { i, 0 };
        if (fx->state_width > 0) life->states[i] = fixture_states(fx, place, APPENDS * TOKENS);
        if ((fx->columns & COLUMNS_QUERIES) != 0)
            life->q[i] = fixture_queries(fx, place, APPENDS * TOKENS);
        if ((fx->columns & COLUMNS_MARKS) != 0)
            life->marks[i] = fixture_marks(fx, place, APPENDS * TOKENS);
    }
}

static void free_kept(struct life *life)
{
    for (uint32_t i = 0; i < LAYERS; i++) {
        free(life->states[i]);
        free(life->q[i]);
        free(life->marks[i]);
    }
}

static void fail_each(const char *method)
{
    struct fixture fx;
    fixture_begin(&fx);
    if (method[0] != 0) method_use(&fx, method);
    arena_fini(&fx.arena);
    catalog_close(fx.catalog);
    fx.catalog = NULL;
    void *k = fixture_rows(&fx, 0, 0, TOKENS, 0), *v = fixture_rows(&fx, 0, 0, TOKENS, 1);
    struct life life = { .fx = &fx,
                         .k = fixture_tensor(&fx, k, TOKENS),
                         .v = fixture_tensor(&fx, v, TOKENS) };
    make_kept(&life);
    if (strcmp(method, "test-reads-back") == 0)
        life.mass = calloc(TOKENS * fx.model.query_heads, sizeof *life.mass);
    long n = 0;
    bool more = true;
    do {
        fixture_remove(fx.path);
        assert_int_equal(mkdir(fx.path, 0700), 0);
        struct error err = { 0 };
        allocations_forget();
        allocations_fail_after(n);
        int rc = live(&life, &err);
        allocations_fail_after(-1);
        if (rc != 0 && (rc != MEMD_ENOMEM || !allocations_failed()))
            fail_msg("allocation %ld: %s (%s)", n, error_name(rc), err.text);
        more = allocations_failed();
        if (more) ASSERT_OK(live_again(&life, &err), err);
        n++;
    } while (more);
    print_message("%ld allocations failed, one at a time\n", n - 1);
    assert_true(n > 30);
    free(life.mass);
    free(k);
    free(v);
    free_kept(&life);
    fixture_remove(fx.path);
}

static void test_every_allocation(void **state)
{
    (void)state;
    fail_each("");
}

static void test_with_a_fold(void **state)
{
    (void)state;
    fail_each("test-forgets");
    fail_each("camelot");
}

static void test_with_notes(void **state)
{
    (void)state;
    fail_each("test-reads-back");
}

static void test_columns_and_states(void **state)
{
    (void)state;
    fail_each("test-planes");
    fail_each("test-all");
}

static void test_with_a_ring(void **state)
{
    (void)state;
    fail_each("test-wide-ring");
}

/* Without memory for a map of the free pages none are found, and that is not what is known of them
 * from then on. */
static void test_free_pages(void **state)
{
    (void)state;
    struct fixture fx;
    struct store *store = NULL;
    struct store_free none, all;
    struct store_ask ask = { .bytes = UINT64_MAX, .run_bytes = UINT64_MAX, .value_bytes = 1 };
    struct error err = { 0 };
    uint64_t id = 0, freed = 0;
    fixture_begin(&fx);
    fixture_append(&fx, fixture_context(&fx, "book"), 0, TOKENS);
    fixture_restart(&fx);
    ASSERT_OK(catalog_find(fx.catalog, "book", &id, &err), err);
    ASSERT_OK(catalog_drop(fx.catalog, id, &freed, &err), err);
    fixture_close(&fx);
    struct store_config config = { fx.path, fx.config.map_bytes, STORE_LAZY, "test" };
    ASSERT_OK(store_open(&config, &store, &err), err);
    allocations_forget();
    allocations_fail_after(0);
    store_find_free(store, &ask, &none);
    allocations_fail_after(-1);
    assert_true(allocations_failed());
    assert_int_equal(none.usable_bytes, 0);
    store_find_free(store, &ask, &all);
    assert_in_range(all.usable_bytes, freed, 2 * freed);
    store_close(store);
    fixture_remove(fx.path);
    arena_fini(&fx.arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_allocation), cmocka_unit_test(test_with_a_fold),
        cmocka_unit_test(test_with_notes),       cmocka_unit_test(test_columns_and_states),
        cmocka_unit_test(test_with_a_ring),      cmocka_unit_test(test_free_pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
