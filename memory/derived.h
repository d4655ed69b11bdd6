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

/* What is known of bytes in the map. */
enum proof {
    PROOF_NONE,    /* nobody read them yet */
    PROOF_SOUND,   /* verified, or written by this process */
    PROOF_DAMAGED, /* not to be used; of lo alone */
};

struct derived_planes {
    struct planes planes; /* lo is an address */
    atomic_uchar lo_proof; /* enum proof */
};

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
