/* SPDX-License-Identifier: Apache-2.0 */
/* object.h — a magic number on every object that travels through `void *` (callbacks of libuv, pool
 * jobs).
 *
 * The first member of such a struct is `uint32_t magic`. Casting back checks it, so that a freed or
 * foreign object stops the process at the callback and not three functions later. tests/tidy.py
 * checks that all magics differ.
 */
#ifndef MEMD_BASE_OBJECT_H
#define MEMD_BASE_OBJECT_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

static inline void *object_check(void *object, uint32_t magic)
{
    assert(object != NULL);
    assert(*(const uint32_t *)object == magic);
    return object;
}

#define OBJECT_CAST(pointer, magic) object_check((pointer), (magic))

#endif
