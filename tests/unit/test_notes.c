/* SPDX-License-Identifier: Apache-2.0 */
/* test_notes.c — what is stored beside rows because it cannot be had from them: attention mass, and
 * what a compression kept.
 *
 * Mass is looked at through the fold that takes it in (fold_method.h).
 */
#include "tests/unit/fold_fixture.h"
#include "tests/unit/killed.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/pool.h"
#include "memory/catalog_state.h"
#include "tests/unit/method_table.h"

METHOD_TABLE(FOLD_METHODS);

enum { TOKENS = 6000, HEADS = 4, LAYER = 1 };

/* The mass of the tokens of layer LAYER, as it must be. */
struct truth {
    float mass[(TOKENS + 1000) * HEADS];
};

static float mass_value(uint64_t position, size_t head, uint32_t salt)
{
    return (float)((position * 7 + head * 3 + salt) % 11) / 8;
}

/* (count, H) fp32 */
static struct tensor mass_tensor(const float *values, size_t count)
{
    return (struct tensor){ .data = values, .dtype = DTYPE_FP32, .dims = 2,
                            .shape = { count, HEADS } };
}

static void append(struct fixture *fx, struct context *context, struct truth *truth, size_t count)
{
    struct error err = { 0 };
    struct progress progress;
    uint64_t at = context_layer_tokens(context, LAYER);
    void *k = fixture_rows(fx, LAYER, at, count, 0), *v = fixture_rows(fx, LAYER, at, count, 1);
    float *mass = truth->mass + at * HEADS;
    for (size_t i = 0; i < count * HEADS; i++)
        mass[i] = mass_value(at + i / HEADS, i % HEADS, fx->salt);
    struct append_layer part = { .layer = LAYER, .position = at,
                                 .k = fixture_tensor(fx, k, count),
                                 .v = fixture_tensor(fx, v, count),
                                 .scores = mass_tensor(mass, count) };
    ASSERT_OK(context_append(context, &part, 1, &progress, &err), err);
    free(k);
    free(v);
}

/* To all of the newest `count` tokens; those that are consolidated do not get it. */
static void add_mass(struct context *context, struct truth *truth, size_t count)
{
    struct error err = { 0 };
    uint64_t tokens = context_layer_tokens(context, LAYER), first = tokens - count;
    uint64_t folded = fold_reach(tokens);
    float *values = malloc(count * HEADS * sizeof *values);
    assert_non_null(values);
    for (size_t i = 0; i < count * HEADS; i++) {
        values[i] = mass_value(first + i / HEADS, i % HEADS, 1000);
        if (first + i / HEADS >= folded) truth->mass[first * HEADS + i] += values[i];
    }
    struct tensor mass = mass_tensor(values, count);
    ASSERT_OK(context_add_mass(context, LAYER, first, &mass, &err), err);
    free(values);
}

static void expect_mass(struct fixture *fx, struct context *context, const struct truth *truth)
{
    struct fold_past past = { fx->salt, fx->salt, 0, truth->mass, NULL, 0 };
    fold_expect_layer(fx, context, LAYER, &past);
}

static void begin(struct fixture *fx)
{
    fixture_begin(fx);
    fx->method = "test-forgets";
    assert_int_equal(fx->model.query_heads, HEADS);
}

/* Appends and observations of all sizes, across chunks of 128 tokens and segments. */
static void fill(struct fixture *fx, struct context *context, struct truth *truth)
{
    struct error err = { 0 };
    for (size_t i = 0; context_layer_tokens(context, LAYER) < TOKENS - 700; i++) {
        append(fx, context, truth, 1 + i * 97 % 500);
        uint64_t tokens = context_layer_tokens(context, LAYER);
        add_mass(context, truth, i % 3 == 0 ? (size_t)tokens : 1 + i % 60 % (size_t)tokens);
        if (i % 4 == 0) ASSERT_OK(catalog_sync(fx->catalog, &err), err);
        if (i % 5 == 0) expect_mass(fx, context, truth);
    }
}

static void test_mass(void **state)
{
    (void)state;
    struct fixture fx;
    struct truth *truth = calloc(1, sizeof *truth);
    begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    fill(&fx, context, truth);
    expect_mass(&fx, context, truth);
    wait_built(&fx, context);
    assert_int_equal(context->layers[LAYER].mass.resident, 0); /* it is in the store */
    assert_int_equal(stats_of(&fx).tail_bytes, 0);
    expect_clean(&fx);
    for (int i = 0; i < 2; i++) { /* with a checkpoint; then the fold is made of all rows again */
        fixture_restart(&fx);
        context = fixture_context(&fx, "book");
        expect_mass(&fx, context, truth);
        struct walk_args walk = { .context_id = context_id(context) };
        struct rebuild_step step;
        struct error err = { 0 };
        ASSERT_OK(catalog_rebuild(fx.catalog, &walk, &fx.arena, &step, &err), err);
        expect_mass(&fx, context, truth);
    }
    fixture_end(&fx);
    free(truth);
}

/* A daemon has threads for what is inside an answer; the fold of a method that reads mass is made
 * without them, however its blocks could be split. */
static void test_mass_beside_threads(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    struct truth *truth = calloc(1, sizeof *truth);
    struct pool *pool = NULL;
    begin(&fx);
    ASSERT_OK(pool_open(2, &pool, &err), err);
    fx.config.pool = pool;
    fixture_restart(&fx);
    struct context *context = fixture_context(&fx, "book");
    wait_built(&fx, context); /* the builder comes again when a segment was sealed */
    append(&fx, context, truth, 500);
    uint64_t before = fold_tokens_taken();
    expect_mass(&fx, context, truth);
    assert_int_equal(fold_tokens_taken() - before, fold_reach(500)); /* by the query */
    fixture_end(&fx);
    pool_close(pool);
    free(truth);
}

static void test_mass_of_forks(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    uint64_t id = 0, tokens = 0, bytes = 0;
    struct truth *truth = calloc(1, sizeof *truth), *other = calloc(1, sizeof *other);
    begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    fill(&fx, context, truth);
    ASSERT_OK(catalog_fork(fx.catalog, context,
                           &(struct fork_args){ .name = "branch" }, &id, &tokens, &err), err);
    struct context *branch = fixture_context(&fx, "branch");
    *other = *truth;
    expect_mass(&fx, branch, other);
    append(&fx, branch, other, 300);
    add_mass(branch, other, 200);
    append(&fx, context, truth, 150);
    append(&fx, branch, other, 200);
    append(&fx, context, truth, 150);
    expect_mass(&fx, branch, other);
    expect_mass(&fx, context, truth);
    expect_clean(&fx);
    assert_true(stat_of(&fx, branch).stored_bytes > 0);
    arena_reset(&fx.arena);
    ASSERT_OK(catalog_drop(fx.catalog, id, &bytes, &err), err);
    expect_clean(&fx);
    expect_mass(&fx, fixture_context(&fx, "book"), truth);
    fixture_end(&fx);
    free(truth);
    free(other);
}

/* Mass of tokens that are gone does not come back with others in their place. */
static void test_mass_is_cut(void **state)
{
    (void)state;
    static const uint64_t cuts[] = { 0, 1, 127, 128, 1024, 1500, 5000, 5299 };
    struct truth *truth = calloc(1, sizeof *truth);
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        struct fixture fx;
        struct error err = { 0 };
        begin(&fx);
        memset(truth, 0, sizeof *truth);
        struct context *context = fixture_context(&fx, "book");
        fill(&fx, context, truth);
        if (i % 2 == 0) ASSERT_OK(catalog_sync(fx.catalog, &err), err);
        if (i % 2 == 1) add_mass(context, truth, 90);
        ASSERT_OK(context_truncate(context, cuts[i], &err), err);
        expect_clean(&fx);
        memset(truth->mass + cuts[i] * HEADS, 0, (TOKENS - cuts[i]) * HEADS * sizeof(float));
        size_t count = 400;
        void *k = fixture_rows(&fx, LAYER, cuts[i], count, 0),
             *v = fixture_rows(&fx, LAYER, cuts[i], count, 1);
        struct append_layer part = { .layer = LAYER, .position = cuts[i],
                                     .k = fixture_tensor(&fx, k, count),
                                     .v = fixture_tensor(&fx, v, count) };
        struct progress progress;
        ASSERT_OK(context_append(context, &part, 1, &progress, &err), err); /* without mass */
        expect_mass(&fx, context, truth);
        fixture_restart(&fx);
        expect_mass(&fx, fixture_context(&fx, "book"), truth);
        expect_clean(&fx);
        fixture_end(&fx);
        free(k);
        free(v);
    }
    free(truth);
}

/* A commit that fails takes rows and mass back, and what a fold had of them. */
static void test_mass_is_taken_back(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    struct answer answer;
    struct truth *truth = calloc(1, sizeof *truth), *tried = malloc(sizeof *tried);
    begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    append(&fx, context, truth, 3000);
    wait_built(&fx, context);
    fx.config.budget_bytes = 1000; /* pinned: it cannot go */
    catalog_reconfigure(fx.catalog, &fx.config);
    for (int i = 0; i < 20; i++) {
        *tried = *truth;
        add_mass(context, tried, 100);
        append(&fx, context, tried, 600);
        ASSERT_OK(fixture_attend(&fx, context, LAYER, UINT64_MAX, &answer, &err), err);
        ASSERT_CODE(MEMD_EFULL, fixture_reach(&fx, context, context->sequence, DURABLE_COMMITTED,
                                              &err), err);
        assert_int_equal(context_layer_tokens(context, LAYER), 3000);
        expect_mass(&fx, context, truth);
        assert_int_equal(stats_of(&fx).tail_bytes, 0);
    }
    fx.config.budget_bytes = 0;
    catalog_reconfigure(fx.catalog, &fx.config);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    append(&fx, context, truth, 700);
    expect_mass(&fx, context, truth);
    fixture_end(&fx);
    free(truth);
    free(tried);
}

enum { OWN = 400, FROM = 150, MORE = 200 }; /* tokens; those that get 1 more */

struct look_job {
    struct writer_job job;
    struct context *context;
    float values[3 * 128 * HEADS]; /* what would be written of 384 tokens */
};

/* As a transaction that would commit the first `writing` tokens, and fails. */
static void try_put(struct look_job *look, uint64_t writing)
{
    struct layer *layer = &look->context->layers[LAYER];
    struct error err = { 0 };
    int64_t delta = 0;
    struct store_txn txn = { 0 };
    ASSERT_OK(store_begin(look->job.catalog->store, true, &txn, &err), err);
    layer->writing = writing;
    mass_put(look->context, LAYER, &txn, &delta);
    for (uint32_t i = 0; i < 3; i++) {
        unsigned char key[FORMAT_KEY_BYTES_MAX];
        struct slice value;
        size_t bytes = format_key_note(look->context->id, LAYER, NOTE_MASS, i, key);
        assert_true(store_get(&txn, STORE_NOTES, (struct slice){ key, bytes }, &value));
        memcpy(look->values + (size_t)i * 128 * HEADS,
               (const char *)value.data + FORMAT_HEADER_BYTES, 128 * HEADS * sizeof(float));
    }
    store_abort(&txn);
    layer->writing = layer->committed;
}

/* Mass comes; one transaction with all of it fails, the next one has less room. */
static int look(struct writer_job *job, struct error *err)
{
    struct look_job *look = (struct look_job *)(void *)job;
    struct context *context = look->context;
    float ones[MORE * HEADS];
    uint64_t bytes = 0;
    for (size_t i = 0; i < MORE * HEADS; i++) ones[i] = 1;
    struct mass_span span = { LAYER, FROM, MORE };
    struct tensor mass = mass_tensor(ones, MORE);
    ASSERT_OK(mass_hold(context, &span, &bytes, err), *err);
    ASSERT_OK(writer_reserve(job->catalog->writer, bytes, err), *err);
    mass_add(context, &span, &mass, 0);
    try_put(look, OWN);
    try_put(look, 220);
    pthread_mutex_lock(&context->lock); /* if it were committed, what it left out would stay */
    uint64_t gone = mass_committed(context, &context->layers[LAYER]);
    pthread_mutex_unlock(&context->lock);
    assert_int_equal(gone, 0);
    writer_mark(job->catalog->writer, context);
    return 0;
}

/* A transaction says nothing of tokens that it does not reach; the next one does. */
static void test_mass_of_what_is_stored(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    struct truth *truth = calloc(1, sizeof *truth);
    begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    append(&fx, context, truth, OWN);
    struct look_job job = { .job = { .run = look, .catalog = fx.catalog }, .context = context };
    ASSERT_OK(writer_run(fx.catalog->writer, &job.job, &err), err);
    for (size_t i = 0; i < OWN * HEADS; i++) {
        size_t token = i / HEADS;
        float appended = truth->mass[i], more = token >= FROM && token < FROM + MORE ? 1 : 0;
        float expected = token < 220 ? appended + more : token < 256 ? 0 : appended;
        truth->mass[i] += more;
        if (token < 3 * 128 && job.values[i] != expected)
            fail_msg("mass of token %zu is %g, expected %g", token, (double)job.values[i],
                     (double)expected);
    }
    append(&fx, context, truth, 200);
    fixture_restart(&fx);
    expect_mass(&fx, fixture_context(&fx, "book"), truth);
    fixture_end(&fx);
    free(truth);
}

static void test_refused_mass(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    struct truth *truth = calloc(1, sizeof *truth);
    float values[2 * HEADS] = { 1, 1, 1, 1, 1, 1, 1, 1 };
    struct tensor mass = mass_tensor(values, 2);
    begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    append(&fx, context, truth, 300);
    ASSERT_CODE(MEMD_EPOSITION, context_add_mass(context, LAYER, 299, &mass, &err), err);
    ASSERT_CODE(MEMD_EINVAL, context_add_mass(context, 2, 0, &mass, &err), err);
    values[5] = -0.5f;
    ASSERT_CODE(MEMD_EINVAL, context_add_mass(context, LAYER, 290, &mass, &err), err);
    values[5] = NAN;
    ASSERT_CODE(MEMD_ENONFINITE, context_add_mass(context, LAYER, 290, &mass, &err), err);
    mass.shape[1] = 3;
    ASSERT_CODE(MEMD_ESHAPE, context_add_mass(context, LAYER, 290, &mass, &err), err);
    fx.method = "full";
    mass = mass_tensor(values, 2);
    struct context *full = fixture_context(&fx, "full");
    ASSERT_CODE(MEMD_EUNSUPPORTED, context_add_mass(full, 0, 0, &mass, &err), err);
    expect_mass(&fx, context, truth);
    assert_int_equal(stats_of(&fx).tail_bytes, 0);
    fixture_end(&fx);
    free(truth);
}

/* A child appends rows with mass until it is killed: both are there, or neither. */
static void child(struct fixture *fx, int fd)
{
    struct error err = { 0 };
    struct truth *truth = calloc(1, sizeof *truth);
    if (catalog_open(&fx->config, &fx->catalog, &err) < 0) _exit(2);
    struct context *context = fixture_context(fx, "book");
    for (uint64_t i = 0;; i++) {
        uint64_t at = context_layer_tokens(context, LAYER);
        if (at > TOKENS - 500 && context_truncate(context, 3000 + i % 400, &err) < 0) _exit(3);
        append(fx, context, truth, 1 + (size_t)(i * 131 % 400));
        if (i % 5 == 0 && catalog_sync(fx->catalog, &err) < 0) _exit(4);
        if (write(fd, "", 1) != 1) _exit(5);
    }
}

static void test_kill(void **state)
{
    (void)state;
    struct fixture fx;
    struct truth *truth = calloc(1, sizeof *truth);
    begin(&fx);
    for (size_t i = 0; i < TOKENS * HEADS; i++)
        truth->mass[i] = mass_value(i / HEADS, i % HEADS, fx.salt);
    fixture_close(&fx);
    for (int round = 0; round < 12; round++) {
        struct victim victim = victim_start(&fx, child);
        victim_hear(&victim, 3 + (size_t)round * 5);
        victim_kill(&victim, &fx);
        expect_mass(&fx, fixture_context(&fx, "book"), truth);
        expect_clean(&fx);
        fixture_close(&fx);
    }
    fixture_end(&fx);
    free(truth);
}

struct crowd {
    struct fixture *fx;
    struct context *context;
    atomic_bool done;
};

static void *crowd_asks(void *arg)
{
    struct crowd *crowd = arg;
    struct fixture mine = *crowd->fx;
    struct error err = { 0 };
    arena_init(&mine.arena, (size_t)64 << 20);
    while (!crowd->done) {
        struct answer answer;
        int rc = fixture_attend(&mine, crowd->context, LAYER, UINT64_MAX, &answer, &err);
        if (rc < 0) fail_msg("attend: %s (%s)", err.text, error_name(rc));
        arena_reset(&mine.arena);
    }
    arena_fini(&mine.arena);
    return NULL;
}

/* While others ask, and the writer commits what comes. */
static void test_crowd(void **state)
{
    (void)state;
    struct fixture fx;
    struct truth *truth = calloc(1, sizeof *truth);
    pthread_t threads[2];
    begin(&fx);
    struct crowd crowd = { .fx = &fx, .context = fixture_context(&fx, "book") };
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, crowd_asks, &crowd), 0);
    fill(&fx, crowd.context, truth);
    crowd.done = true;
    for (size_t i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    expect_mass(&fx, crowd.context, truth);
    fixture_end(&fx);
    free(truth);
}

static int compress(struct fixture *fx, struct context *context, uint64_t tokens, uint64_t *kept,
                    struct error *err)
{
    float q[HEADS * 16] = { 1 };
    struct compress_args args = {
        .layer = LAYER, .tokens = tokens,
        .q = { .data = q, .dtype = DTYPE_FP32, .dims = 3, .shape = { 1, HEADS, 16 } },
    };
    return context_compress(context, &args, &fx->arena, kept, err);
}

static void expect_kept(struct fixture *fx, struct context *context, uint64_t kept)
{
    struct answer answer;
    struct error err = { 0 };
    ASSERT_OK(fixture_attend(fx, context, LAYER, UINT64_MAX, &answer, &err), err);
    assert_int_equal((uint64_t)answer.o[FOLD_SAYS_KEPT], kept);
}

/* Once, durable, of forks too; it cannot be cut, and goes with its context. */
static void test_compress(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    uint64_t kept = 0, id = 0, tokens = 0, bytes = 0;
    fixture_begin(&fx);
    fx.method = "test-reads-back";
    struct context *context = fixture_context(&fx, "book");
    ASSERT_CODE(MEMD_EPOSITION, compress(&fx, context, 0, &kept, &err), err);
    fixture_append(&fx, context, 0, 1500);
    expect_kept(&fx, context, 0);
    ASSERT_CODE(MEMD_EPOSITION, compress(&fx, context, 1501, &kept, &err), err);
    ASSERT_OK(compress(&fx, context, 1400, &kept, &err), err);
    assert_int_equal(kept, 467 + 467); /* 0, 3 … 1398 and 1, 4 … 1399 */
    expect_kept(&fx, context, kept);
    ASSERT_CODE(MEMD_EEXIST, compress(&fx, context, 0, &kept, &err), err);
    fixture_append(&fx, context, 1500, 100);
    ASSERT_CODE(MEMD_EUNSUPPORTED, context_truncate(context, 1399, &err), err);
    ASSERT_OK(context_truncate(context, 1400, &err), err);
    expect_kept(&fx, context, kept);
    fixture_append(&fx, context, 1400, 100);
    ASSERT_OK(catalog_fork(fx.catalog, context,
                           &(struct fork_args){ .name = "branch" }, &id, &tokens, &err), err);
    expect_clean(&fx);
    fixture_restart(&fx);
    context = fixture_context(&fx, "book");
    expect_kept(&fx, context, kept);
    struct context *branch = fixture_context(&fx, "branch");
    expect_kept(&fx, branch, kept);
    ASSERT_CODE(MEMD_EUNSUPPORTED, context_truncate(branch, 7, &err), err);
    id = context_id(branch);
    arena_reset(&fx.arena);
    ASSERT_OK(catalog_drop(fx.catalog, id, &bytes, &err), err);
    expect_clean(&fx);
    fx.method = "full";
    context = fixture_context(&fx, "plain");
    fixture_append(&fx, context, 0, 10);
    ASSERT_CODE(MEMD_EUNSUPPORTED, compress(&fx, context, 0, &kept, &err), err);
    fixture_end(&fx);
}

/* The method keeps everything of this layer: nothing is stored, and all goes on as before. */
static void test_compress_nothing(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    uint64_t kept = 0;
    fixture_begin(&fx);
    fx.method = "l2norm"; /* which leaves the first two layers alone */
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 2100);
    for (int i = 0; i < 2; i++) {
        ASSERT_OK(compress(&fx, context, 2090, &kept, &err), err);
        assert_int_equal(kept, 2090 * fx.model.kv_heads);
    }
    expect_clean(&fx);
    ASSERT_OK(context_truncate(context, 100, &err), err);
    fixture_end(&fx);
}

/* A kill may leave another layer with less than the prompt: what is left is not compressed. */
static void test_compress_uneven(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    fixture_begin(&fx);
    fx.method = "test-reads-back";
    fixture_close(&fx);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct progress progress;
        uint64_t kept = 0;
        if (catalog_open(&fx.config, &fx.catalog, &err) < 0) _exit(2);
        struct context *context = fixture_context(&fx, "book");
        fixture_append(&fx, context, 0, 600);
        if (fixture_append_layer(&fx, context, (struct place){ LAYER, 600 }, 700, &progress,
                                 &err) < 0)
            _exit(3);
        if (compress(&fx, context, 1300, &kept, &err) < 0) _exit(4);
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    fixture_open(&fx);
    struct context *context = fixture_context(&fx, "book");
    assert_int_equal(context_layer_tokens(context, LAYER), 600);
    expect_kept(&fx, context, 0);
    expect_clean(&fx);
    fixture_end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mass),        cmocka_unit_test(test_mass_beside_threads),
        cmocka_unit_test(test_mass_of_forks),
        cmocka_unit_test(test_mass_is_cut), cmocka_unit_test(test_mass_is_taken_back),
        cmocka_unit_test(test_mass_of_what_is_stored),
        cmocka_unit_test(test_refused_mass), cmocka_unit_test(test_kill),
        cmocka_unit_test(test_crowd),       cmocka_unit_test(test_compress),
        cmocka_unit_test(test_compress_nothing), cmocka_unit_test(test_compress_uneven),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
