/* SPDX-License-Identifier: Apache-2.0 */
/* minimal.c — the whole use of memd from C: open a context, append rows, attend over them.
 *
 *     minimal unix:/run/memd/memd.sock
 *
 * The rows are random: what comes back is the attention of one query over 1,000 remembered tokens,
 * per query head its log-sum-exp and the first numbers of its output.
 */
#include <memd.h>

#include <stdio.h>
#include <stdlib.h>

enum { H = 4, G = 2, D = 64, TOKENS = 1000 }; /* query heads, KV heads, head dimension, n */

static void fill(float *values, size_t count)
{
    for (size_t i = 0; i < count; i++) values[i] = 2.0f * (float)rand() / (float)RAND_MAX - 1.0f;
}

static int remember_and_ask(struct memd_client *client, struct memd_error *err)
{
    struct memd_model model = { .layers = 2, .query_heads = H, .kv_heads = G, .head_dim = D,
                                .dtype = MEMD_FP32 };
    struct memd_open open = { .name = "minimal", .model = &model, .create = true };
    struct memd_context book;
    int rc = memd_open(client, &open, &book, err);
    if (rc < 0) return rc;

    static float k[TOKENS * G * D], v[TOKENS * G * D]; /* (n, G, D) */
    fill(k, TOKENS * G * D);
    fill(v, TOKENS * G * D);
    struct memd_append rows = { .layer = 0, .position = book.tokens, .tokens = TOKENS,
                                .k = k, .v = v };
    struct memd_progress progress;
    rc = memd_append(&book, &rows, 1, MEMD_ACK_SYNCED, &progress, err);
    if (rc < 0) return rc;
    printf("%llu tokens, %llu of them safe on the disk\n", (unsigned long long)progress.tokens,
           (unsigned long long)progress.synced_tokens);

    float q[H * D], o[H * D], lse[H]; /* (1, H, D), (1, H, D), (1, H) */
    fill(q, H * D);
    struct memd_query query = { .context = &book, .layer = 0, .queries = 1, .q = q,
                                .positions = &progress.tokens, .o = o, .lse = lse };
    rc = memd_attend(&query, NULL, err);
    for (size_t h = 0; rc == 0 && h < H; h++)
        printf("head %zu: lse %.4f, o %.4f %.4f …\n", h, lse[h], o[h * D], o[h * D + 1]);
    return rc < 0 ? rc : memd_drop(&book, NULL, err);
}

int main(int argc, char **argv)
{
    struct memd_client *client = NULL;
    struct memd_error err = { 0 };
    int rc = memd_connect(argc > 1 ? argv[1] : "unix:/run/memd/memd.sock", NULL, &client, &err);
    if (rc == 0) rc = remember_and_ask(client, &err);
    if (rc < 0) fprintf(stderr, "%s: %s\n", memd_error_name(rc), err.text);
    memd_close(client);
    return rc < 0 ? 1 : 0;
}
