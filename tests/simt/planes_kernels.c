/* SPDX-License-Identifier: Apache-2.0 */
/* planes_kernels.c — the CUDA kernels of index/, compiled as the C that they also are. */
#include "index/kernels/planes.cu"
