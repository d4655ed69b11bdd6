/* SPDX-License-Identifier: Apache-2.0 */
/* encode_avx512.c — encode_tile.h in AVX-512. */
#include "index/kernels/encode_x86.h"

#include "index/kernels/encode_tile.h"

void encode_rotate_avx512(const struct encode_rotate_args *args)
{
    rotate_rows(args);
}

void encode_project_avx512(const struct encode_rows *rows, const float *direction, float *ret_dots)
{
    project_rows(rows, direction, ret_dots);
}

void encode_combine_avx512(const struct encode_rows *rows, const float *factors, float *ret_sum)
{
    combine_rows(rows, factors, ret_sum);
}

void encode_load_avx512(const struct encode_load_args *args)
{
    load_rows(args);
}

void encode_steer_avx512(const struct encode_rows *rows, float *dots, float *direction)
{
    steer_rows(rows, dots, direction);
}

void encode_split_avx512(float *dots, uint16_t *order, size_t count)
{
    split_rows(dots, order, count);
}

void encode_centre_avx512(const struct encode_centre_args *args)
{
    centre_rows(args);
}

void encode_keys_avx512(const struct encode_keys_args *args)
{
    keys_tiles(args);
}

void encode_values_avx512(const struct encode_values_args *args)
{
    values_tiles(args);
}
