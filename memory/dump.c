/* SPDX-License-Identifier: Apache-2.0 */
/* dump.c — records in words, for people who look for what went wrong; so nothing here stops at a
 * bad value. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/tensor.h"
#include "memory/catalog_state.h"
#include "memory/walk.h"

enum { WORDS_BYTES = 512 };

static char *words(struct arena *arena, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* NULL when the arena is full. */
static char *words(struct arena *arena, const char *format, ...)
{
    char text[WORDS_BYTES];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return length < 0 ? NULL : arena_strndup(arena, text, strlen(text));
}

static const char *kind_name(uint8_t kind)
{
    static const char *const names[FORMAT_KINDS + 1] = {
        [FORMAT_KIND_K] = "k",         [FORMAT_KIND_V] = "v",
        [FORMAT_KIND_IDS] = "ids",     [FORMAT_KIND_TAIL] = "tail",
        [FORMAT_KIND_CONTEXT] = "context", [FORMAT_KIND_HI] = "hi",
        [FORMAT_KIND_LO] = "lo",       [FORMAT_KIND_QUERIES] = "queries",
        [FORMAT_KIND_INDEX] = "index", [FORMAT_KIND_MASS] = "mass",
        [FORMAT_KIND_SELECTION] = "selection", [FORMAT_KIND_PARAM] = "param",
        [FORMAT_KIND_SET] = "set", [FORMAT_KIND_COLUMNS] = "columns",
        [FORMAT_KIND_RING] = "ring",
    };
    return kind <= FORMAT_KINDS && names[kind] != NULL ? names[kind] : "unknown";
}

static const char *note_name(uint8_t kind)
{
    return kind == NOTE_MASS ? "mass" : kind == NOTE_RING ? "ring" : "selection";
}

static char *key_words(struct arena *arena, enum store_table table, struct slice key)
{
    struct chain_key chain;
    struct segment_key segment;
    struct tail_key tail;
    struct layer_key layer;
    struct note_key note;
    struct param_key param;
    uint64_t id = 0;
    if ((table == STORE_CONTEXTS || table == STORE_REFS) &&
        format_read_id(key.data, key.bytes, &id))
        return words(arena, "%s %" PRIu64, table == STORE_REFS ? "segment" : "context", id);
    if (table == STORE_CHAINS && format_read_chain(key.data, key.bytes, &chain))
        return words(arena, "context %" PRIu64 " layer %" PRIu32 " entry %" PRIu32, chain.context,
                     chain.layer, chain.sequence);
    if (table == STORE_SEGMENTS && format_read_segment(key.data, key.bytes, &segment)) {
        return words(arena, "segment %" PRIu64 " head %" PRIu32 " %s", segment.segment,
                     segment.head, kind_name(segment.kind));
    }
    if (table == STORE_TAILS && format_read_tail(key.data, key.bytes, &tail))
        return words(arena, "context %" PRIu64 " layer %" PRIu32 " position %" PRIu64, tail.context,
                     tail.layer, tail.position);
    if (table == STORE_INDEXES && format_read_layer(key.data, key.bytes, &layer))
        return words(arena, "context %" PRIu64 " layer %" PRIu32, layer.context, layer.layer);
    if (table == STORE_NOTES && format_read_note(key.data, key.bytes, &note))
        return words(arena, "context %" PRIu64 " layer %" PRIu32 " %s %" PRIu32, note.context,
                     note.layer, note_name(note.kind), note.sequence);
    if (table == STORE_PARAMS && format_read_param(key.data, key.bytes, &param))
        return words(arena, "owner %" PRIu64 " layer %" PRIu32 " \"%s\"", param.owner, param.layer,
                     param.name);
    return words(arena, "%.*s", (int)key.bytes, (const char *)key.data);
}

static char *header_words(struct arena *arena, struct slice value)
{
    struct value_header header;
    struct error why = { 0 };
    if (format_decode(value.data, value.bytes, &header, &why) < 0)
        return words(arena, "%s", why.text);
    return words(arena,
                 "%" PRIu32 " tokens from %" PRIu64 " %s heads %u D=%u flags %u model %016" PRIx64
                 " checksum %016" PRIx64,
                 header.tokens, header.position, dtype_name(header.dtype), header.heads,
                 header.head_dim, header.flags, header.model_hash, header.checksum);
}

static char *context_words(struct arena *arena, struct slice value)
{
    CLEANUP(free_ptr) struct record *record = malloc(sizeof *record);
    struct error why = { 0 };
    if (record == NULL) return NULL;
    if (record_decode(value.data, value.bytes, record, &why) < 0)
        return words(arena, "%s", why.text);
    return words(arena,
                 "\"%.200s\" method %s L=%" PRIu32 " H=%" PRIu32 " G=%" PRIu32 " D=%" PRIu32
                 " %s parent %" PRIu64 " generation %" PRIu64 "%s",
                 record->name, record->method, record->model.layers, record->model.query_heads,
                 record->model.kv_heads, record->model.head_dim, dtype_name(record->model.dtype),
                 record->parent_id, record->generation, record->dropping ? " dropping" : "");
}

static char *value_words(struct arena *arena, enum store_table table, struct slice value)
{
    uint64_t number = 0;
    struct segment_ref ref;
    if (table == STORE_CONTEXTS) return context_words(arena, value);
    if (table == STORE_SEGMENTS || table == STORE_TAILS || table == STORE_INDEXES ||
        table == STORE_NOTES || table == STORE_PARAMS || table == STORE_SETS)
        return header_words(arena, value);
    if (table == STORE_REFS && format_read_ref(value.data, value.bytes, &ref))
        return words(arena, "held %" PRIu32 " times, %" PRIu64 " bytes", ref.count, ref.bytes);
    if (!format_read_u64(value.data, value.bytes, &number)) return words(arena, "malformed");
    const char *what = table == STORE_NAMES ? "context " : table == STORE_CHAINS ? "segment " : "";
    return words(arena, "%s%" PRIu64, what, number);
}

static bool describe(struct arena *arena, const struct walk *walk, struct record_info *ret_info)
{
    ret_info->table = store_table_name(walk->table);
    ret_info->key = key_words(arena, walk->table, walk->cursor.key);
    ret_info->summary = value_words(arena, walk->table, walk->cursor.value);
    ret_info->bytes = walk->cursor.value.bytes;
    return ret_info->key != NULL && ret_info->summary != NULL;
}

int catalog_dump(struct catalog *catalog, const struct walk_args *args, struct arena *arena,
                 struct dump_step *ret_step, struct error *err)
{
    size_t limit = args->limit == 0 || args->limit > LIMIT_LIST ? LIMIT_LIST : args->limit;
    struct dump_step step = { .records = arena_calloc(arena, limit, sizeof *step.records) };
    if (step.records == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu records", limit);
    struct walk walk;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = walk_begin(args, &walk, err);
    if (rc == 0) rc = store_begin(catalog->store, false, &txn, err);
    if (rc < 0) return rc;
    while (rc == 0 && step.record_count < limit && walk_next(&walk, &txn)) {
        if (!describe(arena, &walk, &step.records[step.record_count++]))
            rc = error_set(err, MEMD_ENOMEM, "no memory for %zu records", limit);
    }
    walk_end(&walk);
    if (rc == 0) rc = store_failed(&txn, err);
    if (rc == 0) rc = walk_encode(&walk, arena, &step.cursor, &step.cursor_bytes, err);
    if (rc < 0) return rc;
    *ret_step = step;
    return 0;
}

int catalog_compact(struct catalog *catalog, const char *path, uint64_t *ret_before,
                    uint64_t *ret_after, struct error *err)
{
    struct store_space space;
    store_get_space(catalog->store, &space);
    uint64_t after = 0;
    int rc = store_copy(catalog->store, path, &after, err);
    if (rc < 0) return rc;
    *ret_before = space.file_bytes;
    *ret_after = after;
    return 0;
}
