/* SPDX-License-Identifier: Apache-2.0 */
/* selection.c — one block: the struct, where heads begin, the ids. */
#include "index/selection.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/error.h"
#include "proto/limits.h"

enum { HEAD_BYTES = 16 };

int selection_new(uint64_t tokens, uint32_t heads, const uint64_t *counts,
                  struct selection **ret_selection, struct error *err)
{
    assert(heads > 0 && heads <= LIMIT_HEADS && tokens <= LIMIT_TOKENS);
    uint64_t total = 0;
    for (uint32_t g = 0; g < heads; g++) {
        assert(counts[g] <= tokens);
        total += counts[g];
    }
    size_t words = (size_t)total + heads + 1;
    struct selection *selection = malloc(sizeof *selection + words * sizeof(uint64_t));
    if (selection == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %" PRIu64 " kept tokens", total);
    *selection = (struct selection){ .tokens = tokens, .heads = heads };
    selection->first = (uint64_t *)(void *)(selection + 1);
    selection->ids = selection->first + heads + 1;
    selection->first[0] = 0;
    for (uint32_t g = 0; g < heads; g++)
        selection->first[g + 1] = selection->first[g] + counts[g];
    *ret_selection = selection;
    return 0;
}

void selection_free(struct selection *selection)
{
    free(selection);
}

size_t selection_encoded_bytes(const struct selection *selection)
{
    uint32_t heads = selection->heads;
    return HEAD_BYTES + heads * sizeof(uint64_t) +
           (size_t)selection->first[heads] * sizeof(uint32_t);
}

void selection_encode(const struct selection *selection, unsigned char *ret_data)
{
    struct bytes_writer out = bytes_writer(ret_data, selection_encoded_bytes(selection));
    uint32_t heads = selection->heads;
    bytes_put_le64(&out, selection->tokens);
    bytes_put_le32(&out, heads);
    bytes_put_le32(&out, 0);
    for (uint32_t g = 0; g < heads; g++)
        bytes_put_le64(&out, selection->first[g + 1] - selection->first[g]);
    for (uint64_t i = 0; i < selection->first[heads]; i++)
        bytes_put_le32(&out, (uint32_t)selection->ids[i]);
    assert(!out.bad);
}

/* ret_counts (LIMIT_HEADS) of the heads; *ret_total: of all of them. */
static int read_counts(struct bytes_reader *in, uint64_t tokens, uint32_t heads,
                       uint64_t *ret_counts, uint64_t *ret_total, struct error *err)
{
    uint64_t total = 0;
    for (uint32_t g = 0; g < heads; g++) {
        ret_counts[g] = bytes_get_le64(in);
        if (in->bad || ret_counts[g] > tokens)
            return error_set(err, MEMD_ECORRUPT, "selection: head %" PRIu32 " keeps more than the "
                             "prompt has", g);
        total += ret_counts[g];
    }
    *ret_total = total;
    return 0;
}

static int read_ids(struct bytes_reader *in, struct selection *selection, struct error *err)
{
    for (uint32_t g = 0; g < selection->heads; g++) {
        for (uint64_t i = selection->first[g]; i < selection->first[g + 1]; i++) {
            selection->ids[i] = bytes_get_le32(in);
            bool ascends = i == selection->first[g] || selection->ids[i] > selection->ids[i - 1];
            if (in->bad || !ascends || selection->ids[i] >= selection->tokens)
                return error_set(err, MEMD_ECORRUPT, "selection: entry %" PRIu64 " of head %" PRIu32
                                 " is out of order", i - selection->first[g], g);
        }
    }
    return bytes_done(in) ? 0 : error_set(err, MEMD_ECORRUPT, "selection: bytes behind its end");
}

int selection_decode(const void *data, size_t bytes, struct selection **ret_selection,
                     struct error *err)
{
    struct bytes_reader in = bytes_reader(data, bytes);
    uint64_t tokens = bytes_get_le64(&in);
    uint32_t heads = bytes_get_le32(&in), zero = bytes_get_le32(&in);
    uint64_t counts[LIMIT_HEADS];
    if (in.bad || zero != 0 || heads == 0 || heads > LIMIT_HEADS || tokens > LIMIT_TOKENS)
        return error_set(err, MEMD_ECORRUPT, "selection: its head is wrong");
    uint64_t total = 0;
    int rc = read_counts(&in, tokens, heads, counts, &total, err);
    if (rc == 0 && total * sizeof(uint32_t) != bytes - in.offset)
        rc = error_set(err, MEMD_ECORRUPT, "selection: %" PRIu64 " ids in %zu bytes", total,
                       bytes - in.offset);
    struct selection *selection = NULL;
    if (rc == 0) rc = selection_new(tokens, heads, counts, &selection, err);
    if (rc == 0) rc = read_ids(&in, selection, err);
    if (rc == 0) *ret_selection = selection;
    else selection_free(selection);
    return rc;
}
