/* SPDX-License-Identifier: Apache-2.0 */
/* asked.h — a method asked about a random past, without a store: what context_attend would give it
 * is made here. */
#ifndef MEMD_TESTS_UNIT_ASKED_H
#define MEMD_TESTS_UNIT_ASKED_H

#include "memory/catalog.h"
#include "memory/methods/methods.h"
#include "tests/unit/subset.h"

struct asked {
    const struct method *method;
    struct past *past;
    double options[OPTIONS_MAX];
    struct reading reading;
    struct fold *fold;
    unsigned char *records; /* (T, token_bytes) columns */
    struct reply reply;     /* of attend */
    struct index_hits hits; /* of search; its arrays */
    struct selection *selection;
};

static inline struct fold_source asked_source(const struct asked *asked)
{
    const struct attend_args *args = &asked->reading.attend;
    return (struct fold_source){
        .rows = { args->views, args->view_count, asked->past->head_dim, args->rope },
        .kv_heads = args->kv_heads, .query_heads = asked->past->query_heads,
        .head_dim = asked->past->head_dim, .scale = args->scale,
        .columns = &asked->reading.columns, .params = asked->reading.params,
        .options = asked->options, .layer = asked->reading.layer, .layers = asked->reading.layers };
}

/* Bring the fold to where the past is. */
static inline int asked_fold(struct asked *asked, struct error *err)
{
    const struct fold_type *type = asked->method->fold;
    if (type == NULL) return 0;
    struct fold_source source = asked_source(asked);
    int rc = asked->fold == NULL ? type->open(&source, &asked->fold, err) : 0;
    if (rc == 0)
        rc = type->advance(asked->fold, &source, type->reach(asked->options, asked->past->tokens),
                           err);
    asked->reading.fold = asked->fold;
    return rc;
}

/* parameters: pairs of name and value, then NULL. The views of the past get columns where the
 * method wants them, empty ones. */
static inline void asked_begin(struct asked *asked, struct past *past, const struct method *method,
                               const char *const *parameters)
{
    struct parameter given[OPTIONS_MAX];
    size_t count = 0;
    for (; parameters != NULL && parameters[2 * count] != NULL; count++) {
        snprintf(given[count].name, sizeof given[count].name, "%s", parameters[2 * count]);
        snprintf(given[count].value, sizeof given[count].value, "%s", parameters[2 * count + 1]);
    }
    memset(asked, 0, sizeof *asked);
    asked->method = method;
    asked->past = past;
    struct error err = { 0 };
    if (method_parse(method, given, count, asked->options, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    struct columns columns;
    columns_init(method->columns == NULL ? 0 : method->columns(asked->options), past->query_heads,
                 past->head_dim, &columns);
    asked->records = past_alloc(past->tokens, columns.token_bytes + 1);
    for (size_t i = 0; columns.token_bytes > 0 && i < past->kv_heads * past->view_count; i++) {
        past->views[i].columns = asked->records + past->views[i].position * columns.token_bytes;
        past->views[i].columns_stride_bytes = columns.token_bytes;
    }
    asked->reading = (struct reading){ .attend = past_args(past), .options = asked->options,
                                       .tokens = past->tokens, .layers = 1, .columns = columns,
                                       .target_error = -1 };
    reply_init(&asked->reply, past);
}

static inline void asked_mark(struct asked *asked, uint64_t position, uint8_t marks)
{
    const struct columns *columns = &asked->reading.columns;
    asked->records[position * columns->token_bytes + columns->offset[COLUMN_MARKS]] = marks;
}

/* Compress the first `tokens` of the past; q: (w, H, D) fp32 of the last w of them, or NULL. */
static inline int asked_compress(struct asked *asked, uint64_t tokens, const float *q, size_t w,
                                 struct error *err)
{
    const struct attend_args *args = &asked->reading.attend;
    struct compressing prompt = { .rows = { args->views, args->view_count, asked->past->head_dim,
                                            args->rope },
                                  .kv_heads = args->kv_heads,
                                  .query_heads = asked->past->query_heads,
                                  .head_dim = asked->past->head_dim,
                                  .scale = args->scale,
                                  .rope = args->rope,
                                  .tokens = tokens,
                                  .layer = asked->reading.layer,
                                  .layers = asked->reading.layers,
                                  .params = asked->reading.params,
                                  .options = asked->options,
                                  .pool = args->pool,
                                  .stop = args->stop };
    if (q != NULL)
        prompt.q = (struct tensor){ q, DTYPE_FP32, 3, { w, prompt.query_heads, prompt.head_dim } };
    struct arena arena;
    arena_init(&arena, (size_t)256 << 20);
    selection_free(asked->selection);
    asked->selection = NULL;
    int rc = asked->method->compress(asked->method, &prompt, &arena, &asked->selection, err);
    arena_fini(&arena);
    asked->reading.selection = asked->selection;
    return rc;
}

static inline int asked_attend(struct asked *asked)
{
    struct error err = { 0 };
    struct arena arena;
    int rc = asked_fold(asked, &err);
    arena_init(&arena, (size_t)256 << 20);
    if (rc == 0)
        rc = asked->method->attend(asked->method, &asked->reading, &arena, &asked->reply.answer,
                                   &err);
    arena_fini(&arena);
    if (rc != 0) fprintf(stderr, "%s\n", err.text);
    return rc;
}

static inline int asked_search(struct asked *asked, size_t k)
{
    struct error err = { 0 };
    struct arena arena;
    struct index_quality quality = { 0 };
    size_t rows = asked->past->queries * asked->past->query_heads;
    free(asked->hits.ids);
    free(asked->hits.scores);
    asked->hits = (struct index_hits){ past_alloc(rows * k, 8), past_alloc(rows * k, 4), k };
    int rc = asked_fold(asked, &err);
    arena_init(&arena, (size_t)256 << 20);
    if (rc == 0)
        rc = asked->method->search(asked->method, &asked->reading, &arena, &asked->hits, &quality,
                                   &err);
    arena_fini(&arena);
    if (rc != 0) fprintf(stderr, "%s\n", err.text);
    return rc;
}

/* Does search give exactly the chosen tokens for query i, head h? Ask for more than there are. */
static inline bool asked_found(const struct asked *asked, size_t i, size_t h, const bool *chosen)
{
    size_t row = i * asked->past->query_heads + h, count = 0, wanted = 0;
    const uint64_t *ids = asked->hits.ids + row * asked->hits.k;
    const float *scores = asked->hits.scores + row * asked->hits.k;
    bool same = true;
    for (size_t t = 0; t < asked->past->tokens; t++) wanted += chosen[t];
    for (; count < asked->hits.k && ids[count] != INDEX_NONE; count++)
        same = same && chosen[ids[count]] && (count == 0 || scores[count] <= scores[count - 1]);
    if (!same || count != wanted)
        fprintf(stderr, "query %zu head %zu: %zu tokens found, expected %zu, %s\n", i, h, count,
                wanted, same ? "but all of them are wanted" : "and others than are wanted");
    return same && count == wanted;
}

static inline void asked_end(struct asked *asked)
{
    if (asked->fold != NULL) asked->fold->type->free(asked->fold);
    selection_free(asked->selection);
    free(asked->records);
    free(asked->hits.ids);
    free(asked->hits.scores);
    reply_fini(&asked->reply);
}

#endif
