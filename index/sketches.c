/* SPDX-License-Identifier: Apache-2.0 */
/* sketches.c — in the order of execution: what is learned from the sample, codes, queries. Codes
 * are laid out as the centroids of planes are, sixteen vectors by four dimensions, so that the
 * kernel that ranks clusters scores sketches too. Vectors are projected some at a time, which reads
 * the basis once for all of them. */
#include "index/sketches.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "index/backend.h"
#include "index/grown.h"
#include "index/kmeans.h"
#include "index/rotation.h"
#include "index/subspace.h"
#include "index/topk.h"
#include "index/vectors.h"

enum {
    BLOCK = 16,        /* vectors that are coded together */
    EVERY = 2,         /* of the sample is looked at for the directions */
    PASSES = 8,        /* of k-means */
    FIRST_TILES = 4,   /* of a cell */
    TILE_ALIGN = 64,
};

void sketches_init(struct sketches *sketches, size_t width, size_t dims)
{
    assert(dims == 0 || (dims % 8 == 0 && dims <= SKETCHES_DIMS_MAX && 2 * dims <= width &&
                         width <= SKETCHES_WIDTH_MAX));
    *sketches = (struct sketches){ .width = width, .dims = dims };
}

static size_t tiles_of(const struct sketches_cell *cell)
{
    return (size_t)((cell->count + SKETCHES_TILE - 1) / SKETCHES_TILE);
}

void sketches_fini(struct sketches *sketches)
{
    for (size_t c = 0; sketches->cells != NULL && c < SKETCHES_CELLS; c++) {
        struct sketches_cell *cell = &sketches->cells[c];
        for (size_t t = 0; t < tiles_of(cell); t++) free(cell->tiles[t]);
        free(cell->tiles);
    }
    free(sketches->mean);
    free(sketches->basis);
    free(sketches->centroids);
    free(sketches->cells);
    *sketches = (struct sketches){ 0 };
}

static size_t tile_bytes(const struct sketches *sketches)
{
    size_t bytes = sizeof(struct sketches_tile) + SKETCHES_TILE * sketches->dims;
    return (bytes + TILE_ALIGN - 1) / TILE_ALIGN * TILE_ALIGN;
}

size_t sketches_bytes(const struct sketches *sketches)
{
    if (sketches->cells == NULL) return 0;
    size_t floats = (sketches->dims + 2) * sketches->width + SKETCHES_CELLS * sketches->dims;
    return floats * sizeof(float) + SKETCHES_CELLS * sizeof *sketches->cells +
           sketches->tiles * (tile_bytes(sketches) + 2 * sizeof(void *));
}

static void subtract_mean(const struct sketches *sketches, size_t count, float *x)
{
    for (size_t t = 0; t < count; t++)
        for (size_t i = 0; i < sketches->width; i++)
            x[t * sketches->width + i] -= sketches->mean[i];
}

/* ---- what is learned from the sample ---- */

static int no_memory(struct error *err)
{
    return error_set(err, MEMD_ENOMEM, "no memory for sketches");
}

/* x (SKETCHES_SAMPLE, W) */
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

/* x (SKETCHES_SAMPLE, W) less the mean; what is passed over is written over. */
static int find_basis(struct sketches *sketches, float *x, struct error *err)
{
    size_t width = sketches->width, dims = sketches->dims, leading = dims / 2;
    sketches->basis = malloc((dims + 1) * width * sizeof *sketches->basis);
    if (sketches->basis == NULL) return no_memory(err);
    for (size_t t = 0; t < SKETCHES_SAMPLE / EVERY; t++)
        memcpy(x + t * width, x + t * EVERY * width, width * sizeof *x);
    struct subspace_sample sample = { x, SKETCHES_SAMPLE / EVERY, width };
    int rc = subspace_find(&sample, leading, dims - leading, sketches->basis, err);
    if (rc < 0) return rc;
    mix(sketches->basis, dims, width);
    memcpy(sketches->basis + dims * width, sketches->mean, width * sizeof *sketches->mean);
    return 0;
}

/* x (count, W) less the mean, in place, and its projections (count, S + 1), the last of which is
 * the product with the mean. */
static void project(const struct sketches *sketches, size_t count, float *x, float *ret_sketches)
{
    subtract_mean(sketches, count, x);
    vectors_products(x, count, sketches->basis, sketches->dims + 1, sketches->width, ret_sketches);
}

/* numbers (SKETCHES_SAMPLE, S). Cells begin in the direction of vectors evenly out of the sample;
 * kmeans.h makes centroids of length 1. */
static int find_cells(struct sketches *sketches, const float *numbers, struct error *err)
{
    size_t dims = sketches->dims;
    CLEANUP(free_ptr) uint32_t *labels = malloc(SKETCHES_SAMPLE * sizeof *labels);
    sketches->centroids = malloc(SKETCHES_CELLS * dims * sizeof *sketches->centroids);
    sketches->cells = calloc(SKETCHES_CELLS, sizeof *sketches->cells);
    if (labels == NULL || sketches->centroids == NULL || sketches->cells == NULL)
        return no_memory(err);
    for (size_t c = 0; c < SKETCHES_CELLS; c++) {
        float *centroid = sketches->centroids + c * dims;
        memcpy(centroid, numbers + SKETCHES_SAMPLE / SKETCHES_CELLS * c * dims,
               dims * sizeof *centroid);
        double square = 0.0;
        for (size_t d = 0; d < dims; d++) square += (double)centroid[d] * (double)centroid[d];
        for (size_t d = 0; d < dims && square > 0.0; d++) centroid[d] /= (float)sqrt(square);
    }
    struct kmeans kmeans = { .rows = numbers,
                             .count = SKETCHES_SAMPLE,
                             .head_dim = dims,
                             .centroids = sketches->centroids,
                             .clusters = SKETCHES_CELLS,
                             .labels = labels };
    return kmeans_train(&kmeans, PASSES, err);
}

/* How near cells are to the mean itself: μ projected, which no vector less the mean shows. */
static void find_pull(struct sketches *sketches)
{
    float mean[SKETCHES_DIMS_MAX + 1];
    vectors_products(sketches->mean, 1, sketches->basis, sketches->dims + 1, sketches->width, mean);
    vectors_products(mean, 1, sketches->centroids, SKETCHES_CELLS, sketches->dims, sketches->pull);
}

static void load_sample(const struct rows *rows, size_t width, float *ret_x)
{
    for (uint64_t t = 0; t < SKETCHES_SAMPLE; t++) vectors_load(rows, &t, 1, ret_x + t * width);
}

static int learn(struct sketches *sketches, const struct rows *rows, struct error *err)
{
    size_t width = sketches->width, dims = sketches->dims;
    CLEANUP(free_ptr) float *x = malloc(SKETCHES_SAMPLE * width * sizeof *x);
    CLEANUP(free_ptr) float *numbers = malloc(SKETCHES_SAMPLE * (dims + 1) * sizeof *numbers);
    if (x == NULL || numbers == NULL) return no_memory(err);
    load_sample(rows, width, x);
    int rc = find_mean(sketches, x, err);
    if (rc < 0) return rc;
    subtract_mean(sketches, SKETCHES_SAMPLE, x);
    rc = find_basis(sketches, x, err);
    if (rc < 0) return rc;
    load_sample(rows, width, x);
    project(sketches, SKETCHES_SAMPLE, x, numbers);
    for (size_t t = 0; t < SKETCHES_SAMPLE; t++)
        memmove(numbers + t * dims, numbers + t * (dims + 1), dims * sizeof *numbers);
    rc = find_cells(sketches, numbers, err);
    if (rc == 0) find_pull(sketches);
    return rc;
}

/* ---- codes ---- */

static float largest(const float *x, size_t count)
{
    float most = 0.0F;
    for (size_t i = 0; i < count; i++) most = x[i] > most ? x[i] : -x[i] > most ? -x[i] : most;
    return most;
}

/* The tile that the next vector of a cell goes to; NULL where there is no memory. */
static struct sketches_tile *tile_for_one(struct sketches *sketches, struct sketches_cell *cell)
{
    size_t tile = (size_t)(cell->count / SKETCHES_TILE);
    if (cell->count % SKETCHES_TILE > 0) return cell->tiles[tile];
    if (tile == cell->capacity) {
        size_t capacity = tile == 0 ? FIRST_TILES : 2 * tile;
        struct sketches_tile **tiles = realloc(cell->tiles, capacity * sizeof(void *));
        if (tiles == NULL) return NULL;
        cell->tiles = tiles;
        cell->capacity = capacity;
    }
    cell->tiles[tile] = aligned_alloc(TILE_ALIGN, tile_bytes(sketches));
    if (cell->tiles[tile] == NULL) return NULL;
    memset(cell->tiles[tile], 0, tile_bytes(sketches));
    sketches->tiles++;
    return cell->tiles[tile];
}

/* numbers (S + 1) of project */
static void code(size_t dims, const float *numbers, struct sketches_tile *tile, size_t place)
{
    float scale = largest(numbers, dims) / 63.5F, inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
    uint8_t *codes = tile->codes + place / PLANE_TILE * PLANE_TILE * dims;
    tile->biases[place] = numbers[dims];
    tile->scales[place] = scale;
    for (size_t d = 0; d < dims; d++) {
        float at = numbers[d] * inverse + 63.5F;
        codes[d / 4 * 64 + 4 * (place % PLANE_TILE) + d % 4] =
            (uint8_t)lrintf(at < 127.0F ? at : 127.0F);
    }
}

/* numbers (S) of project; nearness (SKETCHES_CELLS): scratch. The first of equals. */
static size_t cell_of(const struct sketches *sketches, const float *numbers, float *nearness)
{
    size_t best = 0;
    vectors_products(numbers, 1, sketches->centroids, SKETCHES_CELLS, sketches->dims, nearness);
    for (size_t c = 1; c < SKETCHES_CELLS; c++)
        if (nearness[c] > nearness[best]) best = c;
    return best;
}

static int put(struct sketches *sketches, const float *numbers, uint64_t position, float square,
               struct error *err)
{
    float nearness[SKETCHES_CELLS];
    struct sketches_cell *cell = &sketches->cells[cell_of(sketches, numbers, nearness)];
    struct sketches_tile *tile = tile_for_one(sketches, cell);
    if (tile == NULL) return no_memory(err);
    size_t place = (size_t)(cell->count % SKETCHES_TILE);
    code(sketches->dims, numbers, tile, place);
    tile->squares[place] = square;
    tile->positions[place] = position;
    cell->count++;
    sketches->count = position + 1;
    return 0;
}

/* Only the first `count` vectors are coded, and were learned from, as before an attempt without
 * memory. The others' rows may be gone when the next attempt comes. */
static void take_back(struct sketches *sketches, uint64_t count)
{
    size_t width = sketches->width, dims = sketches->dims;
    if (count < SKETCHES_SAMPLE) {
        sketches_fini(sketches);
        sketches_init(sketches, width, dims);
        return;
    }
    for (size_t c = 0; c < SKETCHES_CELLS; c++) {
        struct sketches_cell *cell = &sketches->cells[c];
        size_t tiles = tiles_of(cell);
        cell->count = sketches_before(sketches, c, count);
        for (size_t t = tiles_of(cell); t < tiles; t++, sketches->tiles--) free(cell->tiles[t]);
    }
    sketches->count = count;
}

int sketches_advance(struct sketches *sketches, const struct rows *rows,
                     const struct grown *squares, uint64_t end, struct error *err)
{
    if (sketches->dims == 0 || end < SKETCHES_SAMPLE) return 0;
    size_t width = sketches->width, dims = sketches->dims, together = 0;
    uint64_t before = sketches->count;
    assert(width == 2 * rows->head_dim);
    int rc = 0;
    if (sketches->cells == NULL) rc = learn(sketches, rows, err);
    CLEANUP(free_ptr) float *x = aligned_alloc(64, BLOCK * width * sizeof *x);
    float numbers[BLOCK * (SKETCHES_DIMS_MAX + 1)];
    if (rc == 0 && x == NULL) rc = no_memory(err);
    while (rc == 0 && sketches->count < end) {
        uint64_t positions[BLOCK];
        size_t some = end - sketches->count < BLOCK ? (size_t)(end - sketches->count) : BLOCK;
        for (size_t i = 0; i < some; i++) positions[i] = sketches->count + i;
        vectors_load(rows, positions, some, x);
        project(sketches, some, x, numbers);
        for (size_t i = 0; i < some && rc == 0; i++)
            rc = put(sketches, numbers + i * (dims + 1), positions[i],
                     *(const float *)grown_rows(squares, 0, positions[i], 1, &together), err);
    }
    if (rc < 0) take_back(sketches, before);
    return rc;
}

/* ---- queries ---- */

/* numbers (S + 1) of project */
static void code_query(const struct sketches *sketches, const float *numbers, size_t m,
                       struct sketches_queries *queries)
{
    size_t dims = sketches->dims;
    float scale = largest(numbers, dims) / 127.0F;
    int32_t sum = 0;
    for (size_t d = 0; d < dims; d++) {
        int8_t rounded = (int8_t)(scale > 0.0F ? lrintf(numbers[d] / scale) : 0);
        queries->codes[m * dims + d] = rounded;
        sum += rounded;
    }
    queries->scale[m] = scale;
    queries->sum[m] = sum;
}

size_t sketches_room(const struct sketches *sketches, size_t queries)
{
    return queries * (sketches->width + sketches->dims + 1 + SKETCHES_CELLS);
}

const float *sketches_ask(const struct sketches *sketches, const float *q, size_t queries,
                          float *room, struct sketches_queries *ret_queries)
{
    size_t width = sketches->width, dims = sketches->dims;
    float *numbers = room + queries * width, *nearness = numbers + queries * (dims + 1);
    double square = 0.0;
    assert(sketches->cells != NULL && queries <= SKETCHES_QUERIES);
    for (size_t i = 0; i < width; i++)
        square += (double)sketches->mean[i] * (double)sketches->mean[i];
    memcpy(room, q, queries * width * sizeof *room);
    project(sketches, queries, room, numbers);
    ret_queries->count = queries;
    for (size_t m = 0; m < queries; m++) {
        const float *of = numbers + m * (dims + 1);
        code_query(sketches, of, m, ret_queries);
        ret_queries->offset[m] = of[dims] + (float)square; /* q·μ */
        vectors_products(of, 1, sketches->centroids, SKETCHES_CELLS, dims,
                         nearness + m * SKETCHES_CELLS);
    }
    return nearness;
}

void sketches_probe(const struct sketches *sketches, const float *nearness, size_t queries,
                    size_t probes, bool dot, uint16_t *ret_askers)
{
    uint64_t ids[SKETCHES_CELLS];
    float scores[SKETCHES_CELLS];
    struct topk best = { ids, scores, probes };
    assert(probes > 0 && probes <= SKETCHES_CELLS);
    memset(ret_askers, 0, SKETCHES_CELLS * sizeof *ret_askers);
    for (size_t m = 0; m < queries; m++, nearness += SKETCHES_CELLS) {
        topk_clear(&best);
        for (size_t c = 0; c < SKETCHES_CELLS; c++)
            topk_offer(&best, dot ? nearness[c] + sketches->pull[c] : nearness[c], c);
        for (size_t i = 0; i < probes; i++)
            if (ids[i] < SKETCHES_CELLS) ret_askers[ids[i]] |= (uint16_t)(1U << m);
    }
}

void sketches_choose(const struct sketches *sketches, const struct sketches_queries *queries,
                     unsigned bits, struct sketches_queries *ret_queries)
{
    size_t dims = sketches->dims, count = 0;
    for (; bits != 0; bits &= bits - 1, count++) {
        size_t m = (size_t)__builtin_ctz(bits);
        memcpy(ret_queries->codes + count * dims, queries->codes + m * dims, dims);
        ret_queries->scale[count] = queries->scale[m];
        ret_queries->offset[count] = queries->offset[m];
        ret_queries->sum[count] = queries->sum[m];
    }
    ret_queries->count = count;
}

static uint64_t position_at(const struct sketches_cell *cell, uint64_t entry)
{
    return cell->tiles[entry / SKETCHES_TILE]->positions[entry % SKETCHES_TILE];
}

uint64_t sketches_before(const struct sketches *sketches, size_t cell, uint64_t position)
{
    const struct sketches_cell *in = &sketches->cells[cell];
    uint64_t low = 0, high = in->count; /* the answer lies between, both included */
    if (high == 0 || position_at(in, high - 1) < position) return high; /* most often */
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (position_at(in, middle) < position) low = middle + 1;
        else high = middle;
    }
    return low;
}

void sketches_products(const struct sketches *sketches, const struct sketches_queries *queries,
                       const struct sketches_tile *tile, const struct sketches_tile *soon,
                       float *ret_products)
{
    struct plane_queries asked = { queries->codes, queries->scale, queries->offset,
                                   queries->sum,   queries->count, sketches->dims };
    plane_backend_get()->centroid(&(struct plane_centroid_args){
        .queries = &asked,
        .centroids = tile->codes,
        .scale = tile->scales,
        .soon = soon == NULL ? NULL : soon->codes,
        .scores = ret_products });
}
