/* SPDX-License-Identifier: Apache-2.0 */
/* arena.h — one region of memory per request: everything decoded or computed for it dies in one
 * reset.
 *
 * Memory comes in blocks (4 KiB first, then doubling up to 1 MiB; larger wishes get their own
 * block) until `limit_bytes` is reached: then allocation fails, it never grows past it. Pins and
 * other outside resources hang on the arena by `arena_on_reset` and are released on every path,
 * newest first.
 *
 * Rejected: malloc per object with a free list (leaks hide in error paths); one fixed buffer
 * (attend of one token and of 512 tokens differ by three orders of magnitude).
 *
 * Memory   returned blocks are at least 64-byte aligned on request, contents uninitialised.
 * Threads  one thread at a time; the arena moves with its request from loop to worker and back.
 * Errors   NULL / MEMD_ENOMEM when the system has no memory or the limit is reached.
 * Tests    tests/unit/test_arena.c
 */
#ifndef MEMD_BASE_ARENA_H
#define MEMD_BASE_ARENA_H

#include <stddef.h>

struct arena_block;
struct arena_hook;

struct arena {
    struct arena_block *blocks;  /* newest first */
    struct arena_hook *hooks;    /* newest first */
    size_t used_bytes;           /* sum of block sizes */
    size_t limit_bytes;
};

void arena_init(struct arena *arena, size_t limit_bytes);

/* Run the hooks (newest first) and give memory back, except that one first block is kept for the
 * next request. The arena can be used again at once. */
void arena_reset(struct arena *arena);

/* arena_reset, and the kept block too. Safe on a zeroed arena. */
void arena_fini(struct arena *arena);

/* `bytes` of memory (0 is allowed and gives a valid pointer), aligned to 16. NULL at the limit. */
void *arena_alloc(struct arena *arena, size_t bytes);

/* The same aligned to `align`, a power of two ≤ 4096. */
void *arena_alloc_aligned(struct arena *arena, size_t bytes, size_t align);

/* count * size, zeroed; NULL on overflow of the product too. */
void *arena_calloc(struct arena *arena, size_t count, size_t size);

/* Copy of a string of `bytes` characters, zero-terminated. */
char *arena_strndup(struct arena *arena, const char *text, size_t bytes);

/* Run the hooks now (newest first) and keep the memory: an answer that waits for a slow reader must
 * not hold pins. */
void arena_release(struct arena *arena);

/* Call `release(object)` at reset. 0, or MEMD_ENOMEM: then `release` has been called already, so
 * the caller owns nothing either way. */
int arena_on_reset(struct arena *arena, void (*release)(void *object), void *object);

#endif
