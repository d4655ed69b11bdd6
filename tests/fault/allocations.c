/* SPDX-License-Identifier: Apache-2.0 */
/* allocations.c — every function by which memd allocates, counted. */
#include "tests/fault/allocations.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *old, size_t bytes);
void *__real_aligned_alloc(size_t align, size_t bytes);
int __real_posix_memalign(void **ret, size_t align, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);
void *__wrap_aligned_alloc(size_t align, size_t bytes);
int __wrap_posix_memalign(void **ret, size_t align, size_t bytes);

static atomic_long left = -1; /* allocations until one fails; negative: none does */
static atomic_bool failed;

void allocations_fail_after(long n)
{
    atomic_store(&left, n);
}

bool allocations_failed(void)
{
    return atomic_load(&failed);
}

void allocations_forget(void)
{
    atomic_store(&failed, false);
}

static bool fails(void)
{
    if (atomic_load(&left) < 0 || atomic_fetch_sub(&left, 1) != 0) return false;
    atomic_store(&failed, true);
    return true;
}

void *__wrap_malloc(size_t bytes)
{
    return fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    return fails() ? NULL : __real_calloc(count, bytes);
}

void *__wrap_realloc(void *old, size_t bytes)
{
    return fails() ? NULL : __real_realloc(old, bytes);
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
    return fails() ? NULL : __real_aligned_alloc(align, bytes);
}

int __wrap_posix_memalign(void **ret, size_t align, size_t bytes)
{
    return fails() ? ENOMEM : __real_posix_memalign(ret, align, bytes);
}
