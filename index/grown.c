/* SPDX-License-Identifier: Apache-2.0 */
/* grown.c — an array of pointers to chunks; only the pointers are ever copied. */
#include "index/grown.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"

enum { ALIGN_BYTES = 64, FIRST_CHUNKS = 8 };

static size_t chunk_bytes(const struct grown *grown)
{
    size_t bytes = grown->heads * GROWN_CHUNK * grown->row_bytes;
    return (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

void grown_init(struct grown *grown, size_t heads, size_t row_bytes)
{
    assert(heads > 0 && row_bytes > 0);
    *grown = (struct grown){ .heads = heads, .row_bytes = row_bytes };
}

void grown_fini(struct grown *grown)
{
    for (size_t i = 0; i < grown->count; i++) free(grown->chunks[i]);
    free(grown->chunks);
    *grown = (struct grown){ 0 };
}

static int no_memory(uint64_t tokens, struct error *err)
{
    return error_set(err, MEMD_ENOMEM, "no memory to fold %" PRIu64 " tokens", tokens);
}

int grown_reserve(struct grown *grown, uint64_t tokens, struct error *err)
{
    size_t wanted = (size_t)((tokens + GROWN_CHUNK - 1) / GROWN_CHUNK);
    if (wanted > grown->capacity) {
        size_t capacity = grown->capacity == 0 ? FIRST_CHUNKS : 2 * grown->capacity;
        if (capacity < wanted) capacity = wanted;
        unsigned char **chunks = realloc(grown->chunks, capacity * sizeof *chunks);
        if (chunks == NULL) return no_memory(tokens, err);
        grown->chunks = chunks;
        grown->capacity = capacity;
    }
    while (grown->count < wanted) {
        unsigned char *chunk = aligned_alloc(ALIGN_BYTES, chunk_bytes(grown));
        if (chunk == NULL) return no_memory(tokens, err);
        grown->chunks[grown->count++] = chunk;
    }
    return 0;
}

void *grown_rows(const struct grown *grown, size_t head, uint64_t position, size_t most,
                 size_t *ret_rows)
{
    size_t chunk = (size_t)(position / GROWN_CHUNK), row = (size_t)(position % GROWN_CHUNK);
    assert(head < grown->heads && chunk < grown->count);
    *ret_rows = GROWN_CHUNK - row < most ? GROWN_CHUNK - row : most;
    return grown->chunks[chunk] + (head * GROWN_CHUNK + row) * grown->row_bytes;
}

size_t grown_bytes(const struct grown *grown)
{
    return grown->count * chunk_bytes(grown) + grown->capacity * sizeof *grown->chunks;
}
