/* SPDX-License-Identifier: Apache-2.0 */
/* index.h — what every index answers, and the oracle's signature: top-k tokens of each query head.
 *
 * Result rows are ordered by score, ties by lower position, so that every index is deterministic.
 * Rows with fewer than k visible tokens are filled with (INDEX_NONE, -inf).
 */
#ifndef MEMD_INDEX_INDEX_H
#define MEMD_INDEX_INDEX_H

#include <stddef.h>
#include <stdint.h>

#define INDEX_NONE UINT64_MAX

struct index_hits {
    uint64_t *ids;  /* (n, H, k) token positions */
    float *scores;  /* (n, H, k) scale * q·k */
    size_t k;
};

#endif
