/* SPDX-License-Identifier: Apache-2.0 */
/* verify_damage.c — a walk over a store of which pages are fenced off (store_pages.c).
 *
 * LMDB ends the transaction that comes to a fence. What is behind it is known since the store was
 * opened, so the walk says it and goes on after its last key. A record may also lead there, a name
 * to a context that cannot be read: then that is said of the record, and the walk goes on behind
 * it. Numbers that need every record (how many hold a segment, the sums in meta) are not compared.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "memory/catalog_state.h"
#include "memory/store_pages.h"
#include "memory/verify.h"

enum { KEY_TEXT_BYTES = 48 };

/* Keys are numbers but for names and what is in meta. */
static void describe_key(enum store_table table, struct slice key, char ret_text[KEY_TEXT_BYTES])
{
    bool text = table == STORE_NAMES || table == STORE_META;
    size_t length = 0, room = KEY_TEXT_BYTES - 3;
    for (size_t i = 0; i < key.bytes && length < room; i++) {
        unsigned char byte = ((const unsigned char *)key.data)[i];
        int printed = snprintf(ret_text + length, KEY_TEXT_BYTES - length,
                               text && byte >= ' ' && byte < 127 ? "%c" : "%02x", byte);
        length += (size_t)printed;
    }
    ret_text[length] = 0;
}

/* The first whose keys do not all lie before where the walk stands. */
static const struct pages_damage *next_damage(const struct verify *verify)
{
    const struct pages_report *report = store_damage(verify->catalog->store);
    const struct walk *walk = &verify->walk;
    for (size_t i = 0; i < report->count; i++) {
        const struct pages_damage *damage = &report->list[i];
        if (strcmp(damage->table, store_table_name(walk->table)) != 0) continue;
        size_t common = damage->end_bytes < walk->key_bytes ? damage->end_bytes : walk->key_bytes;
        int order = memcmp(damage->end, walk->key, common);
        if (damage->end_bytes == 0 || order > 0 ||
            (order == 0 && damage->end_bytes > walk->key_bytes))
            return damage;
    }
    return NULL;
}

int verify_pass(struct verify *verify, bool at_record, struct error *err)
{
    char first[KEY_TEXT_BYTES], end[KEY_TEXT_BYTES];
    struct walk *walk = &verify->walk;
    int rc = store_failed(verify->txn, err);
    const struct pages_damage *damage = next_damage(verify);
    const struct pages_report *report = store_damage(verify->catalog->store);
    bool known = at_record ? report->total > 0 : damage != NULL || report->total > report->count;
    if (rc != MEMD_ECORRUPT || !known) return rc;
    if (at_record) {
        describe_key(walk->table, (struct slice){ walk->key, walk->key_bytes }, first);
        verify_finding(verify, "%s: the record %s leads to a damaged page",
                       store_table_name(walk->table), first);
        walk_end(walk);
    } else if (damage == NULL) {
        verify_finding(verify,
                       "%s: more pages are damaged than are listed; behind the last of "
                       "these nothing was looked at",
                       store_table_name(walk->table));
        walk_pass(walk, (struct slice){ NULL, 0 });
        verify->gap = true;
    } else {
        describe_key(walk->table, (struct slice){ damage->first, damage->first_bytes }, first);
        describe_key(walk->table, (struct slice){ damage->end, damage->end_bytes }, end);
        verify_finding(verify,
                       "%s: page %" PRIu64 " of data.mdb is damaged: %s; with it all records from "
                       "%s to before %s",
                       store_table_name(walk->table), damage->page, damage->why,
                       first[0] == 0 ? "the first" : first, end[0] == 0 ? "the end" : end);
        walk_pass(walk, (struct slice){ damage->end, damage->end_bytes });
        verify->gap = true;
    }
    verify->tail_known = false;
    store_abort(verify->txn);
    return store_begin(verify->catalog->store, false, verify->txn, err);
}

void verify_free_pages(struct verify *verify)
{
    const struct pages_report *report = store_damage(verify->catalog->store);
    for (size_t i = 0; i < report->count; i++) {
        const struct pages_damage *damage = &report->list[i];
        if (damage->table[0] == 0 && damage->page < 2)
            verify_finding(verify, "page %" PRIu64 " of data.mdb: %s; commits may be missing",
                           damage->page, damage->why);
        else if (damage->table[0] == 0)
            verify_finding(verify,
                           "free pages: page %" PRIu64 " of data.mdb is damaged: %s; the list was "
                           "emptied, its space is lost",
                           damage->page, damage->why);
    }
}
