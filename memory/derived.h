/* SPDX-License-Identifier: Apache-2.0 */
/* derived.h — what was derived from a segment's rows, inside one transaction: planes
 * (index/planes.h) as two values per KV head, counted in the segment's reference like its rows.
 *
 * Derived values can be deleted and made again at any time. They are written for all heads of a
 * segment in one transaction; where one of them is missing or damaged the segment has none.
 *
 * Threads  changes: writer. Looking: any
 * Errors   MEMD_ECORRUPT damaged · MEMD_EVERSION coded by another build
 * Tests    tests/unit/test_builder.c
 */
#ifndef MEMD_MEMORY_DERIVED_H
#define MEMD_MEMORY_DERIVED_H

#include <stdbool.h>
#include <stdint.h>

#include "index/planes.h"
#include "memory/format.h"
#include "memory/store.h"

struct error;

/* Which segment, and what its values must say. */
struct derived_place {
    uint64_t segment, position, model_hash;
    uint32_t heads;
    const struct planes_layout *layout;
};

/* Open the planes of all heads. 1: ret_planes (heads) is filled, the addresses stay valid until
 * the values are deleted. 0: there are none. Negative: something is damaged. */
int derived_find(struct store_txn *txn, const struct derived_place *place, bool verify,
                 struct planes *ret_planes, struct error *err);

/* Write the header of a payload that stands behind it; `kind` HI or LO. */
void derived_seal(const struct derived_place *place, enum format_kind kind, unsigned char *value);

/* Bytes that the two values of a head have, headers included. */
uint64_t derived_head_bytes(const struct planes_layout *layout);

/* Remove the planes of a segment. False when it had none. */
bool derived_delete(struct store_txn *txn, uint64_t segment, int64_t *delta);

/* Bytes of the derived values of a segment; 0 = none. A look at two keys. */
uint64_t derived_bytes(struct store_txn *txn, uint64_t segment, uint32_t heads);

#endif
