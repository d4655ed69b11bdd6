/* SPDX-License-Identifier: Apache-2.0 */
/* half.h — 16-bit floats to and from fp32, portable and exact, round to nearest even.
 *
 * These are the readable definitions; kernels use the CPU's own conversions and are tested against
 * these.
 * Tests    tests/unit/test_half.c: all 65,536 patterns both ways, against an independent table.
 */
#ifndef MEMD_BASE_HALF_H
#define MEMD_BASE_HALF_H

#include <stddef.h>
#include <stdint.h>

float half_from_fp16(uint16_t bits);
float half_from_bf16(uint16_t bits);
uint16_t half_to_fp16(float value);
uint16_t half_to_bf16(float value);

/* count elements of `dtype` (fp32, fp16 or bf16) to and from fp32. `data` need not be aligned. */
void half_load(const void *data, uint32_t dtype, size_t count, float *ret_values);
void half_store(const float *values, size_t count, uint32_t dtype, void *ret_data);

/* Position of the first NaN or infinity among `count` elements, or `count` when all are finite; the
 * number of bad elements goes to *ret_bad. Branch-free per block, several GB/s. */
size_t half_find_nonfinite(const void *data, uint32_t dtype, size_t count, size_t *ret_bad);

#endif
