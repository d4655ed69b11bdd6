/* SPDX-License-Identifier: Apache-2.0 */
/* format.h — every byte that memd writes to disk: constants, key layouts, the value header. See
 * docs/FORMAT.md.
 *
 * Integers inside values are little-endian, integers inside keys big-endian, so that LMDB's
 * order of keys is the order of positions. Every value of the tables contexts, segments and
 * tails begins with a header of 48 bytes whose checksum covers header and payload. 48 is not an
 * accident: LMDB puts a large value 16 bytes behind the start of a page, so the payload stands
 * at a multiple of 64.
 *
 * Threads  pure
 * Errors   MEMD_ECORRUPT header or checksum, MEMD_EVERSION newer format (the text says what was
 *          found)
 * Tests    tests/unit/test_format.c, tests/fuzz/fuzz_record.c, tests/golden/read_format.py
 */
#ifndef MEMD_MEMORY_FORMAT_H
#define MEMD_MEMORY_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

enum {
    FORMAT_VERSION = 3, /* of the whole directory, in the table meta; 1 and 2 are read too */
    FORMAT_HEADER_BYTES = 48,
    FORMAT_SEGMENT_TOKENS = 1024,
    FORMAT_REF_BYTES = 16,
    FORMAT_KEY_BYTES_MAX = 48, /* all keys but names */
    FORMAT_MASS_TOKENS = 128,
};
#define FORMAT_MAGIC UINT32_C(0x564D454D) /* "MEMV" */
#define FORMAT_BYTE_ORDER UINT64_C(0x0102030405060708)

enum format_kind {
    FORMAT_KIND_K = 1, /* one head of a segment: (1024, D) */
    FORMAT_KIND_V = 2,
    FORMAT_KIND_IDS = 3,     /* token ids of a segment: (1024) u32 */
    FORMAT_KIND_TAIL = 4,    /* K (n, G, D), V (n, G, D), with FORMAT_FLAG_IDS ids (n) u32, with
                              * FORMAT_FLAG_COLUMNS records (n, token_bytes) of index/columns.h */
    FORMAT_KIND_CONTEXT = 5, /* record.h */
    FORMAT_KIND_HI = 6,      /* derived from one head of a segment: index/planes.h */
    FORMAT_KIND_LO = 7,
    FORMAT_KIND_QUERIES = 8, /* some queries of a segment: rows (m) u16, then q (m, H, D) fp16 */
    FORMAT_KIND_INDEX = 9,   /* of a layer: what layer_index_type.save or fold_type.save wrote */
    FORMAT_KIND_COLUMNS = 10, /* of a segment: records (1024, token_bytes) of index/columns.h */
    FORMAT_KIND_MASS = 11,   /* attention mass that tokens have received: (128, H) f32 */
    FORMAT_KIND_SELECTION = 12, /* what a compression kept: index/selection.h */
    FORMAT_KIND_PARAM = 13,  /* an uploaded tensor: uploads.h */
    FORMAT_KIND_SET = 14,    /* a named set of such tensors: uploads.h */
    FORMAT_KIND_RING = 15,   /* which states a ring holds: index/lru.h */
};
enum { FORMAT_KINDS = FORMAT_KIND_RING };

/* What is noted of a layer beside its rows; part of the key. */
enum note_kind {
    NOTE_MASS = 1,      /* one per 128 tokens, numbered */
    NOTE_SELECTION = 2, /* number 0 */
    NOTE_RING = 3,      /* number 0 */
};

enum { FORMAT_FLAG_IDS = 1, FORMAT_FLAG_COLUMNS = 2 };

struct value_header {
    uint8_t kind;  /* enum format_kind */
    uint8_t dtype; /* enum dtype of the payload; U32 for ids, 0 for what has no rows of one type */
    uint8_t flags;
    uint32_t tokens; /* kept queries: how many of them */
    uint16_t head_dim;
    uint16_t heads; /* inside this value: 1 in K, V and planes, G in a tail, H in kept queries and
                     * mass, 0 otherwise */
    uint64_t payload_bytes;
    uint64_t position; /* of the first token; of a layer's index: behind the last one it covers */
    uint64_t model_hash;
    uint64_t checksum; /* filled by format_seal, set by format_decode */
};

/* Write the header of a payload that stands directly behind it: `value` is FORMAT_HEADER_BYTES +
 * header->payload_bytes long. The checksum is computed here. */
void format_seal(const struct value_header *header, unsigned char *value);

/* Decode and check the header (magic, version, kind, lengths that agree with `value_bytes`); the
 * payload is not looked at. */
int format_decode(const void *value, size_t value_bytes, struct value_header *ret_header,
                  struct error *err);

/* Bytes of the columns of each token in a value of kind TAIL or COLUMNS; 0 = it has none. */
uint64_t format_columns_bytes(const struct value_header *header);

/* Does the checksum fit? `value` has passed format_decode. */
int format_verify(const void *value, size_t value_bytes, struct error *err);

/* XXH3-64, seed 0. */
uint64_t format_hash(const void *data, size_t bytes);

/* Keys. Each writes to `ret_key` and returns the length. */
size_t format_key_id(uint64_t id,
                     unsigned char *ret_key); /* contexts, refs, and names of numbers */
size_t format_key_chain(uint64_t context, uint32_t layer, uint32_t sequence,
                        unsigned char *ret_key);
size_t format_key_segment(uint64_t segment, uint32_t head, enum format_kind kind,
                          unsigned char *ret_key);
size_t format_key_tail(uint64_t context, uint32_t layer, uint64_t position, unsigned char *ret_key);
size_t format_key_layer(uint64_t context, uint32_t layer, unsigned char *ret_key); /* indexes */
size_t format_key_note(uint64_t context, uint32_t layer, enum note_kind kind, uint32_t sequence,
                       unsigned char *ret_key);
/* `name` has 1 … 31 bytes. */
size_t format_key_param(uint64_t owner, uint32_t layer, const char *name, unsigned char *ret_key);

struct chain_key {
    uint64_t context;
    uint32_t layer, sequence;
};
struct segment_key {
    uint64_t segment;
    uint32_t head;
    uint8_t kind;
};
struct tail_key {
    uint64_t context;
    uint32_t layer;
    uint64_t position;
};
struct layer_key {
    uint64_t context;
    uint32_t layer;
};
struct note_key {
    uint64_t context;
    uint32_t layer;
    uint8_t kind;
    uint32_t sequence;
};
struct param_key {
    uint64_t owner; /* a context, or a set */
    uint32_t layer;
    char name[32];
};
/* False when the length is wrong. */
bool format_read_id(const void *key, size_t bytes, uint64_t *ret_id);
bool format_read_chain(const void *key, size_t bytes, struct chain_key *ret_key);
bool format_read_segment(const void *key, size_t bytes, struct segment_key *ret_key);
bool format_read_tail(const void *key, size_t bytes, struct tail_key *ret_key);
bool format_read_layer(const void *key, size_t bytes, struct layer_key *ret_key);
bool format_read_note(const void *key, size_t bytes, struct note_key *ret_key);
bool format_read_param(const void *key, size_t bytes, struct param_key *ret_key);

/* A u64 as value (chains, names, numbers of meta). */
void format_put_u64(uint64_t value, unsigned char ret_bytes[8]);
bool format_read_u64(const void *data, size_t bytes, uint64_t *ret_value);

/* The value of a ref: how many chains hold the segment, and its bytes (payloads and headers). */
struct segment_ref {
    uint32_t count;
    uint64_t bytes;
};
void format_put_ref(const struct segment_ref *ref, unsigned char ret_bytes[FORMAT_REF_BYTES]);
bool format_read_ref(const void *data, size_t bytes, struct segment_ref *ret_ref);

#endif
