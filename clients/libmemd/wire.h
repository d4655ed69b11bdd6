/* SPDX-License-Identifier: Apache-2.0 */
/* wire.h — between the messages of proto/memd.proto and the structs of memd.h, both ways.
 *
 * Results point into the reply's message, which lives in the ticket: nothing is copied but what the
 * two sides lay out differently.
 *
 * Memory   the ticket's arena
 * Errors   MEMD_ENOMEM · MEMD_EPROTO a reply that does not fit its request
 */
#ifndef MEMD_LIBMEMD_WIRE_H
#define MEMD_LIBMEMD_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clients/include/memd.h"

#include "clients/libmemd/ticket.h"

/* For the request; NULL without memory. */
Memd__Model *wire_model(struct memd_ticket *ticket, const struct memd_model *model);
Memd__Parameter **wire_parameters(struct memd_ticket *ticket,
                                  const struct memd_parameter *parameters, size_t count);

/* What the caller left to the context (0) is absent on the wire: false. */
bool wire_target_error(double chosen, double *ret_wire);
bool wire_max_bytes(uint64_t chosen, uint64_t *ret_wire);

/* From the reply. */
int wire_read_info(struct memd_ticket *ticket, const Memd__ContextInfo *wire,
                   struct memd_info *ret_info);
/* *ret_plan: NULL where `wire` is. */
int wire_read_plan(struct memd_ticket *ticket, const Memd__Plan *wire,
                   const struct memd_plan **ret_plan);
/* Arrays of (count) entries, or none. NULL is an empty quality. */
int wire_read_quality(struct memd_ticket *ticket, const Memd__Quality *wire, size_t count,
                      struct memd_quality *ret_quality);

#endif
