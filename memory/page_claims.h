/* SPDX-License-Identifier: Apache-2.0 */
/* page_claims.h — which pages of the file are used, and who is believed where two say so.
 *
 * A damaged number may lead into the pages of a value that is sound; whoever is walked first is
 * not right by that. So a page that is claimed twice is doubted, and all is walked again: then a
 * value that touches it has to show its head there. Where both can, or a tree stands there, the
 * page is lost to all values that touch it: given back by one, it would be written over under the
 * other.
 *
 * Units    pages
 * Memory   2 bits per page, 4 once two have claimed the same one
 * Tests    tests/unit/test_fences.c
 */
#ifndef MEMD_MEMORY_PAGE_CLAIMS_H
#define MEMD_MEMORY_PAGE_CLAIMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum claims_state { CLAIMS_FREE, CLAIMS_DOUBTED, CLAIMS_LOST };

struct claims {
    size_t words;
    uint64_t *trees, *values; /* a bit for each page: it is in use; by lists of free ones, too */
    uint64_t *doubted, *lost; /* they stay from round to round */
    bool contested;           /* some bit of these is set */
    bool again;               /* one was set in this round: what it found is not to be believed */
    size_t round;
};

/* False: no memory. */
bool claims_init(struct claims *claims, uint64_t pages);
void claims_fini(struct claims *claims);
void claims_begin(struct claims *claims);

enum claims_state claims_ask(const struct claims *claims, uint64_t first, uint64_t count);

/* False: somebody else uses one of the pages. */
bool claims_value(struct claims *claims, uint64_t first, uint64_t count);
/* The pages that a list of free pages has for itself: against a value that shows its head they are
 * not right. */
bool claims_list(struct claims *claims, uint64_t first, uint64_t count);
bool claims_free_page(struct claims *claims, uint64_t page);
/* A sound page of a tree has its number, its kind, its keys: against a value it is right. */
bool claims_tree(struct claims *claims, uint64_t page);
/* The tree of free pages has nothing but numbers for keys: against a value that shows its head it
 * is not. */
bool claims_free_tree(struct claims *claims, uint64_t page);

#endif
