/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_message.c — any bytes as any message: first byte the method's number, second byte 0 request,
 * 1 reply, 2 error; the rest is the message.
 *
 * What is unpacked must stay within its arena, pack again, and be the same message after that:
 * packed twice, the bytes are equal. Tensors of an append are resolved against a payload of the
 * size that the message has, or a region of that size, so that their offsets are tried as well.
 */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/arena.h"
#include "base/error.h"
#include "proto/limits.h"
#include "proto/message.h"
#include "proto/method.h"

enum { ARENA_BYTES = 4 << 20, HEAD_BYTES = 2 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* In a region that is as large as the message. */
static void resolve_region(const Memd__Tensor *wire, size_t bytes,
                           const struct message_shape *shape)
{
    struct tensor tensor;
    struct error err = { 0 };
    if (message_region_tensor(wire, bytes, shape, &tensor, &err) < 0) return;
    assert(tensor.data == NULL && wire->offset <= bytes);
    assert(tensor_bytes(&tensor) <= bytes - wire->offset);
}

static void resolve(const Memd__Tensor *wire, const uint8_t *payload, size_t bytes)
{
    struct message_shape any = { .what = "k",
                                 .dims = 3,
                                 .shape = { MESSAGE_ANY, MESSAGE_ANY, MESSAGE_ANY } };
    struct tensor tensor;
    struct error err = { 0 };
    if (wire != NULL && wire->region != 0) resolve_region(wire, bytes, &any);
    if (message_tensor(wire, payload, bytes, &any, &tensor, &err) < 0) return;
    assert(wire->region == 0);
    const uint8_t *begin = tensor.data;
    assert(begin >= payload && begin + tensor_bytes(&tensor) <= payload + bytes);
    assert(tensor_elements(&tensor) > 0);
}

static void resolve_append(const Memd__AppendRequest *append, const uint8_t *payload, size_t bytes)
{
    for (size_t i = 0; i < append->n_layers; i++) {
        resolve(append->layers[i]->k, payload, bytes);
        resolve(append->layers[i]->v, payload, bytes);
    }
}

static const ProtobufCMessage *unpack(const uint8_t head[HEAD_BYTES], const uint8_t *data,
                                      size_t bytes, struct arena *arena)
{
    struct error err = { 0 };
    const ProtobufCMessage *message = NULL;
    switch (head[1]) {
    case 0: message = message_unpack_request(head[0], data, bytes, arena, &err); break;
    case 1: message = message_unpack_reply(head[0], data, bytes, arena, &err); break;
    default: {
        const Memd__ErrorReply *reply = message_unpack_error(data, bytes, arena);
        return reply == NULL ? NULL : &reply->base;
    }
    }
    assert((message == NULL) == (err.code != 0));
    return message;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < HEAD_BYTES) return 0;
    struct arena arena;
    arena_init(&arena, ARENA_BYTES);
    const ProtobufCMessage *message = unpack(data, data + HEAD_BYTES, bytes - HEAD_BYTES, &arena);
    assert(arena.used_bytes <= ARENA_BYTES);
    unsigned char *once = NULL, *twice = NULL;
    size_t once_bytes = 0, twice_bytes = 0;
    if (message != NULL && data[0] == METHOD_APPEND && data[1] == 0)
        resolve_append((const Memd__AppendRequest *)message, data, bytes);
    if (message != NULL && message_pack(message, &arena, &once, &once_bytes, NULL) == 0) {
        const ProtobufCMessage *again = unpack(data, once, once_bytes, &arena);
        if (again != NULL && message_pack(again, &arena, &twice, &twice_bytes, NULL) == 0)
            assert(once_bytes == twice_bytes && memcmp(once, twice, once_bytes) == 0);
    }
    arena_fini(&arena);
    return 0;
}
