/* SPDX-License-Identifier: Apache-2.0 */
/* faiss_none.c — in the place of faiss.c where FAISS is not there: no types, so no methods. */
#include <stddef.h>

#include "index/faiss.h"

const struct layer_index_type *const faiss_types[] = { NULL };
