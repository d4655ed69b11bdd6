/* SPDX-License-Identifier: Apache-2.0 */
/* bench_methods.c — what a token costs under each memory method: to take it in, to make of it what
 * the method wants, and to answer a query of one token over all of them; with the bytes that are
 * read and kept for it. One layer of real shape, everything by the options that are in force where
 * none are given, one method after the other.
 *
 * Appends are timed until they are committed, and again until everything is made of them (planes,
 * indexes, folds, a compressed prompt), since some of that is done beside them, and some by the
 * first query. The rows are noise, of which every method that chooses by likeness has the worst
 * time; what its answers are worth is measured elsewhere (bench attend, examples/long_document).
 */
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "clients/memctl/bench.h"
#include "clients/memctl/human.h"
#include "clients/memctl/progress.h"

enum {
    CHUNK_TOKENS = 2048,
    DISTINCT_TOKENS = 32768, /* after so many the rows are repeated */
    TOKENS_DEFAULT = 8192,
    ATTENDS = 20,
    PAUSE_MS = 5,
    WINDOW_QUERIES = 32,     /* of a prompt that is compressed */
    BLOCK_TOKENS = 64,       /* a landmark stands at the end of each */
    LAYER = BENCH_LAYERS / 2, /* some methods spare the first ones */
    HIDDEN_WIDTH = 256,      /* of tensors that read a hidden state */
    HEAD_VALUES = BENCH_QUERY_HEADS * BENCH_HEAD_DIM,
    ROW_VALUES = BENCH_KV_HEADS * BENCH_HEAD_DIM,
};

static const struct table_column columns[] = {
    { "METHOD", TABLE_LEFT },     { "APPEND us", TABLE_RIGHT }, { "READY us", TABLE_RIGHT },
    { "ATTEND us", TABLE_RIGHT }, { "READ", TABLE_RIGHT },      { "OF EXACT", TABLE_RIGHT },
    { "STATE", TABLE_RIGHT },     { "DERIVED", TABLE_RIGHT },   { "", TABLE_LEFT },
};
enum { COLUMNS = sizeof columns / sizeof columns[0] };

/* Made-up input of all methods. */
struct noise {
    uint16_t *values; /* fp16, enough for whatever is sent in one request */
    uint8_t *marks;   /* (CHUNK_TOKENS) */
    size_t distinct;  /* tokens */
};

struct work {
    struct bench *bench;
    const struct memd_method *method;
    const struct noise *noise;
    struct progress *progress;
    struct memd_context context;
    uint64_t tokens;
    double append_us, ready_us, attend_us; /* per token, per token, per query; of one layer */
    uint64_t bytes_read, bytes_exact, state_bytes, derived_bytes;
};

/* ---- input ---- */

static int make_noise(struct bench *bench, uint64_t tokens, struct noise *ret_noise)
{
    size_t distinct = tokens < DISTINCT_TOKENS ? (size_t)tokens : DISTINCT_TOKENS;
    /* Rows of all distinct tokens, and the queries of a chunk, which are wider. */
    size_t values = (distinct + CHUNK_TOKENS) * ROW_VALUES + (size_t)CHUNK_TOKENS * HEAD_VALUES;
    struct noise noise = { .values = malloc(values * sizeof(uint16_t)),
                           .marks = calloc(CHUNK_TOKENS, 1), .distinct = distinct };
    *ret_noise = noise;
    if (noise.values == NULL || noise.marks == NULL)
        return ctl_error(bench->ctl, "out of memory");
    bench_fill(noise.values, values * sizeof(uint16_t));
    for (size_t i = BLOCK_TOKENS - 1; i < CHUNK_TOKENS; i += BLOCK_TOKENS)
        noise.marks[i] = MEMD_MARK_LANDMARK;
    return CTL_OK;
}

static int open_context(struct work *work)
{
    struct ctl *ctl = work->bench->ctl;
    char name[64];
    snprintf(name, sizeof name, "bench-%ld-methods", (long)getpid());
    const struct memd_rope rope = { .theta = 5e5 };
    const struct memd_model model = {
        .layers = BENCH_LAYERS, .query_heads = BENCH_QUERY_HEADS, .kv_heads = BENCH_KV_HEADS,
        .head_dim = BENCH_HEAD_DIM, .dtype = MEMD_FP16, .rope = &rope,
        .fingerprint = "memctl bench",
    };
    const struct memd_open open = { .name = name, .model = &model, .method = work->method->name,
                                    .create = true, .must_create = true };
    return memd_open(ctl->client, &open, &work->context, &ctl->err);
}

/* ---- tensors ---- */

static size_t letter_size(const struct work *work, char letter)
{
    switch (letter) {
    case 'G': return BENCH_KV_HEADS;
    case 'H': return BENCH_QUERY_HEADS;
    case 'D': return BENCH_HEAD_DIM;
    case 'W': return work->context.state_width;
    default: return HIDDEN_WIDTH;
    }
}

/* What a trained tensor may look like: ones on the diagonal of its last two axes and noise
 * elsewhere, so little of it that a basis stays one. */
static float *make_tensor(const struct noise *noise, const struct memd_param *param)
{
    size_t count = 1, width = param->shape[param->dims - 1];
    size_t rows = param->dims > 1 ? param->shape[param->dims - 2] : 1;
    for (uint32_t i = 0; i < param->dims; i++) count *= param->shape[i];
    float *values = malloc(count * sizeof *values);
    for (size_t i = 0; values != NULL && i < count; i++) {
        float small = (float)(noise->values[i % ROW_VALUES] & 0xFF) * 1e-6F;
        values[i] = rows > 1 && i / width % rows == i % width ? 1.0F : small;
    }
    return values;
}

/* Each for all layers. A method that reads none does not look at them; what compresses has
 * capacities of heads, of which its parameters are the default. */
static int upload(struct work *work)
{
    int rc = 0;
    if (work->method->compresses) return 0;
    for (size_t t = 0; rc == 0 && t < work->method->tensor_count; t++) {
        const struct memd_method_tensor *tensor = &work->method->tensors[t];
        struct memd_param param = { .name = tensor->name, .layer = MEMD_ALL_LAYERS,
                                    .dims = (uint32_t)strnlen(tensor->shape, 4) };
        for (uint32_t i = 0; i < param.dims; i++)
            param.shape[i] = letter_size(work, tensor->shape[i]);
        CLEANUP(free_ptr) float *values = make_tensor(work->noise, &param);
        if (values == NULL) return MEMD_ENOMEM;
        param.value = values;
        rc = memd_put_params(&work->context, &param, 1, &work->bench->ctl->err);
    }
    return rc;
}

/* ---- tokens in ---- */

static int append_chunk(struct work *work, uint64_t position, size_t count)
{
    const struct memd_method *method = work->method;
    const struct noise *noise = work->noise;
    const uint16_t *rows = noise->values + position % noise->distinct * ROW_VALUES;
    const uint16_t *wide = noise->values;
    struct memd_append append = { .layer = LAYER, .position = position, .tokens = count,
                                  .q_dtype = MEMD_FP16 };
    if (work->context.state_width > 0) append.states = wide;
    else append.k = append.v = rows;
    if (method->wants_queries || method->samples_queries) append.q = wide;
    if (method->wants_marks) append.marks = noise->marks;
    return memd_append(&work->context, &append, 1, MEMD_ACK_COMMITTED, NULL,
                       &work->bench->ctl->err);
}

static int append_all(struct work *work)
{
    for (uint64_t position = 0; position < work->tokens;) {
        uint64_t left = work->tokens - position;
        size_t count = left < CHUNK_TOKENS ? (size_t)left : CHUNK_TOKENS;
        int rc = append_chunk(work, position, count);
        if (rc < 0) return rc;
        if (bench_interrupted()) return 0;
        position += count;
        progress_show(work->progress, position, work->tokens, "token");
    }
    return 0;
}

/* Planes and indexes, which are built in the background. */
static int wait_built(struct work *work)
{
    struct ctl *ctl = work->bench->ctl;
    for (;;) {
        CLEANUP(ctl_result_free) const struct memd_rebuild *built = NULL;
        int rc = memd_built(ctl->client, work->context.id, &built, &ctl->err);
        bool done = rc < 0 || built->failure[0] != '\0' || bench_interrupted();
        if (done || (built->built_segments >= built->segments &&
                     built->built_indexes >= built->indexes))
            return rc;
        progress_show(work->progress, built->built_segments + built->built_indexes,
                      built->segments + built->indexes, "part");
        poll(NULL, 0, PAUSE_MS);
    }
}

static int take_states(struct work *work)
{
    struct ctl *ctl = work->bench->ctl;
    CLEANUP(ctl_result_free) const struct memd_states *states = NULL;
    int rc = memd_states(&work->context, &states, &ctl->err);
    for (size_t l = 0; rc == 0 && l < states->count; l++)
        for (size_t i = 0; i < states->layers[l].fact_count; i++)
            if (strcmp(states->layers[l].facts[i].name, "bytes") == 0)
                work->state_bytes += (uint64_t)states->layers[l].facts[i].value;
    return rc;
}

static int make_ready(struct work *work)
{
    const struct memd_compress prompt = { .layer = LAYER, .q = work->noise->values,
                                          .queries = WINDOW_QUERIES, .q_dtype = MEMD_FP16 };
    int rc = wait_built(work);
    if (rc == 0) rc = take_states(work);
    if (rc == 0 && work->method->compresses)
        rc = memd_compress(&work->context, &prompt, 1, NULL, &work->bench->ctl->err);
    return rc;
}

/* ---- answers ---- */

static int attend(struct work *work)
{
    struct bench *bench = work->bench;
    const struct memd_query query = {
        .context = &work->context, .layer = LAYER, .queries = 1,
        .q = work->noise->values + HEAD_VALUES, .q_dtype = MEMD_FP16,
        .positions = &work->tokens, .target_error = bench->target_error,
        .states = work->context.state_width > 0 ? work->noise->values : NULL,
        .states_dtype = MEMD_FP16,
    };
    CLEANUP(ctl_result_free) const struct memd_answer *answer = NULL;
    int rc = memd_attend(&query, &answer, &bench->ctl->err);
    if (rc < 0) return rc;
    work->bytes_read = answer->quality.bytes_read;
    work->bytes_exact = answer->quality.bytes_exact;
    return 0;
}

/* Of each round the least, and of those the median. */
static int time_attends(struct work *work)
{
    double least[BENCH_ROUNDS_MAX];
    for (uint64_t r = 0; r < work->bench->rounds; r++) {
        least[r] = INFINITY;
        for (int i = 0; i < ATTENDS; i++) {
            uint64_t begun_ns = clock_monotonic_ns();
            int rc = attend(work);
            if (rc < 0) return rc;
            if (bench_interrupted()) return 0;
            least[r] = fmin(least[r], (double)(clock_monotonic_ns() - begun_ns) / 1e3);
        }
    }
    work->attend_us = probe_quantile(least, work->bench->rounds, 0.5);
    return 0;
}

static int measure(struct work *work)
{
    struct ctl *ctl = work->bench->ctl;
    CLEANUP(ctl_result_free) const struct memd_info *info = NULL;
    int rc = upload(work);
    uint64_t begun_ns = clock_monotonic_ns();
    if (rc == 0) rc = append_all(work);
    uint64_t appended_ns = clock_monotonic_ns();
    if (rc == 0) rc = make_ready(work);
    uint64_t ready_ns = clock_monotonic_ns();
    work->append_us = (double)(appended_ns - begun_ns) / 1e3 / (double)work->tokens;
    work->ready_us = (double)(ready_ns - begun_ns) / 1e3 / (double)work->tokens;
    if (rc == 0 && !bench_interrupted()) rc = time_attends(work);
    if (rc == 0) rc = memd_stat(&work->context, &info, &ctl->err);
    if (rc == 0) work->derived_bytes = info->derived_bytes;
    return rc;
}

/* ---- the report ---- */

static double share(const struct work *work)
{
    return work->bytes_exact == 0 ? 0 : (double)work->bytes_read / (double)work->bytes_exact;
}

static void add_row(struct table *table, const struct work *work)
{
    table_add(table, work->method->name);
    table_addf(table, "%.2f", work->append_us);
    table_addf(table, "%.2f", work->ready_us);
    table_addf(table, "%.1f", work->attend_us);
    table_add(table, human_bytes(work->bytes_read).text);
    table_add(table, human_share(share(work)).text);
    table_add(table, human_bytes(work->state_bytes).text);
    table_add(table, human_bytes(work->derived_bytes).text);
    table_add(table, "");
}

static void add_failure(struct table *table, const struct work *work, const char *text)
{
    table_add(table, work->method->name);
    for (size_t c = 1; c + 1 < COLUMNS; c++) table_add(table, "-");
    table_add(table, text);
}

static void method_json(struct json *json, const struct work *work, const char *failure)
{
    json_open(json, work->method->name, '{');
    if (failure != NULL) {
        json_text(json, "failure", failure);
    } else {
        json_uint(json, "tokens", work->tokens);
        json_real(json, "append_us", work->append_us);
        json_real(json, "ready_us", work->ready_us);
        json_real(json, "attend_us", work->attend_us);
        json_uint(json, "bytes_read", work->bytes_read);
        json_real(json, "bytes_share", share(work));
        json_uint(json, "state_bytes", work->state_bytes);
        json_uint(json, "derived_bytes", work->derived_bytes);
    }
    json_close(json);
}

/* A method that cannot be measured so (it wants tensors that nobody has uploaded) says why. */
static int measure_method(struct work *work, struct table *table)
{
    struct ctl *ctl = work->bench->ctl;
    int rc = open_context(work);
    if (rc == 0) {
        rc = measure(work);
        char text[MEMD_ERROR_TEXT_BYTES];
        memcpy(text, ctl->err.text, sizeof text);
        bench_drop(work->bench, &work->context);
        memcpy(ctl->err.text, text, sizeof text);
    }
    if (bench_interrupted()) return CTL_ERROR;
    if (rc < 0 && rc != MEMD_EINVAL && rc != MEMD_EUNSUPPORTED)
        return ctl_failed(ctl, rc, work->method->name);
    const char *failure = rc < 0 ? ctl->err.text : NULL;
    if (ctl->json) {
        method_json(&work->bench->json, work, failure);
    } else if (failure == NULL) {
        add_row(table, work);
    } else {
        add_failure(table, work, failure);
    }
    return CTL_OK;
}

static int measure_methods(struct bench *bench, const struct memd_methods *methods,
                           const struct noise *noise, uint64_t tokens)
{
    CLEANUP(table_freep) struct table *table = table_new(columns, COLUMNS);
    bool all = strcmp(bench->method, BENCH_ALL) == 0, found = all;
    int rc = CTL_OK;
    for (size_t i = 0; rc == CTL_OK && i < methods->count; i++) {
        struct progress progress = progress_begin(methods->methods[i].name);
        struct work work = { .bench = bench,
                             .method = &methods->methods[i],
                             .noise = noise,
                             .progress = &progress,
                             .tokens = tokens };
        if (!all && strcmp(bench->method, work.method->name) != 0) continue;
        found = true;
        rc = measure_method(&work, table);
        progress_end(&progress);
    }
    if (rc != CTL_OK) return rc;
    if (!found) return ctl_error(bench->ctl, "the daemon has no method %s", bench->method);
    if (bench->ctl->json) return CTL_OK;
    fprintf(bench->ctl->out,
            "per token of one layer, %s tokens, 32 query heads, 8 KV heads of 128, float16:\n",
            human_count(tokens).text);
    rc = ctl_print(bench->ctl, table);
    fputc('\n', bench->ctl->out);
    return rc;
}

int bench_methods(struct bench *bench)
{
    struct ctl *ctl = bench->ctl;
    bool given = options_value(&ctl->options, "tokens") != NULL;
    uint64_t tokens = given ? bench->tokens : TOKENS_DEFAULT;
    CLEANUP(ctl_result_free) const struct memd_methods *methods = NULL;
    int rc = memd_methods(ctl->client, &methods, &ctl->err);
    if (rc < 0) return ctl_failed(ctl, rc, "methods");
    struct noise noise;
    rc = make_noise(bench, tokens, &noise);
    if (rc == CTL_OK) rc = measure_methods(bench, methods, &noise, tokens);
    free(noise.values);
    free(noise.marks);
    return rc;
}
