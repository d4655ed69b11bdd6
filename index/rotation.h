/* SPDX-License-Identifier: Apache-2.0 */
/* rotation.h — a fixed orthogonal rotation of D dimensions that spreads outlier channels: random
 * signs, then Hadamard.
 *
 * For D a power of two it is H_D S / √D. For any other multiple of 8 it is made of two Hadamards of
 * the largest power of two P ≤ D, over the first and then over the last P dimensions, each behind
 * signs of its own: still orthogonal, every dimension mixed, nothing padded. Signs come from a
 * fixed generator, the same in every build: they are part of the format. Dimension i of pass p (i
 * counts from the start of that pass) is negated where the top bit of splitmix64(2^32 p + i) is
 * set.
 *
 * Shapes   rows (count, D) fp32 in place, contiguous; D a multiple of 8, ≤ 1024
 * Cost     O(count D log D)
 * Threads  pure
 * Tests    tests/unit/test_rotation.c: orthogonal, inverse, against a dense double matrix
 */
#ifndef MEMD_INDEX_ROTATION_H
#define MEMD_INDEX_ROTATION_H

#include <stddef.h>
#include <stdint.h>

void rotation_apply(float *rows, size_t count, size_t head_dim);
void rotation_invert(float *rows, size_t count, size_t head_dim);

/* Bit i % 8 of byte i / 8: is dimension i of pass 0 or 1 negated? (128) bytes */
const uint8_t *rotation_signs(int pass);

#endif
