/* SPDX-License-Identifier: Apache-2.0 */
/* text.c — one walk over characters, from which checking and repairing follow. */
#include "base/text.h"

#include <string.h>

/* Bytes of the character at text[0 … bytes-1], bytes > 0; 0 when it is none. */
static size_t character(const unsigned char *text, size_t bytes)
{
    unsigned char lead = text[0];
    if (lead == 0) return 0;
    if (lead < 0x80) return 1;
    size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4 || length > bytes) return 0;
    unsigned char low = 0x80, high = 0xBF; /* of the second byte */
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
    if (text[1] < low || text[1] > high) return 0;
    for (size_t i = 2; i < length; i++) {
        if ((text[i] & 0xC0) != 0x80) return 0;
    }
    return length;
}

bool text_ok(const void *text, size_t bytes)
{
    const unsigned char *at = text;
    for (size_t left = bytes; left > 0;) {
        size_t length = character(at, left);
        if (length == 0) return false;
        at += length;
        left -= length;
    }
    return true;
}

void text_repair(char *text)
{
    size_t left = strlen(text);
    while (left > 0) {
        size_t length = character((const unsigned char *)text, left);
        if (length == 0) {
            *text = '?';
            length = 1;
        }
        text += length;
        left -= length;
    }
}
