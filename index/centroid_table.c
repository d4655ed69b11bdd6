/* SPDX-License-Identifier: Apache-2.0 */
/* centroid_table.c — decode a centroid in the space of its segment, code it in the table's.
 *
 * The space of a table is that of the first segment put into it. Others have about the same balance
 * and a mean not far away; both are only what codes are relative to, but a balance that knows the
 * queries codes better, so who fills a table begins with the newest segment (0047). Rejected: a
 * space from all segments (an append would have to code all of them again), no balance (outlier
 * channels would have the steps to themselves).
 *
 * key_spread is the variance inside a cluster for a query like those its segment had observed, and
 * a query's own comes from its ratio to them. The ratio is to the table's queries now, so the
 * spread is scaled by what a query like the better known of the two has as a ratio to the other.
 */
#include "index/centroid_table.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/half.h"
#include "index/rotation.h"

enum {
    TILE = 16, /* centroids */
    STEP = 64, /* bytes of a tile's 4 dimensions */
    HEAD_DIM_MAX = 1024,
};
#define HUGE_PAGE ((size_t)2 << 20)

static const float square_floor = 0.01F; /* as in progressive_queries.c */
/* What 4 bits of centroids may add to the variance of scores inside clusters (0047). */
static const float rounding_most = 0.125F;

struct centroid_table {
    size_t head_dim, heads, bytes;
    struct planes_space *spaces;  /* (G), vectors in `vectors`; of heads with an entry */
    float *vectors;               /* (G, 3, D) */
    void *mapped;                 /* mapped_bytes, or MAP_FAILED */
    size_t mapped_bytes;
    unsigned char *coarse;        /* (G, TABLE_SEGMENTS, coarse_bytes), in it */
    unsigned char *rows;          /* (G, TABLE_SEGMENTS, rows_bytes), behind them */
    unsigned char *values;        /* (G, TABLE_SEGMENTS, value_bytes), behind those */
};

static size_t coarse_bytes(size_t head_dim)
{
    return PLANES_CLUSTERS * (head_dim / 2 + sizeof(uint16_t) + sizeof(float));
}

static size_t rows_bytes(size_t head_dim)
{
    return PLANES_CLUSTERS * (head_dim + sizeof(float));
}

static size_t value_bytes(size_t head_dim)
{
    return PLANES_CLUSTERS * (head_dim + 2 * sizeof(float));
}

void centroid_table_free(struct centroid_table *table)
{
    if (table == NULL) return;
    free(table->spaces);
    free(table->vectors);
    if (table->mapped != MAP_FAILED) munmap(table->mapped, table->mapped_bytes);
    free(table);
}

static void free_tablep(struct centroid_table **table)
{
    centroid_table_free(*table);
}

struct centroid_table *centroid_table_new(size_t head_dim, size_t heads)
{
    CLEANUP(free_tablep) struct centroid_table *table = calloc(1, sizeof *table);
    if (table == NULL) return NULL;
    table->head_dim = head_dim;
    table->heads = heads;
    table->mapped = MAP_FAILED;
    size_t places = heads * TABLE_SEGMENTS, coarse = places * coarse_bytes(head_dim);
    size_t rows = places * rows_bytes(head_dim);
    size_t bytes = coarse + rows + places * value_bytes(head_dim);
    bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    table->bytes = bytes + heads * (sizeof *table->spaces + 3 * head_dim * sizeof(float));
    table->spaces = calloc(heads, sizeof *table->spaces);
    table->vectors = calloc(heads * 3 * head_dim, sizeof *table->vectors);
    if (table->spaces == NULL || table->vectors == NULL) return NULL;
    table->mapped_bytes = bytes + HUGE_PAGE; /* room for the alignment; it is never touched */
    table->mapped = mmap(NULL, table->mapped_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (table->mapped == MAP_FAILED) return NULL;
    size_t past = (uintptr_t)table->mapped % HUGE_PAGE;
    table->coarse = (unsigned char *)table->mapped + (past == 0 ? 0 : HUGE_PAGE - past);
    table->rows = table->coarse + coarse;
    table->values = table->rows + rows;
    (void)madvise(table->coarse, bytes, MADV_HUGEPAGE); /* a hint */
    return TAKE(table);
}

size_t centroid_table_bytes(const struct centroid_table *table)
{
    return table->bytes;
}

/* The space of a head becomes that of these planes. */
static void set_space(struct centroid_table *table, size_t head, const struct planes *planes)
{
    size_t head_dim = table->head_dim;
    float *balance = table->vectors + 3 * head * head_dim, *mean = balance + head_dim;
    float *square = mean + head_dim;
    memcpy(balance, planes->balance, head_dim * sizeof *balance);
    memcpy(mean, planes->key_mean, head_dim * sizeof *mean);
    memcpy(square, planes->query_square, head_dim * sizeof *square);
    table->spaces[head] = (struct planes_space){ .queries = planes->queries, .balance = balance,
                                                 .query_square = square, .key_mean = mean };
}

/* Mean over the channels of the ratio of a query like `typical` to queries like `known`; NULL: all
 * channels 1. (D) */
static float mean_ratio(const float *typical, const float *known, size_t head_dim)
{
    float mean = 0.0F, sum = 0.0F;
    for (size_t d = 0; d < head_dim; d++) mean += known == NULL ? 1.0F : known[d];
    float least = square_floor * mean / (float)head_dim + 1e-30F;
    for (size_t d = 0; d < head_dim; d++) {
        float one = typical == NULL ? 1.0F : typical[d], other = known == NULL ? 1.0F : known[d];
        sum += one / (other > least ? other : least);
    }
    return sum / (float)head_dim;
}

/* What key_spread of `planes` is to be multiplied with. */
static float spread_factor(const struct planes_space *space, const struct planes *planes,
                           size_t head_dim)
{
    const float *own = planes->queries > 0 ? planes->query_square : NULL;
    const float *shared = space->queries > 0 ? space->query_square : NULL;
    bool more = planes->queries > space->queries;
    float own_ratio = mean_ratio(more ? own : shared, own, head_dim);
    float shared_ratio = mean_ratio(more ? own : shared, shared, head_dim);
    return shared_ratio > 0.0F ? own_ratio / shared_ratio : 1.0F;
}

/* |q'|² of a query like those that were observed, before scale. */
static float typical_square(const struct planes_space *space, size_t head_dim)
{
    float sum = 0.0F;
    for (size_t d = 0; d < head_dim; d++)
        sum += (space->queries > 0 ? space->query_square[d] : 1.0F) /
               (space->balance[d] * space->balance[d]);
    return sum;
}

/* x (D) in the space of `planes` → in the table's. */
static void move(const struct planes_space *space, const struct planes *planes, size_t head_dim,
                 float *x)
{
    rotation_invert(x, 1, head_dim);
    for (size_t d = 0; d < head_dim; d++)
        x[d] = (x[d] / planes->balance[d] + (planes->key_mean[d] - space->key_mean[d])) *
               space->balance[d];
    rotation_apply(x, 1, head_dim);
}

/* An fp16 that is not smaller; infinite beyond all of them. */
static uint16_t step_above(float step)
{
    uint16_t bits = half_to_fp16(step);
    return half_from_fp16(bits) < step ? (uint16_t)(bits + 1) : bits;
}

/* x (D) at 4 bits: value = step (h - 7.5), 8 dimensions to 4 bytes at every `tile` + 64 i. Returns
 * the step. */
static uint16_t put_nibbles(const float *x, size_t head_dim, uint8_t *tile)
{
    float most = 0.0F;
    for (size_t d = 0; d < head_dim; d++) most = fmaxf(most, fabsf(x[d]));
    uint16_t bits = step_above(most / 8.0F);
    float step = half_from_fp16(bits), inverse = step > 0.0F ? 1.0F / step : 0.0F;
    for (size_t d = 0; d < head_dim; d += 8)
        for (size_t j = 0; j < 4; j++) {
            float low = fminf(fmaxf(x[d + j] * inverse + 8.0F, 0.0F), 15.0F);
            float high = fminf(fmaxf(x[d + 4 + j] * inverse + 8.0F, 0.0F), 15.0F);
            tile[STEP * (d / 8) + j] = (uint8_t)((uint8_t)low | (uint8_t)high << 4);
        }
    return bits;
}

/* Mean values as they are coded, and what goes with them. */
static void put_values(struct centroid_table *table, size_t at, struct planes *planes)
{
    size_t head_dim = table->head_dim, count = PLANES_CLUSTERS * sizeof(float);
    int8_t *means = (int8_t *)(table->values + at * value_bytes(head_dim));
    float *scale = (float *)(void *)(means + PLANES_CLUSTERS * head_dim);
    memmove(means, planes->means, PLANES_CLUSTERS * head_dim);
    memmove(scale, planes->mean_scale, count);
    memmove(scale + PLANES_CLUSTERS, planes->value_spread, count);
    planes->means = means;
    planes->mean_scale = scale;
    planes->value_spread = scale + PLANES_CLUSTERS;
}

/* Where an entry's numbers are. */
struct place {
    uint8_t *codes;
    uint16_t *steps;
    float *spread;
    uint8_t *rows;
    float *row_scale;
};

static struct place place_of(struct centroid_table *table, size_t at)
{
    size_t head_dim = table->head_dim;
    struct place place = { .codes = table->coarse + at * coarse_bytes(head_dim),
                           .rows = table->rows + at * rows_bytes(head_dim) };
    place.steps = (uint16_t *)(void *)(place.codes + PLANES_CLUSTERS * head_dim / 2);
    place.spread = (float *)(void *)(place.steps + PLANES_CLUSTERS);
    place.row_scale = (float *)(void *)(place.rows + PLANES_CLUSTERS * head_dim);
    return place;
}

/* Code all centroids of `planes` in the table's space. False where that is too coarse: keys that
 * lie far from the space's mean spend their 4 bits on how far. */
static bool put_centroids(const struct centroid_table *table, const struct planes_space *space,
                          const struct planes *planes, const struct place *place)
{
    size_t head_dim = table->head_dim;
    float factor = spread_factor(space, planes, head_dim), x[HEAD_DIM_MAX];
    float square = typical_square(space, head_dim), roundings = 0.0F, spreads = 0.0F;
    for (size_t c = 0; c < PLANES_CLUSTERS; c++) {
        size_t from = c / TILE * TILE * head_dim + 4 * (c % TILE);
        size_t to = c / TILE * TILE * head_dim / 2 + 4 * (c % TILE);
        for (size_t d = 0; d < head_dim; d++) {
            uint8_t code = planes->centroids[from + STEP * (d / 4) + d % 4];
            place->rows[c * head_dim + d] = code;
            x[d] = planes->centroid_scale[c] * ((float)code - 63.5F);
        }
        move(space, planes, head_dim, x);
        place->steps[c] = put_nibbles(x, head_dim, place->codes + to);
        float step = half_from_fp16(place->steps[c]), rounding = square * step * step / 12.0F;
        place->spread[c] = planes->key_spread[c] * factor + rounding;
        roundings += rounding;
        spreads += planes->key_spread[c] * factor;
        place->row_scale[c] = planes->centroid_scale[c];
    }
    return roundings <= rounding_most * spreads; /* neither infinite steps nor NaN */
}

void centroid_table_put(struct centroid_table *table, size_t head, size_t place,
                        struct planes *planes)
{
    struct planes_space *space = &table->spaces[head];
    if (space->balance == NULL) set_space(table, head, planes);
    size_t at = head * TABLE_SEGMENTS + place;
    struct place to = place_of(table, at);
    if (!put_centroids(table, space, planes, &to)) return;
    planes->entry = (struct planes_entry){
        .space = space, .codes = to.codes, .steps = to.steps, .key_spread = to.spread,
        .rows = to.rows, .row_scale = to.row_scale };
    for (size_t c = 0; c < PLANES_CLUSTERS; c++)
        planes->entry.root = fmaxf(planes->entry.root, sqrtf(to.spread[c]));
    put_values(table, at, planes);
}
