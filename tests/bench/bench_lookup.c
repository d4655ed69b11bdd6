/* SPDX-License-Identifier: Apache-2.0 */
/* bench_lookup.c — how long the methods for trained models look for what they read: a batch of
 * queries in a ring of states (Neurocache), a query head among the landmarks of a long past.
 *
 * States are clustered and of low rank, as those of a model are: 512 centres of 64 numbers and
 * noise of 0.3, a random map to W numbers, noise of 0.2, brought to mean 0 and variance 1, in fp16.
 * Each figure is the least of --rounds; recall is against the exact search of the same queries.
 * Prints a JSON array, one line per case.
 *
 *     bench_lookup [--rounds N] [--states N] [--width W] [--threads N]
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/half.h"
#include "base/pool.h"
#include "base/tensor.h"
#include "index/blocks.h"
#include "index/landmarks.h"
#include "index/vectors.h"

enum { QUERIES = 16, K = 16, RANK = 64, CENTRES = 512, LANDMARKS = 2048, DIM = 128, BEST = 4 };

struct options {
    size_t rounds, states, width, threads;
};

static void *need(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (memory != NULL) return memory;
    fprintf(stderr, "bench_lookup: out of memory\n");
    exit(1);
}

static float even(uint64_t *state) /* -1 … 1, variance 1/3 */
{
    *state = *state * 6364136223846793005U + 1442695040888963407U;
    return (float)(*state >> 33) / 1073741824.0F - 1.0F;
}

static float normal(uint64_t *state) /* nearly */
{
    return even(state) + even(state) + even(state);
}

/* A state (W) near one of the centres. */
static void draw(const float *centres, const float *map, size_t width, uint64_t *random,
                 float *ret_state)
{
    float z[RANK];
    const float *centre = centres + (size_t)((even(random) + 1.0F) * 0.4999F * CENTRES) * RANK;
    double mean = 0.0, square = 0.0;
    for (size_t r = 0; r < RANK; r++) z[r] = centre[r] + 0.3F * normal(random);
    for (size_t i = 0; i < width; i++) {
        ret_state[i] = 0.2F * normal(random);
        for (size_t r = 0; r < RANK; r++) ret_state[i] += z[r] * map[i * RANK + r];
        mean += (double)ret_state[i] / (double)width;
    }
    for (size_t i = 0; i < width; i++)
        square += ((double)ret_state[i] - mean) * ((double)ret_state[i] - mean) / (double)width;
    for (size_t i = 0; i < width; i++)
        ret_state[i] = (float)(((double)ret_state[i] - mean) / sqrt(square + 1e-6));
}

struct ring {
    uint16_t *states; /* (2, N, W/2) */
    float *q;         /* (QUERIES, W) */
    struct view view;
    struct vectors *vectors;
};

static void fill(const struct options *options, struct ring *ring)
{
    static const struct fold_type type = { .name = "bench" };
    size_t width = options->width, half = width / 2;
    uint64_t random = 1;
    float *centres = need(CENTRES * RANK * sizeof(float)), *state = need(width * sizeof(float));
    float *map = need(width * RANK * sizeof(float));
    for (size_t i = 0; i < CENTRES * RANK; i++) centres[i] = normal(&random);
    for (size_t i = 0; i < width * RANK; i++) map[i] = normal(&random) / 8.0F;
    ring->states = need(options->states * width * sizeof *ring->states);
    ring->q = need(QUERIES * width * sizeof(float));
    for (size_t t = 0; t < options->states; t++) {
        draw(centres, map, width, &random, state);
        half_store(state, half, DTYPE_FP16, ring->states + t * half);
        half_store(state + half, half, DTYPE_FP16, ring->states + (options->states + t) * half);
    }
    for (size_t i = 0; i < QUERIES; i++) draw(centres, map, width, &random, ring->q + i * width);
    ring->view = (struct view){ .k = ring->states, .v = ring->states + options->states * half,
                                .k_stride_bytes = width, .v_stride_bytes = width,
                                .tokens = options->states, .dtype = DTYPE_FP16 };
    struct fold_source source = { .rows = { &ring->view, 1, half, NULL } };
    if (vectors_new(&type, width, 192, &ring->vectors, NULL) < 0) exit(1);
    if (vectors_advance(ring->vectors, &source, options->states, NULL) < 0) exit(1);
    free(centres);
    free(map);
    free(state);
}

static double search(const struct options *options, const struct ring *ring, struct pool *pool,
                     size_t rerank, uint64_t *ret_slots)
{
    uint64_t limits[QUERIES], read = 0;
    float scores[QUERIES * K];
    for (size_t i = 0; i < QUERIES; i++) limits[i] = options->states;
    struct vectors_args args = { .vectors = ring->vectors,
                                 .rows = { &ring->view, 1, options->width / 2, NULL },
                                 .q = ring->q, .limits = limits, .queries = QUERIES,
                                 .slots = options->states, .k = K, .rerank = rerank,
                                 .pool = pool };
    double best = INFINITY;
    for (size_t i = 0; i < options->rounds; i++) {
        struct arena arena;
        arena_init(&arena, (size_t)256 << 20);
        uint64_t start = clock_monotonic_ns();
        if (vectors_search(&args, &arena, ret_slots, scores, &read, NULL) < 0) exit(1);
        best = fmin(best, (double)(clock_monotonic_ns() - start));
        arena_fini(&arena);
    }
    return best * 1e-6;
}

static void run_ring(const struct options *options, struct pool *pool)
{
    struct ring ring;
    uint64_t exact[QUERIES * K], near[QUERIES * K];
    fill(options, &ring);
    double flat_ms = search(options, &ring, pool, 0, exact);
    static const size_t reranks[] = { 64, 128, 256 };
    printf("[{\"case\":\"ring-%zu-%zu-exact\",\"queries\":%d,\"threads\":%zu,\"ms\":%.2f}",
           options->states, options->width, QUERIES, options->threads, flat_ms);
    for (size_t r = 0; r < sizeof reranks / sizeof reranks[0]; r++) {
        double ms = search(options, &ring, pool, reranks[r], near);
        size_t found = 0;
        for (size_t i = 0; i < QUERIES * K; i++)
            for (size_t j = i / K * K; j < (i / K + 1) * K; j++) found += exact[i] == near[j];
        printf(",\n {\"case\":\"ring-%zu-%zu-sketched-%zu\",\"ms\":%.2f,\"recall\":%.4f}",
               options->states, options->width, reranks[r], ms, (double)found / (QUERIES * K));
        fflush(stdout);
    }
    vectors_free(&ring.vectors->base);
    free(ring.states);
    free(ring.q);
}

/* Scores of a query head with all landmarks, and the best of them. */
static void run_landmarks(const struct options *options)
{
    uint64_t random = 2, ids[BEST];
    struct landmarks landmarks = { .kv_heads = 8, .head_dim = DIM, .count = LANDMARKS };
    float *q = need(DIM * sizeof *q), *scores = need(LANDMARKS * sizeof *scores), scratch[BEST];
    landmarks.keys = need(LANDMARKS * 8 * DIM * sizeof *landmarks.keys);
    for (size_t i = 0; i < LANDMARKS * 8 * DIM; i++) landmarks.keys[i] = normal(&random);
    for (size_t d = 0; d < DIM; d++) q[d] = normal(&random);
    struct blocks_wanted wanted = { .best = BEST };
    double best = INFINITY;
    for (size_t i = 0; i < 50 * options->rounds; i++) {
        uint64_t start = clock_monotonic_ns();
        landmarks_scores(&landmarks, i % 8, q, 0, LANDMARKS, scores);
        blocks_choose(scores, LANDMARKS, &wanted, scratch, ids);
        best = fmin(best, (double)(clock_monotonic_ns() - start));
    }
    printf(",\n {\"case\":\"landmarks-%d-%d\",\"us\":%.1f}]\n", LANDMARKS, DIM, best * 1e-3);
    free(landmarks.keys);
    free(scores);
    free(q);
}

int main(int argc, char **argv)
{
    struct options options = { .rounds = 20, .states = 131072, .width = 1024, .threads = 2 };
    for (int i = 1; i + 1 < argc; i += 2) {
        size_t number = strtoul(argv[i + 1], NULL, 10);
        if (strcmp(argv[i], "--rounds") == 0 && number > 0) options.rounds = number;
        else if (strcmp(argv[i], "--states") == 0 && number > 2048) options.states = number;
        else if (strcmp(argv[i], "--width") == 0 && number >= 256) options.width = number / 16 * 16;
        else if (strcmp(argv[i], "--threads") == 0 && number > 0) options.threads = number;
    }
    struct pool *pool = NULL;
    if (options.threads > 1 && pool_open(options.threads, 4, &pool, NULL) < 0) return 1;
    run_ring(&options, pool);
    run_landmarks(&options);
    pool_close(pool);
    return 0;
}
