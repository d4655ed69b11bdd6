/* SPDX-License-Identifier: Apache-2.0 */
/* chain.c — segments are never written twice and never moved; what changes is who holds them. A
 * chain entry is one holder, the table refs counts them, and the values go when the count would
 * become zero.
 *
 * Rejected: counting holders inside the values (a fork would rewrite megabytes), garbage
 * collection by scan (needs a pass over the whole store to give back the first byte).
 */
#include "memory/chain.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "memory/owned.h"

static struct slice chain_slice(const struct chain_key *key, unsigned char *buffer)
{
    return (struct slice){ buffer,
                           format_key_chain(key->context, key->layer, key->sequence, buffer) };
}

static void put_ref(struct store_txn *txn, uint64_t segment, const struct segment_ref *ref)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX], value[FORMAT_REF_BYTES];
    format_put_ref(ref, value);
    store_put(txn, STORE_REFS, (struct slice){ key, format_key_id(segment, key) },
              (struct slice){ value, sizeof value });
}

static bool get_ref(struct store_txn *txn, uint64_t segment, struct segment_ref *ret_ref)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    struct slice value;
    return store_get(txn, STORE_REFS, (struct slice){ key, format_key_id(segment, key) }, &value) &&
           format_read_ref(value.data, value.bytes, ret_ref);
}

static void put_entry(struct store_txn *txn, const struct chain_key *key, uint64_t segment)
{
    unsigned char buffer[FORMAT_KEY_BYTES_MAX], id[8];
    format_put_u64(segment, id);
    store_put(txn, STORE_CHAINS, chain_slice(key, buffer), (struct slice){ id, sizeof id });
}

void chain_put(struct store_txn *txn, const struct chain_key *key, uint64_t segment, uint64_t bytes,
               int64_t *delta)
{
    put_entry(txn, key, segment);
    put_ref(txn, segment, &(struct segment_ref){ .count = 1, .bytes = bytes });
    *delta += (int64_t)bytes;
}

static void delete_values(struct store_txn *txn, uint64_t segment)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    size_t key_bytes = format_key_segment(segment, 0, (enum format_kind)0, key);
    struct store_cursor cursor;
    bool found = store_seek(txn, STORE_SEGMENTS, (struct slice){ key, key_bytes }, &cursor);
    struct segment_key at;
    while (found && format_read_segment(cursor.key.data, cursor.key.bytes, &at) &&
           at.segment == segment) {
        store_cursor_delete(&cursor);
        found = store_next(&cursor);
    }
    store_cursor_close(&cursor);
}

void chain_release_segment(struct store_txn *txn, uint64_t segment, int64_t *delta)
{
    struct segment_ref ref = { 0 };
    if (!get_ref(txn, segment, &ref)) return; /* verify reports it */
    if (ref.count > 1) {
        ref.count--;
        put_ref(txn, segment, &ref);
        return;
    }
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    delete_values(txn, segment);
    store_delete(txn, STORE_REFS, (struct slice){ key, format_key_id(segment, key) });
    *delta -= (int64_t)ref.bytes;
}

bool chain_holds_segment(struct store_txn *txn, uint64_t segment)
{
    struct segment_ref ref = { 0 };
    return get_ref(txn, segment, &ref);
}

bool chain_resize_segment(struct store_txn *txn, uint64_t segment, int64_t change, int64_t *delta)
{
    struct segment_ref ref = { 0 };
    if (!get_ref(txn, segment, &ref)) return false;
    ref.bytes = (uint64_t)((int64_t)ref.bytes + change);
    put_ref(txn, segment, &ref);
    *delta += change;
    return true;
}

static struct slice layer_slice(const struct layer_key *key, unsigned char *buffer)
{
    return (struct slice){ buffer, format_key_layer(key->context, key->layer, buffer) };
}

bool chain_cut_index(struct store_txn *txn, const struct layer_key *key, uint64_t tokens,
                     int64_t *delta)
{
    unsigned char buffer[FORMAT_KEY_BYTES_MAX];
    struct slice name = layer_slice(key, buffer), value;
    struct value_header header;
    if (!store_get(txn, STORE_INDEXES, name, &value)) return false;
    bool sound = format_decode(value.data, value.bytes, &header, NULL) == 0;
    if (sound && header.position <= tokens) return false;
    *delta -= (int64_t)value.bytes;
    return store_delete(txn, STORE_INDEXES, name);
}

void chain_put_index(struct store_txn *txn, const struct layer_key *key, struct slice value,
                     int64_t *delta)
{
    unsigned char buffer[FORMAT_KEY_BYTES_MAX];
    owned_put(txn, STORE_INDEXES, layer_slice(key, buffer), value, delta);
}

uint64_t chain_cut(struct store_txn *txn, const struct chain_key *first, uint64_t limit,
                   int64_t *delta)
{
    unsigned char buffer[FORMAT_KEY_BYTES_MAX];
    struct store_cursor cursor;
    bool found = store_seek(txn, STORE_CHAINS, chain_slice(first, buffer), &cursor);
    uint64_t count = 0, segment = 0;
    struct chain_key at;
    while (found && count < limit && format_read_chain(cursor.key.data, cursor.key.bytes, &at) &&
           at.context == first->context && at.layer == first->layer) {
        bool known = format_read_u64(cursor.value.data, cursor.value.bytes, &segment);
        store_cursor_delete(&cursor);
        if (known) chain_release_segment(txn, segment, delta);
        count++;
        found = store_next(&cursor);
    }
    store_cursor_close(&cursor);
    return count;
}

static struct slice tail_slice(const struct tail_key *key, unsigned char *buffer)
{
    return (struct slice){ buffer,
                           format_key_tail(key->context, key->layer, key->position, buffer) };
}

void chain_cut_tails(struct store_txn *txn, const struct tail_key *first, uint64_t end,
                     int64_t *delta)
{
    unsigned char buffer[FORMAT_KEY_BYTES_MAX];
    struct store_cursor cursor;
    bool found = store_seek(txn, STORE_TAILS, tail_slice(first, buffer), &cursor);
    struct tail_key at;
    while (found && format_read_tail(cursor.key.data, cursor.key.bytes, &at) &&
           at.context == first->context && at.layer == first->layer && at.position < end) {
        *delta -= (int64_t)cursor.value.bytes;
        store_cursor_delete(&cursor);
        found = store_next(&cursor);
    }
    store_cursor_close(&cursor);
}

void chain_cut_notes(struct store_txn *txn, const struct note_key *first, int64_t *delta)
{
    unsigned char buffer[FORMAT_KEY_BYTES_MAX];
    size_t bytes = format_key_note(first->context, first->layer, (enum note_kind)first->kind,
                                   first->sequence, buffer);
    struct store_cursor cursor;
    struct note_key at;
    bool found = store_seek(txn, STORE_NOTES, (struct slice){ buffer, bytes }, &cursor);
    while (found && format_read_note(cursor.key.data, cursor.key.bytes, &at) &&
           at.context == first->context && at.layer == first->layer && at.kind == first->kind) {
        *delta -= (int64_t)cursor.value.bytes;
        store_cursor_delete(&cursor);
        found = store_next(&cursor);
    }
    store_cursor_close(&cursor);
}

static void fork_chain(struct store_txn *txn, uint64_t from, uint64_t to)
{
    unsigned char buffer[FORMAT_KEY_BYTES_MAX];
    struct chain_key at = { .context = from };
    struct store_cursor cursor;
    bool found = store_seek(txn, STORE_CHAINS, chain_slice(&at, buffer), &cursor);
    while (found && format_read_chain(cursor.key.data, cursor.key.bytes, &at) &&
           at.context == from) {
        uint64_t segment = 0;
        struct segment_ref ref = { 0 };
        if (format_read_u64(cursor.value.data, cursor.value.bytes, &segment) &&
            get_ref(txn, segment, &ref)) {
            ref.count++;
            put_ref(txn, segment, &ref);
        }
        at.context = to;
        put_entry(txn, &at, segment);
        found = store_next(&cursor);
    }
    store_cursor_close(&cursor);
}

void chain_fork(struct store_txn *txn, uint64_t from, uint64_t to, int64_t *delta)
{
    assert(to > from);
    fork_chain(txn, from, to);
    owned_copy(txn, STORE_TAILS, from, to, delta);
}

void chain_fork_method(struct store_txn *txn, uint64_t from, uint64_t to, int64_t *delta)
{
    assert(to > from);
    owned_copy(txn, STORE_NOTES, from, to, delta);
    owned_copy(txn, STORE_PARAMS, from, to, delta);
}

/* Tokens behind the last tail record of a layer; 0 when it has none. */
static uint64_t tail_end(struct store_txn *txn, uint64_t context, uint32_t layer)
{
    unsigned char buffer[FORMAT_KEY_BYTES_MAX];
    struct tail_key behind = { context, layer, UINT64_MAX }, at;
    struct store_cursor cursor;
    bool found = store_seek_before(txn, STORE_TAILS, tail_slice(&behind, buffer), &cursor);
    uint64_t end = 0;
    struct value_header header;
    if (found && format_read_tail(cursor.key.data, cursor.key.bytes, &at) &&
        at.context == context && at.layer == layer &&
        format_decode(cursor.value.data, cursor.value.bytes, &header, NULL) == 0) {
        end = at.position + header.tokens;
    }
    store_cursor_close(&cursor);
    return end;
}

uint64_t chain_tokens(struct store_txn *txn, uint64_t context, uint32_t layer,
                      uint64_t *ret_segments)
{
    unsigned char buffer[FORMAT_KEY_BYTES_MAX];
    struct chain_key behind = { context, layer, UINT32_MAX }, at;
    struct store_cursor cursor;
    bool found = store_seek_before(txn, STORE_CHAINS, chain_slice(&behind, buffer), &cursor);
    uint64_t segments = 0;
    if (found && format_read_chain(cursor.key.data, cursor.key.bytes, &at) &&
        at.context == context && at.layer == layer) {
        segments = (uint64_t)at.sequence + 1;
    }
    store_cursor_close(&cursor);
    uint64_t end = tail_end(txn, context, layer);
    *ret_segments = segments;
    return end > segments * FORMAT_SEGMENT_TOKENS ? end : segments * FORMAT_SEGMENT_TOKENS;
}
