/* SPDX-License-Identifier: Apache-2.0 */
/* sketches.c — codes are laid out as the centroids of planes are, sixteen vectors by four
 * dimensions, so that the kernel that ranks clusters scores sketches too. Vectors are projected
 * some at a time, which reads the basis once for all of them. */
#include "index/sketches.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "index/backend.h"
#include "index/rotation.h"
#include "index/subspace.h"
#include "index/vectors.h"

enum { BLOCK = 16 }; /* vectors that are coded together */

void sketches_init(struct sketches *sketches, size_t width, size_t dims)
{
    assert(dims == 0 || (dims % 8 == 0 && dims <= SKETCHES_DIMS_MAX && 2 * dims <= width &&
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
    free(sketches->basis);
    *sketches = (struct sketches){ 0 };
}

size_t sketches_bytes(const struct sketches *sketches)
{
    if (sketches->dims == 0) return 0;
    size_t learned = sketches->basis == NULL ? 0 : (sketches->dims + 2) * sketches->width;
    return grown_bytes(&sketches->codes) + grown_bytes(&sketches->scales) +
           grown_bytes(&sketches->biases) + learned * sizeof(float);
}

static void subtract_mean(const struct sketches *sketches, size_t count, float *x)
{
    for (size_t t = 0; t < count; t++)
        for (size_t i = 0; i < sketches->width; i++)
            x[t * sketches->width + i] -= sketches->mean[i];
}

/* ---- what is learned from the first vectors ---- */

static int no_memory(struct error *err)
{
    return error_set(err, MEMD_ENOMEM, "no memory for sketches");
}

/* x (SKETCHES_SAMPLE, W) of the first vectors. */
static int find_mean(struct sketches *sketches, const float *x, struct error *err)
{
    size_t width = sketches->width;
    CLEANUP(free_ptr) double *sum = calloc(width, sizeof *sum);
    sketches->mean = malloc(width * sizeof *sketches->mean);
    if (sum == NULL || sketches->mean == NULL) return no_memory(err);
    for (size_t t = 0; t < SKETCHES_SAMPLE; t++)
        for (size_t i = 0; i < width; i++) sum[i] += (double)x[t * width + i];
    for (size_t i = 0; i < width; i++) sketches->mean[i] = (float)(sum[i] / SKETCHES_SAMPLE);
    return 0;
}

/* Each number of a sketch becomes a mixture of all of them: columns of the basis are rotated. */
static void mix(float *basis, size_t dims, size_t width)
{
    float column[SKETCHES_DIMS_MAX];
    for (size_t i = 0; i < width; i++) {
        for (size_t d = 0; d < dims; d++) column[d] = basis[d * width + i];
        rotation_apply(column, 1, dims);
        for (size_t d = 0; d < dims; d++) basis[d * width + i] = column[d];
    }
}

static int learn(struct sketches *sketches, const struct rows *rows, struct error *err)
{
    size_t width = sketches->width, dims = sketches->dims, leading = dims / 2;
    free(sketches->mean); /* of an attempt without memory */
    sketches->mean = NULL;
    CLEANUP(free_ptr) float *x = malloc(SKETCHES_SAMPLE * width * sizeof *x);
    CLEANUP(free_ptr) float *basis = malloc((dims + 1) * width * sizeof *basis);
    if (x == NULL || basis == NULL) return no_memory(err);
    for (uint64_t t = 0; t < SKETCHES_SAMPLE; t++) vectors_load(rows, &t, 1, x + t * width);
    int rc = find_mean(sketches, x, err);
    if (rc < 0) return rc;
    subtract_mean(sketches, SKETCHES_SAMPLE, x);
    struct subspace_sample sample = { x, SKETCHES_SAMPLE, width };
    rc = subspace_find(&sample, leading, dims - leading, basis, err);
    if (rc < 0) return rc;
    mix(basis, dims, width);
    memcpy(basis + dims * width, sketches->mean, width * sizeof *basis);
    sketches->basis = TAKE(basis);
    return 0;
}

/* ---- codes ---- */

static float largest(const float *x, size_t count)
{
    float most = 0.0F;
    for (size_t i = 0; i < count; i++) most = x[i] > most ? x[i] : -x[i] > most ? -x[i] : most;
    return most;
}

/* x (count, W) less the mean, in place, and its projections (count, S + 1), the last of which is
 * the product with the mean. */
static void project(const struct sketches *sketches, size_t count, float *x, float *ret_sketches)
{
    subtract_mean(sketches, count, x);
    vectors_products(x, count, sketches->basis, sketches->dims + 1, sketches->width, ret_sketches);
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

/* numbers (S + 1) of project */
static void code(const struct sketches *sketches, const float *numbers, uint64_t position)
{
    size_t dims = sketches->dims, some = 0;
    if (position % SKETCHES_TILE == 0) clear_tile(sketches, position);
    *(float *)grown_rows(&sketches->biases, 0, position, 1, &some) = numbers[dims];
    float scale = largest(numbers, dims) / 63.5F, inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
    *(float *)grown_rows(&sketches->scales, 0, position, 1, &some) = scale;
    uint64_t tile = position / SKETCHES_TILE * SKETCHES_TILE;
    size_t c = (size_t)(position - tile);
    uint8_t *codes = grown_rows(&sketches->codes, 0, tile, SKETCHES_TILE, &some);
    codes += c / PLANE_TILE * PLANE_TILE * dims;
    for (size_t d = 0; d < dims; d++) {
        float at = numbers[d] * inverse + 63.5F;
        codes[d / 4 * 64 + 4 * (c % PLANE_TILE) + d % 4] =
            (uint8_t)lrintf(at < 127.0F ? at : 127.0F);
    }
}

static int code_to(struct sketches *sketches, const struct rows *rows, uint64_t end,
                   struct error *err)
{
    size_t width = sketches->width, dims = sketches->dims;
    CLEANUP(free_ptr) float *x = aligned_alloc(64, BLOCK * width * sizeof *x);
    float numbers[BLOCK * (SKETCHES_DIMS_MAX + 1)];
    if (x == NULL) return no_memory(err);
    while (sketches->count < end) {
        uint64_t positions[BLOCK];
        size_t some = end - sketches->count < BLOCK ? (size_t)(end - sketches->count) : BLOCK;
        for (size_t i = 0; i < some; i++) positions[i] = sketches->count + i;
        vectors_load(rows, positions, some, x);
        project(sketches, some, x, numbers);
        for (size_t i = 0; i < some; i++) code(sketches, numbers + i * (dims + 1), positions[i]);
        sketches->count += some;
    }
    return 0;
}

int sketches_advance(struct sketches *sketches, const struct rows *rows, uint64_t end,
                     struct error *err)
{
    if (sketches->dims == 0 || end < SKETCHES_SAMPLE) return 0;
    assert(sketches->width == 2 * rows->head_dim);
    int rc = sketches->basis == NULL ? learn(sketches, rows, err) : 0;
    if (rc == 0) rc = grown_reserve(&sketches->codes, end, err);
    if (rc == 0) rc = grown_reserve(&sketches->scales, end, err);
    if (rc == 0) rc = grown_reserve(&sketches->biases, end, err);
    return rc == 0 ? code_to(sketches, rows, end, err) : rc;
}

/* ---- queries ---- */

void sketches_ask(const struct sketches *sketches, const float *q, size_t queries, float *room,
                  struct sketches_queries *ret_queries)
{
    size_t width = sketches->width, dims = sketches->dims;
    float *projected = room + queries * width; /* (queries, S + 1) */
    double square = 0.0;
    assert(dims > 0 && sketches->basis != NULL && queries <= SKETCHES_QUERIES);
    for (size_t i = 0; i < width; i++)
        square += (double)sketches->mean[i] * (double)sketches->mean[i];
    memcpy(room, q, queries * width * sizeof *room);
    project(sketches, queries, room, projected);
    ret_queries->count = queries;
    for (size_t m = 0; m < queries; m++) {
        const float *numbers = projected + m * (dims + 1);
        float scale = largest(numbers, dims) / 127.0F;
        int32_t sum = 0;
        for (size_t d = 0; d < dims; d++) {
            int8_t rounded = (int8_t)(scale > 0.0F ? lrintf(numbers[d] / scale) : 0);
            ret_queries->codes[m * dims + d] = rounded;
            sum += rounded;
        }
        ret_queries->scale[m] = scale;
        ret_queries->offset[m] = numbers[dims] + (float)square; /* q·μ */
        ret_queries->sum[m] = sum;
    }
}

static const uint8_t *codes_of(const struct sketches *sketches, uint64_t tile)
{
    size_t some = 0;
    if (tile * SKETCHES_TILE >= sketches->count) return NULL;
    return grown_rows(&sketches->codes, 0, tile * SKETCHES_TILE, SKETCHES_TILE, &some);
}

void sketches_products(const struct sketches *sketches, const struct sketches_queries *queries,
                       uint64_t tile, float *ret_products)
{
    size_t some = 0;
    struct plane_queries asked = { queries->codes, queries->scale, queries->offset,
                                   queries->sum,   queries->count, sketches->dims };
    plane_backend_get()->centroid(&(struct plane_centroid_args){
        .queries = &asked,
        .centroids = codes_of(sketches, tile),
        .scale = grown_rows(&sketches->scales, 0, tile * SKETCHES_TILE, SKETCHES_TILE, &some),
        .soon = codes_of(sketches, tile + 1),
        .scores = ret_products });
}

const float *sketches_biases(const struct sketches *sketches, uint64_t position)
{
    size_t some = 0;
    return grown_rows(&sketches->biases, 0, position, 1, &some);
}
