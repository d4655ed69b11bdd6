/* SPDX-License-Identifier: Apache-2.0 */
/* commit.h — one transaction of rows: from blocks to tail records and segments. Writer thread only.
 *
 * Errors   MEMD_EFULL · MEMD_EIO · MEMD_ENOMEM: everything in the batch has been taken back
 * Tests    tests/unit/test_context.c, tests/unit/test_recovery.c
 */
#ifndef MEMD_MEMORY_COMMIT_H
#define MEMD_MEMORY_COMMIT_H

#include <stdbool.h>

#include "base/list.h"

struct catalog;
struct error;

/* Commit the contexts in `contexts` (by batch_link); the list is empty afterwards. What is no
 * longer uncommitted, because it was committed or taken back, is released from the writer's
 * allowance. The first error. */
int commit_contexts(struct catalog *catalog, struct list_link *contexts, struct error *err);

/* LMDB uses a page again two transactions after the one that freed it, and not while a reader
 * (the synced state among them) is older. In a store that is full to the last page no row can be
 * committed to get there, so a small commit must. Then it waits for readers that are older: most
 * last milliseconds, those that last seconds (a backup) are not waited for to their end, and only
 * once. True: what failed may be tried again. Outside of a transaction. */
bool commit_turn_pages(struct catalog *catalog);

#endif
