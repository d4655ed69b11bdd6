/* SPDX-License-Identifier: Apache-2.0 */
/* format.c — encoding by hand, field by field: a struct is never copied to disk, so neither
 * padding nor the compiler's layout nor the byte order of the machine can leak into a file.
 *
 * The checksum covers the header with its own field zero. When sealing, header and payload stand
 * together and are hashed in one call; when verifying, the value lies in a read-only map, so the
 * header is copied, its checksum cleared, and the two parts are streamed. Both give the same
 * number.
 */
#include "memory/format.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#define XXH_INLINE_ALL /* the state on the stack needs its definition */
#include <xxhash.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/tensor.h"
#include "index/planes.h"
#include "proto/limits.h"

enum { CHECKSUM_OFFSET = 40 };

uint64_t format_hash(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}

/* A value says the version that brought its kind, so that a newer directory holds the same bytes
 * for what did not change. */
static uint8_t version_of(uint8_t kind)
{
    return kind <= FORMAT_KIND_CONTEXT ? 1 : kind <= FORMAT_KIND_INDEX ? 2 : 3;
}

static void put_header(const struct value_header *header, uint64_t checksum, unsigned char *value)
{
    struct bytes_writer out = bytes_writer(value, FORMAT_HEADER_BYTES);
    bytes_put_le32(&out, FORMAT_MAGIC);
    bytes_put_u8(&out, version_of(header->kind));
    bytes_put_u8(&out, header->kind);
    bytes_put_u8(&out, header->dtype);
    bytes_put_u8(&out, header->flags);
    bytes_put_le32(&out, header->tokens);
    bytes_put_le16(&out, header->head_dim);
    bytes_put_le16(&out, header->heads);
    bytes_put_le64(&out, header->payload_bytes);
    bytes_put_le64(&out, header->position);
    bytes_put_le64(&out, header->model_hash);
    bytes_put_le64(&out, checksum);
    assert(!out.bad && out.offset == FORMAT_HEADER_BYTES);
}

void format_seal(const struct value_header *header, unsigned char *value)
{
    assert(header->kind >= FORMAT_KIND_K && header->kind <= FORMAT_KINDS);
    put_header(header, 0, value);
    uint64_t sum = XXH3_64bits(value, FORMAT_HEADER_BYTES + (size_t)header->payload_bytes);
    put_header(header, sum, value);
}

static uint64_t planes_bytes(const struct value_header *header)
{
    struct planes_layout layout;
    planes_layout_init(header->head_dim, &layout);
    return header->kind == FORMAT_KIND_HI ? layout.hi_bytes : layout.lo_bytes;
}

static uint64_t row_bytes(const struct value_header *header)
{
    return (uint64_t)header->heads * header->head_dim * dtype_bytes(header->dtype);
}

/* The one thing that a header does not say the length of: what is left belongs to the columns. */
uint64_t format_columns_bytes(const struct value_header *header)
{
    uint64_t tokens = header->tokens, known = 0;
    if (header->kind == FORMAT_KIND_TAIL && (header->flags & FORMAT_FLAG_COLUMNS) != 0)
        known = tokens * (2 * row_bytes(header) +
                          ((header->flags & FORMAT_FLAG_IDS) != 0 ? sizeof(uint32_t) : 0));
    else if (header->kind != FORMAT_KIND_COLUMNS)
        return 0;
    return header->payload_bytes > known ? (header->payload_bytes - known) / tokens : 0;
}

/* Bytes that the payload of such a header has, or UINT64_MAX for a context record or an index
 * (any). */
static uint64_t expected_payload(const struct value_header *header)
{
    uint64_t tokens = header->tokens, row = row_bytes(header);
    switch (header->kind) {
    case FORMAT_KIND_K:
    case FORMAT_KIND_V: return tokens * row;
    case FORMAT_KIND_IDS: return tokens * 4;
    case FORMAT_KIND_TAIL:
        return tokens * (2 * row + ((header->flags & FORMAT_FLAG_IDS) != 0 ? 4 : 0) +
                         format_columns_bytes(header));
    case FORMAT_KIND_COLUMNS: return tokens * format_columns_bytes(header);
    case FORMAT_KIND_HI:
    case FORMAT_KIND_LO: return planes_bytes(header);
    case FORMAT_KIND_QUERIES: return tokens * (2 + row);
    case FORMAT_KIND_MASS: return tokens * header->heads * sizeof(float);
    default: return UINT64_MAX;
    }
}

/* Does the header carry the dtype that its kind has? */
static bool is_typed(const struct value_header *header)
{
    switch (header->kind) {
    case FORMAT_KIND_IDS: return header->dtype == DTYPE_U32;
    case FORMAT_KIND_HI:
    case FORMAT_KIND_LO:
        return header->dtype == 0 && header->tokens == PLANES_TOKENS && header->head_dim > 0 &&
               header->head_dim <= LIMIT_HEAD_DIM && header->head_dim % 8 == 0;
    case FORMAT_KIND_QUERIES: return header->dtype == DTYPE_FP16;
    case FORMAT_KIND_COLUMNS: return header->dtype == 0;
    case FORMAT_KIND_MASS:
        return header->dtype == DTYPE_FP32 && header->tokens == FORMAT_MASS_TOKENS;
    default: return dtype_is_float(header->dtype);
    }
}

/* Their lengths are looked at by who reads them. */
static bool has_no_rows(uint8_t kind)
{
    return kind == FORMAT_KIND_CONTEXT || kind == FORMAT_KIND_INDEX ||
           kind == FORMAT_KIND_SELECTION || kind == FORMAT_KIND_PARAM || kind == FORMAT_KIND_SET ||
           kind == FORMAT_KIND_RING;
}

static int check_header(const struct value_header *header, size_t value_bytes, struct error *err)
{
    if (header->payload_bytes != value_bytes - FORMAT_HEADER_BYTES)
        return error_set(err, MEMD_ECORRUPT, "value of %zu bytes says its payload has %" PRIu64,
                         value_bytes, header->payload_bytes);
    if (has_no_rows(header->kind)) return 0;
    if (!is_typed(header) || header->tokens == 0 || header->tokens > FORMAT_SEGMENT_TOKENS)
        return error_set(err, MEMD_ECORRUPT, "value of kind %u has dtype %u and %" PRIu32 " tokens",
                         header->kind, header->dtype, header->tokens);
    unsigned known = header->kind == FORMAT_KIND_TAIL ? FORMAT_FLAG_IDS | FORMAT_FLAG_COLUMNS : 0;
    if ((header->flags & ~known) != 0)
        return error_set(err, MEMD_ECORRUPT, "value of kind %u has flags %u", header->kind,
                         header->flags);
    bool has_columns = header->kind == FORMAT_KIND_COLUMNS ||
                       (header->flags & FORMAT_FLAG_COLUMNS) != 0;
    if (header->payload_bytes != expected_payload(header) ||
        (has_columns && format_columns_bytes(header) == 0))
        return error_set(err, MEMD_ECORRUPT,
                         "value of kind %u has %" PRIu64 " bytes for %" PRIu32 " tokens",
                         header->kind, header->payload_bytes, header->tokens);
    return 0;
}

int format_decode(const void *value, size_t value_bytes, struct value_header *ret_header,
                  struct error *err)
{
    if (value_bytes < FORMAT_HEADER_BYTES)
        return error_set(err, MEMD_ECORRUPT, "value of %zu bytes has no header", value_bytes);
    struct bytes_reader in = bytes_reader(value, FORMAT_HEADER_BYTES);
    uint32_t magic = bytes_get_le32(&in);
    uint8_t version = bytes_get_u8(&in);
    if (magic != FORMAT_MAGIC)
        return error_set(err, MEMD_ECORRUPT,
                         "value has magic 0x%08" PRIx32 " instead of 0x%08" PRIx32, magic,
                         FORMAT_MAGIC);
    if (version == 0 || version > FORMAT_VERSION)
        return error_set(err, MEMD_EVERSION,
                         "value has format version %u, this build reads 1 to %d", version,
                         FORMAT_VERSION);
    struct value_header header = { 0 };
    header.kind = bytes_get_u8(&in);
    if (header.kind < FORMAT_KIND_K || header.kind > FORMAT_KINDS ||
        version != version_of(header.kind))
        return error_set(err, MEMD_ECORRUPT, "value of unknown kind %u in version %u", header.kind,
                         version);
    header.dtype = bytes_get_u8(&in);
    header.flags = bytes_get_u8(&in);
    header.tokens = bytes_get_le32(&in);
    header.head_dim = bytes_get_le16(&in);
    header.heads = bytes_get_le16(&in);
    header.payload_bytes = bytes_get_le64(&in);
    header.position = bytes_get_le64(&in);
    header.model_hash = bytes_get_le64(&in);
    header.checksum = bytes_get_le64(&in);
    assert(bytes_done(&in));
    int rc = check_header(&header, value_bytes, err);
    if (rc < 0) return rc;
    *ret_header = header;
    return 0;
}

int format_verify(const void *value, size_t value_bytes, struct error *err)
{
    assert(value_bytes >= FORMAT_HEADER_BYTES);
    const unsigned char *bytes = value;
    unsigned char header[FORMAT_HEADER_BYTES];
    memcpy(header, bytes, sizeof header);
    struct bytes_reader in = bytes_reader(header + CHECKSUM_OFFSET, 8);
    uint64_t stored = bytes_get_le64(&in);
    memset(header + CHECKSUM_OFFSET, 0, 8);
    XXH3_state_t state;
    XXH3_64bits_reset(&state);
    XXH3_64bits_update(&state, header, sizeof header);
    XXH3_64bits_update(&state, bytes + FORMAT_HEADER_BYTES, value_bytes - FORMAT_HEADER_BYTES);
    uint64_t found = XXH3_64bits_digest(&state);
    if (found == stored) return 0;
    return error_set(err, MEMD_ECORRUPT, "checksum is %016" PRIx64 ", header says %016" PRIx64,
                     found, stored);
}

size_t format_key_id(uint64_t id, unsigned char *ret_key)
{
    struct bytes_writer out = bytes_writer(ret_key, FORMAT_KEY_BYTES_MAX);
    bytes_put_be64(&out, id);
    return out.offset;
}

size_t format_key_chain(uint64_t context, uint32_t layer, uint32_t sequence, unsigned char *ret_key)
{
    struct bytes_writer out = bytes_writer(ret_key, FORMAT_KEY_BYTES_MAX);
    bytes_put_be64(&out, context);
    bytes_put_be16(&out, (uint16_t)layer);
    bytes_put_be32(&out, sequence);
    return out.offset;
}

size_t format_key_segment(uint64_t segment, uint32_t head, enum format_kind kind,
                          unsigned char *ret_key)
{
    struct bytes_writer out = bytes_writer(ret_key, FORMAT_KEY_BYTES_MAX);
    bytes_put_be64(&out, segment);
    bytes_put_be16(&out, (uint16_t)head);
    bytes_put_u8(&out, (uint8_t)kind);
    return out.offset;
}

size_t format_key_tail(uint64_t context, uint32_t layer, uint64_t position, unsigned char *ret_key)
{
    struct bytes_writer out = bytes_writer(ret_key, FORMAT_KEY_BYTES_MAX);
    bytes_put_be64(&out, context);
    bytes_put_be16(&out, (uint16_t)layer);
    bytes_put_be64(&out, position);
    return out.offset;
}

size_t format_key_layer(uint64_t context, uint32_t layer, unsigned char *ret_key)
{
    struct bytes_writer out = bytes_writer(ret_key, FORMAT_KEY_BYTES_MAX);
    bytes_put_be64(&out, context);
    bytes_put_be16(&out, (uint16_t)layer);
    return out.offset;
}

size_t format_key_note(uint64_t context, uint32_t layer, enum note_kind kind, uint32_t sequence,
                       unsigned char *ret_key)
{
    struct bytes_writer out = bytes_writer(ret_key, FORMAT_KEY_BYTES_MAX);
    bytes_put_be64(&out, context);
    bytes_put_be16(&out, (uint16_t)layer);
    bytes_put_u8(&out, (uint8_t)kind);
    bytes_put_be32(&out, sequence);
    return out.offset;
}

size_t format_key_param(uint64_t owner, uint32_t layer, const char *name, unsigned char *ret_key)
{
    struct bytes_writer out = bytes_writer(ret_key, FORMAT_KEY_BYTES_MAX);
    bytes_put_be64(&out, owner);
    bytes_put_be16(&out, (uint16_t)layer);
    bytes_put(&out, name, strlen(name));
    assert(!out.bad);
    return out.offset;
}

bool format_read_id(const void *key, size_t bytes, uint64_t *ret_id)
{
    struct bytes_reader in = bytes_reader(key, bytes);
    uint64_t id = bytes_get_be64(&in);
    if (!bytes_done(&in)) return false;
    *ret_id = id;
    return true;
}

bool format_read_chain(const void *key, size_t bytes, struct chain_key *ret_key)
{
    struct bytes_reader in = bytes_reader(key, bytes);
    struct chain_key chain = { .context = bytes_get_be64(&in) };
    chain.layer = bytes_get_be16(&in);
    chain.sequence = bytes_get_be32(&in);
    if (!bytes_done(&in)) return false;
    *ret_key = chain;
    return true;
}

bool format_read_segment(const void *key, size_t bytes, struct segment_key *ret_key)
{
    struct bytes_reader in = bytes_reader(key, bytes);
    struct segment_key segment = { .segment = bytes_get_be64(&in) };
    segment.head = bytes_get_be16(&in);
    segment.kind = bytes_get_u8(&in);
    if (!bytes_done(&in)) return false;
    *ret_key = segment;
    return true;
}

bool format_read_tail(const void *key, size_t bytes, struct tail_key *ret_key)
{
    struct bytes_reader in = bytes_reader(key, bytes);
    struct tail_key tail = { .context = bytes_get_be64(&in) };
    tail.layer = bytes_get_be16(&in);
    tail.position = bytes_get_be64(&in);
    if (!bytes_done(&in)) return false;
    *ret_key = tail;
    return true;
}

bool format_read_layer(const void *key, size_t bytes, struct layer_key *ret_key)
{
    struct bytes_reader in = bytes_reader(key, bytes);
    struct layer_key layer = { .context = bytes_get_be64(&in) };
    layer.layer = bytes_get_be16(&in);
    if (!bytes_done(&in)) return false;
    *ret_key = layer;
    return true;
}

bool format_read_note(const void *key, size_t bytes, struct note_key *ret_key)
{
    struct bytes_reader in = bytes_reader(key, bytes);
    struct note_key note = { .context = bytes_get_be64(&in) };
    note.layer = bytes_get_be16(&in);
    note.kind = bytes_get_u8(&in);
    note.sequence = bytes_get_be32(&in);
    if (!bytes_done(&in)) return false;
    *ret_key = note;
    return true;
}

bool format_read_param(const void *key, size_t bytes, struct param_key *ret_key)
{
    struct bytes_reader in = bytes_reader(key, bytes);
    struct param_key param = { .owner = bytes_get_be64(&in) };
    param.layer = bytes_get_be16(&in);
    if (in.bad || bytes == in.offset || bytes - in.offset >= sizeof param.name) return false;
    memcpy(param.name, (const unsigned char *)key + in.offset, bytes - in.offset);
    *ret_key = param;
    return true;
}

void format_put_u64(uint64_t value, unsigned char ret_bytes[8])
{
    struct bytes_writer out = bytes_writer(ret_bytes, 8);
    bytes_put_le64(&out, value);
}

bool format_read_u64(const void *data, size_t bytes, uint64_t *ret_value)
{
    struct bytes_reader in = bytes_reader(data, bytes);
    uint64_t value = bytes_get_le64(&in);
    if (!bytes_done(&in)) return false;
    *ret_value = value;
    return true;
}

void format_put_ref(const struct segment_ref *ref, unsigned char ret_bytes[FORMAT_REF_BYTES])
{
    struct bytes_writer out = bytes_writer(ret_bytes, FORMAT_REF_BYTES);
    bytes_put_le32(&out, ref->count);
    bytes_put_le32(&out, 0);
    bytes_put_le64(&out, ref->bytes);
}

bool format_read_ref(const void *data, size_t bytes, struct segment_ref *ret_ref)
{
    struct bytes_reader in = bytes_reader(data, bytes);
    struct segment_ref ref = { .count = bytes_get_le32(&in) };
    uint32_t zero = bytes_get_le32(&in);
    ref.bytes = bytes_get_le64(&in);
    if (!bytes_done(&in) || zero != 0) return false;
    *ret_ref = ref;
    return true;
}
