/* SPDX-License-Identifier: Apache-2.0 */
/* rotate_neon.c — rotate_tile.h in NEON. */
#include "attention/kernels/rotate.h"

#include "attention/kernels/vec_neon.h"

#include "attention/kernels/rotate_tile.h"

void rotate_neon(const struct rotate_args *args)
{
    rotate_rows(args);
}
