/* SPDX-License-Identifier: Apache-2.0 */
/* replay_slots.c — real keys and values through index/slots.h, for test_slots.py to compare.
 *
 *     replay_slots FILE SLOTS NOVELTY PART        FILE as written by unpack_kv.py
 *
 * Writes all but the last WINDOW tokens, PART at a time, and then reads with those. Prints a line
 * for each token (the slot that it went to), for each slot (count, age, mean key, mean value) and
 * for the read.
 */
#include <stdio.h>
#include <stdlib.h>

#include "attention/view.h"
#include "base/bytes.h"
#include "base/tensor.h"
#include "index/slots.h"

enum { WINDOW = 128, FILE_BYTES_MAX = 1 << 20 };

struct replay {
    unsigned char *data;
    size_t tokens;
    struct view view; /* of KV head 0, the only one */
    struct slots *slots;
    float *scratch;
    uint32_t *went; /* (tokens) */
};

static void *need(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (memory != NULL) return memory;
    fprintf(stderr, "replay_slots: out of memory\n");
    exit(1);
}

/* The head_dim of the file. */
static size_t load(struct replay *replay, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) exit(1);
    replay->data = need(FILE_BYTES_MAX);
    struct bytes_reader in = bytes_reader(replay->data,
                                          fread(replay->data, 1, FILE_BYTES_MAX, file));
    (void)fclose(file);
    replay->tokens = bytes_get_le32(&in);
    size_t heads = bytes_get_le32(&in), head_dim = bytes_get_le32(&in), row = 2 * head_dim;
    size_t queries = bytes_get_le32(&in);
    bytes_get_le32(&in);
    bytes_get(&in, queries * 8);
    const unsigned char *k = bytes_get(&in, replay->tokens * row);
    const unsigned char *v = bytes_get(&in, replay->tokens * row);
    if (heads != 1 || k == NULL || v == NULL || replay->tokens <= WINDOW) exit(1);
    replay->view = (struct view){ .k = k, .v = v, .k_stride_bytes = row, .v_stride_bytes = row,
                                  .dtype = DTYPE_FP16 };
    return head_dim;
}

static struct view view_of(const struct replay *replay, size_t first, size_t count)
{
    struct view view = replay->view;
    view.k = (const unsigned char *)view.k + first * view.k_stride_bytes;
    view.v = (const unsigned char *)view.v + first * view.v_stride_bytes;
    view.tokens = count;
    return view;
}

static void print_state(const struct replay *replay, size_t written)
{
    const struct slots *slots = replay->slots;
    size_t head_dim = slots->shape.head_dim;
    for (size_t i = 0; i < written; i++) printf("token %u\n", replay->went[i]);
    for (size_t slot = 0; slot < slots->used; slot++) {
        printf("slot %llu %llu", (unsigned long long)slots->counts[slot],
               (unsigned long long)(slots->written - slots->updated[slot]));
        for (size_t d = 0; d < head_dim; d++)
            printf(" %.9g", (double)slots->k[slot * head_dim + d]);
        for (size_t d = 0; d < head_dim; d++)
            printf(" %.9g", (double)slots->v[slot * head_dim + d]);
        printf("\n");
    }
    printf("lost %llu\n", (unsigned long long)slots->lost);
}

static void print_read(const struct replay *replay, size_t first)
{
    uint32_t found[WINDOW];
    struct view window = view_of(replay, first, WINDOW);
    slots_nearest(replay->slots, &window, replay->scratch, found);
    printf("read");
    for (size_t i = 0; i < WINDOW; i++) printf(" %u", found[i]);
    printf("\n");
}

int main(int argc, char **argv)
{
    if (argc != 5) return 2;
    struct replay replay = { 0 };
    struct slots_shape shape = { .head_dim = load(&replay, argv[1]) };
    shape.slots = strtoul(argv[2], NULL, 10);
    shape.novelty = strtod(argv[3], NULL);
    size_t part = strtoul(argv[4], NULL, 10), written = replay.tokens - WINDOW;
    if (part == 0 || shape.slots == 0 || slots_new(&shape, &replay.slots, NULL) < 0) return 1;
    replay.scratch = need(slots_scratch_floats(&shape) * sizeof(float));
    replay.went = need(replay.tokens * sizeof *replay.went);
    for (size_t first = 0; first < written; first += part) {
        struct view view = view_of(&replay, first, written - first < part ? written - first : part);
        slots_write(replay.slots, &view, replay.scratch, replay.went + first);
    }
    print_state(&replay, written);
    print_read(&replay, written);
    slots_free(replay.slots);
    free(replay.scratch);
    free(replay.went);
    free(replay.data);
    return 0;
}
