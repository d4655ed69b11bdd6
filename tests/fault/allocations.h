/* SPDX-License-Identifier: Apache-2.0 */
/* allocations.h — the n-th allocation fails. The linker's --wrap puts allocations.c in front of the
 * allocator for all of memd; LMDB and libc keep their own.
 *
 * Threads  any may allocate
 */
#ifndef MEMD_TESTS_FAULT_ALLOCATIONS_H
#define MEMD_TESTS_FAULT_ALLOCATIONS_H

#include <stdbool.h>

/* From now on: after n others one allocation fails, and then none. Negative: none does. */
void allocations_fail_after(long n);

/* Has one failed since allocations_forget? */
bool allocations_failed(void);
void allocations_forget(void);

#endif
