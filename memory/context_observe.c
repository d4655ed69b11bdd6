/* SPDX-License-Identifier: Apache-2.0 */
/* context_observe.c — what queries look like: planes are coded in their metric, and recall proves
 * itself on the latest of them.
 *
 * The mean of q_c² over the query heads of a KV head is taken of rotated queries, since planes hold
 * rotated keys. It needs few queries to be good (its error falls with the root of their number,
 * and a factor of two in one channel hardly moves a cluster), so a call looks at OBSERVE_MAX of
 * its queries, and once SETTLED are known only every SKIP-th call looks at all. A call waits for
 * the lock: its holder looks at OBSERVE_MAX queries too, microseconds, and what `memctl explain`
 * shows does not depend on who was quicker.
 *
 * After SETTLED queries the mean forgets old ones at the rate 1/SETTLED, so that a context that
 * changes its topic changes its metric; segments that are coded keep the one they were coded with.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "attention/backend.h"
#include "base/half.h"
#include "base/tensor.h"
#include "memory/catalog_state.h"

enum { OBSERVE_MAX = 4, OBSERVE_APPENDED_MAX = 16, SETTLED = 4096, SKIP = 16 };
#define RECENT_BYTES_MAX (UINT64_C(64) << 20) /* of all contexts */

static uint64_t recent_bytes(const struct context *context)
{
    return RECENT_QUERIES * (context_query_values(context) * sizeof(uint16_t) + sizeof(uint64_t));
}

/* With the lock held. False when there is no memory for it, or too much is used already. */
static bool make_ring(struct context *context, struct observed *observed)
{
    if (observed->recent_q != NULL) return true;
    uint64_t bytes = recent_bytes(context);
    _Atomic uint64_t *used = &context->catalog->recent_bytes;
    if (atomic_fetch_add(used, bytes) + bytes > RECENT_BYTES_MAX) {
        atomic_fetch_sub(used, bytes);
        return false;
    }
    observed->recent_q = malloc(RECENT_QUERIES * context_query_values(context) * sizeof(uint16_t));
    observed->recent_positions = malloc(RECENT_QUERIES * sizeof(uint64_t));
    if (observed->recent_q != NULL && observed->recent_positions != NULL) return true;
    free(observed->recent_q);
    free(observed->recent_positions);
    observed->recent_q = NULL;
    observed->recent_positions = NULL;
    atomic_fetch_sub(used, bytes);
    return false;
}

void observed_fini(struct context *context, struct observed *observed)
{
    if (observed->recent_q != NULL)
        atomic_fetch_sub(&context->catalog->recent_bytes, recent_bytes(context));
    free(observed->recent_q);
    free(observed->recent_positions);
    free(observed->square);
    pthread_mutex_destroy(&observed->lock);
}

/* q (H, D) fp32, as sent */
static void put_recent(struct context *context, struct observed *observed, const float *q,
                       uint64_t position)
{
    if (!make_ring(context, observed)) return;
    size_t at = observed->recent_count++ % RECENT_QUERIES, values = context_query_values(context);
    half_store(q, values, DTYPE_FP16, observed->recent_q + at * values);
    observed->recent_positions[at] = position;
}

/* q (H, D) fp32, rotated. With the lock held. */
static void add_square(struct context *context, struct observed *observed, const float *q)
{
    size_t heads = context->shape.heads, dim = context->shape.head_dim;
    size_t group = context->record->model.query_heads / heads;
    if (observed->square == NULL) observed->square = calloc(heads * dim, sizeof(float));
    if (observed->square == NULL) return;
    observed->queries++;
    uint64_t weight = observed->queries < SETTLED ? observed->queries : SETTLED;
    for (size_t g = 0; g < heads; g++) {
        for (size_t c = 0; c < dim; c++) {
            float sum = 0;
            for (size_t j = 0; j < group; j++) {
                float x = q[(g * group + j) * dim + c];
                sum += x * x;
            }
            float *mean = &observed->square[g * dim + c];
            *mean += (sum / (float)group - *mean) / (float)weight;
        }
    }
}

/* One query; scratch (H, D). With the lock held. */
static void observe_row(struct context *context, const struct observation *seen, size_t i,
                        float *scratch)
{
    struct observed *observed = &context->layers[seen->layer].observed;
    const struct tensor *q = seen->q;
    size_t values = context_query_values(context), heads = context->record->model.query_heads;
    uint64_t position = seen->positions != NULL ? seen->positions[i] : seen->first + i;
    backend_widen((const unsigned char *)q->data + i * values * dtype_bytes(q->dtype), q->dtype,
                  heads, values / heads, scratch);
    put_recent(context, observed, scratch, position);
    if (!context->method->planes) return;
    if (context->rope != NULL) {
        float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
        rope_angles(context->rope, position, cos, sin);
        rope_apply(context->rope, cos, sin, scratch, heads);
    }
    add_square(context, observed, scratch);
}

void context_observe(struct context *context, const struct observation *seen)
{
    struct observed *observed = &context->layers[seen->layer].observed;
    size_t count = seen->q->shape[0], most = seen->appended ? OBSERVE_APPENDED_MAX : OBSERVE_MAX;
    unsigned call = atomic_fetch_add_explicit(&observed->calls, 1, memory_order_relaxed);
    if (count == 0 || (!seen->appended && call > SETTLED / SKIP && call % SKIP != 0)) return;
    if (count < most) most = count;
    float *scratch = malloc(context_query_values(context) * sizeof *scratch);
    if (scratch == NULL) return;
    pthread_mutex_lock(&observed->lock); /* microseconds, and no query is lost for them */
    for (size_t i = 0; i < most; i++)    /* evenly, the last one among them */
        observe_row(context, seen, count - 1 - (most - 1 - i) * count / most, scratch);
    pthread_mutex_unlock(&observed->lock);
    free(scratch);
}

void context_recall_observed(struct context *context, uint32_t layer,
                             const struct derived_planes *planes)
{
    struct observed *observed = &context->layers[layer].observed;
    size_t heads = context->shape.heads, dim = context->shape.head_dim;
    pthread_mutex_lock(&observed->lock);
    bool more = planes[0].planes.queries > observed->queries;
    if (more && observed->square == NULL) observed->square = calloc(heads * dim, sizeof(float));
    if (more && observed->square != NULL) {
        observed->queries = planes[0].planes.queries;
        for (size_t g = 0; g < heads; g++)
            memcpy(observed->square + g * dim, planes[g].planes.query_square,
                   dim * sizeof(float));
    }
    pthread_mutex_unlock(&observed->lock);
}

uint64_t context_copy_observed(struct context *context, uint32_t layer, float *ret_square)
{
    struct observed *observed = &context->layers[layer].observed;
    pthread_mutex_lock(&observed->lock);
    uint64_t queries = observed->square == NULL ? 0 : observed->queries;
    if (queries > 0)
        memcpy(ret_square, observed->square,
               context->shape.heads * context->shape.head_dim * sizeof(float));
    pthread_mutex_unlock(&observed->lock);
    return queries;
}

size_t context_copy_recent(struct context *context, uint32_t layer, uint16_t *ret_q,
                           uint64_t *ret_positions)
{
    struct observed *observed = &context->layers[layer].observed;
    size_t values = context_query_values(context);
    pthread_mutex_lock(&observed->lock);
    size_t count = observed->recent_count < RECENT_QUERIES ? (size_t)observed->recent_count
                                                           : RECENT_QUERIES;
    for (size_t i = 0; i < count; i++) {
        size_t at = (size_t)(observed->recent_count - count + i) % RECENT_QUERIES;
        memcpy(ret_q + i * values, observed->recent_q + at * values, values * sizeof *ret_q);
        ret_positions[i] = observed->recent_positions[at];
    }
    pthread_mutex_unlock(&observed->lock);
    return count;
}
