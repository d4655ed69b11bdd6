/* SPDX-License-Identifier: Apache-2.0 */
/* kernels.c — the CUDA kernels of attention/, compiled as the C that they also are. */
#include "attention/kernels/gather_partial.cu"
#include "attention/kernels/merge.cu"
#include "attention/kernels/partial.cu"
#include "attention/kernels/rope.cu"
