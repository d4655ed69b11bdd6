/* SPDX-License-Identifier: Apache-2.0 */
/* bench_lookup.c — how long the methods for trained models look for what they read, and how much of
 * it they find: batches of queries in a ring of states (Neurocache), a query head among the
 * landmarks of a long past.
 *
 * States come from a file (states.py: of a real model) or are made up, clustered and of low rank:
 * 512 centres of 64 numbers and noise of 0.3, a random map to W numbers, noise of 0.2, brought to
 * mean 0 and variance 1. Made-up ones are no model's: a recall of them says that the search works,
 * not how well it will. Both are kept in fp16, in rows of their own pages as sealed segments are.
 *
 * Queries are the states behind the ring (`newest`, what a Neurocache asks), or taken out of all of
 * it evenly (`spread`). A round asks one batch after the other, so that no batch finds in the cache
 * what the one before has brought. ms and ms_median are of a batch, by the clock; cpu_ms is
 * processor time of all threads, the mean. Recall is against the exact search of the same queries,
 * worst is that of the worst query.
 *
 * Prints a JSON array, one line per case.
 *
 *     bench_lookup [--rounds N] [--states N] [--width W] [--threads N] [--sketch S]
 *                  [--probe CELLS] [--file STATES.f16 [--asked newest|spread]]
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/half.h"
#include "base/pool.h"
#include "base/tensor.h"
#include "index/blocks.h"
#include "index/landmarks.h"
#include "index/vectors.h"

enum {
    QUERIES = 16,
    BATCHES = 16,
    ASKED = QUERIES * BATCHES,
    K = 16,
    RANK = 64,
    CENTRES = 512,
    LANDMARKS = 2048,
    DIM = 128,
    BEST = 4
};

struct options {
    size_t rounds, states, width, threads, sketch, probe;
    const char *file;
    bool spread;
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
    float *q;         /* (ASKED, W) */
    struct view view;
    struct vectors *vectors;
};

static void put(const struct options *options, struct ring *ring, size_t t, const float *state)
{
    size_t half = options->width / 2;
    half_store(state, half, DTYPE_FP16, ring->states + t * half);
    half_store(state + half, half, DTYPE_FP16, ring->states + (options->states + t) * half);
}

static void make_up(const struct options *options, struct ring *ring)
{
    size_t width = options->width;
    uint64_t random = 1;
    float *centres = need(CENTRES * RANK * sizeof(float)), *state = need(width * sizeof(float));
    float *map = need(width * RANK * sizeof(float));
    for (size_t i = 0; i < CENTRES * RANK; i++) centres[i] = normal(&random);
    for (size_t i = 0; i < width * RANK; i++) map[i] = normal(&random) / 8.0F;
    for (size_t t = 0; t < options->states; t++) {
        draw(centres, map, width, &random, state);
        put(options, ring, t, state);
    }
    for (size_t i = 0; i < ASKED; i++) draw(centres, map, width, &random, ring->q + i * width);
    free(centres);
    free(map);
    free(state);
}

/* The ring is the first states of the file that are not asked for. */
static void read_file(const struct options *options, struct ring *ring)
{
    size_t width = options->width, all = options->states + ASKED, asked = 0, kept = 0;
    size_t every = options->spread ? all / ASKED : 1;
    uint16_t *row = need(width * sizeof *row);
    float *state = need(width * sizeof *state);
    FILE *file = fopen(options->file, "rb");
    for (size_t t = 0; file != NULL && t < all; t++) {
        if (fread(row, sizeof *row, width, file) != width) break;
        half_load(row, DTYPE_FP16, width, state);
        bool ask = options->spread ? t % every == every / 2 && asked < ASKED
                                   : t >= options->states;
        if (ask) memcpy(ring->q + asked++ * width, state, width * sizeof *state);
        else if (kept < options->states) put(options, ring, kept++, state);
    }
    if (file != NULL) fclose(file);
    free(row);
    free(state);
    if (kept == options->states && asked == ASKED) return;
    fprintf(stderr, "bench_lookup: %s has no %zu states of %zu\n", options->file, all, width);
    exit(1);
}

static void fill(const struct options *options, struct ring *ring)
{
    static const struct fold_type type = { .name = "bench" };
    size_t width = options->width, half = width / 2;
    ring->states = need(options->states * width * sizeof *ring->states);
    ring->q = need(ASKED * width * sizeof(float));
    if (options->file != NULL) read_file(options, ring);
    else make_up(options, ring);
    ring->view = (struct view){ .k = ring->states, .v = ring->states + options->states * half,
                                .k_stride_bytes = width, .v_stride_bytes = width,
                                .tokens = options->states, .dtype = DTYPE_FP16 };
    struct fold_source source = { .rows = { &ring->view, 1, half, NULL } };
    if (vectors_new(&type, width, options->sketch, &ring->vectors, NULL) < 0) exit(1);
    uint64_t start = clock_monotonic_ns();
    if (vectors_advance(ring->vectors, &source, options->states, NULL) < 0) exit(1);
    printf("[{\"case\":\"fold-%zu-%zu\",\"states\":\"%s\",\"ms\":%.0f,\"mib\":%.1f}",
           options->states, width, options->file == NULL ? "made up" : options->file,
           (double)(clock_monotonic_ns() - start) * 1e-6,
           (double)ring->vectors->base.bytes / 1048576.0);
}

static uint64_t cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

struct found {
    uint64_t slots[ASKED * K];
    double ms, median_ms, cpu_ms; /* of a batch */
};

struct asking {
    size_t queries, limit, rerank;
};

static void search(const struct options *options, const struct ring *ring, struct pool *pool,
                   const struct asking *asking, struct found *ret_found)
{
    uint64_t limits[QUERIES], read = 0;
    float scores[QUERIES * K];
    size_t rounds = options->rounds * BATCHES;
    double *ms = need(rounds * sizeof *ms);
    for (size_t i = 0; i < QUERIES; i++) limits[i] = asking->limit;
    struct vectors_args args = { .vectors = ring->vectors,
                                 .rows = { &ring->view, 1, options->width / 2, NULL },
                                 .limits = limits, .queries = asking->queries,
                                 .slots = options->states, .k = K, .rerank = asking->rerank,
                                 .probes = options->probe, .pool = pool };
    struct arena arena;
    uint64_t cpu = cpu_ns();
    for (size_t i = 0; i < rounds; i++) {
        size_t first = i % BATCHES * QUERIES;
        args.q = ring->q + first * options->width;
        arena_init(&arena, (size_t)256 << 20);
        uint64_t start = clock_monotonic_ns();
        int rc = vectors_search(&args, &arena, ret_found->slots + first * K, scores, &read, NULL);
        ms[i] = (double)(clock_monotonic_ns() - start) * 1e-6;
        arena_fini(&arena);
        if (rc < 0) exit(1);
    }
    ret_found->cpu_ms = (double)(cpu_ns() - cpu) * 1e-6 / (double)rounds;
    qsort(ms, rounds, sizeof *ms, by_size);
    ret_found->ms = ms[0];
    ret_found->median_ms = ms[rounds / 2];
    free(ms);
}

static void print_times(const struct found *found)
{
    printf("\"ms\":%.2f,\"ms_median\":%.2f,\"cpu_ms\":%.2f", found->ms, found->median_ms,
           found->cpu_ms);
}

static void print_recall(const struct found *exact, const struct found *near)
{
    size_t all = 0, worst = K;
    for (size_t q = 0; q < ASKED; q++) {
        size_t some = 0;
        for (size_t i = q * K; i < (q + 1) * K; i++)
            for (size_t j = q * K; j < (q + 1) * K; j++) some += exact->slots[i] == near->slots[j];
        all += some;
        if (some < worst) worst = some;
    }
    printf(",\"recall\":%.4f,\"worst\":%.4f}", (double)all / (ASKED * K), (double)worst / K);
}

static void run_ring(const struct options *options, const struct ring *ring, struct pool *pool)
{
    static struct found exact, near;
    struct options few = *options;
    if (few.rounds > 2) few.rounds = 2;
    struct asking asking = { QUERIES, options->states, 0 };
    search(&few, ring, pool, &asking, &exact);
    printf(",\n {\"case\":\"ring-%zu-%zu-exact\",\"queries\":%d,\"threads\":%zu,",
           options->states, options->width, QUERIES, options->threads);
    print_times(&exact);
    printf("}");
    static const size_t reranks[] = { 32, 64, 96, 128, 256 };
    for (size_t i = 0; i < sizeof reranks / sizeof reranks[0]; i++) {
        asking.rerank = reranks[i];
        search(options, ring, pool, &asking, &near);
        printf(",\n {\"case\":\"ring-%zu-%zu-sketched-%zu\",", options->states, options->width,
               asking.rerank);
        print_times(&near);
        print_recall(&exact, &near);
        fflush(stdout);
    }
}

/* From where on is a guess worth it? Short rings, by one query and by a batch. */
static void run_short(const struct options *options, const struct ring *ring, struct pool *pool)
{
    static struct found found;
    for (size_t states = 1024; states <= 16384 && states <= options->states; states *= 2)
        for (size_t queries = 1; queries <= QUERIES; queries += QUERIES - 1) {
            struct asking asking = { queries, states, 0 };
            search(options, ring, pool, &asking, &found);
            printf(",\n {\"case\":\"short-%zu-%zu-exact\",", states, queries);
            print_times(&found);
            asking.rerank = 96;
            search(options, ring, pool, &asking, &found);
            printf("},\n {\"case\":\"short-%zu-%zu-sketched\",", states, queries);
            print_times(&found);
            printf("}");
        }
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
    struct options options = { .rounds = 4, .states = 131072, .width = 1024, .threads = 2,
                               .sketch = 192, .probe = 16 };
    for (int i = 1; i + 1 < argc; i += 2) {
        size_t number = strtoul(argv[i + 1], NULL, 10);
        if (strcmp(argv[i], "--rounds") == 0 && number > 0) options.rounds = number;
        else if (strcmp(argv[i], "--states") == 0 && number > 2048) options.states = number;
        else if (strcmp(argv[i], "--width") == 0 && number >= 512) options.width = number / 16 * 16;
        else if (strcmp(argv[i], "--threads") == 0 && number > 0) options.threads = number;
        else if (strcmp(argv[i], "--sketch") == 0 && number >= 8) options.sketch = number / 8 * 8;
        else if (strcmp(argv[i], "--probe") == 0 && number > 0) options.probe = number;
        else if (strcmp(argv[i], "--file") == 0) options.file = argv[i + 1];
        else if (strcmp(argv[i], "--asked") == 0) options.spread = argv[i + 1][0] == 's';
    }
    struct pool *pool = NULL;
    struct ring ring;
    if (options.threads > 1 && pool_open(options.threads - 1, &pool, NULL) < 0) return 1;
    fill(&options, &ring);
    run_ring(&options, &ring, pool);
    run_short(&options, &ring, pool);
    run_landmarks(&options);
    pool_close(pool);
    vectors_free(&ring.vectors->base);
    free(ring.states);
    free(ring.q);
    return 0;
}
