/* SPDX-License-Identifier: Apache-2.0 */
/* store_value.c — LMDB gives the pages of a value back by what stands in front of it, which no
 * checksum covers: as many as it says, from the number it says; and where it says that they were
 * written by this transaction, they are taken out of a list in which they are not, or written to.
 *
 * So it must be as the record says that leads there. That a record says enough is seen to as well:
 * replaced by a shorter one in the transaction that wrote it, a value would keep its pages, and
 * nothing in the record would tell. Such a one is deleted first; any other is not, for a delete
 * may merge its leaf with one that is fenced off. (A transaction of more than 512 MiB moves pages
 * out of memory, and their marks with them; a batch has 32.)
 */
#include "memory/store_value.h"

#include <lmdb.h>
#include <stdbool.h>
#include <unistd.h>

#include "memory/page.h"

/* A page that this transaction has written is in memory. What the file has in its place was never
 * marked so. */
static bool is_marked_in_file(MDB_cursor *cursor, uint64_t number, size_t page_bytes)
{
    unsigned char head[PAGE_NODES];
    mdb_filehandle_t fd = -1;
    if (mdb_env_get_fd(mdb_txn_env(mdb_cursor_txn(cursor)), &fd) != 0) return true;
    ssize_t got = pread(fd, head, sizeof head, (off_t)(number * page_bytes));
    return got == (ssize_t)sizeof head && page_u64(head) == number &&
           (page_u16(head + PAGE_FLAGS) & PAGE_IS_DIRTY) != 0;
}

/* The value under a cursor, as its record leads to it. */
struct led {
    const unsigned char *head; /* what stands in front of it; NULL: it is in the record */
    uint64_t number;           /* of its first page */
    size_t bytes;
};

static int follow(MDB_cursor *cursor, struct led *ret_led)
{
    MDB_val key, value;
    int rc = mdb_cursor_get(cursor, &key, &value, MDB_GET_CURRENT);
    if (rc != 0) return rc;
    const unsigned char *behind_key = (const unsigned char *)key.mv_data + key.mv_size;
    *ret_led = (struct led){ .bytes = value.mv_size };
    if (behind_key == value.mv_data) return 0;
    ret_led->head = (const unsigned char *)value.mv_data - PAGE_NODES;
    ret_led->number = page_u64(behind_key);
    return 0;
}

int store_value_check(MDB_cursor *cursor, size_t page_bytes)
{
    struct led led;
    int rc = follow(cursor, &led);
    if (rc != 0 || led.head == NULL) return rc;
    size_t count = (PAGE_NODES - 1 + led.bytes) / page_bytes + 1;
    unsigned flags = page_u16(led.head + PAGE_FLAGS);
    bool same = page_u64(led.head) == led.number &&
                (flags & ~(unsigned)PAGE_IS_DIRTY) == PAGE_IS_OVERFLOW &&
                page_u32(led.head + PAGE_VALUE_PAGES) == count;
    if (same && (flags & PAGE_IS_DIRTY) != 0)
        same = !is_marked_in_file(cursor, led.number, page_bytes);
    return same ? 0 : MDB_CORRUPTED;
}

int store_value_drop_longer(MDB_cursor *cursor, size_t bytes)
{
    struct led old;
    int rc = follow(cursor, &old);
    if (rc != 0 || old.head == NULL || old.bytes <= bytes) return rc;
    bool kept = (page_u16(old.head + PAGE_FLAGS) & PAGE_IS_DIRTY) != 0;
    return kept ? mdb_cursor_del(cursor, 0) : 0;
}
