/* SPDX-License-Identifier: Apache-2.0 */
/* fold_method.c — the methods of fold_method.h. They do nothing that a method may not do. */
#include "tests/unit/fold_method.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/pool.h"
#include "memory/format.h"
#include "memory/methods/methods.h"

enum { OPTION_STEP, OPTION_WINDOW, STOP_TOKENS = 64, SAVE_VERSION = 1, MASS_HEADS_MAX = 64 };

static atomic_ullong tokens_taken, loads;

uint64_t fold_tokens_taken(void)
{
    return tokens_taken;
}

uint64_t fold_loads(void)
{
    return loads;
}

struct sums {
    struct fold fold;
    uint64_t *sums; /* (capacity) of tokens 0 … i, for i below fold.tokens */
    size_t capacity;
};

uint64_t fold_sum_value(uint64_t sum, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    sum = (sum ^ bits) * UINT64_C(0x9E3779B97F4A7C15) + 1;
    return sum ^ sum >> 29;
}

static uint64_t reach_of(const double *options, uint64_t tokens)
{
    uint64_t step = (uint64_t)options[OPTION_STEP], window = (uint64_t)options[OPTION_WINDOW];
    return tokens < window ? 0 : (tokens - window) / step * step;
}

static int reserve(struct sums *sums, uint64_t tokens, struct error *err)
{
    if (tokens <= sums->capacity) return 0;
    size_t capacity = (size_t)tokens * 2;
    uint64_t *larger = realloc(sums->sums, capacity * sizeof *larger);
    if (larger == NULL) return error_set(err, MEMD_ENOMEM, "no memory for %zu sums", capacity);
    sums->sums = larger;
    sums->capacity = capacity;
    sums->fold.bytes = sizeof *sums + capacity * sizeof *larger;
    return 0;
}

static void free_sums(struct fold *fold)
{
    struct sums *sums = (struct sums *)(void *)fold;
    free(sums->sums);
    free(sums);
}

static int open_of(const struct fold_type *type, struct fold **ret_fold, struct error *err)
{
    struct sums *sums = calloc(1, sizeof *sums);
    if (sums == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a fold");
    sums->fold = (struct fold){ .type = type, .bytes = sizeof *sums };
    *ret_fold = &sums->fold;
    return 0;
}

/* In front of the first token: the numbers of the tensors that were uploaded. */
static uint64_t add_params(const struct fold_source *source)
{
    static const char *const names[] = { "salt", "turn" };
    uint64_t sum = 0;
    for (size_t i = 0; i < 2; i++) {
        const struct tensor *tensor = params_find(source->params, names[i], source->layer);
        const float *numbers = tensor == NULL ? NULL : tensor->data;
        for (size_t j = 0; tensor != NULL && j < tensor_elements(tensor); j++)
            sum = fold_sum_value(sum, numbers[j]);
    }
    return sum;
}

/* What a token received, by a thread while another reads what a far one did. */
struct reading_mass {
    const struct fold_source *source;
    uint64_t positions[2];
    pthread_barrier_t *turn; /* NULL: there is one thread, and nobody else reads */
    float *ret_mass;
    bool known;
};

static void read_beside(void *arg, size_t idx)
{
    struct reading_mass *reading = arg;
    const struct fold_source *source = reading->source;
    if (idx == 1 && reading->turn != NULL) pthread_barrier_wait(reading->turn);
    const float *mass = source->mass(source->mass_arg, reading->positions[idx]);
    if (idx == 0 && reading->turn != NULL) pthread_barrier_wait(reading->turn);
    if (reading->turn != NULL) pthread_barrier_wait(reading->turn); /* both have read */
    if (idx == 1) return;
    reading->known = mass != NULL;
    if (mass != NULL) memcpy(reading->ret_mass, mass, source->query_heads * sizeof *mass);
}

/* Split over the threads that there are, as methods do that form blocks side by side; with two of
 * them always in the order that is worst for a reader that has room for one chunk of mass. A pool
 * must have two threads that nobody else keeps. ret_mass (H); false: nobody said anything. */
static bool read_mass(const struct fold_source *source, uint64_t position, float *ret_mass)
{
    uint64_t far = position < FORMAT_MASS_TOKENS ? position + FORMAT_MASS_TOKENS
                                                 : position - FORMAT_MASS_TOKENS;
    struct reading_mass reading = { .source = source, .positions = { position, far },
                                    .ret_mass = ret_mass };
    if (source->mass == NULL) return false;
    assert(source->query_heads <= MASS_HEADS_MAX);
    pthread_barrier_t turn;
    pthread_barrier_init(&turn, NULL, 2);
    if (source->pool != NULL) reading.turn = &turn;
    pool_for(source->pool, source->pool != NULL ? 2 : 1, read_beside, &reading);
    pthread_barrier_destroy(&turn);
    return reading.known;
}

static uint64_t add_token(const struct fold_source *source, uint64_t sum, uint64_t position)
{
    float row[256];
    for (size_t g = 0; g < source->kv_heads; g++) {
        rows_keys(&source->rows, g, position, 1, row);
        for (size_t d = 0; d < source->head_dim; d++) sum = fold_sum_value(sum, row[d]);
        rows_values(&source->rows, g, position, 1, row);
        for (size_t d = 0; d < source->head_dim; d++) sum = fold_sum_value(sum, row[d]);
    }
    float mass[MASS_HEADS_MAX];
    bool known = read_mass(source, position, mass);
    for (size_t h = 0; known && h < source->query_heads; h++) sum = fold_sum_value(sum, mass[h]);
    return sum;
}

static int advance_sums(struct fold *fold, const struct fold_source *source, uint64_t end,
                        struct error *err)
{
    struct sums *sums = (struct sums *)(void *)fold;
    int rc = reserve(sums, end, err);
    for (uint64_t i = fold->tokens; rc == 0 && i < end; i++) {
        if (source->stop != NULL && i % STOP_TOKENS == 0) rc = source->stop(source->stop_arg);
        if (rc < 0) return error_set(err, rc, "stopped");
        uint64_t before = i == 0 ? add_params(source) : sums->sums[i - 1];
        sums->sums[i] = add_token(source, before, i);
        fold->tokens = i + 1;
        atomic_fetch_add(&tokens_taken, 1);
    }
    return rc;
}

static size_t save_sums(const struct fold *fold, unsigned char *ret_data)
{
    const struct sums *sums = (const struct sums *)(const void *)fold;
    size_t bytes = sizeof(uint32_t) + (size_t)(fold->tokens + 1) * sizeof(uint64_t);
    if (ret_data == NULL) return bytes;
    struct bytes_writer out = bytes_writer(ret_data, bytes);
    bytes_put_le32(&out, SAVE_VERSION);
    bytes_put_le64(&out, fold->tokens);
    for (uint64_t i = 0; i < fold->tokens; i++) bytes_put_le64(&out, sums->sums[i]);
    return bytes;
}

static size_t describe_sums(const struct fold *fold, struct fold_fact *ret_facts)
{
    ret_facts[0] = (struct fold_fact){ "tokens", (double)fold->tokens };
    return 1;
}

static int open_forgets(const struct fold_source *source, struct fold **ret_fold,
                        struct error *err);
static int load_forgets(const struct fold_source *source, const void *data, size_t bytes,
                        struct fold **ret_fold, struct error *err);
static int open_reads_back(const struct fold_source *source, struct fold **ret_fold,
                           struct error *err);

static const struct fold_type forgets_type = {
    .name = "test-forgets", .forgets = true, .reach = reach_of, .open = open_forgets,
    .free = free_sums, .advance = advance_sums, .save = save_sums, .load = load_forgets,
    .describe = describe_sums,
};
static const struct fold_type reads_back_type = {
    .name = "test-reads-back", .reach = reach_of, .open = open_reads_back, .free = free_sums,
    .advance = advance_sums, .describe = describe_sums,
};

static int open_forgets(const struct fold_source *source, struct fold **ret_fold, struct error *err)
{
    (void)source;
    return open_of(&forgets_type, ret_fold, err);
}

static int open_reads_back(const struct fold_source *source, struct fold **ret_fold,
                           struct error *err)
{
    (void)source;
    return open_of(&reads_back_type, ret_fold, err);
}

static void put_fold(struct fold **fold)
{
    if (*fold != NULL) free_sums(*fold);
}

static int load_forgets(const struct fold_source *source, const void *data, size_t bytes,
                        struct fold **ret_fold, struct error *err)
{
    struct bytes_reader in = bytes_reader(data, bytes);
    uint32_t version = bytes_get_le32(&in);
    uint64_t tokens = bytes_get_le64(&in);
    if (in.bad || version != SAVE_VERSION || tokens != (bytes - in.offset) / sizeof(uint64_t))
        return error_set(err, MEMD_ECORRUPT, "version %u", version);
    CLEANUP(put_fold) struct fold *fold = NULL;
    int rc = open_forgets(source, &fold, err);
    struct sums *sums = (struct sums *)(void *)fold;
    if (rc == 0) rc = reserve(sums, tokens, err);
    if (rc < 0) return rc;
    for (uint64_t i = 0; i < tokens; i++) sums->sums[i] = bytes_get_le64(&in);
    fold->tokens = tokens;
    atomic_fetch_add(&loads, 1);
    *ret_fold = TAKE(fold);
    return 0;
}

static uint64_t kept_of(const struct selection *selection)
{
    return selection == NULL ? 0 : selection->first[selection->heads];
}

static int attend_sums(const struct method *method, const struct reading *reading,
                       struct arena *arena, const struct index_answer *ret_answer,
                       struct error *err)
{
    const struct sums *sums = (const struct sums *)(const void *)reading->fold;
    size_t heads = reading->attend.q.shape[1], dim = reading->attend.q.shape[2];
    int rc = method_attend_exactly(reading, arena, ret_answer, err); /* for its quality record */
    if (rc < 0) return rc;
    for (size_t i = 0; i < reading->attend.q.shape[0]; i++) {
        uint64_t tokens = reading->fold->tokens, limit = reading->attend.limits[i];
        if (!method->fold->forgets && tokens > limit) tokens = limit;
        uint64_t sum = tokens == 0 ? 0 : sums->sums[tokens - 1];
        float *o = ret_answer->partial.o + i * heads * dim;
        for (size_t j = 0; j < 4; j++)
            o[FOLD_SAYS_SUM + j] = (float)(sum >> 16 * j & UINT64_C(0xFFFF));
        o[FOLD_SAYS_TOKENS] = (float)tokens;
        o[FOLD_SAYS_KEPT] = (float)kept_of(reading->selection);
    }
    return 0;
}

static int search_sums(const struct method *method, const struct reading *reading,
                       struct arena *arena, const struct index_hits *ret_hits,
                       struct index_quality *ret_quality, struct error *err)
{
    (void)method;
    return method_search_exactly(reading, arena, ret_hits, ret_quality, err);
}

/* Every third token, from the number of the head on. */
static int compress_thirds(const struct method *method, const struct compressing *compressing,
                           struct arena *arena, struct selection **ret_selection,
                           struct error *err)
{
    (void)method;
    (void)arena;
    uint64_t counts[16];
    for (size_t g = 0; g < compressing->kv_heads; g++)
        counts[g] = (compressing->tokens + 2 - g % 3) / 3;
    if (compressing->q.dims == 0) return error_set(err, MEMD_EINVAL, "queries are missing");
    int rc = selection_new(compressing->tokens, (uint32_t)compressing->kv_heads, counts,
                           ret_selection, err);
    for (size_t g = 0; rc == 0 && g < compressing->kv_heads; g++)
        for (uint64_t i = 0; i < counts[g]; i++)
            (*ret_selection)->ids[(*ret_selection)->first[g] + i] = 3 * i + g % 3;
    return rc;
}

static const struct option_spec option_specs[] = {
    OPTION_WHOLE("step", "tokens that are folded together", 64, 1, 65536),
    OPTION_WHOLE("window", "newest tokens that are not folded", 100, 0, 65536),
};
static const struct option_table forgets_options = { "test-forgets", option_specs, 2 },
                                 reads_back_options = { "test-reads-back", option_specs, 2 };

static const struct param_spec param_specs[] = {
    { "salt", "h", "some numbers" },
    { "turn", "HD", "one per dimension of a query" },
    { "other", "hD", "as many rows as salt has numbers" },
};
static const struct param_table params_table = { param_specs, 3 };

const struct method method_test_forgets = {
    .name = "test-forgets",
    .help = "for tests: a checksum of all rows",
    .options = &forgets_options,
    .fold = &forgets_type,
    .params = &params_table,
    .takes_mass = true,
    .attend = attend_sums,
    .search = search_sums,
};
const struct method method_test_reads_back = {
    .name = "test-reads-back",
    .help = "for tests: a checksum of the rows up to each",
    .options = &reads_back_options,
    .fold = &reads_back_type,
    .params = &params_table,
    .takes_mass = true,
    .compress = compress_thirds,
    .attend = attend_sums,
    .search = search_sums,
};
