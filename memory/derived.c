/* SPDX-License-Identifier: Apache-2.0 */
/* derived.c — planes stand beside the rows they were made from, under the segment's own keys: they
 * are shared by forks, counted and dropped with it, without a list of their own that could
 * disagree.
 */
#include "memory/derived.h"

#include <assert.h>
#include <inttypes.h>

#include "base/error.h"
#include "memory/chain.h"

static bool get_value(struct store_txn *txn, uint64_t segment, uint32_t head, enum format_kind kind,
                      struct slice *ret_value)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    size_t bytes = format_key_segment(segment, head, kind, key);
    return store_get(txn, STORE_SEGMENTS, (struct slice){ key, bytes }, ret_value);
}

static uint64_t value_bytes(const struct planes_layout *layout, enum format_kind kind)
{
    return FORMAT_HEADER_BYTES + (kind == FORMAT_KIND_HI ? layout->hi_bytes : layout->lo_bytes);
}

/* Of a value of the right length. */
static int check_value(const struct derived_place *place, enum format_kind kind, bool verify,
                       const void *value, struct error *err)
{
    struct value_header header;
    size_t bytes = (size_t)value_bytes(place->layout, kind);
    int rc = format_decode(value, bytes, &header, err);
    if (rc == 0 &&
        (header.kind != kind || header.position != place->position ||
         header.model_hash != place->model_hash || header.head_dim != place->layout->head_dim))
        rc = error_set(err, MEMD_ECORRUPT, "the header belongs to another value");
    if (rc == 0 && verify) rc = format_verify(value, bytes, err);
    return rc;
}

int derived_prove_lo(const struct derived_place *place, const struct planes *planes,
                     struct error *err)
{
    return check_value(place, FORMAT_KIND_LO, true, planes->lo - FORMAT_HEADER_BYTES, err);
}

/* 1, 0 or negative as derived_find. */
static int find_head(struct store_txn *txn, const struct derived_place *place, uint32_t head,
                     bool written, struct derived_planes *ret_planes, struct error *err)
{
    struct slice hi, lo;
    bool has_hi = get_value(txn, place->segment, head, FORMAT_KIND_HI, &hi);
    bool has_lo = get_value(txn, place->segment, head, FORMAT_KIND_LO, &lo);
    int rc = store_failed(txn, err);
    if (rc < 0 || (!has_hi && !has_lo)) return rc;
    struct error why = { 0 };
    if (!has_hi || !has_lo)
        rc = error_set(&why, MEMD_ECORRUPT, "one of two values is missing");
    else if (hi.bytes != value_bytes(place->layout, FORMAT_KIND_HI) ||
             lo.bytes != value_bytes(place->layout, FORMAT_KIND_LO))
        rc = error_set(&why, MEMD_ECORRUPT, "they have %zu and %zu bytes", hi.bytes, lo.bytes);
    if (rc == 0) rc = check_value(place, FORMAT_KIND_HI, !written, hi.data, &why);
    if (rc == 0 && written) rc = check_value(place, FORMAT_KIND_LO, false, lo.data, &why);
    if (rc == 0)
        rc = planes_open(place->layout, (const unsigned char *)hi.data + FORMAT_HEADER_BYTES,
                         (const unsigned char *)lo.data + FORMAT_HEADER_BYTES,
                         &ret_planes->planes, &why);
    atomic_init(&ret_planes->lo_proven, written ? DERIVED_ALL_PIECES : 0);
    atomic_init(&ret_planes->lo_damaged, false);
    if (rc == 0) return 1;
    return error_set(err, rc, "planes of segment %" PRIu64 " head %" PRIu32 ": %s", place->segment,
                     head, why.text);
}

int derived_find(struct store_txn *txn, const struct derived_place *place, bool written,
                 struct derived_planes *ret_planes, struct error *err)
{
    uint32_t found = 0;
    for (uint32_t head = 0; head < place->heads; head++) {
        int rc = find_head(txn, place, head, written, &ret_planes[head], err);
        if (rc < 0) return rc;
        found += (uint32_t)rc;
    }
    if (found == 0 || found == place->heads) return found > 0;
    return error_set(err, MEMD_ECORRUPT, "segment %" PRIu64 " has planes for %" PRIu32
                     " of %" PRIu32 " heads", place->segment, found, place->heads);
}

void derived_put_checks(const struct planes_layout *layout, const struct derived_payloads *payloads,
                        unsigned char *hi)
{
    uint64_t *checks = (uint64_t *)(void *)(hi + layout->checks);
    for (size_t i = 0; i < (size_t)DERIVED_PARTS * DERIVED_PIECES; i++) {
        size_t part = i / DERIVED_PIECES, bytes = payloads->bytes[part] / DERIVED_PIECES;
        checks[i] = format_hash(payloads->parts[part] + i % DERIVED_PIECES * bytes, bytes);
    }
}

bool derived_check(const struct planes *planes, enum derived_part part, size_t piece,
                   const unsigned char *payload, size_t payload_bytes)
{
    size_t bytes = payload_bytes / DERIVED_PIECES;
    return format_hash(payload + piece * bytes, bytes) ==
           planes->checks[(size_t)part * DERIVED_PIECES + piece];
}

void derived_seal(const struct derived_place *place, enum format_kind kind, unsigned char *value)
{
    assert(kind == FORMAT_KIND_HI || kind == FORMAT_KIND_LO);
    const struct planes_layout *layout = place->layout;
    format_seal(&(struct value_header){
        .kind = (uint8_t)kind,
        .tokens = FORMAT_SEGMENT_TOKENS,
        .head_dim = (uint16_t)layout->head_dim,
        .heads = 1,
        .payload_bytes = kind == FORMAT_KIND_HI ? layout->hi_bytes : layout->lo_bytes,
        .position = place->position,
        .model_hash = place->model_hash }, value);
}

uint64_t derived_head_bytes(const struct planes_layout *layout)
{
    return value_bytes(layout, FORMAT_KIND_HI) + value_bytes(layout, FORMAT_KIND_LO);
}

bool derived_delete(struct store_txn *txn, uint64_t segment, int64_t *delta)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    size_t key_bytes = format_key_segment(segment, 0, (enum format_kind)0, key);
    struct store_cursor cursor;
    struct segment_key at;
    uint64_t bytes = 0;
    bool found = store_seek(txn, STORE_SEGMENTS, (struct slice){ key, key_bytes }, &cursor);
    for (; found && format_read_segment(cursor.key.data, cursor.key.bytes, &at) &&
           at.segment == segment;
         found = store_next(&cursor)) {
        if (at.kind != FORMAT_KIND_HI && at.kind != FORMAT_KIND_LO) continue;
        bytes += cursor.value.bytes;
        store_cursor_delete(&cursor);
    }
    store_cursor_close(&cursor);
    if (bytes > 0) chain_resize_segment(txn, segment, -(int64_t)bytes, delta);
    return bytes > 0;
}

uint64_t derived_bytes(struct store_txn *txn, uint64_t segment, uint32_t heads)
{
    struct slice hi, lo;
    if (!get_value(txn, segment, 0, FORMAT_KIND_HI, &hi) ||
        !get_value(txn, segment, 0, FORMAT_KIND_LO, &lo))
        return 0;
    return heads * ((uint64_t)hi.bytes + lo.bytes);
}
