/* SPDX-License-Identifier: Apache-2.0 */
/* lru.c — the stamp up to which states leave is found by bisection, so that a ring of any size
 * needs no memory of its own to be brought up to date. */
#include "index/lru.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "index/index.h"

enum { HEAD_BYTES = 24 };

size_t lru_room(size_t slots)
{
    return 2 * slots * sizeof(uint64_t);
}

void lru_init(struct lru *lru, size_t slots, void *room)
{
    *lru = (struct lru){ .slots = slots, .positions = room, .stamps = (uint64_t *)room + slots };
}

void lru_copy(const struct lru *from, struct lru *to)
{
    assert(from->slots == to->slots);
    to->tokens = from->tokens;
    to->count = from->count;
    memcpy(to->positions, from->positions, from->count * sizeof *to->positions);
    memcpy(to->stamps, from->stamps, from->count * sizeof *to->stamps);
}

static size_t count_up_to(const struct lru *lru, uint64_t stamp)
{
    size_t count = 0;
    for (size_t i = 0; i < lru->count; i++) count += lru->stamps[i] <= stamp;
    return count;
}

/* The `drop` least leave; drop ≤ count. */
static void drop_least(struct lru *lru, size_t drop)
{
    if (drop == 0) return;
    uint64_t low = 0, high = lru->tokens; /* the drop-th stamp lies in low … high */
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (count_up_to(lru, middle) >= drop) high = middle;
        else low = middle + 1;
    }
    size_t equals = drop - (low == 0 ? 0 : count_up_to(lru, low - 1)), kept = 0;
    for (size_t i = 0; i < lru->count; i++) {
        bool leaves = lru->stamps[i] < low || (lru->stamps[i] == low && equals > 0);
        if (leaves && lru->stamps[i] == low) equals--;
        if (leaves) continue;
        lru->positions[kept] = lru->positions[i];
        lru->stamps[kept++] = lru->stamps[i];
    }
    lru->count = kept;
}

void lru_advance(struct lru *lru, uint64_t tokens)
{
    if (tokens <= lru->tokens) return;
    uint64_t fresh = tokens - lru->tokens;
    if (fresh > lru->slots) fresh = lru->slots;
    size_t room = lru->slots - (size_t)fresh;
    if (lru->count > room) drop_least(lru, lru->count - room);
    for (uint64_t position = tokens - fresh; position < tokens; position++) {
        lru->positions[lru->count] = position;
        lru->stamps[lru->count++] = position;
    }
    lru->tokens = tokens;
}

size_t lru_below(const struct lru *lru, uint64_t limit)
{
    size_t low = 0, high = lru->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (lru->positions[middle] < limit) low = middle + 1;
        else high = middle;
    }
    return low;
}

bool lru_use(struct lru *lru, uint64_t tokens, const uint64_t *positions, size_t count)
{
    bool changed = false;
    for (size_t i = 0; i < count; i++) {
        if (positions[i] == INDEX_NONE) continue;
        changed = changed || tokens > lru->tokens;
        lru_advance(lru, tokens);
        size_t slot = lru_below(lru, positions[i]);
        if (slot == lru->count || lru->positions[slot] != positions[i]) continue;
        if (lru->stamps[slot] >= tokens) continue;
        lru->stamps[slot] = tokens;
        changed = true;
    }
    return changed;
}

bool lru_can_cut(const struct lru *lru, uint64_t tokens)
{
    if (tokens >= lru->tokens) return true;
    return lru_below(lru, tokens) == (tokens < lru->slots ? tokens : lru->slots);
}

void lru_cut(struct lru *lru, uint64_t tokens)
{
    if (tokens >= lru->tokens) return;
    lru->count = lru_below(lru, tokens);
    lru->tokens = tokens;
    for (size_t i = 0; i < lru->count; i++)
        if (lru->stamps[i] > tokens) lru->stamps[i] = tokens;
}

size_t lru_encoded_bytes(const struct lru *lru)
{
    return HEAD_BYTES + lru->count * 2 * sizeof(uint64_t);
}

void lru_encode(const struct lru *lru, unsigned char *ret_data)
{
    struct bytes_writer out = bytes_writer(ret_data, lru_encoded_bytes(lru));
    bytes_put_le64(&out, lru->tokens);
    bytes_put_le64(&out, lru->slots);
    bytes_put_le64(&out, lru->count);
    for (size_t i = 0; i < lru->count; i++) bytes_put_le64(&out, lru->positions[i]);
    for (size_t i = 0; i < lru->count; i++) bytes_put_le64(&out, lru->stamps[i]);
}

/* Of the numbers behind the head: positions ascending, each at most its stamp. */
static bool are_in_order(struct bytes_reader positions, uint64_t tokens, uint64_t count)
{
    struct bytes_reader stamps = positions;
    bytes_get(&stamps, (size_t)count * sizeof(uint64_t));
    uint64_t least = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t position = bytes_get_le64(&positions), stamp = bytes_get_le64(&stamps);
        if (position < least || position >= tokens || stamp < position || stamp > tokens)
            return false;
        least = position + 1;
    }
    return bytes_done(&stamps);
}

bool lru_is_sound(const void *data, size_t bytes, uint64_t *ret_tokens)
{
    struct bytes_reader in = bytes_reader(data, bytes);
    uint64_t tokens = bytes_get_le64(&in), slots = bytes_get_le64(&in), count = bytes_get_le64(&in);
    *ret_tokens = tokens;
    return !in.bad && count <= slots && count == (bytes - HEAD_BYTES) / 16 &&
           bytes % 16 == HEAD_BYTES % 16 && are_in_order(in, tokens, count);
}

int lru_decode(const void *data, size_t bytes, struct lru *lru, struct error *err)
{
    struct bytes_reader in = bytes_reader(data, bytes);
    lru->count = 0;
    lru->tokens = 0;
    uint64_t tokens = 0;
    if (!lru_is_sound(data, bytes, &tokens))
        return error_set(err, MEMD_ECORRUPT, "a ring of %zu bytes that contradicts itself", bytes);
    bytes_get_le64(&in);
    uint64_t slots = bytes_get_le64(&in);
    if (slots != lru->slots)
        return error_set(err, MEMD_ECORRUPT, "a ring of %" PRIu64 " slots, not %zu", slots,
                         lru->slots);
    lru->tokens = tokens;
    lru->count = (size_t)bytes_get_le64(&in);
    for (size_t i = 0; i < lru->count; i++) lru->positions[i] = bytes_get_le64(&in);
    for (size_t i = 0; i < lru->count; i++) lru->stamps[i] = bytes_get_le64(&in);
    return 0;
}
