/* SPDX-License-Identifier: Apache-2.0 */
/* cut.c — the k-th largest of 32-bit numbers, digit by digit from the highest: count how often each
 * value of a digit occurs among the numbers whose higher digits are settled, and see in which value
 * the k-th lies. Nothing is moved, so the scores stay as they are; quickselect would need a copy.
 */
#include "index/cut.h"

#include <assert.h>
#include <math.h>

enum { DIGITS = 3, VALUES = 2048 };

struct digit {
    unsigned shift, bits;
};

static const struct digit digits[DIGITS] = { { 21, 11 }, { 10, 11 }, { 0, 10 } };

struct cut cut_largest(const float *scores, size_t n, size_t k)
{
    if (k == 0) return (struct cut){ .least = UINT32_MAX };
    if (k >= n) return (struct cut){ .least = 0, .equals = n };
    struct cut cut = { .equals = k };
    uint32_t settled = 0; /* bits of `least` that are known */
    for (size_t d = 0; d < DIGITS; d++) {
        size_t counts[VALUES] = { 0 };
        uint32_t most = (UINT32_C(1) << digits[d].bits) - 1;
        for (size_t i = 0; i < n; i++) {
            uint32_t order = cut_order(scores[i]);
            if ((order & settled) == cut.least) counts[order >> digits[d].shift & most]++;
        }
        uint32_t value = most;
        for (; counts[value] < cut.equals; value--) {
            cut.equals -= counts[value];
            assert(value > 0);
        }
        cut.least |= value << digits[d].shift;
        settled |= most << digits[d].shift;
    }
    assert(cut.equals > 0);
    return cut;
}
