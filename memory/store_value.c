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

int store_value_check(MDB_cursor *cursor, size_t page_bytes)
{
    MDB_val key, value;
    int rc = mdb_cursor_get(cursor, &key, &value, MDB_GET_CURRENT);
    if (rc != 0) return rc;
    const unsigned char *behind_key = (const unsigned char *)key.mv_data + key.mv_size;
    if (behind_key == value.mv_data) return 0; /* it is in the record */
    const unsigned char *page = (const unsigned char *)value.mv_data - PAGE_NODES;
    size_t count = (PAGE_NODES - 1 + value.mv_size) / page_bytes + 1;
    uint64_t number = page_u64(behind_key);
    unsigned flags = page_u16(page + PAGE_FLAGS);
    bool same = page_u64(page) == number &&
                (flags & ~(unsigned)PAGE_IS_DIRTY) == PAGE_IS_OVERFLOW &&
                page_u32(page + PAGE_VALUE_PAGES) == count;
    if (same && (flags & PAGE_IS_DIRTY) != 0) same = !is_marked_in_file(cursor, number, page_bytes);
    return same ? 0 : MDB_CORRUPTED;
}

int store_value_drop_longer(MDB_cursor *cursor, size_t bytes)
{
    MDB_val key, old;
    int rc = mdb_cursor_get(cursor, &key, &old, MDB_GET_CURRENT);
    if (rc != 0) return rc;
    const unsigned char *behind_key = (const unsigned char *)key.mv_data + key.mv_size;
    if (behind_key == old.mv_data || old.mv_size <= bytes) return 0;
    const unsigned char *page = (const unsigned char *)old.mv_data - PAGE_NODES;
    bool kept = (page_u16(page + PAGE_FLAGS) & PAGE_IS_DIRTY) != 0;
    return kept ? mdb_cursor_del(cursor, 0) : 0;
}
