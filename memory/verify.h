/* SPDX-License-Identifier: Apache-2.0 */
/* verify.h — one step of verifying a store (catalog_verify), for verify*.c alone.
 *
 * Threads  the worker that runs the step
 * Tests    tests/unit/test_catalog.c, tests/unit/test_notes.c, tests/unit/test_columns_damage.c,
 *          tests/unit/test_pages.c
 */
#ifndef MEMD_MEMORY_VERIFY_H
#define MEMD_MEMORY_VERIFY_H

#include "memory/catalog_state.h"
#include "memory/walk.h"

struct verify {
    struct catalog *catalog;
    struct store_txn *txn;
    struct arena *arena;
    struct walk walk;
    struct verify_step step;
    struct record *record;    /* scratch */
    struct block_shape shape; /* of the context whose chain or tail was looked at last, */
    uint64_t shape_context;   /* 0 = of none */
    struct chain_key chain;   /* the entry before; context 0 = none */
    struct tail_key tail;     /* end of the record before, when tail_known; context 0 = none */
    bool tail_known;          /* false: the step began in the middle of the table */
    bool gap;                 /* chain entries were passed over */
    uint32_t *holders;        /* of ids holders_first …, NULL until needed */
    uint64_t holders_first;
};

/* Something that must not be. */
void verify_finding(struct verify *verify, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The value of a context; false when there is none. */
bool verify_record(struct verify *verify, uint64_t id, struct slice *ret_value);

/* Header and checksum of a value; false when the header is no use. */
bool verify_value(struct verify *verify, struct slice value, const char *what,
                  struct value_header *header);

/* A record of the tables notes, params and sets. */
void verify_note(struct verify *verify, struct slice key, struct slice value);
void verify_param(struct verify *verify, struct slice key, struct slice value);
void verify_set(struct verify *verify, struct slice key, struct slice value);

/* The transaction came to what is fenced off: on the way to the next record, or `at_record`, from
 * it to others. Says so, and begins a new one behind. Other failures are returned. */
int verify_pass(struct verify *verify, bool at_record, struct error *err);

/* What no walk comes by. */
void verify_free_pages(struct verify *verify);

#endif
