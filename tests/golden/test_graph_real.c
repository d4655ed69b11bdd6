/* SPDX-License-Identifier: Apache-2.0 */
/* test_graph_real.c — the graph of `retrieval-attention` on keys and queries of a real model.
 *
 *     test_graph_real FILE        as written by unpack_kv.py
 *
 * Built from the earlier queries, asked the later ones. Few queries were captured (48 positions),
 * so recall is far from what 40% of all positions give; it must still be found by reading less.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/bytes.h"
#include "base/error.h"
#include "index/exact.h"
#include "index/graph.h"

enum { K = 50, ASKED = 6 }; /* the last queries are asked */

struct real {
    unsigned char *data;
    size_t tokens, kv_heads, head_dim, queries, query_heads;
    uint64_t positions[64], limits[64];
    struct view view;
    const unsigned char *q; /* (n, H, D) fp16 */
    double options[GRAPH_OPTIONS];
};

static unsigned char *read_all(const char *path, size_t *ret_bytes)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    *ret_bytes = (size_t)ftell(file);
    rewind(file);
    unsigned char *data = malloc(*ret_bytes);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *ret_bytes, file), *ret_bytes);
    (void)fclose(file);
    return data;
}

static void load(struct real *real, const char *path)
{
    size_t bytes = 0;
    *real = (struct real){ .data = read_all(path, &bytes) };
    struct bytes_reader in = bytes_reader(real->data, bytes);
    real->tokens = bytes_get_le32(&in);
    real->kv_heads = bytes_get_le32(&in);
    real->head_dim = bytes_get_le32(&in);
    real->queries = bytes_get_le32(&in);
    real->query_heads = bytes_get_le32(&in);
    assert_true(real->queries <= 64 && real->kv_heads == 1);
    for (size_t i = 0; i < real->queries; i++) {
        real->positions[i] = bytes_get_le64(&in);
        real->limits[i] = real->positions[i] + 1;
    }
    size_t row = real->head_dim * 2;
    const unsigned char *k = bytes_get(&in, real->tokens * row);
    const unsigned char *v = bytes_get(&in, real->tokens * row);
    real->q = bytes_get(&in, real->queries * real->query_heads * row);
    assert_true(bytes_done(&in));
    real->view = (struct view){ .k = k, .v = v, .k_stride_bytes = row, .v_stride_bytes = row,
                                .tokens = real->tokens, .dtype = DTYPE_FP16 };
    static const struct option_text texts[] = { { "sinks", "16" }, { "window", "64" },
                                                { "k", "50" }, { "ef", "50" } };
    assert_int_equal(options_parse(graph_type.options, texts, 4, real->options, NULL), 0);
}

static struct layer_index *build(const struct real *real)
{
    struct layer_source source = {
        .views = &real->view, .view_count = 1, .kv_heads = 1, .tokens = real->tokens,
        .query_heads = real->query_heads, .head_dim = real->head_dim, .scale = 0.125F,
        .queries = { (const uint16_t *)(const void *)real->q, real->positions,
                     real->queries - ASKED },
        .options = real->options };
    struct layer_index *version = NULL;
    struct error err = { 0 };
    if (graph_type.build(&source, NULL, &version, &err) != 0) fail_msg("%s", err.text);
    assert_int_equal(graph_type.validate(version, &err), 0);
    return version;
}

static struct index_args ask_args(const struct real *real)
{
    size_t first = real->queries - ASKED;
    return (struct index_args){ .attend = {
        .q = { .data = real->q + first * real->query_heads * real->head_dim * 2,
               .dtype = DTYPE_FP16, .dims = 3,
               .shape = { ASKED, real->query_heads, real->head_dim } },
        .positions = real->positions + first, .limits = real->limits + first, .scale = 0.125F,
        .views = &real->view, .kv_heads = 1, .view_count = 1 } };
}

static void test_recall(void **state)
{
    const struct real *real = *state;
    struct layer_index *version = build(real);
    struct index_args args = ask_args(real);
    size_t rows = ASKED * real->query_heads, same = 0;
    uint64_t *ids = calloc(2 * rows * K, sizeof *ids);
    float *scores = calloc(2 * rows * K, sizeof *scores);
    struct index_hits truth = { ids, scores, K };
    struct index_quality quality = { 0 };
    struct index_found found = { { ids + rows * K, scores + rows * K, K }, &quality };
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(exact_search(&args.attend, &arena, &truth, NULL), 0);
    assert_int_equal(graph_type.search(version, &args, real->options, &arena, &found, NULL), 0);
    arena_fini(&arena);
    for (size_t i = 0; i < rows * K; i++)
        for (size_t j = i / K * K; j < i / K * K + K; j++)
            if (ids[i] == found.hits.ids[j]) same++;
    double recall = (double)same / (double)(rows * K);
    double share = (double)quality.rows[INDEX_EXACT] / (double)(rows * real->tokens);
    print_message("recall@%d %.3f reading %.3f of the keys\n", K, recall, share);
    assert_true(recall > 0.75);
    assert_true(share < 0.6);
    free(ids);
    free(scores);
    layer_index_put(version);
}

static double distance(const float *a, const float *b, size_t count)
{
    double apart = 0.0, norm = 0.0;
    for (size_t i = 0; i < count; i++) {
        apart += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return sqrt(apart / norm);
}

/* All tokens through the graph are attention; the best 50 are near it. */
static void test_attend(void **state)
{
    struct real *real = *state;
    struct layer_index *version = build(real);
    struct index_args args = ask_args(real);
    size_t rows = ASKED * real->query_heads, floats = rows * real->head_dim;
    float *o = calloc(2 * floats, sizeof *o), *lse = calloc(2 * rows, sizeof *lse);
    struct partial exact = { o, lse, rows, real->head_dim };
    struct index_answer answer = { { o + floats, lse + rows, rows, real->head_dim }, NULL };
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(attend(&args.attend, &arena, &exact, NULL), 0);
    assert_int_equal(graph_type.attend(version, &args, real->options, &arena, &answer, NULL), 0);
    double best = distance(answer.partial.o, exact.o, floats);
    real->options[GRAPH_DIPR] = 1e-300;
    assert_int_equal(graph_type.attend(version, &args, real->options, &arena, &answer, NULL), 0);
    real->options[GRAPH_DIPR] = 0.0;
    arena_fini(&arena);
    double all = distance(answer.partial.o, exact.o, floats);
    print_message("error of the best %d: %.4f, of all tokens: %.3g\n", K, best, all);
    assert_true(all < 1e-6);
    assert_true(best < 0.2);
    free(o);
    free(lse);
    layer_index_put(version);
}

int main(int argc, char **argv)
{
    struct real real;
    if (argc != 2) return 2;
    load(&real, argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_recall, &real),
        cmocka_unit_test_prestate(test_attend, &real),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(real.data);
    return failed;
}
