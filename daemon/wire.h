/* SPDX-License-Identifier: Apache-2.0 */
/* wire.h — between the messages of the wire and the structs of memory/, in both directions.
 *
 * Decoding checks lengths and counts against limits.h; meaning (ranges of a model) is checked by
 * memory/. Encoded messages live in the arena and borrow strings of their source, which must live
 * as long.
 *
 * Threads  any; one arena, one thread
 * Errors   MEMD_EINVAL · MEMD_ELIMIT · MEMD_ENOMEM
 */
#ifndef MEMD_DAEMON_WIRE_H
#define MEMD_DAEMON_WIRE_H

#include <stddef.h>

#include "memory/catalog.h"
#include "proto/message.h"

struct arena;
struct error;
struct plan;
struct quality;

int wire_decode_model(const Memd__Model *message, struct model *ret_model, struct error *err);
Memd__Model *wire_encode_model(const struct model *model, struct arena *arena);

/* May a method have this name? MEMD_ELIMIT */
int wire_check_method(const char *name, struct error *err);
int wire_decode_parameters(Memd__Parameter *const *messages, size_t count, struct arena *arena,
                           struct parameter **ret_parameters, struct error *err);

/* Where a walk of this context (0: all) goes on; `cursor` is borrowed. MEMD_ELIMIT */
int wire_decode_walk(uint64_t context_id, const ProtobufCBinaryData *cursor,
                     struct walk_args *ret_args, struct error *err);

/* NULL when the arena is full. */
Memd__ContextInfo *wire_encode_info(const struct context_info *info, struct arena *arena);

/* `rows` = n * H: the length of the quality's arrays, which are borrowed like its strings. */
Memd__Quality *wire_encode_quality(const struct quality *quality, size_t rows, struct arena *arena);

/* Its columns are copied. */
Memd__Plan *wire_encode_plan(const struct plan *plan, struct arena *arena);

/* "no memory for the answer" */
int wire_no_memory(struct error *err);

#endif
