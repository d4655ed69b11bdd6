/* SPDX-License-Identifier: Apache-2.0 */
/* record.h — the durable description of a context: the value of the table `contexts`.
 *
 * Errors   MEMD_ECORRUPT
 * Threads  plain data
 * Tests    tests/unit/test_format.c, tests/fuzz/fuzz_record.c
 */
#ifndef MEMD_MEMORY_RECORD_H
#define MEMD_MEMORY_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "memory/catalog.h"
#include "memory/format.h"

struct block_shape;

/* About 35 KiB with its parameters: on the heap. */
struct record {
    char name[LIMIT_NAME_BYTES + 1];
    uint64_t parent_id; /* 0 = none */
    struct model model;
    char method[METHOD_NAME_BYTES];
    size_t parameter_count;
    struct parameter parameters[LIMIT_PARAMETERS];
    uint64_t created_unix_ms, used_unix_ms, retained_until_unix_ms;
    /* The number of unclean starts of the store when the layers were last known to be even. */
    uint64_t generation;
    bool dropping; /* its name is free, its data is being removed */
};

enum {
    RECORD_BYTES_MAX = FORMAT_HEADER_BYTES + 2048 +
                       LIMIT_PARAMETERS * 2 * (LIMIT_PARAMETER_BYTES + 2)
};

/* Header and payload; returns the length. */
size_t record_encode(const struct record *record, unsigned char ret_value[RECORD_BYTES_MAX]);

/* Header, checksum and every field are checked. */
int record_decode(const void *value, size_t bytes, struct record *ret_record, struct error *err);

/* What is kept of each of its tokens: as its model, its method and the parameters say. False where
 * this build lacks the method: then as the model says, which may not be true. */
bool record_shape(const struct record *record, struct block_shape *ret_shape);

#endif
