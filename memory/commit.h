/* SPDX-License-Identifier: Apache-2.0 */
/* commit.h — one transaction of rows: from blocks to tail records and segments. Writer thread only.
 *
 * Errors   MEMD_EFULL · MEMD_EIO · MEMD_ENOMEM: everything in the batch has been taken back
 * Tests    tests/unit/test_context.c, tests/unit/test_recovery.c
 */
#ifndef MEMD_MEMORY_COMMIT_H
#define MEMD_MEMORY_COMMIT_H

#include <stdint.h>

#include "base/list.h"

struct catalog;
struct error;

/* Commit the contexts in `contexts` (by batch_link); the list is empty afterwards. Returns the
 * bytes that are no longer uncommitted in *ret_bytes, whether they were committed or taken back. */
int commit_contexts(struct catalog *catalog, struct list_link *contexts, uint64_t *ret_bytes,
                    struct error *err);

#endif
