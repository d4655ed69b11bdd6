/* SPDX-License-Identifier: Apache-2.0 */
/* store_synced.c — a way back to the last sync when commits between syncs reached the disk in
 * any order.
 *
 * LMDB keeps two meta pages and writes them in turn. Without a sync in each commit, a power cut
 * may leave a new meta page that points to pages which never arrived, and both old states
 * overwritten. store.c keeps the pages of the last synced state from being reused (by a read
 * transaction); this file keeps the page that leads to them.
 *
 * Two slots written in turn, each with a counter and a checksum: a write that is cut leaves the
 * other one. Whether the machine went down since is told by the kernel's boot id; after a mere
 * death of the process the page cache is whole and nothing must be taken back.
 *
 * Rejected: a sync in each commit (that is `always`: five to ten times fewer commits per
 * second), trusting the order of writeback (no kernel promises one).
 */
#include "memory/store_synced.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "memory/format.h"

enum { HEADER_BYTES = 128, CHECKSUM_OFFSET = 16 };
#define SYNCED_MAGIC UINT32_C(0x53454D4D) /* "MMES" */

struct saved {
    uint64_t counter; /* 0 = the slot is not valid */
    size_t page_bytes;
    char boot_id[SYNCED_BOOT_BYTES + 1];
    unsigned char slot[HEADER_BYTES + SYNCED_PAGE_BYTES_MAX];
};

static int fail(const char *what, const char *path, struct error *err)
{
    int code = errno == ENOSPC || errno == EDQUOT ? MEMD_EFULL : MEMD_EIO;
    return error_set(err, code, "%s in %.160s: %s", what, path, strerror(errno));
}

static int open_in(const char *path, const char *name, int flags)
{
    char whole[PATH_MAX];
    int length = snprintf(whole, sizeof whole, "%s/%s", path, name);
    if (length < 0 || (size_t)length >= sizeof whole) {
        errno = ENAMETOOLONG;
        return -1;
    }
    return open(whole, flags | O_CLOEXEC, 0600);
}

/* Slot `which` of the file, counter 0 when it is not sound. */
static void read_slot(int fd, int which, size_t page_bytes, struct saved *ret_saved)
{
    ret_saved->counter = 0;
    size_t bytes = HEADER_BYTES + page_bytes;
    if (pread(fd, ret_saved->slot, bytes, (off_t)((size_t)which * bytes)) != (ssize_t)bytes) return;
    struct bytes_reader in = bytes_reader(ret_saved->slot, HEADER_BYTES);
    uint32_t magic = bytes_get_le32(&in), size = bytes_get_le32(&in);
    uint64_t counter = bytes_get_le64(&in), checksum = bytes_get_le64(&in);
    const unsigned char *boot_id = bytes_get(&in, SYNCED_BOOT_BYTES);
    memset(ret_saved->slot + CHECKSUM_OFFSET, 0, 8);
    if (magic != SYNCED_MAGIC || size != page_bytes ||
        format_hash(ret_saved->slot, bytes) != checksum)
        return;
    memcpy(ret_saved->boot_id, boot_id, SYNCED_BOOT_BYTES);
    ret_saved->boot_id[SYNCED_BOOT_BYTES] = 0;
    ret_saved->page_bytes = page_bytes;
    ret_saved->counter = counter;
}

/* The newer of the two slots, which stays counter 0 when neither is sound. */
static void read_newest(int fd, size_t page_bytes, struct saved *ret_saved, int *ret_which)
{
    read_slot(fd, 0, page_bytes, ret_saved);
    uint64_t first = ret_saved->counter;
    read_slot(fd, 1, page_bytes, ret_saved);
    *ret_which = ret_saved->counter > first ? 1 : 0;
    if (*ret_which == 0) read_slot(fd, 0, page_bytes, ret_saved);
}

/* The page size that the file itself names, 0 when it makes no sense. */
static size_t named_page_bytes(int fd)
{
    unsigned char head[8];
    if (pread(fd, head, sizeof head, 0) != (ssize_t)sizeof head) return 0;
    struct bytes_reader in = bytes_reader(head, sizeof head);
    uint32_t magic = bytes_get_le32(&in), size = bytes_get_le32(&in);
    bool sound = magic == SYNCED_MAGIC && size >= 512 && size <= SYNCED_PAGE_BYTES_MAX;
    return sound ? size : 0;
}

/* The page begins with its own number, in the machine's order. */
static int put_meta(const char *path, struct saved *saved, struct error *err)
{
    CLEANUP(close_fd) int fd = open_in(path, "data.mdb", O_RDWR);
    if (fd < 0) return fail("cannot open data.mdb", path, err);
    unsigned char *page = saved->slot + HEADER_BYTES;
    for (size_t which = 0; which < 2; which++) {
        memcpy(page, &which, sizeof which);
        off_t at = (off_t)(which * saved->page_bytes);
        if (pwrite(fd, page, saved->page_bytes, at) != (ssize_t)saved->page_bytes)
            return fail("cannot restore a meta page", path, err);
    }
    return fsync(fd) == 0 ? 0 : fail("cannot sync data.mdb", path, err);
}

int synced_restore(const char *path, const char *boot_id, struct error *err)
{
    CLEANUP(close_fd) int fd = open_in(path, "synced", O_RDONLY);
    if (fd < 0) return errno == ENOENT ? 0 : fail("cannot open synced", path, err);
    size_t page_bytes = named_page_bytes(fd);
    if (page_bytes == 0) return 0; /* its first write was cut: nothing was committed under it */
    CLEANUP(free_ptr) struct saved *saved = malloc(sizeof *saved);
    if (saved == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a page");
    int which = 0;
    read_newest(fd, page_bytes, saved, &which);
    if (saved->counter == 0 || strcmp(saved->boot_id, boot_id) == 0) return 0;
    return put_meta(path, saved, err);
}

static void fill_slot(struct saved *saved, uint64_t counter, const char *boot_id,
                      struct synced_page page)
{
    memset(saved->slot, 0, HEADER_BYTES);
    struct bytes_writer out = bytes_writer(saved->slot, HEADER_BYTES);
    bytes_put_le32(&out, SYNCED_MAGIC);
    bytes_put_le32(&out, (uint32_t)page.bytes);
    bytes_put_le64(&out, counter);
    bytes_put_le64(&out, 0);
    bytes_put(&out, boot_id, strnlen(boot_id, SYNCED_BOOT_BYTES));
    memcpy(saved->slot + HEADER_BYTES, page.data, page.bytes);
    uint64_t checksum = format_hash(saved->slot, HEADER_BYTES + page.bytes);
    out.offset = CHECKSUM_OFFSET;
    bytes_put_le64(&out, checksum);
    assert(!out.bad);
}

static int sync_directory(const char *path, struct error *err)
{
    CLEANUP(close_fd) int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0) return fail("cannot sync the directory", path, err);
    return 0;
}

int synced_write(const char *path, const char *boot_id, struct synced_page page, struct error *err)
{
    assert(page.bytes <= SYNCED_PAGE_BYTES_MAX);
    CLEANUP(free_ptr) struct saved *saved = malloc(sizeof *saved);
    if (saved == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a page");
    CLEANUP(close_fd) int fd = open_in(path, "synced", O_RDWR | O_CREAT);
    if (fd < 0) return fail("cannot open synced", path, err);
    int which = 0;
    read_newest(fd, page.bytes, saved, &which);
    uint64_t counter = saved->counter;
    fill_slot(saved, counter + 1, boot_id, page);
    size_t bytes = HEADER_BYTES + page.bytes;
    off_t at = counter == 0 ? 0 : (off_t)((size_t)(1 - which) * bytes);
    if (pwrite(fd, saved->slot, bytes, at) != (ssize_t)bytes)
        return fail("cannot write synced", path, err);
    if (fdatasync(fd) != 0) return fail("cannot sync the file synced", path, err);
    return counter == 0 ? sync_directory(path, err) : 0;
}

int synced_remove(const char *path, struct error *err)
{
    CLEANUP(close_fd) int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return fail("cannot open the directory", path, err);
    if (unlinkat(fd, "synced", 0) != 0)
        return errno == ENOENT ? 0 : fail("cannot remove synced", path, err);
    return fsync(fd) == 0 ? 0 : fail("cannot sync the directory", path, err);
}
