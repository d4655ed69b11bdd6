/* SPDX-License-Identifier: Apache-2.0 */
/* bench.h — one run of `memctl bench`: what was chosen, and how a measurement is reported.
 *
 * A measurement makes contexts named "bench-PID-…" and drops them, also when it was interrupted;
 * it never touches others. Every figure that depends on the machine stands beside what the
 * machine itself did in the same run (probe.h).
 */
#ifndef MEMD_CLIENTS_MEMCTL_BENCH_H
#define MEMD_CLIENTS_MEMCTL_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "clients/memctl/ctl.h"
#include "clients/memctl/json.h"
#include "clients/memctl/probe.h"
#include "clients/memctl/table.h"

enum { BENCH_ROUNDS_MAX = 101 };
#define BENCH_ALL "all" /* as --method */

struct bench {
    struct ctl *ctl;
    struct json json;
    struct table *table;
    struct probe_machine machine;
    const char *disk;       /* directory for probe_disk, or NULL: none that can be written to */
    uint32_t workers;       /* of the daemon */
    uint64_t rounds, requests, tokens, append_bytes, idle, busy, seconds;
    const char *method;     /* of the contexts; BENCH_ALL: of `methods` alone */
    double target_error;    /* of attends, as in struct memd_query */
};

/* The shape of one Llama-3-8B layer, the common one of dense models: 4 KiB of KV per token and
 * layer. */
enum { BENCH_LAYERS = 32, BENCH_QUERY_HEADS = 32, BENCH_KV_HEADS = 8, BENCH_HEAD_DIM = 128 };
enum { BENCH_ROW_BYTES = BENCH_KV_HEADS * BENCH_HEAD_DIM * 2 }; /* K or V of a token and layer */

int bench_overhead(struct bench *bench);
int bench_append(struct bench *bench);
int bench_attend(struct bench *bench);
int bench_connections(struct bench *bench);
int bench_methods(struct bench *bench);

/* Make the context bench-PID-`what` of that shape. */
int bench_open(struct bench *bench, const char *what, struct memd_context *ret_context);
void bench_drop(struct bench *bench, const struct memd_context *context);

/* fp16 values between -1 and 1, different in each word. */
void bench_fill(void *data, size_t bytes);

/* Control-C or SIGTERM came (bench_main blocks them): stop and clean up. */
bool bench_interrupted(void);
/* Wait so long, or until one of them comes. */
void bench_wait(double seconds);

/* One figure: a row of the table, or a member of the object that the measurement has open. `note`
 * says what to compare it with. */
struct bench_figure {
    const char *key;    /* "p50_us" */
    const char *label;  /* "overhead p50" */
    const char *unit;   /* "us" */
    double value;
    const char *note;
};
void bench_report(struct bench *bench, const struct bench_figure *figure);

/* Names of the measurements, for completion. */
void bench_complete(void (*candidate)(const char *word, const char *prefix,
                                      const char *description),
                    const char *prefix);

#endif
