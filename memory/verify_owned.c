/* SPDX-License-Identifier: Apache-2.0 */
/* verify_owned.c — proving what is stored on a method's behalf: notes that cannot be made from rows
 * again, and the tensors of clients. Each belongs to somebody and says what its key says; a note is
 * of tokens that are there.
 */
#include <inttypes.h>
#include <stdio.h>

#include "memory/chain.h"
#include "memory/uploads.h"
#include "memory/verify.h"

static bool is_note_sound(const struct note_key *at, const struct value_header *header,
                          const struct record *record, struct slice value)
{
    if (at->kind == NOTE_MASS)
        return header->kind == FORMAT_KIND_MASS && header->heads == record->model.query_heads &&
               header->position == (uint64_t)at->sequence * FORMAT_MASS_TOKENS;
    uint64_t tokens = 0;
    if (at->kind == NOTE_RING)
        return header->kind == FORMAT_KIND_RING && at->sequence == 0 &&
               lru_is_sound((const unsigned char *)value.data + FORMAT_HEADER_BYTES,
                            value.bytes - FORMAT_HEADER_BYTES, &tokens) &&
               tokens == header->position;
    struct selection *selection = NULL;
    if (at->kind != NOTE_SELECTION || at->sequence != 0 || header->kind != FORMAT_KIND_SELECTION ||
        selection_decode((const unsigned char *)value.data + FORMAT_HEADER_BYTES,
                         value.bytes - FORMAT_HEADER_BYTES, &selection, NULL) < 0)
        return false;
    bool sound = selection->tokens == header->position && selection->tokens > 0;
    selection_free(selection);
    return sound;
}

void verify_note(struct verify *verify, struct slice key, struct slice value)
{
    struct note_key at;
    struct value_header header;
    struct slice record;
    char what[96];
    if (!format_read_note(key.data, key.bytes, &at)) {
        verify_finding(verify, "notes: a key of %zu bytes", key.bytes);
        return;
    }
    snprintf(what, sizeof what, "note %u of context %" PRIu64 " layer %" PRIu32 " number %" PRIu32,
             at.kind, at.context, at.layer, at.sequence);
    bool known = verify_record(verify, at.context, &record) &&
                 record_decode(record.data, record.bytes, verify->record, NULL) == 0;
    if (!known) verify_finding(verify, "%s: the context does not exist", what);
    if (!verify_value(verify, value, what, &header) || !known) return;
    if (!is_note_sound(&at, &header, verify->record, value))
        verify_finding(verify, "%s: what it says is not of this key", what);
    uint64_t segments = 0, tokens = chain_tokens(verify->txn, at.context, at.layer, &segments);
    uint64_t needs = header.position + (at.kind == NOTE_MASS);
    if (tokens < needs)
        verify_finding(verify, "%s: it is about token %" PRIu64 ", %" PRIu64 " are stored", what,
                       needs - 1, tokens);
}

static bool is_set(struct verify *verify, uint64_t id)
{
    struct store_cursor cursor;
    struct upload_set set = { 0 };
    bool found = store_seek(verify->txn, STORE_SETS, (struct slice){ NULL, 0 }, &cursor);
    for (; found; found = store_next(&cursor)) {
        if (upload_set_decode(cursor.value, &set, NULL) == 0 && set.id == id) break;
    }
    store_cursor_close(&cursor);
    return found;
}

void verify_param(struct verify *verify, struct slice key, struct slice value)
{
    struct param_key at = { 0 };
    struct slice record;
    struct tensor tensor;
    struct error why = { 0 };
    uint64_t version = 0;
    if (!format_read_param(key.data, key.bytes, &at)) {
        verify_finding(verify, "params: a key of %zu bytes", key.bytes);
        return;
    }
    verify->step.bytes += value.bytes;
    if (!verify_record(verify, at.owner, &record) && !is_set(verify, at.owner))
        verify_finding(verify, "tensor \"%s\" of %" PRIu64 ": nobody has this id", at.name,
                       at.owner);
    if (uploads_decode(value, &tensor, &version, &why) < 0 || version == 0)
        verify_finding(verify, "tensor \"%s\" of %" PRIu64 ": version %" PRIu64 ", %s", at.name,
                       at.owner, version, why.text);
}

void verify_set(struct verify *verify, struct slice key, struct slice value)
{
    struct upload_set set;
    struct error why = { 0 };
    verify->step.bytes += value.bytes;
    if (upload_set_decode(value, &set, &why) < 0)
        verify_finding(verify, "set \"%.*s\": %s", (int)key.bytes, (const char *)key.data,
                       why.text);
}
