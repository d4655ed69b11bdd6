/* SPDX-License-Identifier: Apache-2.0 */
/* verify.c — proving a store, one record at a time, while it is in use. What is stored on a
 * method's behalf (notes, tensors) is in verify_owned.c, what was fenced off in verify_damage.c.
 *
 * What is proven, per table: a name leads to a record of that name; a record decodes, and its
 * name leads back; chain entries of a layer are 0, 1, 2, … and lead to segments with the right
 * position, model and size; every value has a sound header and checksum; a segment is held by as
 * many chains as its count says and is as large as it says; tail records go on where chain and tail
 * before them end, and hold what the context keeps of a token; planes open; a saved index covers no
 * more than what is stored; notes and uploaded tensors are of somebody, and say what their keys
 * say; the numbers in meta cover what is there.
 *
 * What a context keeps of a token, its method says. Where this build lacks the method, its values
 * are proven one by one, but not against each other, and that is said: it is no damage.
 *
 * Each step sees one snapshot. Between steps the store may change, so what is compared across
 * records is only what the snapshot of the step shows. Counting holders needs a look at every
 * chain entry: it is done for a block of segment ids at once, when the walk comes to the first
 * of the block.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "memory/catalog_state.h"
#include "memory/chain.h"
#include "memory/store_pages.h"
#include "memory/verify.h"

enum { FINDINGS_MAX = 256, FINDING_BYTES = 320, HOLDER_IDS = 1 << 16 };
#define STEP_BYTES (UINT64_C(64) << 20)
#define STEP_NS (UINT64_C(100) * 1000000)

static void add(struct verify *verify, const char *text, char **texts, size_t *count)
{
    if (*count == FINDINGS_MAX) return; /* the step ends here, see `enough` */
    char *copy = arena_strndup(verify->arena, text, strlen(text));
    if (copy != NULL)
        texts[(*count)++] = copy;
    else
        store_fail(verify->txn, ENOMEM);
}

void verify_finding(struct verify *verify, const char *format, ...)
{
    char text[FINDING_BYTES];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    assert(length >= 0);
    add(verify, text, verify->step.findings, &verify->step.finding_count);
}

static void foreign(struct verify *verify, uint64_t id)
{
    char text[FINDING_BYTES];
    snprintf(text, sizeof text,
             "context %" PRIu64 " \"%.80s\": what it keeps of a token: method %.40s is not in this "
             "build",
             id, verify->record->name, verify->record->method);
    add(verify, text, verify->step.unchecked, &verify->step.unchecked_count);
}

bool verify_record(struct verify *verify, uint64_t id, struct slice *ret_value)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    return store_get(verify->txn, STORE_CONTEXTS, (struct slice){ key, format_key_id(id, key) },
                     ret_value);
}

static void check_name(struct verify *verify, struct slice key, struct slice value)
{
    uint64_t id = 0;
    struct slice record;
    int name_bytes = (int)key.bytes;
    const char *name = key.data;
    if (!format_read_u64(value.data, value.bytes, &id))
        verify_finding(verify, "name \"%.*s\": malformed id", name_bytes, name);
    else if (!verify_record(verify, id, &record))
        verify_finding(verify, "name \"%.*s\": context %" PRIu64 " does not exist", name_bytes,
                       name, id);
    else if (record_decode(record.data, record.bytes, verify->record, NULL) == 0 &&
             (strlen(verify->record->name) != key.bytes ||
              memcmp(verify->record->name, name, key.bytes) != 0))
        verify_finding(verify, "name \"%.*s\": context %" PRIu64 " calls itself \"%.80s\"",
                       name_bytes, name, id, verify->record->name);
}

static void check_context(struct verify *verify, struct slice key, struct slice value)
{
    uint64_t id = 0;
    struct error why = { 0 };
    if (!format_read_id(key.data, key.bytes, &id)) {
        verify_finding(verify, "contexts: a key of %zu bytes", key.bytes);
        return;
    }
    if (record_decode(value.data, value.bytes, verify->record, &why) < 0) {
        verify_finding(verify, "context %" PRIu64 ": %s", id, why.text);
        return;
    }
    if (verify->record->dropping) return;
    struct slice named;
    uint64_t back = 0;
    struct slice name = { verify->record->name, strlen(verify->record->name) };
    if (!store_get(verify->txn, STORE_NAMES, name, &named) ||
        !format_read_u64(named.data, named.bytes, &back) || back != id)
        verify_finding(verify, "context %" PRIu64 ": its name \"%.80s\" does not lead to it", id,
                       verify->record->name);
    struct block_shape shape;
    if (!record_shape(verify->record, &shape)) foreign(verify, id);
}

bool verify_value(struct verify *verify, struct slice value, const char *what,
                  struct value_header *header)
{
    struct error why = { 0 };
    verify->step.bytes += value.bytes;
    if (format_decode(value.data, value.bytes, header, &why) < 0) {
        verify_finding(verify, "%s: %s", what, why.text);
        return false;
    }
    if (format_verify(value.data, value.bytes, &why) < 0) {
        CATALOG_COUNT(verify->catalog, checksum_failures_total, 1);
        verify_finding(verify, "%s: %s", what, why.text);
    }
    return true;
}

static void describe_segment(const struct segment_key *key, char *ret_text, size_t size)
{
    snprintf(ret_text, size, "segment %" PRIu64 " head %" PRIu32 " kind %u", key->segment,
             key->head, key->kind);
}

/* What is kept of the tokens of a context; NULL when that cannot be said, which is reported with
 * the context itself. */
static const struct block_shape *shape_of(struct verify *verify, uint64_t context)
{
    if (verify->shape_context == context) return &verify->shape;
    struct slice record;
    verify->shape_context = 0;
    if (!verify_record(verify, context, &record) ||
        record_decode(record.data, record.bytes, verify->record, NULL) < 0 ||
        !record_shape(verify->record, &verify->shape))
        return NULL;
    verify->shape_context = context;
    return &verify->shape;
}

/* One value of a segment: it belongs to this place of this context. */
static void check_member(struct verify *verify, const struct chain_key *chain,
                         const struct segment_key *at)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    size_t bytes = format_key_segment(at->segment, at->head, (enum format_kind)at->kind, key);
    struct slice value;
    struct value_header header;
    char what[80];
    describe_segment(at, what, sizeof what);
    if (!store_get(verify->txn, STORE_SEGMENTS, (struct slice){ key, bytes }, &value)) {
        verify_finding(verify, "context %" PRIu64 " layer %" PRIu32 ": %s is missing",
                       chain->context, chain->layer, what);
        return;
    }
    if (verify->walk.context_id != 0) {
        verify->step.values++;
        verify_value(verify, value, what, &header);
    }
    if (format_decode(value.data, value.bytes, &header, NULL) < 0) return;
    if (header.kind != at->kind || header.model_hash != verify->shape.model_hash ||
        header.position != (uint64_t)chain->sequence * FORMAT_SEGMENT_TOKENS)
        verify_finding(verify,
                       "%s: it belongs to another model or position than chain entry %" PRIu32
                       " of context %" PRIu64 " layer %" PRIu32,
                       what, chain->sequence, chain->context, chain->layer);
    else if (value.bytes != block_value_bytes(&verify->shape, (enum format_kind)at->kind))
        verify_finding(verify, "%s: it has %zu bytes, the context keeps %zu", what, value.bytes,
                       block_value_bytes(&verify->shape, (enum format_kind)at->kind));
}

/* All that are not derived and must be there. */
static void check_members(struct verify *verify, const struct chain_key *chain, uint64_t segment)
{
    const struct block_shape *shape = shape_of(verify, chain->context);
    if (shape == NULL) return;
    for (uint32_t i = 0; i < 2 * shape->heads; i++)
        check_member(verify, chain,
                     &(struct segment_key){ segment, i % shape->heads,
                                            i < shape->heads ? FORMAT_KIND_K : FORMAT_KIND_V });
    if (shape->columns.token_bytes > 0)
        check_member(verify, chain, &(struct segment_key){ segment, 0, FORMAT_KIND_COLUMNS });
}

static void check_chain(struct verify *verify, struct slice key, struct slice value)
{
    struct chain_key at;
    uint64_t segment = 0;
    if (!format_read_chain(key.data, key.bytes, &at) ||
        !format_read_u64(value.data, value.bytes, &segment)) {
        verify_finding(verify, "chains: a malformed entry, key of %zu bytes", key.bytes);
        return;
    }
    bool same = verify->chain.context == at.context && verify->chain.layer == at.layer;
    uint32_t expected = same ? verify->chain.sequence + 1 : 0;
    if (at.sequence != expected && !verify->gap)
        verify_finding(verify,
                       "context %" PRIu64 " layer %" PRIu32 ": chain entry %" PRIu32
                       " where %" PRIu32 " belongs",
                       at.context, at.layer, at.sequence, expected);
    struct slice record;
    if (!same && !verify_record(verify, at.context, &record))
        verify_finding(verify, "chains: context %" PRIu64 " does not exist", at.context);
    verify->chain = at;
    verify->gap = false;
    unsigned char id[FORMAT_KEY_BYTES_MAX];
    struct slice ref;
    if (!store_get(verify->txn, STORE_REFS, (struct slice){ id, format_key_id(segment, id) }, &ref))
        verify_finding(verify,
                       "context %" PRIu64 " layer %" PRIu32 " entry %" PRIu32 ": segment %" PRIu64
                       " has no count",
                       at.context, at.layer, at.sequence, segment);
    check_members(verify, &at, segment);
}

/* What the checksum cannot know: that the payload was sound when it was written. */
static void check_planes(struct verify *verify, struct slice value, size_t head_dim,
                         const char *what)
{
    struct planes_layout layout;
    struct planes planes;
    struct error why = { 0 };
    planes_layout_init(head_dim, &layout);
    const unsigned char *payload = (const unsigned char *)value.data + FORMAT_HEADER_BYTES;
    if (planes_open(&layout, payload, NULL, &planes, &why) < 0)
        verify_finding(verify, "%s: %s", what, why.text);
}

static void check_segment(struct verify *verify, struct slice key, struct slice value)
{
    struct segment_key at;
    struct value_header header;
    char what[80];
    if (!format_read_segment(key.data, key.bytes, &at)) {
        verify_finding(verify, "segments: a key of %zu bytes", key.bytes);
        return;
    }
    describe_segment(&at, what, sizeof what);
    if (verify_value(verify, value, what, &header)) {
        if (header.kind != at.kind)
            verify_finding(verify, "%s: the header says kind %u", what, header.kind);
        else if (header.kind == FORMAT_KIND_HI)
            check_planes(verify, value, header.head_dim, what);
    }
    unsigned char id[FORMAT_KEY_BYTES_MAX];
    struct slice ref;
    if (!store_get(verify->txn, STORE_REFS, (struct slice){ id, format_key_id(at.segment, id) },
                   &ref))
        verify_finding(verify, "%s: nothing holds it", what);
}

/* Count chain entries that lead to ids first … first + HOLDER_IDS - 1. */
static bool count_holders(struct verify *verify, uint64_t first)
{
    verify->holders = arena_calloc(verify->arena, HOLDER_IDS, sizeof *verify->holders);
    verify->holders_first = first;
    if (verify->holders == NULL) {
        store_fail(verify->txn, ENOMEM);
        return false;
    }
    struct store_cursor cursor;
    uint64_t segment = 0;
    bool found = store_seek(verify->txn, STORE_CHAINS, (struct slice){ NULL, 0 }, &cursor);
    for (; found; found = store_next(&cursor)) {
        if (!format_read_u64(cursor.value.data, cursor.value.bytes, &segment)) continue;
        if (segment >= first && segment - first < HOLDER_IDS) verify->holders[segment - first]++;
    }
    store_cursor_close(&cursor);
    return true;
}

static uint64_t value_bytes_of(struct verify *verify, uint64_t segment)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    size_t key_bytes = format_key_segment(segment, 0, (enum format_kind)0, key);
    struct store_cursor cursor;
    struct segment_key at;
    uint64_t bytes = 0;
    bool found = store_seek(verify->txn, STORE_SEGMENTS, (struct slice){ key, key_bytes }, &cursor);
    for (; found && format_read_segment(cursor.key.data, cursor.key.bytes, &at) &&
           at.segment == segment;
         found = store_next(&cursor)) {
        bytes += cursor.value.bytes;
    }
    store_cursor_close(&cursor);
    return bytes;
}

static void check_ref(struct verify *verify, struct slice key, struct slice value)
{
    uint64_t segment = 0;
    struct segment_ref ref;
    if (!format_read_id(key.data, key.bytes, &segment) ||
        !format_read_ref(value.data, value.bytes, &ref)) {
        verify_finding(verify, "refs: a malformed entry");
        return;
    }
    if (store_damage(verify->catalog->store)->total > 0) return; /* they cannot be counted */
    bool counted = verify->holders != NULL && segment >= verify->holders_first &&
                   segment - verify->holders_first < HOLDER_IDS;
    if (!counted && !count_holders(verify, segment)) return;
    uint32_t holders = verify->holders[segment - verify->holders_first];
    if (holders != ref.count)
        verify_finding(verify,
                       "segment %" PRIu64 ": its count is %" PRIu32 ", %" PRIu32
                       " chain entries hold it",
                       segment, ref.count, holders);
    uint64_t bytes = value_bytes_of(verify, segment);
    if (bytes != ref.bytes)
        verify_finding(verify,
                       "segment %" PRIu64 ": its count says %" PRIu64
                       " bytes, its values have %" PRIu64,
                       segment, ref.bytes, bytes);
}

static void check_tail(struct verify *verify, struct slice key, struct slice value)
{
    struct tail_key at;
    struct value_header header;
    char what[96];
    if (!format_read_tail(key.data, key.bytes, &at)) {
        verify_finding(verify, "tails: a key of %zu bytes", key.bytes);
        return;
    }
    snprintf(what, sizeof what, "context %" PRIu64 " layer %" PRIu32 " tail at %" PRIu64,
             at.context, at.layer, at.position);
    if (!verify_value(verify, value, what, &header)) return;
    if (header.kind != FORMAT_KIND_TAIL || header.position != at.position)
        verify_finding(verify, "%s: the header says kind %u at %" PRIu64, what, header.kind,
                       header.position);
    const struct block_shape *shape = shape_of(verify, at.context);
    if (shape != NULL &&
        (header.heads != shape->heads || header.head_dim != shape->head_dim ||
         header.dtype != shape->dtype || header.model_hash != shape->model_hash ||
         format_columns_bytes(&header) != shape->columns.token_bytes))
        verify_finding(verify, "%s: it holds something else than the context keeps of a token",
                       what);
    bool same = verify->tail_known && verify->tail.context == at.context &&
                verify->tail.layer == at.layer;
    if (!same) {
        uint64_t segments = 0;
        struct slice record;
        chain_tokens(verify->txn, at.context, at.layer, &segments);
        /* A step that starts in the middle of a tail has no record before it to compare with. */
        bool known = verify->tail_known || at.position % FORMAT_SEGMENT_TOKENS == 0;
        if (known && at.position != segments * FORMAT_SEGMENT_TOKENS)
            verify_finding(verify, "%s: the chain ends at %" PRIu64, what,
                           segments * FORMAT_SEGMENT_TOKENS);
        if (!verify_record(verify, at.context, &record))
            verify_finding(verify, "%s: the context does not exist", what);
    } else if (at.position != verify->tail.position) {
        verify_finding(verify, "%s: the record before it ends at %" PRIu64, what,
                       verify->tail.position);
    }
    verify->tail = at;
    verify->tail.position = at.position + header.tokens;
    verify->tail_known = true;
}

static void check_index(struct verify *verify, struct slice key, struct slice value)
{
    struct layer_key at;
    struct value_header header;
    struct slice record;
    char what[96];
    if (!format_read_layer(key.data, key.bytes, &at)) {
        verify_finding(verify, "indexes: a key of %zu bytes", key.bytes);
        return;
    }
    snprintf(what, sizeof what, "index of context %" PRIu64 " layer %" PRIu32, at.context,
             at.layer);
    if (!verify_record(verify, at.context, &record))
        verify_finding(verify, "%s: the context does not exist", what);
    if (!verify_value(verify, value, what, &header)) return;
    if (header.kind != FORMAT_KIND_INDEX)
        verify_finding(verify, "%s: the header says kind %u", what, header.kind);
    uint64_t segments = 0, tokens = chain_tokens(verify->txn, at.context, at.layer, &segments);
    if (header.position > tokens)
        verify_finding(verify, "%s: it covers %" PRIu64 " tokens, %" PRIu64 " are stored", what,
                       header.position, tokens);
}

static void check_meta(struct verify *verify, struct slice key, struct slice value)
{
    uint64_t number = 0;
    if (!format_read_u64(value.data, value.bytes, &number))
        verify_finding(verify, "meta: \"%.*s\" has %zu bytes", (int)key.bytes,
                       (const char *)key.data, value.bytes);
}

static void check_record(struct verify *verify)
{
    struct slice key = verify->walk.cursor.key, value = verify->walk.cursor.value;
    verify->step.values++;
    switch (verify->walk.table) {
    case STORE_META: check_meta(verify, key, value); break;
    case STORE_NAMES: check_name(verify, key, value); break;
    case STORE_CONTEXTS: check_context(verify, key, value); break;
    case STORE_CHAINS: check_chain(verify, key, value); break;
    case STORE_SEGMENTS: check_segment(verify, key, value); break;
    case STORE_REFS: check_ref(verify, key, value); break;
    case STORE_TAILS: check_tail(verify, key, value); break;
    case STORE_INDEXES: check_index(verify, key, value); break;
    case STORE_NOTES: verify_note(verify, key, value); break;
    case STORE_PARAMS: verify_param(verify, key, value); break;
    case STORE_SETS: verify_set(verify, key, value); break;
    case STORE_TABLES: assert(false);
    }
}

static bool enough(const struct verify *verify, uint64_t start_ns)
{
    return verify->step.bytes >= STEP_BYTES || verify->step.finding_count == FINDINGS_MAX ||
           verify->step.unchecked_count == FINDINGS_MAX ||
           clock_monotonic_ns() - start_ns >= STEP_NS;
}

static uint64_t table_bytes(struct store_txn *txn, enum store_table table)
{
    struct store_cursor cursor;
    uint64_t sum = 0;
    bool found = store_seek(txn, table, (struct slice){ NULL, 0 }, &cursor);
    for (; found; found = store_next(&cursor)) sum += cursor.value.bytes;
    store_cursor_close(&cursor);
    return sum;
}

/* After the last record: the numbers in meta. */
static void check_numbers(struct verify *verify)
{
    uint64_t stored = 0, sum = 0, next = 0, id = 0;
    struct store_cursor cursor;
    struct segment_ref ref;
    bool found = store_seek(verify->txn, STORE_REFS, (struct slice){ NULL, 0 }, &cursor);
    for (; found; found = store_next(&cursor)) {
        if (format_read_ref(cursor.value.data, cursor.value.bytes, &ref)) sum += ref.bytes;
        if (!format_read_id(cursor.key.data, cursor.key.bytes, &id)) id = 0;
    }
    store_cursor_close(&cursor);
    if (store_get_number(verify->txn, "next_segment", &next) && id >= next)
        verify_finding(verify, "meta: next_segment is %" PRIu64 ", segment %" PRIu64 " exists",
                       next, id);
    static const enum store_table others[] = { STORE_TAILS, STORE_INDEXES, STORE_NOTES,
                                               STORE_PARAMS, STORE_SETS };
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        sum += table_bytes(verify->txn, others[i]);
    if (!store_get_number(verify->txn, "stored_bytes", &stored) || stored != sum)
        verify_finding(verify,
                       "meta: stored_bytes is %" PRIu64 ", all values that count have %" PRIu64,
                       stored, sum);
}

static uint64_t estimate_total(struct store_txn *txn)
{
    uint64_t total = 0;
    for (int i = 0; i < STORE_TABLES; i++) total += store_count(txn, (enum store_table)i);
    return total;
}

/* What the step before knew about the record that the cursor names. */
static void resume(struct verify *verify)
{
    const struct walk *walk = &verify->walk;
    verify->tail_known = walk->table != STORE_TAILS || walk->key_bytes == 0;
    if (walk->table == STORE_CHAINS &&
        !format_read_chain(walk->key, walk->key_bytes, &verify->chain))
        verify->chain = (struct chain_key){ 0 };
}

int catalog_verify(struct catalog *catalog, const struct walk_args *args, struct arena *arena,
                   struct verify_step *ret_step, struct error *err)
{
    CLEANUP(free_ptr) struct record *record = malloc(sizeof *record);
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    struct verify verify = { .catalog = catalog, .txn = &txn, .arena = arena, .record = record };
    verify.step.findings = arena_calloc(arena, FINDINGS_MAX, sizeof *verify.step.findings);
    verify.step.unchecked = arena_calloc(arena, FINDINGS_MAX, sizeof *verify.step.unchecked);
    if (record == NULL || verify.step.findings == NULL || verify.step.unchecked == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory to verify");
    int rc = walk_begin(args, &verify.walk, err);
    if (rc == 0) rc = store_begin(catalog->store, false, &txn, err);
    if (rc < 0) return rc;
    resume(&verify);
    verify.step.values_total = estimate_total(&txn);
    uint64_t start_ns = clock_monotonic_ns();
    bool more = true, whole = store_damage(catalog->store)->total == 0;
    if (args->cursor_bytes == 0 && args->context_id == 0) verify_free_pages(&verify);
    while (rc == 0 && more && !enough(&verify, start_ns)) {
        more = walk_next(&verify.walk, &txn);
        if (more) check_record(&verify);
        if (txn.rc != 0) {
            rc = verify_pass(&verify, more, err);
            more = true;
        }
    }
    if (rc == 0 && !more && whole && args->context_id == 0) check_numbers(&verify);
    walk_end(&verify.walk);
    if (rc == 0) rc = store_failed(&txn, err);
    if (rc == 0)
        rc = walk_encode(&verify.walk, arena, &verify.step.cursor, &verify.step.cursor_bytes, err);
    if (rc < 0) return rc;
    *ret_step = verify.step;
    return 0;
}
