/* SPDX-License-Identifier: Apache-2.0 */
/* page_claims.c — in a sound file nobody claims a page twice: then there is one round, and of the
 * bits for doubts none is ever written.
 *
 * All claims of a round are noted, those that are refused too: so one round finds all doubts, and
 * three rounds are enough but where a branch of a tree comes to light in the second.
 */
#include "memory/page_claims.h"

#include <stdlib.h>
#include <string.h>

bool claims_init(struct claims *claims, uint64_t pages)
{
    *claims = (struct claims){ .words = pages / 64 + 1 };
    claims->trees = calloc(claims->words, sizeof *claims->trees);
    claims->values = calloc(claims->words, sizeof *claims->values);
    claims->doubted = calloc(claims->words, sizeof *claims->doubted);
    claims->lost = calloc(claims->words, sizeof *claims->lost);
    return claims->trees != NULL && claims->values != NULL && claims->doubted != NULL &&
           claims->lost != NULL;
}

void claims_fini(struct claims *claims)
{
    free(claims->trees);
    free(claims->values);
    free(claims->doubted);
    free(claims->lost);
}

void claims_begin(struct claims *claims)
{
    claims->again = false;
    if (claims->round++ == 0) return;
    memset(claims->trees, 0, claims->words * sizeof *claims->trees);
    memset(claims->values, 0, claims->words * sizeof *claims->values);
}

static bool has(const uint64_t *bits, uint64_t page)
{
    return (bits[page / 64] >> page % 64 & 1) != 0;
}

static void mark(uint64_t *bits, uint64_t page)
{
    bits[page / 64] |= UINT64_C(1) << page % 64;
}

static void contest(struct claims *claims, uint64_t *bits, uint64_t page)
{
    if (!has(bits, page)) claims->again = true;
    claims->contested = true;
    mark(bits, page);
}

/* Whoever claims it in a later round has shown more than its number. */
static bool doubted_before(const struct claims *claims, uint64_t page)
{
    return claims->round > 1 && has(claims->doubted, page);
}

enum claims_state claims_ask(const struct claims *claims, uint64_t first, uint64_t count)
{
    enum claims_state state = CLAIMS_FREE;
    if (!claims->contested) return state;
    for (uint64_t i = 0; i < count; i++) {
        if (has(claims->lost, first + i)) return CLAIMS_LOST;
        if (doubted_before(claims, first + i)) state = CLAIMS_DOUBTED;
    }
    return state;
}

bool claims_value(struct claims *claims, uint64_t first, uint64_t count)
{
    bool alone = true;
    for (uint64_t page = first; page < first + count; page++) {
        bool tree = has(claims->trees, page);
        if (tree || has(claims->values, page)) {
            alone = false;
            contest(claims, tree || doubted_before(claims, page) ? claims->lost : claims->doubted,
                    page);
        }
        mark(claims->values, page);
    }
    return alone;
}

/* By its number alone. */
static bool claim_number(struct claims *claims, uint64_t *bits, uint64_t page)
{
    bool used = has(claims->trees, page) || has(claims->values, page);
    if (used) contest(claims, claims->doubted, page);
    mark(bits, page);
    return !used;
}

bool claims_free_page(struct claims *claims, uint64_t page)
{
    return claim_number(claims, claims->values, page);
}

bool claims_list(struct claims *claims, uint64_t first, uint64_t count)
{
    bool alone = true;
    for (uint64_t i = 0; i < count; i++) alone = claims_free_page(claims, first + i) && alone;
    return alone;
}

bool claims_tree(struct claims *claims, uint64_t page)
{
    if (has(claims->values, page)) contest(claims, claims->lost, page);
    bool used = has(claims->trees, page);
    if (used) contest(claims, claims->doubted, page);
    mark(claims->trees, page);
    return !used;
}

bool claims_free_tree(struct claims *claims, uint64_t page)
{
    return claim_number(claims, claims->trees, page);
}
