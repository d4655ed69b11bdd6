/* SPDX-License-Identifier: Apache-2.0 */
/* kmeans.c — centroids are the "queries" of the score kernel and rows its keys, so that scores of a
 * block come with a lane per row and the best centroid is found without sums across lanes.
 *
 * Rejected: one matrix product of everything (count * C floats); BLAS (a dependency for a
 * baseline).
 */
#include "index/kmeans.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention/backend.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/tensor.h"

enum { BLOCK_ROWS = 36, BLOCK_CENTROIDS = 64 }; /* rows: whole register blocks of any kernel */

/* The best centroid so far of each row of a block. */
struct best {
    float score[BLOCK_ROWS];
    uint32_t label[BLOCK_ROWS];
};

/* scores (rows) of centroid `number`. Inlined with a constant `rows`, it becomes vectors. */
static inline __attribute__((always_inline)) void keep_best(struct best *best, const float *scores,
                                                            size_t rows, uint32_t number)
{
    for (size_t i = 0; i < rows; i++) {
        best->label[i] = scores[i] > best->score[i] ? number : best->label[i];
        best->score[i] = scores[i] > best->score[i] ? scores[i] : best->score[i];
    }
}

static void assign_block(const struct kmeans *kmeans, size_t first, size_t rows)
{
    _Alignas(64) float scores[BLOCK_ROWS * BLOCK_CENTROIDS]; /* (centroids, rows) */
    struct best best;
    for (size_t i = 0; i < BLOCK_ROWS; i++) {
        best.score[i] = -INFINITY;
        best.label[i] = 0;
    }
    size_t head_dim = kmeans->head_dim;
    for (size_t begin = 0; begin < kmeans->clusters; begin += BLOCK_CENTROIDS) {
        size_t left = kmeans->clusters - begin;
        size_t count = left < BLOCK_CENTROIDS ? left : BLOCK_CENTROIDS;
        backend_get()->score(&(struct score_args){
            .q = kmeans->centroids + begin * head_dim, .queries = count, .head_dim = head_dim,
            .k = kmeans->rows + first * head_dim, .k_stride_bytes = head_dim * sizeof(float),
            .tokens = rows, .dtype = DTYPE_FP32, .scores = scores });
        for (size_t c = 0; c < count; c++) {
            const float *of = scores + c * rows;
            if (rows == BLOCK_ROWS) keep_best(&best, of, BLOCK_ROWS, (uint32_t)(begin + c));
            else keep_best(&best, of, rows, (uint32_t)(begin + c));
        }
    }
    memcpy(kmeans->labels + first, best.label, rows * sizeof *kmeans->labels);
}

void kmeans_assign(const struct kmeans *kmeans)
{
    assert(kmeans->clusters >= 1 && kmeans->head_dim % 8 == 0);
    for (size_t first = 0; first < kmeans->count; first += BLOCK_ROWS) {
        size_t left = kmeans->count - first;
        assign_block(kmeans, first, left < BLOCK_ROWS ? left : BLOCK_ROWS);
    }
}

/* Centroids from labels. sums (C, D), sizes (C): scratch */
static void update(const struct kmeans *kmeans, float *sums, uint32_t *sizes)
{
    size_t head_dim = kmeans->head_dim;
    memset(sums, 0, kmeans->clusters * head_dim * sizeof *sums);
    memset(sizes, 0, kmeans->clusters * sizeof *sizes);
    for (size_t i = 0; i < kmeans->count; i++) {
        const float *row = kmeans->rows + i * head_dim;
        float *sum = sums + kmeans->labels[i] * head_dim;
        for (size_t d = 0; d < head_dim; d++) sum[d] += row[d];
        sizes[kmeans->labels[i]]++;
    }
    for (size_t c = 0; c < kmeans->clusters; c++) {
        const float *sum = sums + c * head_dim;
        double square = 0.0;
        for (size_t d = 0; d < head_dim; d++) square += (double)sum[d] * (double)sum[d];
        if (sizes[c] == 0 || !(square > 0.0)) continue;
        float scale = (float)(1.0 / sqrt(square));
        for (size_t d = 0; d < head_dim; d++)
            kmeans->centroids[c * head_dim + d] = scale * sum[d];
    }
}

int kmeans_train(const struct kmeans *kmeans, size_t passes, struct error *err)
{
    CLEANUP(free_ptr) float *sums = malloc(kmeans->clusters * kmeans->head_dim * sizeof *sums);
    CLEANUP(free_ptr) uint32_t *sizes = malloc(kmeans->clusters * sizeof *sizes);
    if (sums == NULL || sizes == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu centroids", kmeans->clusters);
    for (size_t pass = 0; pass < passes; pass++) {
        int code = kmeans->stop == NULL ? 0 : kmeans->stop(kmeans->stop_arg);
        if (code != 0)
            return error_set(err, code, "%s while clustering %zu rows", error_text(code),
                             kmeans->count);
        kmeans_assign(kmeans);
        update(kmeans, sums, sizes);
    }
    return 0;
}
