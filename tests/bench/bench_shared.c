/* SPDX-License-Identifier: Apache-2.0 */
/* bench_shared.c — the same requests through a socket and in memory that is shared with the daemon,
 * in turns.
 *
 *     bench_shared MEMD [ROUNDS]        MEMD: the daemon's program; prints JSON
 *
 * attend   1, 32 and 256 queries of the shape of Llama-3-8B, over a layer that holds one token (all
 *          that is left is the way there and back) and over one that holds 2,048
 * append   256 tokens of one layer, acknowledged in memory, each time to a fresh position
 *
 * One client, one process, socket and shared one after the other in every round, so that whatever
 * else the machine does meets both. A figure is the median and the least of the rounds.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "clients/include/memd.h"

enum { HEADS = 32, KV_HEADS = 8, HEAD_DIM = 128, QUERIES_MAX = 256, STEP = 256 };
enum { REGION_BYTES = 32 << 20, ROUNDS_MAX = 1001, TOKENS_MAX = 2048 };
#define Q_BYTES ((size_t)QUERIES_MAX * HEADS * HEAD_DIM * 2)
#define O_BYTES ((size_t)QUERIES_MAX * HEADS * HEAD_DIM * 4)
#define LSE_BYTES ((size_t)QUERIES_MAX * HEADS * 4)
#define ROW_BYTES ((size_t)KV_HEADS * HEAD_DIM * 2)

static char directory[] = "/tmp/memd-bench-XXXXXX";

static void must(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "bench_shared: %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

/* The arrays of one way: the caller's own memory, or a region. */
struct arrays {
    uint16_t *q; /* (QUERIES_MAX, H, D) */
    float *o, *lse;
    uint16_t *k, *v; /* (STEP, G, D) */
};

static struct arrays lay_out(unsigned char *memory)
{
    struct arrays arrays = { .q = (uint16_t *)(void *)memory };
    arrays.o = (float *)(void *)(memory + Q_BYTES);
    arrays.lse = (float *)(void *)(memory + Q_BYTES + O_BYTES);
    arrays.k = (uint16_t *)(void *)(memory + Q_BYTES + O_BYTES + LSE_BYTES);
    arrays.v = arrays.k + (size_t)STEP * KV_HEADS * HEAD_DIM;
    uint32_t state = 1;
    for (size_t i = 0; i < Q_BYTES / 2; i++) {
        state = state * 1664525u + 1013904223u;
        arrays.q[i] = (uint16_t)(state >> 16 & 0xBBFF); /* fp16 below 1 in size */
    }
    memcpy(arrays.k, arrays.q, STEP * ROW_BYTES);
    memcpy(arrays.v, arrays.q, STEP * ROW_BYTES);
    return arrays;
}

static struct memd_context open_layer(struct memd_client *client, const char *name)
{
    struct memd_model model = { .layers = 1, .query_heads = HEADS, .kv_heads = KV_HEADS,
                                .head_dim = HEAD_DIM, .dtype = MEMD_FP16 };
    struct memd_open args = { .name = name, .model = &model, .method = "full", .create = true };
    struct memd_context context;
    must(memd_open(client, &args, &context, NULL) == 0, "open");
    return context;
}

static void append(const struct memd_context *context, const struct arrays *arrays,
                   uint64_t position, size_t tokens)
{
    struct memd_append layer = { .position = position, .tokens = tokens, .k = arrays->k,
                                 .v = arrays->v };
    struct memd_error err = { 0 };
    int rc = memd_append(context, &layer, 1, MEMD_ACK_MEMORY, NULL, &err);
    if (rc < 0) fprintf(stderr, "bench_shared: %s\n", err.text);
    must(rc == 0, "append");
}

static uint64_t attend_ns(const struct memd_context *context, const struct arrays *arrays,
                          size_t queries)
{
    static uint64_t positions[QUERIES_MAX];
    struct memd_query query = { .context = context, .queries = queries, .q = arrays->q,
                                .positions = positions, .o = arrays->o, .lse = arrays->lse };
    uint64_t begun_ns = clock_monotonic_ns();
    must(memd_attend(&query, NULL, NULL) == 0, "attend");
    return clock_monotonic_ns() - begun_ns;
}

static int ascending(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* Of the two ways, socket first; sorted here. */
static void report(const char *name, uint64_t ns[2][ROUNDS_MAX], size_t rounds, size_t bytes)
{
    for (int way = 0; way < 2; way++) qsort(ns[way], rounds, sizeof ns[way][0], ascending);
    size_t middle = rounds / 2;
    double socket = (double)ns[0][middle], shared = (double)ns[1][middle];
    printf("  { \"name\": \"%s\", \"tensors_kib\": %.0f,\n", name, (double)bytes / 1024.0);
    printf("    \"socket_us\": %.1f, \"shared_us\": %.1f,\n", socket / 1e3, shared / 1e3);
    printf("    \"socket_least_us\": %.1f, \"shared_least_us\": %.1f,\n", (double)ns[0][0] / 1e3,
           (double)ns[1][0] / 1e3);
    printf("    \"socket_by_shared\": %.2f },\n", socket / shared);
    fflush(stdout);
}

static void run_attends(struct memd_client *client, const struct arrays ways[2], size_t rounds)
{
    static uint64_t ns[2][ROUNDS_MAX];
    static const size_t counts[] = { 1, 32, QUERIES_MAX };
    static const size_t tokens[] = { 1, TOKENS_MAX };
    for (size_t t = 0; t < 2; t++) {
        char name[64];
        snprintf(name, sizeof name, "past-%zu", tokens[t]);
        struct memd_context context = open_layer(client, name);
        for (size_t at = 0; at < tokens[t]; at += STEP)
            append(&context, &ways[0], at, tokens[t] < STEP ? tokens[t] : STEP);
        for (size_t c = 0; c < 3; c++) {
            size_t some = t == 0 ? rounds : rounds / 4 + 1;
            for (size_t r = 0; r < some; r++)
                for (size_t i = 0; i < 2; i++) {
                    size_t way = (r + i) % 2; /* neither is always the first */
                    ns[way][r] = attend_ns(&context, &ways[way], counts[c]);
                }
            must(memcmp(ways[0].o, ways[1].o, counts[c] * HEADS * HEAD_DIM * 4) == 0, "equal bits");
            snprintf(name, sizeof name, "attend %zu over %zu", counts[c], tokens[t]);
            report(name, ns, some, counts[c] * HEADS * (HEAD_DIM * 6 + 4));
        }
    }
}

static void run_appends(struct memd_client *client, const struct arrays ways[2], size_t rounds)
{
    static uint64_t ns[2][ROUNDS_MAX];
    struct memd_context context = open_layer(client, "appended");
    for (size_t r = 0; r < rounds; r++)
        for (size_t i = 0; i < 2; i++) {
            size_t way = (r + i) % 2;
            uint64_t begun_ns = clock_monotonic_ns();
            append(&context, &ways[way], (2 * r + i) * STEP, STEP);
            ns[way][r] = clock_monotonic_ns() - begun_ns;
        }
    report("append 256", ns, rounds, 2 * STEP * ROW_BYTES);
}

static pid_t start(const char *memd)
{
    char data[64], socket[64];
    must(mkdtemp(directory) != NULL, "mkdtemp");
    snprintf(data, sizeof data, "%s/data", directory);
    snprintf(socket, sizeof socket, "%s/socket", directory);
    pid_t pid = fork();
    if (pid == 0) {
        execl(memd, memd, "--data", data, "--socket", socket, "--log-level", "error", "--sync",
              "never", (char *)NULL);
        _exit(127);
    }
    must(pid > 0, "fork");
    return pid;
}

static struct memd_client *connect_to(void)
{
    char address[64];
    struct memd_client *client = NULL;
    snprintf(address, sizeof address, "unix:%s/socket", directory);
    while (memd_connect(address, NULL, &client, NULL) == MEMD_ECLOSED) {
    }
    must(client != NULL, "connect");
    return client;
}

int main(int argc, char **argv)
{
    must(argc >= 2, "usage: bench_shared MEMD [ROUNDS]");
    size_t rounds = argc > 2 ? strtoul(argv[2], NULL, 10) : 201;
    must(rounds >= 5 && rounds <= ROUNDS_MAX, "ROUNDS, 5 to 1001");
    pid_t pid = start(argv[1]);
    struct memd_client *client = connect_to();
    struct memd_region *region = NULL;
    unsigned char *own = aligned_alloc(4096, REGION_BYTES);
    must(own != NULL && memd_share(client, REGION_BYTES, &region, NULL) == 0, "memory");
    struct arrays ways[2] = { lay_out(own), lay_out(memd_region_data(region)) };
    printf("[\n");
    run_attends(client, ways, rounds);
    run_appends(client, ways, rounds < 65 ? rounds : 65);
    printf("  { \"name\": \"rounds\", \"count\": %zu }\n]\n", rounds);
    memd_close(client);
    free(own);
    kill(pid, SIGTERM);
    int status = 0;
    must(waitpid(pid, &status, 0) == pid && status == 0, "end of the daemon");
    return EXIT_SUCCESS;
}
