/* SPDX-License-Identifier: Apache-2.0 */
/* emulated_avx512.c — attention's AVX-512 twins, emulated. */
#include "tests/kernels/emulated.h"

#include "attention/kernels/partial_avx512.c"
#include "attention/kernels/rotate_avx512.c"
#include "attention/kernels/score_avx512.c"
