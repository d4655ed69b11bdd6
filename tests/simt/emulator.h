/* SPDX-License-Identifier: Apache-2.0 */
/* emulator.h — what a test says to the emulator of attention/cuda/simt.h, and hears from it.
 *
 * A launch fails, with a sentence, when
 *
 *     - some threads of a block wait at a barrier or in a shuffle that others never reach;
 *     - the threads of a block did not all meet the same number of barriers;
 *     - something was written behind (or before) the shared memory that the launch asked for.
 *
 * What was never written is NaN in shared memory, so that a missing barrier or store shows in the
 * results for at least one of the three orders in which threads run.
 *
 * Threads  launches of several threads take turns (a lock); order and failures are of all of them
 * Tests    tests/simt/test_emulator.c
 */
#ifndef MEMD_TESTS_SIMT_EMULATOR_H
#define MEMD_TESTS_SIMT_EMULATOR_H

#include <stdbool.h>
#include <stdint.h>

/* False on a device (on_device.c), where there is nobody to leave out a barrier. */
bool simt_is_emulated(void);

/* In which order the threads of a block get their turns: up and down warp by warp, each as far as
 * it can; shuffled all side by side. */
enum simt_order { SIMT_UP, SIMT_DOWN, SIMT_SHUFFLED, SIMT_ORDERS };
void simt_set_order(enum simt_order order, uint64_t seed);

/* Leave out every barrier at this line of the kernel's source; 0: none. How a test shows that each
 * barrier is needed, and that its absence would be seen. */
void simt_leave_out_barrier(int line);
/* Lines of the barriers that launches met since the last call; returns their number, ≤ most. */
unsigned simt_take_barriers(int *ret_lines, unsigned most);

/* What the latest launch that failed did wrong, or NULL; then it is forgotten. */
const char *simt_take_failure(void);

/* Launches so far. */
uint64_t simt_launches(void);

#endif
