/* SPDX-License-Identifier: Apache-2.0 */
/* landmarks.c — one walk over the marks; keys of all heads of a landmark lie together, since they
 * come together. */
#include "index/landmarks.h"

#include <assert.h>
#include <stdlib.h>

#include "attention/backend.h"
#include "base/error.h"
#include "base/tensor.h"

enum { FIRST_ROOM = 64, LOOK_TOKENS = 4096 }; /* between two looks at `stop` */

int landmarks_new(const struct fold_type *type, const struct fold_source *source, bool rotated,
                  struct landmarks **ret_landmarks, struct error *err)
{
    struct landmarks *landmarks = malloc(sizeof *landmarks);
    if (landmarks == NULL) return error_set(err, MEMD_ENOMEM, "no memory for landmarks");
    *landmarks = (struct landmarks){ .base = { .type = type, .bytes = sizeof *landmarks },
                                     .kv_heads = source->kv_heads,
                                     .rotated = rotated,
                                     .head_dim = source->head_dim };
    *ret_landmarks = landmarks;
    return 0;
}

void landmarks_free(struct fold *fold)
{
    if (fold == NULL) return;
    struct landmarks *landmarks = (struct landmarks *)(void *)fold;
    free(landmarks->ends);
    free(landmarks->even);
    free(landmarks->keys);
    free(landmarks);
}

static int no_memory(size_t room, struct error *err)
{
    return error_set(err, MEMD_ENOMEM, "no memory for %zu landmarks", room);
}

static int grow(struct landmarks *landmarks, struct error *err)
{
    if (landmarks->count < landmarks->room) return 0;
    size_t room = landmarks->room == 0 ? FIRST_ROOM : 2 * landmarks->room;
    size_t row_bytes = landmarks->kv_heads * landmarks->head_dim * sizeof(float);
    uint64_t *ends = realloc(landmarks->ends, room * sizeof *ends);
    if (ends == NULL) return no_memory(room, err);
    landmarks->ends = ends;
    uint64_t *even = realloc(landmarks->even, room * sizeof *even);
    if (even == NULL) return no_memory(room, err);
    landmarks->even = even;
    float *keys = realloc(landmarks->keys, room * row_bytes);
    if (keys == NULL) return no_memory(room, err);
    landmarks->keys = keys;
    landmarks->room = room;
    landmarks->base.bytes = sizeof *landmarks + room * (row_bytes + 2 * sizeof(uint64_t));
    return 0;
}

static uint64_t length_of(const struct landmarks *landmarks, size_t block)
{
    return landmarks->ends[block] + 1 - landmarks_begin(landmarks, block);
}

static int add(struct landmarks *landmarks, const struct fold_source *source, uint64_t position,
               struct error *err)
{
    int rc = grow(landmarks, err);
    if (rc < 0) return rc;
    struct rows rows = source->rows;
    if (!landmarks->rotated) rows.rope = NULL;
    size_t at = landmarks->count++, dim = landmarks->head_dim;
    landmarks->ends[at] = position;
    bool same = at > 0 && length_of(landmarks, at) == length_of(landmarks, at - 1);
    landmarks->even[at] = same ? landmarks->even[at - 1] : at;
    for (size_t g = 0; g < landmarks->kv_heads; g++)
        rows_keys(&rows, g, position, 1, landmarks->keys + (at * landmarks->kv_heads + g) * dim);
    return 0;
}

int landmarks_advance(struct landmarks *landmarks, const struct fold_source *source, uint64_t end,
                      struct error *err)
{
    uint64_t *tokens = &landmarks->base.tokens;
    assert(end >= *tokens);
    while (*tokens < end) {
        if (*tokens % LOOK_TOKENS == 0 && source->stop != NULL) {
            int rc = source->stop(source->stop_arg);
            if (rc != 0) return error_set(err, rc, "%s among landmarks", error_text(rc));
        }
        const unsigned char *record = rows_columns(&source->rows, *tokens);
        if ((columns_marks(source->columns, record) & MARK_LANDMARK) != 0) {
            int rc = add(landmarks, source, *tokens, err);
            if (rc < 0) return rc;
        }
        ++*tokens;
    }
    return 0;
}

size_t landmarks_below(const struct landmarks *landmarks, uint64_t limit)
{
    size_t low = 0, high = landmarks->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (landmarks->ends[middle] < limit)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

uint64_t landmarks_begin(const struct landmarks *landmarks, size_t block)
{
    assert(block <= landmarks->count);
    return block == 0 ? 0 : landmarks->ends[block - 1] + 1;
}

void landmarks_scores(const struct landmarks *landmarks, size_t kv_head, const float *q,
                      size_t first, size_t count, float *ret_scores)
{
    size_t dim = landmarks->head_dim, row = landmarks->kv_heads * dim;
    assert(kv_head < landmarks->kv_heads && first + count <= landmarks->count);
    if (count == 0) return;
    backend_get()->score(&(struct score_args){ .q = q,
                                               .queries = 1,
                                               .head_dim = dim,
                                               .k = landmarks->keys + first * row + kv_head * dim,
                                               .k_stride_bytes = row * sizeof(float),
                                               .tokens = count,
                                               .dtype = DTYPE_FP32,
                                               .scores = ret_scores });
}
