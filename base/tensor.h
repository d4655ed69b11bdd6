/* SPDX-License-Identifier: Apache-2.0 */
/* tensor.h — element types and the shape letters used everywhere in memd.
 *
 * Letters, fixed: L layers, H query heads, G KV heads (H % G == 0), D head_dim, T stored tokens, n
 * tokens or queries of one request, S splits, k of top-k. Query head h reads KV head h / (H / G). A
 * comment such as (n, G, D) behind a pointer is its shape, row-major, last axis contiguous.
 *
 * The values of enum dtype are stored on disk and sent on the wire; they are never renumbered.
 */
#ifndef MEMD_BASE_TENSOR_H
#define MEMD_BASE_TENSOR_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

/* X(name, wire value, bytes per element, text) */
#define DTYPE_MAP(X)              \
    X(FP32, 1, 4, "float32")      \
    X(FP16, 2, 2, "float16")      \
    X(BF16, 3, 2, "bfloat16")     \
    X(U64, 4, 8, "uint64")        \
    X(U32, 5, 4, "uint32")

enum dtype {
#define X(name, value, bytes, text) DTYPE_##name = (value),
    DTYPE_MAP(X)
#undef X
};

/* Bytes of one element; 0 for a value that is not in the list (wire input is checked with this). */
static inline size_t dtype_bytes(uint32_t dtype)
{
    switch (dtype) {
#define X(name, value, bytes, text) \
    case value: return bytes;
        DTYPE_MAP(X)
#undef X
    default: return 0;
    }
}

static inline const char *dtype_name(uint32_t dtype)
{
    switch (dtype) {
#define X(name, value, bytes, text) \
    case value: return text;
        DTYPE_MAP(X)
#undef X
    default: return "unknown";
    }
}

/* The three types that K, V and q may have. */
static inline int dtype_is_float(uint32_t dtype)
{
    return dtype == DTYPE_FP32 || dtype == DTYPE_FP16 || dtype == DTYPE_BF16;
}

enum { TENSOR_DIMS_MAX = 4 };

/* A dense row-major array that somebody else owns. */
struct tensor {
    const void *data;
    uint32_t dtype; /* enum dtype */
    uint32_t dims;
    size_t shape[TENSOR_DIMS_MAX];
};

static inline size_t tensor_elements(const struct tensor *tensor)
{
    size_t count = 1;
    for (uint32_t i = 0; i < tensor->dims; i++) count *= tensor->shape[i];
    return count;
}

static inline size_t tensor_bytes(const struct tensor *tensor)
{
    return tensor_elements(tensor) * dtype_bytes(tensor->dtype);
}

#endif
