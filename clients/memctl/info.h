/* SPDX-License-Identifier: Apache-2.0 */
/* info.h — a context as JSON, the same object wherever one is printed. */
#ifndef MEMD_CLIENTS_MEMCTL_INFO_H
#define MEMD_CLIENTS_MEMCTL_INFO_H

#include <stdbool.h>

#include "clients/include/memd.h"
#include "clients/memctl/json.h"

/* The members of an object. `with_layers`: the token count of every layer too. */
void info_json(struct json *json, const struct memd_info *info, bool with_layers);

const char *info_dtype_name(enum memd_dtype dtype);

/* "half theta 500000 llama3 factor 8", "none" */
struct info_text {
    char text[160];
};
struct info_text info_rope_text(const struct memd_rope *rope);

#endif
