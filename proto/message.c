/* SPDX-License-Identifier: Apache-2.0 */
/* message.c — protobuf-c with an arena behind it, and two checks that it does not make.
 *
 * protobuf-c frees what it allocated when a message turns out to be malformed; here free does
 * nothing, the arena forgets everything at once. What a message may cost is therefore the arena's
 * limit: a repeated field of 2-byte elements becomes about 100 bytes per element, which no other
 * bound would catch.
 *
 * Strings are checked on the wire, before unpacking, because a C string has lost its length: "a\0b"
 * would silently become another context's name. The walk follows the descriptors, so a new string
 * field is checked without anybody thinking of it. It is not a second parser: bytes that it cannot
 * walk are refused, bytes that it can are still judged by protobuf-c.
 *
 * Rejected: reading shapes straight out of the wire format without structs (fast, but every request
 * kind would need its own decoder; unpacking an attend takes about a microsecond).
 */
#include "proto/message.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/text.h"
#include "proto/limits.h"
#include "proto/method.h"

static_assert((int)MEMD__DTYPE__DTYPE_FP32 == DTYPE_FP32, "one numbering of element types");
static_assert((int)MEMD__DTYPE__DTYPE_FP16 == DTYPE_FP16, "one numbering of element types");
static_assert((int)MEMD__DTYPE__DTYPE_BF16 == DTYPE_BF16, "one numbering of element types");
static_assert((int)MEMD__DTYPE__DTYPE_U64 == DTYPE_U64, "one numbering of element types");
static_assert((int)MEMD__DTYPE__DTYPE_U32 == DTYPE_U32, "one numbering of element types");

/* ---- text ---- */

bool message_name_ok(const char *name)
{
    size_t bytes = strnlen(name, LIMIT_NAME_BYTES + 1u);
    const unsigned char *text = (const unsigned char *)name;
    if (bytes == 0 || bytes > LIMIT_NAME_BYTES || !text_ok(text, bytes)) return false;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] < 0x20 || text[i] == 0x7F) return false;
        /* U+0080 … U+009F are control characters too. */
        if (text[i] == 0xC2 && text[i + 1] < 0xA0) return false;
    }
    return true;
}

/* ---- the walk over the wire ---- */

struct wire {
    const unsigned char *at, *end;
};

static bool wire_varint(struct wire *wire, uint64_t *ret_value)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && wire->at < wire->end; shift += 7) {
        unsigned char byte = *wire->at++;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) {
            *ret_value = value;
            return true;
        }
    }
    return false;
}

static bool wire_skip(struct wire *wire, uint64_t bytes)
{
    if (bytes > (uint64_t)(wire->end - wire->at)) return false;
    wire->at += bytes;
    return true;
}

/* One field: what is not length-delimited is stepped over, *ret_bytes = 0. */
static bool wire_field(struct wire *wire, uint64_t *ret_number, const unsigned char **ret_data,
                       size_t *ret_bytes)
{
    uint64_t key = 0, value = 0;
    if (!wire_varint(wire, &key)) return false;
    *ret_number = key >> 3;
    *ret_data = NULL;
    *ret_bytes = 0;
    switch (key & 7) {
    case 0: return wire_varint(wire, &value);
    case 1: return wire_skip(wire, 8);
    case 5: return wire_skip(wire, 4);
    case 2:
        if (!wire_varint(wire, &value)) return false;
        *ret_data = wire->at;
        if (!wire_skip(wire, value)) return false;
        *ret_bytes = (size_t)value;
        return true;
    default: return false; /* groups: nobody has sent them since proto3 */
    }
}

/* Every string in the message and in the messages inside it. Recursion ends with the schema, which
 * has no message that contains itself. NOLINTNEXTLINE(misc-no-recursion) */
static int check_strings(const ProtobufCMessageDescriptor *descriptor, struct wire wire,
                         struct error *err)
{
    while (wire.at < wire.end) {
        uint64_t number = 0;
        const unsigned char *data = NULL;
        size_t bytes = 0;
        if (!wire_field(&wire, &number, &data, &bytes)) {
            return error_set(err, MEMD_EPROTO, "bytes that are no %s", descriptor->short_name);
        }
        if (data == NULL || number > INT32_MAX) continue;
        const ProtobufCFieldDescriptor *field = protobuf_c_message_descriptor_get_field(
            descriptor, (unsigned)number);
        if (field == NULL) continue;
        if (field->type == PROTOBUF_C_TYPE_STRING && !text_ok(data, bytes)) {
            return error_set(err, MEMD_EPROTO, "%s.%s is not UTF-8 text or holds a zero byte",
                             descriptor->short_name, field->name);
        }
        if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
            int rc = check_strings(field->descriptor, (struct wire){ data, data + bytes }, err);
            if (rc < 0) return rc;
        }
    }
    return 0;
}

/* ---- unpack and pack ---- */

struct memory {
    struct arena *arena;
    bool exhausted;
};

static void *memory_alloc(void *data, size_t bytes)
{
    struct memory *memory = data;
    void *block = arena_alloc(memory->arena, bytes);
    if (block == NULL) memory->exhausted = true;
    return block;
}

static void memory_free(void *data, void *block)
{
    (void)data;
    (void)block; /* the arena frees everything at once */
}

static ProtobufCMessage *unpack(const ProtobufCMessageDescriptor *descriptor, const void *data,
                                size_t bytes, struct arena *arena, struct error *err)
{
    if (bytes > LIMIT_FRAME_MESSAGE_BYTES) {
        error_set(err, MEMD_ELIMIT, "message of %zu bytes, at most %" PRIu32, bytes,
                  LIMIT_FRAME_MESSAGE_BYTES);
        return NULL;
    }
    static const unsigned char nothing[1];
    const unsigned char *start = bytes > 0 ? data : nothing; /* no arithmetic on NULL */
    if (check_strings(descriptor, (struct wire){ start, start + bytes }, err) < 0) return NULL;
    struct memory memory = { .arena = arena };
    ProtobufCAllocator allocator = { memory_alloc, memory_free, &memory };
    ProtobufCMessage *message = protobuf_c_message_unpack(descriptor, &allocator, bytes, start);
    if (message == NULL && memory.exhausted) {
        error_set(err, MEMD_ENOMEM, "%s of %zu bytes does not fit in the %zu bytes of its request",
                  descriptor->short_name, bytes, arena->limit_bytes);
    } else if (message == NULL) {
        error_set(err, MEMD_EPROTO, "bytes that are no %s", descriptor->short_name);
    }
    return message;
}

static const ProtobufCMessageDescriptor *request_descriptor(unsigned method)
{
    switch (method) {
#define X(NAME, number, snake, Message, role) \
    case METHOD_##NAME: return &memd__##snake##_request__descriptor;
        METHOD_MAP(X)
#undef X
    default: return NULL;
    }
}

static const ProtobufCMessageDescriptor *reply_descriptor(unsigned method)
{
    switch (method) {
#define X(NAME, number, snake, Message, role) \
    case METHOD_##NAME: return &memd__##snake##_reply__descriptor;
        METHOD_MAP(X)
#undef X
    default: return NULL;
    }
}

ProtobufCMessage *message_unpack_request(unsigned method, const void *data, size_t bytes,
                                         struct arena *arena, struct error *err)
{
    const ProtobufCMessageDescriptor *descriptor = request_descriptor(method);
    if (descriptor != NULL) return unpack(descriptor, data, bytes, arena, err);
    error_set(err, MEMD_EUNSUPPORTED, "no method %u", method);
    return NULL;
}

ProtobufCMessage *message_unpack_reply(unsigned method, const void *data, size_t bytes,
                                       struct arena *arena, struct error *err)
{
    const ProtobufCMessageDescriptor *descriptor = reply_descriptor(method);
    if (descriptor != NULL) return unpack(descriptor, data, bytes, arena, err);
    error_set(err, MEMD_EUNSUPPORTED, "no method %u", method);
    return NULL;
}

Memd__ErrorReply *message_unpack_error(const void *data, size_t bytes, struct arena *arena)
{
    return (Memd__ErrorReply *)unpack(&memd__error_reply__descriptor, data, bytes, arena, NULL);
}

int message_pack(const ProtobufCMessage *message, struct arena *arena, unsigned char **ret_data,
                 size_t *ret_bytes, struct error *err)
{
    size_t bytes = protobuf_c_message_get_packed_size(message);
    if (bytes > LIMIT_FRAME_MESSAGE_BYTES) {
        return error_set(err, MEMD_ELIMIT, "%s would take %zu bytes, at most %" PRIu32,
                         message->descriptor->short_name, bytes, LIMIT_FRAME_MESSAGE_BYTES);
    }
    unsigned char *data = arena_alloc(arena, bytes);
    if (data == NULL) {
        return error_set(err, MEMD_ENOMEM, "no room to pack %zu bytes of %s", bytes,
                         message->descriptor->short_name);
    }
    size_t written = protobuf_c_message_pack(message, data);
    assert(written == bytes);
    *ret_data = data;
    *ret_bytes = written;
    return 0;
}

/* ---- tensors ---- */

static int check_dtype(const Memd__Tensor *wire, const struct message_shape *expect,
                       struct error *err)
{
    uint32_t dtype = (uint32_t)wire->dtype;
    if (expect->dtype == 0 && !dtype_is_float(dtype)) {
        return error_set(err, MEMD_ESHAPE, "%s has dtype %s (%" PRIu32 "), must be a float type",
                         expect->what, dtype_name(dtype), dtype);
    }
    if (expect->dtype != 0 && dtype != expect->dtype) {
        return error_set(err, MEMD_ESHAPE, "%s has dtype %s (%" PRIu32 "), must be %s",
                         expect->what, dtype_name(dtype), dtype, dtype_name(expect->dtype));
    }
    return 0;
}

/* Fill ret_tensor->shape and *ret_bytes; the product cannot overflow unnoticed. */
static int check_shape(const Memd__Tensor *wire, const struct message_shape *expect,
                       struct tensor *ret_tensor, size_t *ret_bytes, struct error *err)
{
    if (wire->n_shape != expect->dims) {
        return error_set(err, MEMD_ESHAPE, "%s has %zu dimensions, must have %" PRIu32,
                         expect->what, wire->n_shape, expect->dims);
    }
    size_t bytes = dtype_bytes((uint32_t)wire->dtype);
    for (uint32_t i = 0; i < expect->dims; i++) {
        uint64_t length = wire->shape[i];
        if (expect->shape[i] != MESSAGE_ANY && length != expect->shape[i]) {
            return error_set(err, MEMD_ESHAPE,
                             "%s has %" PRIu64 " in dimension %" PRIu32 ", must have %zu",
                             expect->what, length, i, expect->shape[i]);
        }
        if (length == 0 && expect->shape[i] != 0) {
            return error_set(err, MEMD_ESHAPE, "%s is empty: dimension %" PRIu32 " is 0",
                             expect->what, i);
        }
        if (__builtin_mul_overflow(bytes, length, &bytes)) {
            return error_set(err, MEMD_ESHAPE,
                             "%s has %" PRIu64 " in dimension %" PRIu32
                             ", more than memory can hold",
                             expect->what, length, i);
        }
        ret_tensor->shape[i] = (size_t)length;
    }
    *ret_bytes = bytes;
    return 0;
}

/* All that can be said without the bytes, of which there are `room`. */
static int check_tensor(const Memd__Tensor *wire, size_t room, const struct message_shape *expect,
                        struct tensor *ret_tensor, struct error *err)
{
    assert(expect->dims >= 1 && expect->dims <= TENSOR_DIMS_MAX);
    int rc = check_dtype(wire, expect, err);
    if (rc < 0) return rc;
    struct tensor tensor = { .dtype = (uint32_t)wire->dtype, .dims = expect->dims };
    size_t bytes = 0;
    rc = check_shape(wire, expect, &tensor, &bytes, err);
    if (rc < 0) return rc;
    if (wire->offset % LIMIT_PAYLOAD_ALIGN != 0) {
        return error_set(err, MEMD_ESHAPE, "%s at offset %" PRIu64 ", must be a multiple of %u",
                         expect->what, wire->offset, LIMIT_PAYLOAD_ALIGN);
    }
    if (wire->offset > room || bytes > room - wire->offset) {
        return error_set(
            err, MEMD_ESHAPE, "%s of %zu bytes at offset %" PRIu64 " ends behind the %s of %zu",
            expect->what, bytes, wire->offset, wire->region == 0 ? "payload" : "region", room);
    }
    *ret_tensor = tensor;
    return 0;
}

int message_tensor(const Memd__Tensor *wire, const void *payload, size_t payload_bytes,
                   const struct message_shape *expect, struct tensor *ret_tensor, struct error *err)
{
    if (wire == NULL) return error_set(err, MEMD_ESHAPE, "%s is missing", expect->what);
    if (wire->region != 0)
        return error_set(err, MEMD_ESHAPE, "%s lies in region %" PRIu64 ", where it may not",
                         expect->what, wire->region);
    struct tensor tensor;
    int rc = check_tensor(wire, payload_bytes, expect, &tensor, err);
    if (rc < 0) return rc;
    tensor.data = payload == NULL ? NULL : (const unsigned char *)payload + wire->offset;
    *ret_tensor = tensor;
    return 0;
}

int message_region_tensor(const Memd__Tensor *wire, size_t region_bytes,
                          const struct message_shape *expect, struct tensor *ret_tensor,
                          struct error *err)
{
    assert(wire != NULL && wire->region != 0);
    return check_tensor(wire, region_bytes, expect, ret_tensor, err);
}

/* The field of this name and type, or NULL. */
static const void *field_of(const ProtobufCMessage *message, const char *name, ProtobufCType type,
                            const ProtobufCFieldDescriptor **ret_field)
{
    *ret_field = protobuf_c_message_descriptor_get_field_by_name(message->descriptor, name);
    if (*ret_field == NULL || (*ret_field)->type != type) return NULL;
    return (const unsigned char *)message + (*ret_field)->offset;
}

uint64_t message_context(const ProtobufCMessage *message)
{
    const ProtobufCFieldDescriptor *field = NULL;
    const uint64_t *id = field_of(message, "context_id", PROTOBUF_C_TYPE_UINT64, &field);
    if (id != NULL) return *id;
    ProtobufCMessage *const *const *items = field_of(message, "items", PROTOBUF_C_TYPE_MESSAGE,
                                                     &field);
    if (items == NULL || field->label != PROTOBUF_C_LABEL_REPEATED) return 0;
    const size_t *count = (const void *)((const unsigned char *)message + field->quantifier_offset);
    if (*count == 0) return 0;
    id = field_of((*items)[0], "context_id", PROTOBUF_C_TYPE_UINT64, &field);
    return id == NULL ? 0 : *id;
}

uint64_t message_place(uint64_t *cursor, size_t bytes)
{
    uint64_t align = LIMIT_PAYLOAD_ALIGN;
    uint64_t offset = (*cursor + align - 1) / align * align;
    assert(offset >= *cursor && bytes <= UINT64_MAX - offset);
    *cursor = offset + bytes;
    return offset;
}

Memd__Tensor *message_make_tensor(struct arena *arena, uint32_t dtype, uint32_t dims,
                                  const size_t *shape, uint64_t offset)
{
    assert(dims >= 1 && dims <= TENSOR_DIMS_MAX && dtype_bytes(dtype) != 0);
    assert(offset % LIMIT_PAYLOAD_ALIGN == 0);
    Memd__Tensor *wire = arena_alloc(arena, sizeof *wire);
    uint64_t *lengths = arena_alloc(arena, dims * sizeof *lengths);
    if (wire == NULL || lengths == NULL) return NULL;
    memd__tensor__init(wire);
    for (uint32_t i = 0; i < dims; i++) lengths[i] = shape[i];
    wire->dtype = (Memd__DType)dtype;
    wire->n_shape = dims;
    wire->shape = lengths;
    wire->offset = offset;
    return wire;
}
