/* SPDX-License-Identifier: Apache-2.0 */
/* context_columns.c — from what an append brings to the records of index/columns.h.
 *
 * Queries come in any float dtype and are kept as fp16, converted a piece at a time straight into
 * the block: a prefill brings more of them than rows, and a second copy of all would be the largest
 * allocation of an append. A query that fp16 cannot hold is refused like one that is not finite,
 * since it would be kept as an infinity.
 */
#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/half.h"
#include "base/tensor.h"
#include "memory/catalog_state.h"

enum { PIECE = 512 }; /* elements of a query that are looked at together */

/* `count` elements of q from element `at` on, in fp16; ret_values (count) need not be aligned. */
static void convert(const struct tensor *q, size_t at, size_t count, void *ret_values)
{
    const unsigned char *data = (const unsigned char *)q->data + at * dtype_bytes(q->dtype);
    if (q->dtype == DTYPE_FP16) {
        memcpy(ret_values, data, count * sizeof(uint16_t));
        return;
    }
    float line[PIECE];
    assert(count <= PIECE);
    half_load(data, q->dtype, count, line);
    half_store(line, count, DTYPE_FP16, ret_values);
}

static size_t piece(size_t left)
{
    return left < PIECE ? left : PIECE;
}

/* The first element of q that is no number in fp16, or how many there are. */
static size_t find_nonfinite(const struct tensor *q, size_t *ret_bad)
{
    size_t count = tensor_elements(q), first = count, bad = 0;
    *ret_bad = 0;
    for (size_t at = 0, some; at < count; at += some) {
        uint16_t values[PIECE];
        some = piece(count - at);
        convert(q, at, some, values);
        size_t found = half_find_nonfinite(values, DTYPE_FP16, some, &bad);
        if (found < some && first == count) first = at + found;
        *ret_bad += bad;
    }
    return first;
}

static int check_queries(const struct context *context, const struct append_layer *part,
                         struct error *err)
{
    if (part->q.dims == 0)
        return error_set(err, MEMD_EINVAL,
                         "method %s keeps the query of every token, the append to layer %" PRIu32
                         " at %" PRIu64 " has none",
                         context->method->name, part->layer, part->position);
    size_t values = context_query_values(context), bad = 0;
    size_t head_dim = context->record->model.head_dim;
    assert(part->q.dims == 3 && tensor_elements(&part->q) == part->q.shape[0] * values);
    size_t at = find_nonfinite(&part->q, &bad);
    if (at == tensor_elements(&part->q)) return 0;
    CATALOG_COUNT(context->catalog, nonfinite_rejected_total, bad);
    return error_set(err, MEMD_ENONFINITE,
                     "layer %" PRIu32 " q at position %" PRIu64 " head %zu dimension %zu is NaN, "
                     "infinite or beyond float16, %zu such values",
                     part->layer, part->position + at / values, at % values / head_dim,
                     at % head_dim, bad);
}

static int check_marks(const struct context *context, const struct append_layer *part, size_t count,
                       struct error *err)
{
    if (part->marks == NULL) return 0;
    if ((context->shape.columns.mask & COLUMNS_MARKS) == 0)
        return error_set(err, MEMD_EUNSUPPORTED, "method %s keeps no marks of tokens",
                         context->method->name);
    for (size_t i = 0; i < count; i++) {
        if ((part->marks[i] & ~(unsigned)MARKS_ALL) != 0)
            return error_set(err, MEMD_EINVAL,
                             "layer %" PRIu32 " position %" PRIu64 ": mark %u, known bits are %u",
                             part->layer, part->position + i, part->marks[i],
                             (unsigned)MARKS_ALL);
    }
    return 0;
}

int columns_check(const struct context *context, const struct append_layer *part, size_t count,
                  struct error *err)
{
    int rc = check_marks(context, part, count, err);
    if (rc == 0 && (context->shape.columns.mask & COLUMNS_QUERIES) != 0)
        rc = check_queries(context, part, err);
    return rc;
}

static uint8_t mark_of(const struct append_layer *part, size_t i)
{
    return part->marks == NULL ? 0 : part->marks[i];
}

void columns_write(const struct context *context, const struct append_layer *part, size_t first,
                   size_t count, unsigned char *ret_records)
{
    const struct columns *columns = &context->shape.columns;
    size_t values = context_query_values(context);
    for (size_t i = first; i < first + count; i++, ret_records += columns->token_bytes) {
        memset(ret_records, 0, columns->token_bytes);
        if ((columns->mask & COLUMNS_MARKS) != 0)
            ret_records[columns->offset[COLUMN_MARKS]] = mark_of(part, i);
        if ((columns->mask & COLUMNS_QUERIES) == 0) continue;
        unsigned char *q = ret_records + columns->offset[COLUMN_QUERIES];
        for (size_t at = 0; at < values; at += PIECE)
            convert(&part->q, i * values + at, piece(values - at), q + at * sizeof(uint16_t));
    }
}

/* Does the record hold query `i` of the part? */
static bool has_query(const struct append_layer *part, size_t i, size_t values,
                      const unsigned char *record)
{
    for (size_t at = 0; at < values; at += PIECE) {
        uint16_t line[PIECE];
        size_t some = piece(values - at);
        convert(&part->q, i * values + at, some, line);
        if (memcmp(record + at * sizeof line[0], line, some * sizeof line[0]) != 0) return false;
    }
    return true;
}

bool columns_repeat(const struct context *context, const struct append_layer *part, size_t first,
                    size_t count, const unsigned char *records)
{
    const struct columns *columns = &context->shape.columns;
    size_t values = context_query_values(context);
    for (size_t i = first; i < first + count; i++, records += columns->token_bytes) {
        if ((columns->mask & COLUMNS_MARKS) != 0 &&
            columns_marks(columns, records) != mark_of(part, i))
            return false;
        if ((columns->mask & COLUMNS_QUERIES) != 0 &&
            !has_query(part, i, values, records + columns->offset[COLUMN_QUERIES]))
            return false;
    }
    return true;
}
