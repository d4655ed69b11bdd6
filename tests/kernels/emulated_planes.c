/* SPDX-License-Identifier: Apache-2.0 */
/* emulated_planes.c — the index's AVX-512 and VNNI twins, emulated. */
#include "tests/kernels/emulated.h"

#include "index/kernels/plane_above_avx512.c"
#include "index/kernels/plane_centroid_vnni.c"
#include "index/kernels/plane_dot_avx512.c"
#include "index/kernels/plane_estimate_avx512.c"
#include "index/kernels/plane_means_avx512.c"
#include "index/kernels/plane_miss_avx512.c"
#include "index/kernels/plane_rank_avx512.c"
#include "index/kernels/plane_score_vnni.c"
#include "index/kernels/plane_soften_avx512.c"
#include "index/kernels/plane_turn_avx512.c"
#include "index/kernels/plane_weigh_vnni.c"
