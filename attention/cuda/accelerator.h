/* SPDX-License-Identifier: Apache-2.0 */
/* accelerator.h — exact attention on a device, with the windows of contexts resident there.
 *
 * An accelerator is one opened device (device.h) and everything that memd keeps on it. attend()
 * asks it first; it answers, or declines and the CPU answers. The two are interchangeable: they
 * differ in the order of fp32 sums. It never makes a request fail: when the device runs out of
 * memory or is lost, that is counted, told once, and the CPU goes on with the same rows, because a
 * *window* is a copy of rows that the host has too.
 *
 * A step     of a batch of queries over one layer reads the rows of its window where they are;
 *            whatever else the queries see travels meanwhile, on the other stream, and is merged
 *            with it on the device. Only (o, lse) leaves. Steps that are asked for at the same time
 *            are joined: one launch over all their contexts, heads and splits.
 * Declined   when more rows would have to travel than the CPU can as well read itself, head_dim
 *            above 256, a device that is lost or switched off. Who insists (struct attend_device)
 *            gets them all sent, some thousand rows at a time; others have their turn in between.
 * Window     the first tokens of a layer (sinks) and a ring of its newest, on the device, fed by
 *            Append and brought up to date by a step that finds rows missing: after a restart,
 *            after it had to make room (least recently used first, when all windows together pass
 *            window_bytes), after rows came while the device was switched off. It is a cache by
 *            position; who cuts rows off must cut the window.
 *
 * Memory   everything is allocated in accelerator_open, but the memory of windows: then as far as
 *          window_bytes goes, afterwards it changes hands
 * Capture  what a step queues, up to its one wait for the compute stream, may be captured into a
 *          graph: no allocation, no copy of pageable memory, the transfer stream begins and ends in
 *          events of the compute stream, and equal steps queue equal calls
 * Threads  any, concurrently. A window is used by several at once, but freed by one
 * Errors   accelerator_open: what the device says, MEMD_ENOMEM. accelerator_attend: only what
 *          `stop` and `admit` of the caller return
 * Source   Flash-Decoding (split-K); sinks: StreamingLLM (arXiv 2309.17453)
 * Tests    tests/simt/test_accelerator.c, over a device that computes on the CPU
 */
#ifndef MEMD_ATTENTION_CUDA_ACCELERATOR_H
#define MEMD_ATTENTION_CUDA_ACCELERATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attention/cuda/device.h"
#include "attention/softmax.h"
#include "base/error.h"

struct accelerator;
struct attend_args;
struct rope;
struct tensor;
struct window;

enum { ACCELERATOR_DECLINED = 1 };

struct accelerator_config {
    int ordinal;           /* of the device; below 0: the one with most free memory */
    uint64_t window_bytes; /* of device memory for windows */
    uint64_t travel_bytes; /* of rows that travel for one batch of steps; twice on the device */
    uint64_t planes_bytes; /* of device memory for planes (index/progressive_device.h); 0: none */
    uint32_t sink_tokens, window_tokens;
    /* Called once, from any thread, when the device is lost. May be NULL. */
    void (*on_lost)(void *arg, const char *why);
    void *on_lost_arg;
};

int accelerator_open(const struct device_table *table, const struct accelerator_config *config,
                     struct accelerator **ret_accelerator, struct error *err);
/* No window may be left. NULL is fine. */
void accelerator_close(struct accelerator *accelerator);

/* Off: everything is declined, appends are not fed. Rows that come meanwhile are found missing
 * later. */
void accelerator_switch(struct accelerator *accelerator, bool on);

/* X(name): numbers that only grow. */
#define ACCELERATOR_COUNTER_MAP(X) \
    X(steps_total)                 \
    X(batches_total)               \
    X(declined_total)              \
    X(failures_total)              \
    X(demoted_total)               \
    X(fed_bytes_total)             \
    X(rebuilt_bytes_total)         \
    X(travelled_bytes_total)       \
    X(planes_steps_total)          \
    X(planes_sent_bytes_total)

struct accelerator_stats {
#define X(name) uint64_t name;
    ACCELERATOR_COUNTER_MAP(X)
#undef X
    uint64_t window_bytes, windows; /* on the device now */
};
/* These do not wait for a step that is under way. */
void accelerator_get_stats(struct accelerator *accelerator, struct accelerator_stats *ret_stats);

/* Is it in use? ret_name (bytes) gets the device's name, ret_why why it is not in use. */
bool accelerator_describe(struct accelerator *accelerator, char *ret_name, char *ret_why,
                          size_t bytes);
/* Of its table: "cuda". */
const char *accelerator_backend(const struct accelerator *accelerator);

/* Of one layer of one context. */
struct window_shape {
    uint32_t kv_heads, head_dim, dtype; /* of stored K and V */
    const struct rope *rope; /* not NULL: keys are stored unrotated; outlives the window */
};
/* NULL: there is nothing that such rows could be kept with (head_dim, memory). */
struct window *window_new(struct accelerator *accelerator, const struct window_shape *shape);
void window_free(struct window *window); /* NULL is fine */
/* Rows position … position + n - 1 were appended: k, v (n, G, D). Ignored unless they continue what
 * is there. */
void window_feed(struct window *window, uint64_t position, const struct tensor *k,
                 const struct tensor *v);
/* Rows from `tokens` on are gone. */
void window_cut(struct window *window, uint64_t tokens);

/* As attend(), whose args these are, of args->device. 0, ACCELERATOR_DECLINED, or an error of the
 * caller's own. `admit` is asked by this thread, before anybody waits for it, for what is not in
 * the window; rows are copied by the thread that leads the batch. */
int accelerator_attend(const struct attend_args *args, const struct partial *ret_partial,
                       struct error *err);

/* The same for several, of one accelerator: one launch does all of them, of however many contexts,
 * as far as they fit (64, one head_dim, one rope). rc of each as above; what would have to go in
 * pieces is declined. */
struct accelerator_step {
    const struct attend_args *args;
    struct partial partial; /* of the caller: the answer */
    int rc;
    struct error err;
};
void accelerator_attend_all(struct accelerator_step *steps, size_t count);

/* plugin.c: the table of a plugin, loaded for good. MEMD_EUNSUPPORTED with the reason. */
int accelerator_load_plugin(const char *path, const struct device_table **ret_table,
                            struct error *err);

#endif
