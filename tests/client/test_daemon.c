/* SPDX-License-Identifier: Apache-2.0 */
/* test_daemon.c — libmemd with the real daemon, which is killed again and again while clients
 * append.
 *
 * The clients see nothing of it but time: every append is acknowledged in the end, and every row
 * that was acknowledged as committed is there afterwards, bit for bit. The kills come when enough
 * appends have been acknowledged, not after some time, so the test does the same amount of work on
 * any machine.
 *
 *     MEMD=build/daemon/memd test_client_daemon
 */
#include "clients/include/memd.h"

#include <dirent.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/client/real.h"
#include "tests/random.h"

enum {
    LAYERS = 2,
    H = 4,
    G = 2,
    D = 8,
    ROW = G * D,
    WRITERS = 4,
    WINDOW = 4,   /* appends of a writer under way */
    TOKENS = 600, /* of each writer */
    STEP_MAX = 5, /* tokens of one append */
    KILLS = 8,
    ACKS_PER_KILL = 40,
};

static struct memd_context open_context(struct memd_client *client, const char *name)
{
    struct memd_model model = { .layers = LAYERS,
                                .query_heads = H,
                                .kv_heads = G,
                                .head_dim = D,
                                .dtype = MEMD_FP32,
                                .fingerprint = "test" };
    struct memd_open args = { .name = name, .model = &model, .create = true };
    struct memd_context context;
    struct memd_error err = { 0 };
    if (memd_open(client, &args, &context, &err) < 0) fail_msg("open: %s", err.text);
    return context;
}

/* Element of row `position` of a layer: told apart from any other. */
static float element(unsigned writer, unsigned layer, uint64_t position, size_t i)
{
    uint64_t state = writer + 10 * layer + 100 * position + 1000000 * i;
    return random_float(&state);
}

struct writer {
    pthread_t thread;
    unsigned number;
    struct memd_context context;
    sem_t *acks;
    float *rows[LAYERS]; /* (TOKENS, G, D); v = k */
    struct memd_error err;
};

static struct memd_ticket *append_some(struct writer *writer, uint64_t position, size_t tokens)
{
    struct memd_append layers[LAYERS];
    for (uint32_t i = 0; i < LAYERS; i++) {
        const float *rows = writer->rows[i] + position * ROW;
        layers[i] = (struct memd_append){
            .layer = i, .position = position, .tokens = tokens, .k = rows, .v = rows
        };
    }
    struct memd_ticket *ticket = NULL;
    int rc = memd_submit_append(&writer->context, layers, LAYERS, MEMD_ACK_COMMITTED, &ticket,
                                &writer->err);
    return rc < 0 ? NULL : ticket;
}

static int finish(struct writer *writer, struct memd_ticket *ticket)
{
    int rc = memd_wait(ticket, &writer->err);
    memd_ticket_free(ticket);
    sem_post(writer->acks);
    return rc;
}

static void *write_all(void *arg)
{
    struct writer *writer = arg;
    struct memd_ticket *window[WINDOW] = { NULL };
    uint64_t random = writer->number;
    uint64_t position = 0;
    int rc = 0;
    for (size_t i = 0; rc == 0 && position < TOKENS; i = (i + 1) % WINDOW) {
        if (window[i] != NULL) rc = finish(writer, window[i]);
        window[i] = NULL;
        size_t tokens = 1 + (size_t)random_below(&random, STEP_MAX);
        if (tokens > TOKENS - position) tokens = (size_t)(TOKENS - position);
        if (rc == 0) window[i] = append_some(writer, position, tokens);
        if (window[i] == NULL) break;
        position += tokens;
    }
    for (size_t i = 0; i < WINDOW; i++)
        if (window[i] != NULL) finish(writer, window[i]);
    sem_post(writer->acks);
    return NULL;
}

static void check_rows(const struct writer *writer)
{
    static uint64_t ids[TOKENS];
    for (uint64_t i = 0; i < TOKENS; i++) ids[i] = i;
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        struct memd_fetch fetch = {
            .context = &writer->context, .layer = layer, .ids = ids, .count = TOKENS
        };
        const struct memd_rows *rows = NULL;
        struct memd_error err = { 0 };
        if (memd_fetch(&fetch, &rows, &err) < 0) fail_msg("fetch: %s", err.text);
        size_t bytes = TOKENS * ROW * sizeof(float);
        assert_memory_equal(rows->k, writer->rows[layer], bytes);
        assert_memory_equal(rows->v, writer->rows[layer], bytes);
        memd_free(rows);
    }
}

static void check_store(struct memd_client *client)
{
    struct memd_cursor cursor = { NULL, 0 };
    const struct memd_verify *step = NULL, *before = NULL;
    struct memd_error err = { 0 };
    do {
        if (memd_verify(client, 0, cursor, &step, &err) < 0) fail_msg("verify: %s", err.text);
        for (size_t i = 0; i < step->finding_count; i++) print_error("%s\n", step->findings[i]);
        assert_int_equal(step->finding_count, 0);
        memd_free(before); /* the cursor lay in it */
        before = step;
        cursor = step->next;
    } while (cursor.bytes > 0);
    memd_free(before);
}

static void appends_survive_kills(void **state)
{
    struct real *daemon = *state;
    struct memd_client *clients[WRITERS];
    static struct writer writers[WRITERS];
    sem_t acks;
    sem_init(&acks, 0, 0);
    for (unsigned i = 0; i < WRITERS; i++) {
        clients[i] = i == 1 ? clients[0] : real_connect(daemon); /* two share one */
        char name[32];
        snprintf(name, sizeof name, "writer %u", i);
        writers[i] = (struct writer){ .number = i,
                                      .acks = &acks,
                                      .context = open_context(clients[i], name) };
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            writers[i].rows[layer] = calloc(TOKENS * ROW, sizeof(float));
            for (size_t j = 0; j < TOKENS * ROW; j++)
                writers[i].rows[layer][j] = element(i, layer, j / ROW, j % ROW);
        }
    }
    for (unsigned i = 0; i < WRITERS; i++)
        pthread_create(&writers[i].thread, NULL, write_all, &writers[i]);
    for (int kills = 0; kills < KILLS; kills++) {
        for (int i = 0; i < ACKS_PER_KILL; i++) sem_wait(&acks);
        real_stop(daemon, SIGKILL);
        real_start(daemon);
    }
    uint64_t reconnects = 0;
    for (unsigned i = 0; i < WRITERS; i++) {
        pthread_join(writers[i].thread, NULL);
        if (writers[i].err.code != 0) print_error("writer %u: %s\n", i, writers[i].err.text);
        assert_int_equal(writers[i].err.code, 0);
        struct memd_counters counters;
        memd_get_counters(clients[i], &counters);
        reconnects += counters.reconnects;
    }
    print_message("%d kills, %llu reconnects\n", KILLS, (unsigned long long)reconnects);
    assert_true(reconnects >= KILLS);
    for (unsigned i = 0; i < WRITERS; i++) check_rows(&writers[i]);
    check_store(clients[0]);
    for (unsigned i = 0; i < WRITERS; i++) {
        if (i != 1) memd_close(clients[i]);
        for (uint32_t layer = 0; layer < LAYERS; layer++) free(writers[i].rows[layer]);
    }
    sem_destroy(&acks);
}

/* A context value outlives the daemon; what reads is answered by the next one. */
static void every_call_over_a_restart(void **state)
{
    struct real *daemon = *state;
    struct memd_client *client = real_connect(daemon);
    struct memd_context context = open_context(client, "calls"), fork;
    float rows[3 * ROW], q[H * D], o[H * D], lse[H];
    for (size_t i = 0; i < 3 * ROW; i++) rows[i] = element(9, 0, i / ROW, i % ROW);
    for (size_t i = 0; i < H * D; i++) q[i] = element(8, 0, 0, i);
    struct memd_append layer = { .tokens = 3, .k = rows, .v = rows };
    struct memd_error err = { 0 };
    assert_int_equal(memd_append(&context, &layer, 1, MEMD_ACK_SYNCED, NULL, &err), 0);
    real_stop(daemon, SIGKILL);
    real_start(daemon);

    uint64_t position = 3, bytes = 0, tokens = 0, until = 0;
    struct memd_query query = {
        .context = &context, .queries = 1, .q = q, .positions = &position, .o = o, .lse = lse
    };
    if (memd_attend(&query, NULL, &err) < 0) fail_msg("attend: %s", err.text);
    assert_true(lse[0] > -10.0f && lse[0] < 10.0f);
    const struct memd_hits *hits = NULL;
    assert_int_equal(memd_search(&query, 4, &hits, &err), 0);
    assert_true(hits->ids[0] < 3 && hits->ids[3] == UINT64_MAX);
    memd_free(hits);
    assert_int_equal(memd_pin(&context, 60, &until, &err), 0);
    assert_true(until > 0);
    assert_int_equal(memd_fork(&context, &(struct memd_fork){ .name = "calls 2" }, &fork,
                               &err), 0);
    assert_int_equal(fork.tokens, 3);
    assert_int_equal(memd_fork(&context, &(struct memd_fork){ .name = "calls 2" }, &fork,
                               &err), MEMD_EEXIST);
    assert_int_equal(memd_truncate(&fork, 2, &tokens, &err), 0);
    assert_int_equal(tokens, 2);
    assert_int_equal(memd_truncate(&fork, 3, &tokens, &err), MEMD_EPOSITION);
    const struct memd_info *info = NULL;
    assert_int_equal(memd_stat_name(client, "calls 2", &info, &err), 0);
    assert_int_equal(info->tokens, 2);
    assert_int_equal(info->parent_id, context.id);
    assert_string_equal(info->model.fingerprint, "test");
    assert_int_equal(info->layer_count, LAYERS);
    memd_free(info);
    const struct memd_list *list = NULL;
    struct memd_list_args args = { .prefix = "calls", .limit = 1 };
    assert_int_equal(memd_list(client, &args, &list, &err), 0);
    assert_int_equal(list->count, 1);
    assert_true(list->more);
    memd_free(list);
    assert_int_equal(memd_drop(&fork, &bytes, &err), 0);
    assert_int_equal(memd_stat(&fork, &info, &err), MEMD_ENOCONTEXT);
    layer.position = 7;
    assert_int_equal(memd_append(&context, &layer, 1, 0, NULL, &err), MEMD_EPOSITION);
    memd_close(client);
}

static void what_an_operator_asks(void **state)
{
    struct real *daemon = *state;
    struct memd_client *client = real_connect(daemon);
    struct memd_error err = { 0 };
    const struct memd_status *status = NULL;
    assert_int_equal(memd_status(client, &status, &err), 0);
    assert_int_equal(status->pid, daemon->pid);
    assert_true(status->connections >= 1);
    memd_free(status);
    const struct memd_health *health = NULL;
    assert_int_equal(memd_health(client, &health, &err), 0);
    assert_true(health->live && health->ready);
    memd_free(health);
    const struct memd_stats *stats = NULL;
    assert_int_equal(memd_stats(client, &stats, &err), 0);
    assert_true(stats->counter_count > 10 && stats->histogram_count > 0);
    memd_free(stats);
    const struct memd_dump *dump = NULL;
    assert_int_equal(memd_dump(client, &(struct memd_dump_args){ .limit = 2 }, &dump, &err), 0);
    assert_true(dump->count >= 1 && dump->count <= 2);
    memd_free(dump);
    char path[4 * REAL_PATH_BYTES];
    snprintf(path, sizeof path, "%s/copy", daemon->folder);
    uint64_t before = 0, after = 0;
    assert_int_equal(memd_compact(client, "relative", &before, &after, &err), MEMD_EINVAL);
    if (memd_compact(client, path, &before, &after, &err) < 0) fail_msg("compact: %s", err.text);
    assert_true(after > 0 && after <= before);
    assert_int_equal(real_remove(path), 0);

    uint64_t left = 99;
    assert_int_equal(memd_drain(client, 1000, &left, &err), 0);
    assert_int_equal(left, 0);
    memd_close(client);
    assert_int_equal(waitpid(daemon->pid, NULL, 0), daemon->pid);
    real_start(daemon); /* for tear_down, and to see that it comes up again */
    memd_close(real_connect(daemon));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, real_set_up, real_tear_down)
    const struct CMUnitTest tests[] = {
        TEST(every_call_over_a_restart),
        TEST(what_an_operator_asks),
        TEST(appends_survive_kills),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
