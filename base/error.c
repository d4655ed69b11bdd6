/* SPDX-License-Identifier: Apache-2.0 */
/* error.c — names and texts are generated from the list, so that none can be forgotten. */
#include "base/error.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/text.h"

int error_set(struct error *err, int code, const char *format, ...)
{
    assert(code < 0);
    if (err == NULL) return code;
    err->code = code;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    text_repair(err->text); /* a cut may leave half a character */
    return code;
}

const char *error_name(int code)
{
    switch (code) {
    case 0: return "MEMD_OK";
#define X(name, value, text) \
    case value: return "MEMD_" #name;
        ERROR_MAP(X)
#undef X
    default: return "MEMD_E?";
    }
}

const char *error_text(int code)
{
    switch (code) {
    case 0: return "success";
#define X(name, value, text) \
    case value: return text;
        ERROR_MAP(X)
#undef X
    default: return "unknown error";
    }
}
