/* SPDX-License-Identifier: Apache-2.0 */
/* walk.h — going through all tables in bounded steps: the cursor that a client carries between
 * them.
 *
 * A cursor names the table and the last key that was looked at; the next step starts behind it,
 * whether that key still exists or not. Each step has a transaction of its own, so a long walk
 * holds no page.
 *
 * Errors   MEMD_EINVAL a cursor that memd did not make · MEMD_ENOMEM
 * Tests    tests/unit/test_catalog.c
 */
#ifndef MEMD_MEMORY_WALK_H
#define MEMD_MEMORY_WALK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "memory/store.h"
#include "proto/limits.h"

struct arena;
struct error;
struct walk_args;

struct walk {
    uint64_t context_id; /* 0 = everything; else the records of one context */
    enum store_table table;
    unsigned char key[LIMIT_NAME_BYTES + 1]; /* last one looked at */
    size_t key_bytes;                        /* 0 = at the start of the table */
    bool passed; /* the key ends what was passed over, and was not looked at */
    struct store_cursor cursor;
    bool open;
};

int walk_begin(const struct walk_args *args, struct walk *ret_walk, struct error *err);

/* The next record, in walk->cursor with walk->table.
 * False at the end of everything or when the transaction failed. */
bool walk_next(struct walk *walk, struct store_txn *txn);

/* Go on at the key `end`, whether it is there or not; 0 bytes: at the next table. */
void walk_pass(struct walk *walk, struct slice end);

/* Close the cursor; what to give the client (0 bytes when everything was seen). */
void walk_end(struct walk *walk);
int walk_encode(const struct walk *walk, struct arena *arena, const unsigned char **ret_cursor,
                size_t *ret_bytes, struct error *err);

#endif
