/* SPDX-License-Identifier: Apache-2.0 */
/* text.h — what counts as text: UTF-8 without zero bytes, as protobuf's strings demand it.
 *
 * Checked where bytes come in (proto/message.c) and repaired where sentences are made and cut to a
 * length (error.c): half a character at the end of a cut name would make a reply that no strict
 * client can read.
 *
 * Threads  pure
 * Source   Unicode 15, table 3-7: no surrogates, no overlong forms, nothing above U+10FFFF
 * Tests    tests/unit/test_text.c
 */
#ifndef MEMD_BASE_TEXT_H
#define MEMD_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* Valid UTF-8 without a zero byte. */
bool text_ok(const void *text, size_t bytes);

/* Put '?' in place of every byte of the string that belongs to no character. */
void text_repair(char *text);

#endif
