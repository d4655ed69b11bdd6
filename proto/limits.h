/* SPDX-License-Identifier: Apache-2.0 */
/* limits.h — every bound that a stranger's bytes meet. Reaching one is MEMD_ELIMIT, never growth.
 *
 * Bounds that an operator may want to move are configuration (memd.conf(5)) and only have their
 * default and hard maximum here.
 */
#ifndef MEMD_PROTO_LIMITS_H
#define MEMD_PROTO_LIMITS_H

#include <stdint.h>

#define LIMIT_FRAME_MESSAGE_BYTES (UINT32_C(4) << 20)    /* protobuf part of one frame */
#define LIMIT_FRAME_PAYLOAD_BYTES (UINT64_C(256) << 20)  /* tensors of one frame */
#define LIMIT_SMALL_MESSAGE_BYTES (4u << 10) /* of what the loop answers: Hello, Stats, … */
#define LIMIT_PAYLOAD_ALIGN 64u                          /* of tensor offsets */

#define LIMIT_NAME_BYTES 255u         /* context name: UTF-8, not empty, no control characters */
#define LIMIT_FINGERPRINT_BYTES 1024u
#define LIMIT_PARAMETERS 64u
#define LIMIT_PARAMETER_BYTES 256u    /* name and value each */

#define LIMIT_LAYERS 1024u
#define LIMIT_PARAM_BYTES (UINT64_C(64) << 20)   /* of an uploaded tensor, in float32 */
#define LIMIT_PARAMS 4096u                        /* of a context or a set */
#define LIMIT_PARAMS_BYTES (UINT64_C(1) << 30)    /* of all of them */

#define LIMIT_HEADS 1024u             /* query heads; KV heads ≤ query heads */
#define LIMIT_HEAD_DIM 1024u          /* multiple of 8, ≥ 8 */
#define LIMIT_TOKENS (UINT64_C(1) << 32) /* of one context; positions are below it */

#define LIMIT_ATTEND_ITEMS 1024u      /* in one request */
#define LIMIT_ATTEND_QUERIES 4096u    /* of one item */
#define LIMIT_EXPLAIN_ITEMS 16u       /* of those, that ask for their reading plan */
#define LIMIT_APPEND_LAYERS 1024u     /* in one request */
#define LIMIT_TOP_K 65536u
#define LIMIT_FETCH_IDS 65536u
#define LIMIT_LIST 1024u              /* contexts of one List, records of one Dump */
#define LIMIT_CURSOR_BYTES 512u

#define LIMIT_REGIONS 64u      /* of memory that one connection shares */
#define LIMIT_HANDLE_BYTES 64u /* of memory of a device */

#define LIMIT_PIN_SECONDS (UINT64_C(30) * 24 * 3600)

#endif
