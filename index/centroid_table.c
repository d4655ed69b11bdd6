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

struct centroid_table {
    size_t head_dim, heads, bytes;
    struct planes_space *spaces; /* (G), vectors in `vectors`; of heads with an entry */
    float *vectors;              /* (G, 3, D) */
    void *mapped;                /* mapped_bytes, or MAP_FAILED */
    size_t mapped_bytes;
    unsigned char *entries;      /* (G, TABLE_SEGMENTS, entry_bytes), in it */
    unsigned char *values;       /* the same, behind them */
    unsigned char *codes;        /* (G, TABLE_SEGMENTS, 32 D) at 4 bits, behind those */
    uint16_t *steps;             /* (G, TABLE_SEGMENTS, 64) theirs */
    struct planes_coarse *coarse; /* (G, TABLE_SEGMENTS) */
};

static size_t entry_bytes(size_t head_dim)
{
    return PLANES_CLUSTERS * (head_dim + 2 * sizeof(float));
}

static size_t coarse_bytes(size_t head_dim)
{
    return PLANES_CLUSTERS * head_dim / 2;
}

void centroid_table_free(struct centroid_table *table)
{
    if (table == NULL) return;
    free(table->spaces);
    free(table->vectors);
    free(table->coarse);
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
    size_t places = heads * TABLE_SEGMENTS, half = places * entry_bytes(head_dim);
    size_t codes = places * coarse_bytes(head_dim), entries = codes + 2 * half;
    entries += places * PLANES_CLUSTERS * sizeof *table->steps;
    entries = (entries + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    table->bytes = entries + heads * (sizeof *table->spaces + 3 * head_dim * sizeof(float)) +
                   places * sizeof *table->coarse;
    table->spaces = calloc(heads, sizeof *table->spaces);
    table->vectors = calloc(heads * 3 * head_dim, sizeof *table->vectors);
    table->coarse = calloc(places, sizeof *table->coarse);
    if (table->spaces == NULL || table->vectors == NULL || table->coarse == NULL) return NULL;
    table->mapped_bytes = entries + HUGE_PAGE; /* room for the alignment; it is never touched */
    table->mapped = mmap(NULL, table->mapped_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (table->mapped == MAP_FAILED) return NULL;
    size_t past = (uintptr_t)table->mapped % HUGE_PAGE;
    table->entries = (unsigned char *)table->mapped + (past == 0 ? 0 : HUGE_PAGE - past);
    table->values = table->entries + half;
    table->codes = table->values + half;
    table->steps = (uint16_t *)(void *)(table->codes + codes);
    (void)madvise(table->entries, entries, MADV_HUGEPAGE); /* a hint */
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
    if (planes->queries > space->queries) {
        float ratio = mean_ratio(own, shared, head_dim);
        return ratio > 0.0F ? 1.0F / ratio : 1.0F;
    }
    return mean_ratio(shared, own, head_dim);
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

/* Codes of x (D) to every `tile` + 64 i: value = step (n - 63.5). Returns the step. */
static float put_codes(const float *x, size_t head_dim, uint8_t *tile)
{
    float most = 0.0F;
    for (size_t d = 0; d < head_dim; d++) most = fmaxf(most, fabsf(x[d]));
    float step = most / 63.5F, inverse = most > 0.0F ? 63.5F / most : 0.0F;
    for (size_t d = 0; d < head_dim; d++) {
        float code = x[d] * inverse + 64.0F; /* truncated: n - 63.5 is the middle */
        tile[STEP * (d / 4) + d % 4] = (uint8_t)fminf(fmaxf(code, 0.0F), 127.0F);
    }
    return step;
}

/* An fp16 that is not smaller; infinite beyond all of them. */
static uint16_t step_above(float step)
{
    uint16_t bits = half_to_fp16(step);
    return half_from_fp16(bits) < step ? (uint16_t)(bits + 1) : bits;
}

/* The same at 4 bits: value = step (h - 7.5), 8 dimensions to 4 bytes at every `tile` + 64 i. */
static uint16_t put_nibbles(const float *x, size_t head_dim, uint8_t *tile)
{
    float most = 0.0F;
    for (size_t d = 0; d < head_dim; d++) most = fmaxf(most, fabsf(x[d]));
    uint16_t bits = step_above(most / 8.0F);
    float step = half_from_fp16(bits), inverse = most > 0.0F ? 1.0F / step : 0.0F;
    for (size_t d = 0; d < head_dim; d += 8)
        for (size_t j = 0; j < 4; j++) {
            float low = fminf(fmaxf(x[d + j] * inverse + 8.0F, 0.0F), 15.0F);
            float high = fminf(fmaxf(x[d + 4 + j] * inverse + 8.0F, 0.0F), 15.0F);
            tile[STEP * (d / 8) + j] = (uint8_t)((uint8_t)low | (uint8_t)high << 4);
        }
    return bits;
}

/* Centroid c of entry `at`, x (D) in the table's space, at 4 bits. */
static void put_coarse(struct centroid_table *table, size_t at, size_t c, const float *x,
                       float spread)
{
    struct planes_coarse *coarse = &table->coarse[at];
    size_t head_dim = table->head_dim;
    uint8_t *codes = table->codes + at * coarse_bytes(head_dim);
    uint16_t *steps = table->steps + at * PLANES_CLUSTERS;
    steps[c] = put_nibbles(x, head_dim, codes + c / TILE * TILE * head_dim / 2 + 4 * (c % TILE));
    if (c == 0) *coarse = (struct planes_coarse){ .codes = codes, .steps = steps };
    coarse->rounding = fmaxf(coarse->rounding, half_from_fp16(steps[c]) / sqrtf(12.0F));
    coarse->root = fmaxf(coarse->root, sqrtf(spread));
}

/* Mean values as they are coded, and what goes with them. */
static void put_values(struct centroid_table *table, size_t at, struct planes *planes)
{
    size_t head_dim = table->head_dim, count = PLANES_CLUSTERS * sizeof(float);
    int8_t *means = (int8_t *)(table->values + at * entry_bytes(head_dim));
    float *scale = (float *)(void *)(means + PLANES_CLUSTERS * head_dim);
    memmove(means, planes->means, PLANES_CLUSTERS * head_dim);
    memmove(scale, planes->mean_scale, count);
    memmove(scale + PLANES_CLUSTERS, planes->value_spread, count);
    planes->means = means;
    planes->mean_scale = scale;
    planes->value_spread = scale + PLANES_CLUSTERS;
}

void centroid_table_put(struct centroid_table *table, size_t head, size_t place,
                        struct planes *planes)
{
    size_t head_dim = table->head_dim;
    struct planes_space *space = &table->spaces[head];
    if (space->balance == NULL) set_space(table, head, planes);
    size_t entry = head * TABLE_SEGMENTS + place;
    uint8_t *codes = table->entries + entry * entry_bytes(head_dim);
    float *scale = (float *)(void *)(codes + PLANES_CLUSTERS * head_dim);
    float factor = spread_factor(space, planes, head_dim), x[HEAD_DIM_MAX];
    for (size_t c = 0; c < PLANES_CLUSTERS; c++) {
        size_t at = c / TILE * TILE * head_dim + 4 * (c % TILE);
        for (size_t d = 0; d < head_dim; d++) {
            uint8_t code = planes->centroids[at + STEP * (d / 4) + d % 4];
            x[d] = planes->centroid_scale[c] * ((float)code - 63.5F);
        }
        move(space, planes, head_dim, x);
        scale[c] = put_codes(x, head_dim, codes + at);
        scale[PLANES_CLUSTERS + c] = planes->key_spread[c] * factor;
        put_coarse(table, entry, c, x, scale[PLANES_CLUSTERS + c]);
    }
    planes->space = space;
    planes->table = codes;
    planes->coarse = &table->coarse[entry];
    put_values(table, entry, planes);
}
