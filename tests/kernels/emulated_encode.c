/* SPDX-License-Identifier: Apache-2.0 */
/* emulated_encode.c — the AVX-512 twin of encode is plain C: here for a CPU without AVX-512. */
#include "index/kernels/encode_avx512.c"
