/* SPDX-License-Identifier: Apache-2.0 */
/* message.h — protobuf messages in an arena, and tensors checked against the payload.
 *
 * The generated structs (Memd__AppendRequest …) are the message types of the whole project; the
 * functions of protobuf-c are called in message.c only. Unpacking allocates in the caller's arena,
 * so nothing is freed message by message; packing gives one buffer in the arena.
 *
 * Errors   MEMD_EPROTO not a message of that kind · MEMD_ENOMEM · MEMD_ESHAPE · MEMD_ELIMIT
 * Threads  any; one arena, one thread.
 * Tests    tests/unit/test_message.c, tests/fuzz/fuzz_message.c
 */
#ifndef MEMD_PROTO_MESSAGE_H
#define MEMD_PROTO_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/tensor.h"
#include "memd.pb-c.h"

struct arena;
struct error;

/* Unpack the request (or reply) message of `method`: cast the result to Memd__XRequest
 * (Memd__XReply). NULL with err filled: MEMD_EUNSUPPORTED no such method, MEMD_EPROTO, MEMD_ENOMEM.
 * Strings are checked to be valid UTF-8. */
ProtobufCMessage *message_unpack_request(unsigned method, const void *data, size_t bytes,
                                         struct arena *arena, struct error *err);
ProtobufCMessage *message_unpack_reply(unsigned method, const void *data, size_t bytes,
                                       struct arena *arena, struct error *err);
/* The message of a reply whose status is not 0. */
Memd__ErrorReply *message_unpack_error(const void *data, size_t bytes, struct arena *arena);

/* The context that a request is about, of several the first; 0: of none, or it does not say so in
 * its fields context_id and items. */
uint64_t message_context(const ProtobufCMessage *message);

/* Pack any message; *ret_data (arena) of *ret_bytes. `message` is a Memd__X whose base member comes
 * first. */
int message_pack(const ProtobufCMessage *message, struct arena *arena, unsigned char **ret_data,
                 size_t *ret_bytes, struct error *err);

/* What a tensor has to look like. shape entries of MESSAGE_ANY match everything (≤ LIMIT). */
#define MESSAGE_ANY SIZE_MAX
struct message_shape {
    const char *what;  /* name for the error text: "k" */
    uint32_t dtype;    /* enum dtype, or 0 = any of FP32, FP16, BF16 */
    uint32_t dims;
    size_t shape[TENSOR_DIMS_MAX];
};

/* Resolve `wire` against the payload: dtype, rank, shape, alignment of the offset, bounds. NULL
 * `wire` is MEMD_ESHAPE "missing"; so is a dimension of 0, unless 0 is what is expected. The data
 * pointer is aligned for its dtype when the payload buffer is; NULL `payload`: it has not come yet,
 * everything is checked and data is NULL. */
int message_tensor(const Memd__Tensor *wire, const void *payload, size_t payload_bytes,
                   const struct message_shape *expect, struct tensor *ret_tensor,
                   struct error *err);

/* The same for a tensor that lies in a region (wire->region is not 0) of `region_bytes`; data is
 * NULL: whoever owns the region knows how its bytes are had. message_tensor refuses such a one. */
int message_region_tensor(const Memd__Tensor *wire, size_t region_bytes,
                          const struct message_shape *expect, struct tensor *ret_tensor,
                          struct error *err);

/* Lay out reply tensors one after another: returns the offset where `bytes` go and moves *cursor
 * behind them, each at the next multiple of LIMIT_PAYLOAD_ALIGN. */
uint64_t message_place(uint64_t *cursor, size_t bytes);

/* Fill a wire tensor (shape array in the arena). NULL when the arena is full. Of a region: set
 * `region` afterwards. */
Memd__Tensor *message_make_tensor(struct arena *arena, uint32_t dtype, uint32_t dims,
                                  const size_t *shape, uint64_t offset);

/* A context name as limits.h demands: 1 … LIMIT_NAME_BYTES bytes of UTF-8, no control characters */
bool message_name_ok(const char *name);

#endif
