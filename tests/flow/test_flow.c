/* SPDX-License-Identifier: Apache-2.0 */
/* test_flow.c — requests through connection and dispatch where a real store would be too quick.
 *
 * Each test holds the store still at one point and looks at what the daemon does meanwhile.
 */
#include "tests/flow/flow.h"

#include <math.h>

enum { DEADLINE_MS = 60000 }; /* over when fake_wait says so, and not before */

static void test_append_waits_for_the_commit_alone(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_commits, true);
    uint64_t first = send_append(flow, flow->fd, 0, 0);
    uint64_t second = send_append(flow, flow->fd, 1, 0); /* runs although the first waits */
    while (atomic_load(&fake.tokens) < 2) sched_yield();
    expect(flow->fd, send_health(flow, flow->fd), 0); /* and overtakes both */
    expect(flow->fd, send_attend(flow, flow->fd, 1, 0), 0);
    atomic_store(&fake.hold_commits, false);
    fake_progress();
    expect(flow->fd, first, 0);
    expect(flow->fd, second, 0);
}

static void test_failed_commit_is_the_answer(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_commits, true);
    uint64_t id = send_append(flow, flow->fd, 0, 0);
    while (atomic_load(&fake.tokens) < 1) sched_yield();
    atomic_store(&fake.commit_failure, MEMD_EFULL);
    fake_progress();
    expect(flow->fd, id, MEMD_EFULL);
}

static void test_deadline_of_a_waiting_append(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_commits, true);
    uint64_t id = send_append(flow, flow->fd, 0, DEADLINE_MS);
    while (atomic_load(&fake.tokens) < 1) sched_yield();
    fake_wait(DEADLINE_MS);
    expect(flow->fd, id, MEMD_EDEADLINE);
    assert_int_equal(atomic_load(&fake.tokens), 1); /* it cannot be taken back */
}

static void test_deadline_of_a_running_attend(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_attends, true);
    uint64_t id = send_attend(flow, flow->fd, 1, DEADLINE_MS);
    wait_attending(1);
    fake_wait(DEADLINE_MS);
    expect(flow->fd, id, MEMD_EDEADLINE);
}

static void test_changes_keep_their_order(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.slow_append, true);
    uint64_t ids[5];
    for (uint64_t i = 0; i < 5; i++) ids[i] = send_append(flow, flow->fd, i, 0);
    for (size_t i = 0; i < 5; i++) expect(flow->fd, ids[i], 0);
    assert_int_equal(atomic_load(&fake.tokens), 5);
}

static void test_no_room_waits_in_turn_and_holds_nobody(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.no_room, true);
    uint64_t ids[3];
    for (uint64_t i = 0; i < 3; i++) ids[i] = send_append(flow, flow->fd, i, 0);
    int others[3]; /* more clients without room than workers */
    for (size_t i = 0; i < 3; i++) {
        others[i] = dial(flow);
        send_append(flow, others[i], 3 + i, 0);
    }
    while (atomic_load(&fake.refused) < 4) sched_yield();
    int reader = dial(flow);
    expect(reader, send_attend(flow, reader, 1, 0), 0); /* on a worker */
    close(reader);
    for (size_t i = 0; i < 3; i++) close(others[i]); /* they leave while they wait */
    expect(flow->fd, send_health(flow, flow->fd), 0);
    atomic_store(&fake.no_room, false);
    fake_progress();
    for (size_t i = 0; i < 3; i++) expect(flow->fd, ids[i], 0);
}

static void test_no_room_ends_with_the_deadline(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.no_room, true);
    uint64_t id = send_append(flow, flow->fd, 0, DEADLINE_MS);
    while (atomic_load(&fake.refused) < 1) sched_yield();
    fake_wait(DEADLINE_MS);
    expect(flow->fd, id, MEMD_EDEADLINE);
    assert_int_equal(atomic_load(&fake.tokens), 0); /* nothing was taken */
    unsigned refused = atomic_load(&fake.refused);
    id = send_append(flow, flow->fd, 0, 0);
    while (atomic_load(&fake.refused) < refused + 2) sched_yield(); /* it waits for room */
    fake_wait(DEADLINE_MS);
    expect(flow->fd, id, MEMD_EBUSY); /* and not for ever without */
    atomic_store(&fake.no_room, false);
    expect(flow->fd, send_append(flow, flow->fd, 0, 0), 0);
}

static void test_small_on_the_loop_large_on_a_worker(void **state)
{
    struct flow *flow = *state;
    expect(flow->fd, send_attend(flow, flow->fd, 0, 0), 0);
    assert_int_equal(atomic_load(&fake.attended_on_loop), 1);
    expect(flow->fd, send_attend(flow, flow->fd, 1, 0), 0);
    assert_int_equal(atomic_load(&fake.attended_on_worker), 1);
}

static void test_locked_context_moves_to_a_worker(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.locked, true);
    expect(flow->fd, send_attend(flow, flow->fd, 0, 0), 0);
    assert_int_equal(atomic_load(&fake.attended_on_loop), 0);
    assert_int_equal(atomic_load(&fake.attended_on_worker), 1);
}

static void test_busy_workers_do_not_delay_the_loop(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_attends, true);
    uint64_t ids[10];
    for (size_t i = 0; i < 10; i++) ids[i] = send_attend(flow, flow->fd, 1, 0);
    wait_attending(2); /* both workers */
    int other = dial(flow);
    expect(other, send_health(flow, other), 0);
    expect(other, send_attend(flow, other, 0, 0), 0);
    close(other);
    atomic_store(&fake.hold_attends, false);
    bool answered[10] = { false };
    for (size_t i = 0; i < 10; i++) { /* in any order */
        CLEANUP(arena_fini) struct arena arena;
        arena_init(&arena, 1 << 20);
        unsigned char *body = NULL;
        struct frame frame = take_any(flow->fd, &arena, &body);
        assert_in_range(frame.request_id, ids[0], ids[9]);
        assert_false(answered[frame.request_id - ids[0]]);
        answered[frame.request_id - ids[0]] = true;
    }
}

static void test_leaving_cancels(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_attends, true);
    atomic_store(&fake.hold_commits, true);
    int other = dial(flow);
    send_append(flow, other, 0, 0);
    for (size_t i = 0; i < 5; i++) send_attend(flow, other, 1, 0);
    wait_attending(2);
    close(other); /* the held attends ask `stop`; nothing else ends them */
    while (atomic_load(&fake.pins) > 0) sched_yield();
    expect(flow->fd, send_health(flow, flow->fd), 0);
}

static void test_drain_finishes_then_cancels(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_attends, true);
    uint64_t running = send_attend(flow, flow->fd, 1, 0);
    wait_attending(1);
    end(flow, DEADLINE_MS);
    expect(flow->fd, send_append(flow, flow->fd, 0, 0), MEMD_EDRAINING);
    expect(flow->fd, send_health(flow, flow->fd), 0);
    fake_wait(DEADLINE_MS);
    expect(flow->fd, running, MEMD_ECANCELLED); /* when its time was over */
    unsigned char byte;
    assert_int_equal(recv(flow->fd, &byte, 1, 0), 0);
}

/* ---- quality ---- */

static void test_a_wish_reaches_the_method(void **state)
{
    struct flow *flow = *state;
    expect(flow->fd, send_attend(flow, flow->fd, 1, 0), 0);
    assert_true(atomic_load(&fake.target_error) < 0.0); /* the context's */
    assert_int_equal(atomic_load(&fake.max_bytes), 0);
    for (uint32_t layer = 0; layer < 2; layer++) { /* on the loop and on a worker */
        Memd__AttendItem item = MEMD__ATTEND_ITEM__INIT;
        item.layer = layer;
        item.target_case = MEMD__ATTEND_ITEM__TARGET_TARGET_ERROR;
        item.target_error = 0.0;
        item.budget_case = MEMD__ATTEND_ITEM__BUDGET_MAX_BYTES;
        item.max_bytes = 0;
        expect(flow->fd, send_item(flow, flow->fd, &item, 0), 0);
        assert_true(atomic_load(&fake.target_error) == 0.0); /* exact */
        assert_true(atomic_load(&fake.max_bytes) == UINT64_MAX); /* and no bound */
        item.target_error = 0.125;
        item.max_bytes = 4096;
        expect(flow->fd, send_item(flow, flow->fd, &item, 0), 0);
        assert_true(atomic_load(&fake.target_error) == 0.125);
        assert_int_equal(atomic_load(&fake.max_bytes), 4096);
    }
}

static void test_a_wish_that_makes_no_sense(void **state)
{
    struct flow *flow = *state;
    const double wrong[] = { -0.01, 1.01, (double)NAN, (double)INFINITY };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        Memd__AttendItem item = MEMD__ATTEND_ITEM__INIT;
        item.target_case = MEMD__ATTEND_ITEM__TARGET_TARGET_ERROR;
        item.target_error = wrong[i];
        CLEANUP(arena_fini) struct arena arena;
        arena_init(&arena, 1 << 20);
        uint64_t id = send_item(flow, flow->fd, &item, 0);
        const Memd__AttendReply *reply = (const Memd__AttendReply *)receive(flow->fd, id, &arena);
        assert_int_equal(reply->answers[0]->status, MEMD_EINVAL);
        assert_non_null(strstr(reply->answers[0]->error, "target_error"));

        Memd__RecallRequest recall = MEMD__RECALL_REQUEST__INIT;
        recall.context_id = 1;
        recall.target_case = MEMD__RECALL_REQUEST__TARGET_TARGET_ERROR;
        recall.target_error = wrong[i];
        expect(flow->fd, send_message(flow, flow->fd, METHOD_RECALL, &recall.base, 0), MEMD_EINVAL);
    }
}

static void test_quality_by_level(void **state)
{
    struct flow *flow = *state;
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, 1 << 20);
    uint64_t id = send_attend(flow, flow->fd, 1, 0);
    const Memd__AttendReply *reply = (const Memd__AttendReply *)receive(flow->fd, id, &arena);
    const Memd__Quality *quality = reply->answers[0]->quality;
    assert_true(quality->exact);
    assert_int_equal(quality->n_level_mass + quality->n_level_rows + quality->n_mass, 0);
    atomic_store(&fake.estimates, true);
    id = send_attend(flow, flow->fd, 1, 0);
    reply = (const Memd__AttendReply *)receive(flow->fd, id, &arena);
    quality = reply->answers[0]->quality;
    assert_false(quality->exact);
    assert_int_equal(quality->n_predicted_error, 2);
    assert_true(isnan(quality->predicted_error[0]));
    assert_true(quality->predicted_error[1] == 0.015F);
    assert_int_equal(quality->n_level_mass, 8);
    assert_true(quality->level_mass[4 + MEMD__LEVEL__LEVEL_HI] == 0.5F);
    assert_true(quality->level_mass[3] == 0.25F && quality->mass[0] == 0.25F);
    assert_int_equal(quality->n_level_rows, 4);
    assert_int_equal(quality->level_rows[MEMD__LEVEL__LEVEL_HI], 20);
    assert_int_equal(quality->level_bytes[MEMD__LEVEL__LEVEL_EXACT], 200);
    assert_false(quality->limited[0]);
    assert_true(quality->limited[1]);
}

static const Memd__Histogram *histogram(const Memd__StatsReply *stats, const char *name)
{
    for (size_t i = 0; i < stats->n_histograms; i++)
        if (strcmp(stats->histograms[i]->name, name) == 0) return stats->histograms[i];
    return NULL;
}

static uint64_t counter(const Memd__StatsReply *stats, const char *name)
{
    for (size_t i = 0; i < stats->n_counters; i++)
        if (strcmp(stats->counters[i]->name, name) == 0) return stats->counters[i]->value;
    fail_msg("no counter %s", name);
    return 0;
}

static void test_stats_of_answers_by_layer(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.estimates, true);
    for (int i = 0; i < 3; i++) expect(flow->fd, send_attend(flow, flow->fd, 1, 0), 0);
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, 4 << 20);
    Memd__StatsRequest request = MEMD__STATS_REQUEST__INIT;
    uint64_t id = send_message(flow, flow->fd, METHOD_STATS, &request.base, 0);
    const Memd__StatsReply *stats = (const Memd__StatsReply *)receive(flow->fd, id, &arena);
    assert_null(histogram(stats, "attend_predicted_error_layer_0")); /* nobody asked it */
    const Memd__Histogram *error = histogram(stats, "attend_predicted_error_layer_1");
    assert_int_equal(error->n_counts, error->n_bounds + 1);
    assert_true(fabs(error->sum - 3 * 0.015) < 1e-6);
    assert_true(fabs(histogram(stats, "attend_bytes_share_layer_1")->sum - 3 * 0.3) < 1e-6);
    assert_non_null(histogram(stats, "attend_exact_mass_layer_1"));
    assert_int_equal(counter(stats, "attend_bytes_hi_total"), 300);
    assert_int_equal(counter(stats, "answers_unpredicted_total"), 3);
    assert_int_equal(counter(stats, "answers_limited_total"), 3);
}

static void test_methods(void **state)
{
    struct flow *flow = *state;
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, 1 << 20);
    Memd__MethodsRequest request = MEMD__METHODS_REQUEST__INIT;
    uint64_t id = send_message(flow, flow->fd, METHOD_METHODS, &request.base, 0);
    const Memd__MethodsReply *reply = (const Memd__MethodsReply *)receive(flow->fd, id, &arena);
    const Memd__MethodInfo *method = reply->methods[0];
    assert_string_equal(method->name, "fake");
    assert_true(method->is_default);
    assert_string_equal(method->options[0]->name, "target_error");
    assert_true(method->options[0]->fallback == 0.02 && method->options[0]->most == 1.0);
}

static void test_recall(void **state)
{
    struct flow *flow = *state;
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, 1 << 20);
    Memd__RecallRequest request = MEMD__RECALL_REQUEST__INIT;
    request.context_id = 1;
    uint64_t id = send_message(flow, flow->fd, METHOD_RECALL, &request.base, 0);
    const Memd__RecallReply *reply = (const Memd__RecallReply *)receive(flow->fd, id, &arena);
    assert_int_equal(reply->queries, 0);
    assert_true(reply->target_error == 0.02); /* the context's */
    assert_null(reply->error);
    request.layer = 1;
    request.target_case = MEMD__RECALL_REQUEST__TARGET_TARGET_ERROR;
    request.target_error = 0.25;
    id = send_message(flow, flow->fd, METHOD_RECALL, &request.base, 0);
    reply = (const Memd__RecallReply *)receive(flow->fd, id, &arena);
    assert_true(atomic_load(&fake.target_error) == 0.25 && reply->target_error == 0.25);
    assert_int_equal(reply->answers, 6);
    assert_true(reply->error->p99 == 0.02 && reply->ratio_median == 0.9);
    assert_int_equal(reply->n_level_mass, 4);
    request.layer = 2;
    expect(flow->fd, send_message(flow, flow->fd, METHOD_RECALL, &request.base, 0), MEMD_EINVAL);
}

static void test_rebuild(void **state)
{
    struct flow *flow = *state;
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, 1 << 20);
    atomic_store(&fake.built_segments, 4);
    Memd__RebuildRequest request = MEMD__REBUILD_REQUEST__INIT;
    request.context_id = 1;
    request.ask = true;
    uint64_t id = send_message(flow, flow->fd, METHOD_REBUILD, &request.base, 0);
    const Memd__RebuildReply *reply = (const Memd__RebuildReply *)receive(flow->fd, id, &arena);
    assert_int_equal(reply->segments, FAKE_SEGMENTS);
    assert_int_equal(reply->built_segments, 4);
    assert_int_equal(reply->deleted_segments, 0); /* it was only asked */
    request.context_id = 0;
    expect(flow->fd, send_message(flow, flow->fd, METHOD_REBUILD, &request.base, 0), MEMD_EINVAL);
    request.ask = false; /* all contexts */
    id = send_message(flow, flow->fd, METHOD_REBUILD, &request.base, 0);
    reply = (const Memd__RebuildReply *)receive(flow->fd, id, &arena);
    assert_int_equal(reply->context_id, 1);
    assert_int_equal(reply->deleted_segments, 4);
    assert_int_equal(reply->built_segments, 0);
    request.cursor = reply->cursor;
    assert_true(request.cursor.len > 0);
    id = send_message(flow, flow->fd, METHOD_REBUILD, &request.base, 0);
    reply = (const Memd__RebuildReply *)receive(flow->fd, id, &arena);
    assert_int_equal(reply->context_id + reply->cursor.len, 0);
    unsigned char long_cursor[LIMIT_CURSOR_BYTES + 1] = { 0 };
    request.cursor = (ProtobufCBinaryData){ .len = sizeof long_cursor, .data = long_cursor };
    expect(flow->fd, send_message(flow, flow->fd, METHOD_REBUILD, &request.base, 0), MEMD_ELIMIT);
}

int main(void)
{
#define FLOW(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        FLOW(test_append_waits_for_the_commit_alone),
        FLOW(test_failed_commit_is_the_answer),
        FLOW(test_deadline_of_a_waiting_append),
        FLOW(test_no_room_waits_in_turn_and_holds_nobody),
        FLOW(test_no_room_ends_with_the_deadline),
        FLOW(test_deadline_of_a_running_attend),
        FLOW(test_changes_keep_their_order),
        FLOW(test_small_on_the_loop_large_on_a_worker),
        FLOW(test_locked_context_moves_to_a_worker),
        FLOW(test_busy_workers_do_not_delay_the_loop),
        FLOW(test_leaving_cancels),
        FLOW(test_drain_finishes_then_cancels),
        FLOW(test_a_wish_reaches_the_method),
        FLOW(test_a_wish_that_makes_no_sense),
        FLOW(test_quality_by_level),
        FLOW(test_stats_of_answers_by_layer),
        FLOW(test_methods),
        FLOW(test_recall),
        FLOW(test_rebuild),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
