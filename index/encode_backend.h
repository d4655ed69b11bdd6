/* SPDX-License-Identifier: Apache-2.0 */
/* encode_backend.h — the table of the kernels that make planes; the same rule as
 * attention/backend.h. A table of its own, since reading planes and making them share no kernel. */
#ifndef MEMD_INDEX_ENCODE_BACKEND_H
#define MEMD_INDEX_ENCODE_BACKEND_H

#include "base/cpu.h"
#include "index/kernels/encode.h"

struct encode_backend {
    const char *name;
    encode_rotate_fn *rotate;
    encode_project_fn *project;
    encode_combine_fn *combine;
    encode_load_fn *load;
    encode_steer_fn *steer;
    encode_split_fn *split;
    encode_centre_fn *centre;
    encode_keys_fn *keys;
    encode_values_fn *values;
};

/* The table in force (cpu_level()). Never NULL, immutable. */
const struct encode_backend *encode_backend_get(void);

/* The table of one level, for tests; NULL when this build or CPU does not have it. */
const struct encode_backend *encode_backend_for(enum cpu_level level);

#endif
