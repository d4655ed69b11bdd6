/* SPDX-License-Identifier: Apache-2.0 */
/* uploads.h — tensors that clients uploaded for a method (index/params.h): as values of the store,
 * and as an immutable set in memory.
 *
 * A tensor belongs to an owner: to a context, or to a named set that many contexts use. An upload
 * makes a new set in memory, which shares the numbers of all others with the one before, so that a
 * thousand uploads copy a thousand tensors and not half a million.
 *
 * Value of a tensor: u32 axes, u32 zero, u64 for each axis, then the numbers in fp32. The header's
 * position is its version: 1 for the first upload of an owner, and one more for each later one.
 * Value of a set: u64 id, u32 L, H, G, D, u32 numbers of a state, the method as text.
 *
 * Threads  store: changes on the writer. A set does not change; references are atomic
 * Errors   MEMD_ENOMEM · MEMD_ECORRUPT
 * Tests    tests/unit/test_uploads.c
 */
#ifndef MEMD_MEMORY_UPLOADS_H
#define MEMD_MEMORY_UPLOADS_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/tensor.h"
#include "index/params.h"
#include "memory/catalog.h"
#include "memory/format.h"
#include "memory/store.h"

struct catalog;
struct error;

/* Numbers of one tensor, shared by the sets that have it. */
struct upload_data {
    atomic_uint references;
    uint64_t version;
    size_t bytes; /* of numbers */
    float numbers[];
};

struct uploads {
    atomic_uint references;
    struct catalog *catalog;   /* counts the bytes */
    uint64_t owner;
    uint64_t bytes;            /* of all numbers */
    struct params params;      /* as a method sees them */
    struct param *items;       /* (params.count) */
    struct upload_data **data; /* (params.count) */
};

struct uploads *uploads_get(struct uploads *uploads); /* NULL is fine */
void uploads_put(struct uploads *uploads);            /* NULL is fine */
void uploads_putp(struct uploads **uploads);

/* All that the store has of an owner; NULL when that is nothing. Every value is verified. */
int uploads_load(struct catalog *catalog, struct store_txn *txn, uint64_t owner,
                 struct uploads **ret_uploads, struct error *err);

/* `before` (NULL: none) and one more, or another in its place, with the next version. Of any float
 * dtype; it was checked. */
int uploads_with(struct catalog *catalog, uint64_t owner, const struct uploads *before,
                 const struct param *param, struct uploads **ret_uploads, struct error *err);

/* Put the newest of them. `model_hash`: of the context, 0 for a set. Writer. */
int uploads_store(struct store_txn *txn, const struct uploads *uploads, uint64_t model_hash,
                  int64_t *delta, struct error *err);

/* Of the newest upload of an owner; 0 = there was none. */
uint64_t uploads_version(struct store_txn *txn, uint64_t owner);

/* Check and decode a value. */
int uploads_decode(struct slice value, struct tensor *ret_value, uint64_t *ret_version,
                   struct error *err);

/* What all contexts have in common that use a set. */
struct upload_set {
    uint64_t id;
    uint32_t layers;
    struct param_sizes sizes; /* hidden_width is not among them */
    char method[METHOD_NAME_BYTES];
};
/* 1: found. 0: there is none. */
int upload_set_find(struct store_txn *txn, const char *name, struct upload_set *ret_set,
                    struct error *err);
int upload_set_decode(struct slice value, struct upload_set *ret_set, struct error *err);
void upload_set_store(struct store_txn *txn, const char *name, const struct upload_set *set,
                      int64_t *delta);

#endif
