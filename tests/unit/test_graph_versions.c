/* SPDX-License-Identifier: Apache-2.0 */
/* test_graph_versions.c — the life of a graph: building with and without threads, insertion, bytes
 * and damaged bytes, refusals. */
#include "index/graph.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/pool.h"
#include "index/graph_version.h"
#include "tests/unit/graph_fixture.h"

static void test_insert(void **state)
{
    (void)state;
    struct fixture fx;
    struct past shape = { .query_heads = 4, .kv_heads = 2, .head_dim = 64, .tokens = 3000,
                          .queries = 12, .dtype = DTYPE_FP16 };
    setup(&fx, &shape);
    struct layer_source source = { 0 };
    struct layer_index *version = NULL, *next = NULL, *same = NULL;
    assert_int_equal(build(&fx, 1000, &source, NULL, &version), 0);
    size_t bytes = 0;
    unsigned char *first = saved(version, &bytes);
    struct layer_index *keep = layer_index_get(version);
    for (uint64_t tokens = 1500; tokens <= 3000; tokens += 500) {
        assert_int_equal(build(&fx, tokens, &source, version, &next), 0);
        layer_index_put(version);
        version = next;
    }
    size_t bytes_now = 0;
    unsigned char *now = saved(keep, &bytes_now); /* the version before was only copied from */
    assert_true(bytes == bytes_now && memcmp(first, now, bytes) == 0);
    free(first);
    free(now);
    layer_index_put(keep);
    struct layer_index *whole = built(&fx, NULL);
    struct index_quality quality;
    double inserted = recall(&fx, version, 20, &quality);
    double built_at_once = recall(&fx, whole, 20, &quality);
    print_message("recall@20 built %.3f, inserted %.3f\n", built_at_once, inserted);
    assert_true(inserted > built_at_once - 0.1);
    same = built(&fx, whole); /* nothing new: nothing changes */
    assert_true(same_bytes(whole, same));
    layer_index_put(same);
    set(&fx, GRAPH_M, 12); /* other options: from nothing */
    same = built(&fx, whole);
    struct layer_index *fresh = built(&fx, NULL);
    assert_true(same_bytes(same, fresh));
    layer_index_put(same);
    layer_index_put(fresh);
    layer_index_put(whole);
    layer_index_put(version);
    teardown(&fx);
}

/* Entry and links back as saved: u32 entry, edges, one_way of KV head 0, behind 40 bytes. */
static void test_shape(void **state)
{
    (void)state;
    struct fixture fx;
    setup(&fx, &small);
    struct layer_index *version = built(&fx, NULL);
    size_t bytes = 0, nodes = 1200 - SINKS - WINDOW;
    unsigned char *data = saved(version, &bytes);
    struct bytes_reader in = bytes_reader(data + 40, 12);
    uint32_t entry = bytes_get_le32(&in), edges = bytes_get_le32(&in);
    uint32_t one_way = bytes_get_le32(&in);
    double mean[32] = { 0 }, nearest = INFINITY;
    size_t expected = 0;
    for (size_t t = SINKS; t < SINKS + nodes; t++)
        for (size_t d = 0; d < 32; d++) mean[d] += (double)fx.past.k[t * 32 + d] / (double)nodes;
    for (size_t t = SINKS; t < SINKS + nodes; t++) {
        double distance = 0.0;
        for (size_t d = 0; d < 32; d++)
            distance += pow((double)fx.past.k[t * 32 + d] - mean[d], 2.0);
        if (distance >= nearest) continue;
        nearest = distance;
        expected = t - SINKS;
    }
    print_message("%u links, %u one way\n", edges, one_way);
    assert_int_equal(entry, expected);
    assert_true(one_way < edges / 2);
    free(data);
    layer_index_put(version);
    teardown(&fx);
}

/* Each promise, broken in memory. */
static void test_validate(void **state)
{
    (void)state;
    struct fixture fx;
    setup(&fx, &small);
    struct layer_source source = { .kv_heads = 2, .tokens = 1200 };
    struct layer_index *whole = built(&fx, NULL), *version = NULL;
    size_t bytes = 0;
    unsigned char *data = saved(whole, &bytes);
    layer_index_put(whole);
    for (size_t turn = 0; turn < 8; turn++) {
        assert_int_equal(graph_type.load(&source, data, bytes, &version, NULL), 0);
        struct graph_version *graph = (struct graph_version *)version;
        struct graph_links *links = &graph->links[1];
        uint32_t node = 7, *edges = links->edges + links->begin[node];
        while (links->count[node] < 2) edges = links->edges + links->begin[++node];
        if (turn == 0) edges[1] = edges[0];
        if (turn == 1) edges[0] = node;
        if (turn == 2) edges[1] = links->nodes;
        if (turn == 3) links->near[node] = 17; /* M is 16 */
        if (turn == 4) links->near[node] = (uint8_t)(links->count[node] + 1);
        if (turn == 5) links->entry = links->nodes;
        if (turn == 6) graph->first = 1200;
        if (turn == 7) links->count[links->entry] = links->near[links->entry] = 0;
        struct error err = { 0 };
        assert_int_equal(graph_type.validate(version, &err), MEMD_ECORRUPT);
        assert_int_equal(err.code, MEMD_ECORRUPT);
        layer_index_put(version);
    }
    free(data);
    teardown(&fx);
}

/* So few links that most nodes are hung on others, again and again: limits hold at every step. */
static void test_insert_narrow(void **state)
{
    (void)state;
    struct fixture fx;
    setup(&fx, &small);
    set(&fx, GRAPH_M, 2);
    set(&fx, GRAPH_NQ, 10);
    set(&fx, GRAPH_L, 8);
    struct layer_source source = { 0 };
    struct layer_index *version = NULL, *next = NULL;
    assert_int_equal(build(&fx, 150, &source, NULL, &version), 0);
    for (uint64_t tokens = 200; tokens <= 1200; tokens += 50) {
        assert_int_equal(build(&fx, tokens, &source, version, &next), 0);
        layer_index_put(version);
        version = next;
    }
    layer_index_put(version);
    teardown(&fx);
}

/* New tokens without queries are found by their own keys. */
static void test_insert_without_queries(void **state)
{
    (void)state;
    struct fixture fx;
    setup(&fx, &small);
    struct layer_source source = { 0 };
    struct layer_index *version = NULL, *next = NULL;
    fx.kept_count = 150;
    assert_int_equal(build(&fx, 800, &source, NULL, &version), 0);
    fx.kept_count = 0;
    assert_int_equal(build(&fx, 1200, &source, version, &next), 0);
    struct index_quality quality;
    assert_true(recall(&fx, next, 20, &quality) > 0.8);
    layer_index_put(version);
    layer_index_put(next);
    teardown(&fx);
}

static void test_threads_and_shapes(void **state)
{
    (void)state;
    struct fixture fx;
    setup(&fx, &small);
    struct layer_source source = { 0 };
    struct layer_index *one = built(&fx, NULL), *many = NULL, *none = NULL;
    assert_int_equal(pool_open(3, &source.pool, NULL), 0);
    assert_int_equal(build(&fx, 1200, &source, NULL, &many), 0);
    assert_true(same_bytes(one, many));
    struct index_args args = ask_args(&fx.past);
    struct reply a, b;
    reply_init(&a, &fx.past);
    reply_init(&b, &fx.past);
    assert_int_equal(reply_ask(&graph_type, one, &args, fx.options, &a), 0);
    args.attend.pool = source.pool;
    assert_int_equal(reply_ask(&graph_type, many, &args, fx.options, &b), 0);
    assert_memory_equal(a.answer.partial.o, b.answer.partial.o, 12 * 32 * sizeof(float));
    assert_memory_equal(a.quality.rows, b.quality.rows, sizeof a.quality.rows);
    assert_memory_equal(a.quality.bytes, b.quality.bytes, sizeof a.quality.bytes);
    reply_fini(&a);
    reply_fini(&b);
    for (uint64_t tokens = 2; tokens <= 86; tokens += 21) { /* no node, and a few */
        assert_int_equal(build(&fx, tokens, &source, NULL, &none), 0);
        struct index_quality quality;
        assert_true(recall(&fx, none, 20, &quality) == 1.0);
        layer_index_put(none);
    }
    pool_close(source.pool);
    layer_index_put(one);
    layer_index_put(many);
    teardown(&fx);
}

static void test_save_and_load(void **state)
{
    (void)state;
    struct fixture fx;
    setup(&fx, &small);
    struct layer_index *version = built(&fx, NULL), *loaded = NULL;
    struct layer_source shape = { .kv_heads = 2, .tokens = 1200 };
    size_t bytes = 0;
    unsigned char *data = saved(version, &bytes);
    assert_int_equal(graph_type.load(&shape, data, bytes, &loaded, NULL), 0);
    assert_true(loaded->tokens == 1200 && loaded->bytes == version->bytes);
    assert_true(same_bytes(version, loaded));
    struct index_args args = ask_args(&fx.past);
    struct reply a, b;
    reply_init(&a, &fx.past);
    reply_init(&b, &fx.past);
    assert_int_equal(reply_ask(&graph_type, version, &args, fx.options, &a), 0);
    assert_int_equal(reply_ask(&graph_type, loaded, &args, fx.options, &b), 0);
    assert_memory_equal(a.answer.partial.o, b.answer.partial.o, 12 * 32 * sizeof(float));
    reply_fini(&a);
    reply_fini(&b);
    layer_index_put(loaded);
    struct error err = { 0 };
    shape.kv_heads = 1;
    assert_int_equal(graph_type.load(&shape, data, bytes, &loaded, &err), MEMD_ECORRUPT);
    shape.kv_heads = 2;
    shape.tokens = 1199;
    assert_int_equal(graph_type.load(&shape, data, bytes, &loaded, &err), MEMD_ECORRUPT);
    shape.tokens = 1200;
    data[4]++; /* the format */
    assert_int_equal(graph_type.load(&shape, data, bytes, &loaded, &err), MEMD_EVERSION);
    free(data);
    layer_index_put(version);
    teardown(&fx);
}

/* Bytes that changed are refused, or give a graph that holds what a search relies on. */
static void test_damage(void **state)
{
    (void)state;
    struct fixture fx;
    struct past shape = small;
    shape.tokens = 300;
    setup(&fx, &shape);
    struct layer_index *version = built(&fx, NULL), *loaded = NULL;
    struct layer_source source = { .kv_heads = 2, .tokens = 300 };
    size_t bytes = 0, refused = 0, turns = 3000;
    unsigned char *data = saved(version, &bytes);
    for (size_t cut = 0; cut < bytes; cut += 1 + cut / 50) { /* of exact size: sanitizers watch */
        unsigned char *part = past_alloc(cut, 1);
        memcpy(part, data, cut);
        assert_int_equal(graph_type.load(&source, part, cut, &loaded, NULL), MEMD_ECORRUPT);
        free(part);
    }
    for (size_t turn = 0; turn < turns; turn++) {
        size_t at = random_below(&fx.random, turn % 2 == 0 ? bytes : 700);
        unsigned char old = data[at];
        data[at] ^= (unsigned char)(1 + random_below(&fx.random, 255));
        struct error err = { 0 };
        int rc = graph_type.load(&source, data, bytes, &loaded, &err);
        data[at] = old;
        if (rc != 0) {
            assert_true(err.code == rc && (rc == MEMD_ECORRUPT || rc == MEMD_EVERSION));
            refused++;
            continue;
        }
        struct index_quality quality;
        assert_int_equal(graph_type.validate(loaded, NULL), 0);
        assert_true(recall(&fx, loaded, 20, &quality) >= 0.0);
        layer_index_put(loaded);
    }
    print_message("%zu of %zu damaged graphs refused\n", refused, turns);
    assert_true(refused > turns * 9 / 10);
    free(data);
    layer_index_put(version);
    teardown(&fx);
}

static int refuse(void *arg)
{
    int *left = arg;
    return (*left)-- > 0 ? 0 : MEMD_ECANCELLED;
}

static void test_refusals(void **state)
{
    (void)state;
    struct fixture fx;
    setup(&fx, &small);
    struct layer_index *version = NULL;
    int left = 0;
    struct layer_source source = { .stop = refuse, .stop_arg = &left };
    assert_int_equal(build(&fx, 1200, &source, NULL, &version), MEMD_ECANCELLED);
    left = 60; /* in the middle */
    assert_int_equal(build(&fx, 1200, &source, NULL, &version), MEMD_ECANCELLED);
    source.stop = NULL;
    version = built(&fx, NULL);
    struct index_args args = ask_args(&fx.past);
    args.attend.stop = refuse;
    args.attend.stop_arg = &left;
    struct reply reply;
    reply_init(&reply, &fx.past);
    for (int allowed = 0; allowed < 8; allowed += 7) {
        left = allowed;
        assert_int_equal(reply_ask(&graph_type, version, &args, fx.options, &reply),
                         MEMD_ECANCELLED);
    }
    args.attend.stop = NULL;
    for (size_t limit = 16; limit < 1 << 16; limit *= 4) {
        struct arena arena;
        struct error err = { 0 };
        arena_init(&arena, limit);
        assert_int_equal(graph_type.attend(version, &args, fx.options, &arena, &reply.answer,
                                           &err), MEMD_ENOMEM);
        assert_true(err.code == MEMD_ENOMEM);
        arena_fini(&arena);
    }
    reply_fini(&reply);
    layer_index_put(version);
    fx.kept_count = 0;
    assert_int_equal(build(&fx, 1200, &source, NULL, &version), MEMD_EUNSUPPORTED);
    teardown(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shape),
        cmocka_unit_test(test_validate),
        cmocka_unit_test(test_insert),
        cmocka_unit_test(test_insert_narrow),
        cmocka_unit_test(test_insert_without_queries),
        cmocka_unit_test(test_threads_and_shapes),
        cmocka_unit_test(test_save_and_load),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
