/* SPDX-License-Identifier: Apache-2.0 */
/* derived.h — what was derived from a segment's rows, inside one transaction: planes
 * (index/planes.h) as two values per KV head, counted in the segment's reference like its rows.
 *
 * Derived values can be deleted and made again at any time. They are written for all heads of a
 * segment in one transaction; where one of them is missing or hi is damaged the segment has none.
 * lo is not read before somebody needs it (context_prove.c).
 *
 * Threads  changes: writer. Looking: any
 * Errors   MEMD_ECORRUPT damaged · MEMD_EVERSION coded by another build
 * Tests    tests/unit/test_builder.c
 */
#ifndef MEMD_MEMORY_DERIVED_H
#define MEMD_MEMORY_DERIVED_H

#include <stdatomic.h>
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

/* Of K, V and lo hi has 64 checksums each, one per 64th of the payload (16 rows, 16 places): a
 * piece is proven without reading the rest. */
enum derived_part { DERIVED_K, DERIVED_V, DERIVED_LO, DERIVED_PARTS };
enum { DERIVED_PIECES = 64 };
#define DERIVED_ALL_PIECES UINT64_MAX

struct derived_planes {
    struct planes planes; /* lo is an address */
    /* Pieces of lo that were verified, or written by this process; bit p is piece p. */
    _Atomic uint64_t lo_proven;
    atomic_bool lo_damaged;
};

/* The payloads that the checksums are of. */
struct derived_payloads {
    const unsigned char *parts[DERIVED_PARTS];
    size_t bytes[DERIVED_PARTS];
};

/* Write the checksums into hi, in front of derived_seal. */
void derived_put_checks(const struct planes_layout *layout, const struct derived_payloads *payloads,
                        unsigned char *hi);

/* Does piece `piece` of this payload have its checksum? */
bool derived_check(const struct planes *planes, enum derived_part part, size_t piece,
                   const unsigned char *payload, size_t payload_bytes);

/* Open the planes of all heads. 1: ret_planes (heads) is filled, the addresses stay valid until
 * the values are deleted. 0: there are none. Negative: something is damaged. `written`: by this
 * process, just now; else hi is verified, and lo is left unread. */
int derived_find(struct store_txn *txn, const struct derived_place *place, bool written,
                 struct derived_planes *ret_planes, struct error *err);

/* Read lo through. MEMD_ECORRUPT, MEMD_EVERSION. */
int derived_prove_lo(const struct derived_place *place, const struct planes *planes,
                     struct error *err);

/* Write the header of a payload that stands behind it; `kind` HI or LO. */
void derived_seal(const struct derived_place *place, enum format_kind kind, unsigned char *value);

/* Bytes that the two values of a head have, headers included. */
uint64_t derived_head_bytes(const struct planes_layout *layout);

/* Remove the planes of a segment. False when it had none. */
bool derived_delete(struct store_txn *txn, uint64_t segment, int64_t *delta);

/* Bytes of the derived values of a segment; 0 = none. A look at two keys. */
uint64_t derived_bytes(struct store_txn *txn, uint64_t segment, uint32_t heads);

#endif
