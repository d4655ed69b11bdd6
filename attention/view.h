/* SPDX-License-Identifier: Apache-2.0 */
/* view.h — contiguous stored tokens of one KV head, in memory that somebody else keeps alive.
 *
 * A sealed segment or a chunk of the open tail is one view. Rows may be strided (a tail chunk holds
 * all heads of a token together).
 */
#ifndef MEMD_ATTENTION_VIEW_H
#define MEMD_ATTENTION_VIEW_H

#include <stddef.h>
#include <stdint.h>

struct view {
    const void *k, *v;     /* row t at k + t * k_stride_bytes, D elements each */
    size_t k_stride_bytes, v_stride_bytes;
    size_t tokens;
    uint64_t position;     /* of row 0 */
    uint32_t dtype;        /* enum dtype */
    /* Token t's record of index/columns.h at columns + t * columns_stride_bytes, the same for every
     * head; NULL where a method wants none. */
    const unsigned char *columns;
    size_t columns_stride_bytes;
};

/* Which bytes of it. */
enum { VIEW_K = 1, VIEW_V = 2 };

#endif
