/* SPDX-License-Identifier: Apache-2.0 */
/* store_synced.h — the file DIR/synced: the meta page of the last state that is known to be on
 * the disk.
 *
 * Errors   MEMD_EIO · MEMD_EFULL
 * Threads  before the environment is opened, later the writer
 * Tests    tests/unit/test_store.c (a power cut is any mixture of old and new pages)
 */
#ifndef MEMD_MEMORY_STORE_SYNCED_H
#define MEMD_MEMORY_STORE_SYNCED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

enum { SYNCED_BOOT_BYTES = 40, SYNCED_PAGE_BYTES_MAX = 65536 };

struct synced_page {
    const void *data;
    size_t bytes;
};

/* If the machine went down while DIR/data.mdb was in use (DIR/synced names another boot), put
 * the saved meta page into both places of data.mdb. Nothing to do is success. */
int synced_restore(const char *path, const char *boot_id, struct error *err);

/* The state with this meta page is on the disk. Durable when it returns. */
int synced_write(const char *path, const char *boot_id, struct synced_page page, struct error *err);

/* No state is to be fallen back to. Durable when it returns. */
int synced_remove(const char *path, struct error *err);

#endif
