/* SPDX-License-Identifier: Apache-2.0 */
/* image.h — the file of a store as it was, in memory: to look at its pages, and to write it back
 * with one of them damaged.
 */
#ifndef MEMD_TESTS_IMAGE_H
#define MEMD_TESTS_IMAGE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "memory/page.h"
#include "tests/whole.h"

enum { PAGE = 4096 };

struct image {
    char file[96];
    unsigned char *data; /* (pages, PAGE); NULL before it was read */
    size_t pages;
};

static inline void image_init(struct image *image, const char *directory)
{
    *image = (struct image){ .data = NULL };
    snprintf(image->file, sizeof image->file, "%s/data.mdb", directory);
}

static inline int image_open(const struct image *image, int flags)
{
    int fd = open(image->file, flags | O_CLOEXEC);
    if (fd < 0) fail_msg("%s: %s", image->file, strerror(errno));
    return fd;
}

/* The store is closed. */
static inline void image_read(struct image *image)
{
    struct stat file;
    int fd = image_open(image, O_RDONLY);
    assert_int_equal(fstat(fd, &file), 0);
    image->pages = (size_t)file.st_size / PAGE;
    assert_true(image->pages > 2);
    free(image->data);
    image->data = malloc(image->pages * PAGE);
    assert_non_null(image->data);
    assert_true(read_whole(fd, image->data, image->pages * PAGE));
    close(fd);
}

static inline void image_fini(struct image *image)
{
    free(image->data);
}

/* The file as it was, but for one page. */
static inline void image_write(const struct image *image, size_t page, const unsigned char *instead)
{
    int fd = image_open(image, O_WRONLY);
    size_t bytes = image->pages * PAGE;
    if (write(fd, image->data, bytes) != (ssize_t)bytes) fail_msg("%s", strerror(errno));
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    assert_int_equal(pwrite(fd, instead, PAGE, (off_t)(page * PAGE)), PAGE);
    close(fd);
}

static inline const unsigned char *image_page(const struct image *image, size_t page)
{
    return image->data + page * PAGE;
}

static inline size_t image_newest_meta(const struct image *image)
{
    uint64_t first = page_u64(image_page(image, 0) + PAGE_META_TXN);
    return first > page_u64(image_page(image, 1) + PAGE_META_TXN) ? 0 : 1;
}

/* Is it a page of a tree, of this state or an old one? */
static inline bool image_in_tree(const struct image *image, size_t page)
{
    const unsigned char *at = image_page(image, page);
    uint16_t flags = page_u16(at + PAGE_FLAGS);
    return page_u64(at) == page && (flags == PAGE_IS_BRANCH || flags == PAGE_IS_LEAF);
}

#endif
