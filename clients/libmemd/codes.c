/* SPDX-License-Identifier: Apache-2.0 */
/* codes.c — the public list of errors is spelled out for its readers; here it is held to the
 * internal one.
 *
 * memd.h comes first, so that MEMD_E… below are the public constants.
 */
#include "clients/include/memd.h"

#include <assert.h>

#include "base/error.h"
#include "base/tensor.h"

#define X(name, value, text) static_assert(MEMD_##name == (value), "memd.h: MEMD_" #name);
ERROR_MAP(X)
#undef X
static_assert((int)MEMD_ERROR_TEXT_BYTES == (int)ERROR_TEXT_BYTES, "memd.h: text of errors");
static_assert((int)MEMD_FP32 == (int)DTYPE_FP32, "memd.h: MEMD_FP32");
static_assert((int)MEMD_FP16 == (int)DTYPE_FP16, "memd.h: MEMD_FP16");
static_assert((int)MEMD_BF16 == (int)DTYPE_BF16, "memd.h: MEMD_BF16");

const char *memd_error_name(int code)
{
    return error_name(code);
}

const char *memd_error_text(int code)
{
    return error_text(code);
}
