/* SPDX-License-Identifier: Apache-2.0 */
/* fold_method.h — two methods for tests of folds: a checksum of all rows in order, so that one row
 * too many, too few, or out of order shows in the answer.
 *
 *     test-forgets      has the checksum up to where it is, and checkpoints
 *     test-reads-back   has that of every token, and answers as of any limit; compresses a prompt
 *                       to every third token
 *
 * Both read attention mass with all the threads that they are given, in the order that is worst for
 * whoever keeps a chunk of it.
 *
 * Programs that link fold_method.c put them into their table of methods (method_table.h).
 */
#ifndef MEMD_TESTS_FOLD_METHOD_H
#define MEMD_TESTS_FOLD_METHOD_H

#include <stdint.h>

extern const struct method method_test_forgets, method_test_reads_back;
#define FOLD_METHODS &method_test_forgets, &method_test_reads_back

/* What an answer's first numbers say; all are whole, and exact in fp32. */
enum {
    FOLD_SAYS_SUM = 0,    /* four numbers of 16 bits, the lowest first */
    FOLD_SAYS_TOKENS = 4, /* how many tokens that sum is of */
    FOLD_SAYS_KEPT,       /* ids in the selection, 0 = there is none */
    FOLD_SAYS_NUMBERS,
};

/* The sum goes on with the value of one number. Of no tokens it is 0. */
uint64_t fold_sum_value(uint64_t sum, float value);

/* Tokens that were folded in by this process, by all folds; and checkpoints that were loaded. */
uint64_t fold_tokens_taken(void);
uint64_t fold_loads(void);

#endif
