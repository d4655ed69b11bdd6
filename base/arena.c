/* SPDX-License-Identifier: Apache-2.0 */
/* arena.c — a chain of blocks with a bump pointer in the newest.
 *
 * Invariant: used_bytes is the sum of the sizes of all blocks, ≤ limit_bytes. A wish larger than
 * the next block size gets a block of its own size, so that one large tensor does not double the
 * small ones.
 */
#include "base/arena.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

enum { BLOCK_FIRST_BYTES = 4096, BLOCK_MAX_BYTES = 1 << 20, ALIGN_DEFAULT = 16, ALIGN_MAX = 4096 };

struct arena_block {
    struct arena_block *next;
    size_t size_bytes; /* of data */
    size_t used_bytes;
    unsigned char data[];
};

struct arena_hook {
    struct arena_hook *next;
    void (*release)(void *object);
    void *object;
};

void arena_init(struct arena *arena, size_t limit_bytes)
{
    *arena = (struct arena){ .limit_bytes = limit_bytes };
}

static void free_blocks(struct arena *arena, struct arena_block *keep)
{
    struct arena_block *block = arena->blocks;
    while (block != NULL) {
        struct arena_block *next = block->next;
        if (block != keep) free(block);
        block = next;
    }
    arena->blocks = keep;
    arena->used_bytes = keep != NULL ? keep->size_bytes : 0;
    if (keep != NULL) {
        keep->next = NULL;
        keep->used_bytes = 0;
    }
}

void arena_release(struct arena *arena)
{
    while (arena->hooks != NULL) {
        struct arena_hook *hook = arena->hooks;
        arena->hooks = hook->next; /* first: a hook may look at the arena */
        hook->release(hook->object);
    }
}

void arena_reset(struct arena *arena)
{
    arena_release(arena);
    struct arena_block *keep = arena->blocks;
    while (keep != NULL && keep->size_bytes != BLOCK_FIRST_BYTES) keep = keep->next;
    free_blocks(arena, keep);
}

void arena_fini(struct arena *arena)
{
    arena_release(arena);
    free_blocks(arena, NULL);
}

static struct arena_block *add_block(struct arena *arena, size_t need_bytes)
{
    size_t size = arena->blocks == NULL ? BLOCK_FIRST_BYTES : arena->used_bytes;
    if (size < BLOCK_FIRST_BYTES) size = BLOCK_FIRST_BYTES;
    if (size > BLOCK_MAX_BYTES) size = BLOCK_MAX_BYTES;
    if (size < need_bytes) size = need_bytes;
    size_t left = arena->limit_bytes - arena->used_bytes;
    if (size > left) size = left; /* the last block may be small */
    if (size < need_bytes) return NULL;
    struct arena_block *block = malloc(sizeof *block + size);
    if (block == NULL) return NULL;
    *block = (struct arena_block){ .next = arena->blocks, .size_bytes = size };
    arena->blocks = block;
    arena->used_bytes += size;
    assert(arena->used_bytes <= arena->limit_bytes);
    return block;
}

static void *bump(struct arena_block *block, size_t bytes, size_t align)
{
    uintptr_t base = (uintptr_t)block->data;
    uintptr_t start = (base + block->used_bytes + align - 1) & ~(uintptr_t)(align - 1);
    size_t offset = (size_t)(start - base);
    if (offset > block->size_bytes || bytes > block->size_bytes - offset) return NULL;
    block->used_bytes = offset + bytes;
    return block->data + offset;
}

void *arena_alloc_aligned(struct arena *arena, size_t bytes, size_t align)
{
    assert(align != 0 && (align & (align - 1)) == 0 && align <= ALIGN_MAX);
    if (arena->blocks != NULL) {
        void *memory = bump(arena->blocks, bytes, align);
        if (memory != NULL) return memory;
    }
    if (bytes > SIZE_MAX - align) return NULL;
    struct arena_block *block = add_block(arena, bytes + align);
    return block == NULL ? NULL : bump(block, bytes, align);
}

void *arena_alloc(struct arena *arena, size_t bytes)
{
    return arena_alloc_aligned(arena, bytes, ALIGN_DEFAULT);
}

void *arena_calloc(struct arena *arena, size_t count, size_t size)
{
    size_t bytes = 0;
    if (__builtin_mul_overflow(count, size, &bytes)) return NULL;
    void *memory = arena_alloc(arena, bytes);
    if (memory != NULL) memset(memory, 0, bytes);
    return memory;
}

char *arena_strndup(struct arena *arena, const char *text, size_t bytes)
{
    char *copy = bytes == SIZE_MAX ? NULL : arena_alloc(arena, bytes + 1);
    if (copy == NULL) return NULL;
    memcpy(copy, text, bytes);
    copy[bytes] = '\0';
    return copy;
}

int arena_on_reset(struct arena *arena, void (*release)(void *object), void *object)
{
    assert(release != NULL);
    struct arena_hook *hook = arena_alloc(arena, sizeof *hook);
    if (hook == NULL) {
        release(object);
        return MEMD_ENOMEM;
    }
    *hook = (struct arena_hook){ .next = arena->hooks, .release = release, .object = object };
    arena->hooks = hook;
    return 0;
}
