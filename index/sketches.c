/* SPDX-License-Identifier: Apache-2.0 */
/* sketches.c — codes are laid out as the centroids of planes are, sixteen vectors by four
 * dimensions, so that the kernel that ranks clusters scores sketches too. */
#include "index/sketches.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "index/backend.h"
#include "index/rotation.h"
#include "index/vectors.h"

void sketches_init(struct sketches *sketches, size_t width, size_t dims)
{
    assert(dims == 0 || (dims % 8 == 0 && dims <= SKETCHES_DIMS_MAX && dims < width &&
                         width <= SKETCHES_WIDTH_MAX));
    *sketches = (struct sketches){ .width = width, .dims = dims };
    if (dims == 0) return;
    grown_init(&sketches->codes, 1, dims);
    grown_init(&sketches->scales, 1, sizeof(float));
    grown_init(&sketches->biases, 1, sizeof(float));
}

void sketches_fini(struct sketches *sketches)
{
    grown_fini(&sketches->codes);
    grown_fini(&sketches->scales);
    grown_fini(&sketches->biases);
    free(sketches->mean);
    *sketches = (struct sketches){ 0 };
}

size_t sketches_bytes(const struct sketches *sketches)
{
    if (sketches->dims == 0) return 0;
    return grown_bytes(&sketches->codes) + grown_bytes(&sketches->scales) +
           grown_bytes(&sketches->biases) +
           (sketches->mean == NULL ? 0 : sketches->width * sizeof(float));
}

static int find_mean(struct sketches *sketches, const struct rows *rows, struct error *err)
{
    double sum[SKETCHES_WIDTH_MAX] = { 0 };
    float state[SKETCHES_WIDTH_MAX];
    sketches->mean = malloc(sketches->width * sizeof *sketches->mean);
    if (sketches->mean == NULL) return error_set(err, MEMD_ENOMEM, "no memory for sketches");
    for (uint64_t t = 0; t < SKETCHES_MEAN; t++) {
        vectors_load(rows, &t, 1, state);
        for (size_t i = 0; i < sketches->width; i++) sum[i] += (double)state[i];
    }
    for (size_t i = 0; i < sketches->width; i++)
        sketches->mean[i] = (float)(sum[i] / SKETCHES_MEAN);
    return 0;
}

static float largest(const float *x, size_t count)
{
    float most = 0.0F;
    for (size_t i = 0; i < count; i++) most = fmaxf(most, fabsf(x[i]));
    return most;
}

/* A tile of which nothing is there yet. */
static void clear_tile(const struct sketches *sketches, uint64_t position)
{
    const struct grown *all[] = { &sketches->codes, &sketches->scales, &sketches->biases };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        size_t some = 0;
        memset(grown_rows(all[i], 0, position, SKETCHES_TILE, &some), 0,
               SKETCHES_TILE * all[i]->row_bytes);
    }
}

/* x (W) less the mean, rotated; returns its product with the mean before that. */
static float turn(const struct sketches *sketches, float *x)
{
    double product = 0.0;
    for (size_t i = 0; i < sketches->width; i++) {
        x[i] -= sketches->mean[i];
        product += (double)x[i] * (double)sketches->mean[i];
    }
    rotation_apply(x, 1, sketches->width);
    return (float)product;
}

static void code(const struct sketches *sketches, const struct rows *rows, uint64_t position)
{
    float x[SKETCHES_WIDTH_MAX];
    size_t dims = sketches->dims, some = 0;
    if (position % SKETCHES_TILE == 0) clear_tile(sketches, position);
    vectors_load(rows, &position, 1, x);
    *(float *)grown_rows(&sketches->biases, 0, position, 1, &some) = turn(sketches, x);
    const float *last = x + sketches->width - dims;
    float scale = largest(last, dims) / 63.5F;
    *(float *)grown_rows(&sketches->scales, 0, position, 1, &some) = scale;
    uint64_t tile = position / SKETCHES_TILE * SKETCHES_TILE;
    size_t c = (size_t)(position - tile);
    uint8_t *codes = grown_rows(&sketches->codes, 0, tile, SKETCHES_TILE, &some);
    codes += c / PLANE_TILE * PLANE_TILE * dims;
    for (size_t d = 0; d < dims; d++) {
        float at = scale > 0.0F ? last[d] / scale + 63.5F : 63.0F;
        codes[d / 4 * 64 + 4 * (c % PLANE_TILE) + d % 4] = (uint8_t)lrintf(fminf(at, 127.0F));
    }
}

int sketches_advance(struct sketches *sketches, const struct rows *rows, uint64_t end,
                     struct error *err)
{
    if (sketches->dims == 0 || end < SKETCHES_MEAN) return 0;
    assert(sketches->width == 2 * rows->head_dim);
    int rc = sketches->mean == NULL ? find_mean(sketches, rows, err) : 0;
    if (rc == 0) rc = grown_reserve(&sketches->codes, end, err);
    if (rc == 0) rc = grown_reserve(&sketches->scales, end, err);
    if (rc == 0) rc = grown_reserve(&sketches->biases, end, err);
    for (; rc == 0 && sketches->count < end; sketches->count++)
        code(sketches, rows, sketches->count);
    return rc;
}

void sketches_ask(const struct sketches *sketches, const float *q, size_t queries,
                  struct sketches_queries *ret_queries)
{
    float x[SKETCHES_WIDTH_MAX];
    size_t width = sketches->width, dims = sketches->dims;
    assert(dims > 0 && sketches->mean != NULL && queries <= SKETCHES_QUERIES);
    ret_queries->count = queries;
    for (size_t m = 0; m < queries; m++) {
        double offset = 0.0;
        int32_t sum = 0;
        for (size_t i = 0; i < width; i++)
            offset += (double)q[m * width + i] * (double)sketches->mean[i];
        memcpy(x, q + m * width, width * sizeof *x);
        turn(sketches, x);
        const float *last = x + width - dims;
        float scale = largest(last, dims) / 127.0F;
        for (size_t d = 0; d < dims; d++) {
            int8_t rounded = (int8_t)(scale > 0.0F ? lrintf(last[d] / scale) : 0);
            ret_queries->codes[m * dims + d] = rounded;
            sum += rounded;
        }
        ret_queries->scale[m] = scale * (float)width / (float)dims;
        ret_queries->offset[m] = (float)offset;
        ret_queries->sum[m] = sum;
    }
}

void sketches_products(const struct sketches *sketches, const struct sketches_queries *queries,
                       uint64_t tile, float *ret_products)
{
    size_t some = 0;
    struct plane_queries asked = { queries->codes, queries->scale, queries->offset,
                                   queries->sum,   queries->count, sketches->dims };
    uint64_t position = tile * SKETCHES_TILE;
    plane_backend_get()->centroid(&(struct plane_centroid_args){
        .queries = &asked,
        .centroids = grown_rows(&sketches->codes, 0, position, SKETCHES_TILE, &some),
        .scale = grown_rows(&sketches->scales, 0, position, SKETCHES_TILE, &some),
        .scores = ret_products });
}

const float *sketches_biases(const struct sketches *sketches, uint64_t position)
{
    size_t some = 0;
    return grown_rows(&sketches->biases, 0, position, 1, &some);
}
