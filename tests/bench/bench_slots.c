/* SPDX-License-Identifier: Apache-2.0 */
/* bench_slots.c — how many tokens per second one core consolidates into CAMELoT's slots of one KV
 * head, and how long a window takes to find its slots.
 *
 * A past of as many tokens as make every slot turn over twice, in fp16: all novel, all familiar (as
 * many directions as slots), and half of each. The slots are full before the clock starts. Each
 * figure is the best of --rounds. Prints a JSON array, one line per case.
 *
 *     bench_slots [--rounds N] [--dim D] [--slots M]
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention/backend.h"
#include "attention/view.h"
#include "base/clock.h"
#include "base/half.h"
#include "base/tensor.h"
#include "index/slots.h"

enum { DIM_MAX = 256, COUNT_MAX = 4096, TOKENS = 2 * COUNT_MAX, WINDOW = 128 };

struct data {
    uint16_t *k, *v; /* (TOKENS, D) fp16 */
    float *directions; /* (COUNT_MAX, D) */
    float *scratch;
    struct slots *start, *slots;
    uint32_t found[WINDOW];
};

static void *need(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (memory != NULL) return memory;
    fprintf(stderr, "bench_slots: out of memory\n");
    exit(1);
}

static float even(uint64_t *state) /* -1 … 1 */
{
    *state = *state * 6364136223846793005U + 1442695040888963407U;
    return (float)(*state >> 33) / 1073741824.0F - 1.0F;
}

/* Every `one_of` th token (0: none) is one of the directions, the others are anything. */
static void fill(struct data *data, const struct slots_shape *shape, size_t one_of)
{
    uint64_t state = 1;
    size_t head_dim = shape->head_dim;
    for (size_t i = 0; i < shape->slots * head_dim; i++) data->directions[i] = even(&state);
    for (size_t i = 0; i < TOKENS; i++) {
        bool known = one_of != 0 && i % one_of == 0;
        const float *direction = data->directions + i * 7919 % shape->slots * head_dim;
        for (size_t d = 0; d < head_dim; d++) {
            float noise = even(&state);
            data->k[i * head_dim + d] =
                half_to_fp16(known ? direction[d] + 0.1F * noise : noise);
            data->v[i * head_dim + d] = half_to_fp16(even(&state));
        }
    }
}

static struct view view_of(const struct data *data, size_t head_dim, size_t first, size_t count)
{
    return (struct view){ .k = data->k + first * head_dim, .v = data->v + first * head_dim,
                          .k_stride_bytes = 2 * head_dim, .v_stride_bytes = 2 * head_dim,
                          .tokens = count, .dtype = DTYPE_FP16 };
}

/* Seconds of one write of all tokens into slots that are full. */
static double write_seconds(struct data *data)
{
    struct view view = view_of(data, data->slots->shape.head_dim, 0, TOKENS);
    slots_copy(data->slots, data->start);
    uint64_t start = clock_monotonic_ns();
    slots_write(data->slots, &view, data->scratch, NULL);
    return (double)(clock_monotonic_ns() - start) * 1e-9;
}

static double read_seconds(struct data *data)
{
    struct view view = view_of(data, data->slots->shape.head_dim, TOKENS - WINDOW, WINDOW);
    uint64_t start = clock_monotonic_ns();
    slots_nearest(data->slots, &view, data->scratch, data->found);
    return (double)(clock_monotonic_ns() - start) * 1e-9;
}

static void run_case(struct data *data, const struct slots_shape *shape, size_t one_of,
                     size_t rounds)
{
    if (slots_new(shape, &data->start, NULL) < 0 || slots_new(shape, &data->slots, NULL) < 0)
        exit(1);
    fill(data, shape, one_of);
    struct view view = view_of(data, shape->head_dim, 0, TOKENS);
    slots_write(data->start, &view, data->scratch, NULL);
    double write = INFINITY, read = INFINITY;
    for (size_t i = 0; i < rounds; i++) {
        write = fmin(write, write_seconds(data));
        read = fmin(read, read_seconds(data));
    }
    double merged = (double)(data->slots->merged - data->start->merged) / TOKENS;
    printf("{\"case\":\"slots-%zu-%zu-%zu\",\"kernel\":\"%s\",\"merged\":%.3f,"
           "\"tokens_per_s\":%.0f,\"read_us\":%.1f}",
           shape->slots, shape->head_dim, one_of, backend_get()->name, merged, TOKENS / write,
           read * 1e6);
    fflush(stdout);
    slots_free(data->start);
    slots_free(data->slots);
}

int main(int argc, char **argv)
{
    static const struct slots_shape shapes[] = {
        { 1024, 64, 0.8 }, { 1024, 128, 0.8 }, { 1024, 256, 0.8 }, { 4096, 128, 0.8 },
    };
    size_t rounds = 10, dim = 0, slots = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        size_t number = strtoul(argv[i + 1], NULL, 10);
        if (strcmp(argv[i], "--rounds") == 0 && number > 0) rounds = number;
        else if (strcmp(argv[i], "--dim") == 0) dim = number;
        else if (strcmp(argv[i], "--slots") == 0) slots = number;
    }
    struct slots_shape most = { COUNT_MAX, DIM_MAX, 0.8 };
    struct data data = {
        .k = need((size_t)TOKENS * DIM_MAX * sizeof *data.k),
        .v = need((size_t)TOKENS * DIM_MAX * sizeof *data.v),
        .directions = need((size_t)COUNT_MAX * DIM_MAX * sizeof(float)),
        .scratch = need(slots_scratch_floats(&most) * sizeof(float)),
    };
    const char *separator = "[";
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        if ((dim != 0 && dim != shapes[i].head_dim) || (slots != 0 && slots != shapes[i].slots))
            continue;
        for (size_t one_of = 0; one_of < 3; one_of++) {
            printf("%s", separator);
            run_case(&data, &shapes[i], one_of, rounds);
            separator = ",\n ";
        }
    }
    printf("]\n");
    free(data.k);
    free(data.v);
    free(data.directions);
    free(data.scratch);
    return 0;
}
