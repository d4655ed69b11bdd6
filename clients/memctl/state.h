/* SPDX-License-Identifier: Apache-2.0 */
/* state.h — what a method keeps of a context, over all layers and layer by layer.
 *
 * Facts are numbers with names that the daemon gives. Over layers they are added up, but for names
 * that end in _mean (averaged), _min and _max.
 */
#ifndef MEMD_CLIENTS_MEMCTL_STATE_H
#define MEMD_CLIENTS_MEMCTL_STATE_H

#include "clients/include/memd.h"

struct ctl;
struct json;
struct table;

/* One row of two cells a fact, over all layers; nothing where there is no state. */
void state_add(struct table *table, const struct memd_states *states);
/* A row a layer, a column a fact. An exit code. */
int state_print_layers(struct ctl *ctl, const struct memd_states *states);
/* Members "state" and "layer_states"; null where `states` is. */
void state_json(struct json *json, const struct memd_states *states);

#endif
