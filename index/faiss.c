/* SPDX-License-Identifier: Apache-2.0 */
/* faiss.c — the only file that knows FAISS; through its C API.
 *
 * IVF's quantizer is trained here instead of by FAISS's own `train`, with the same parameters (10
 * iterations, spherical because of the inner product): `train` would write warnings to stderr for
 * contexts that have fewer than 39 keys per list, and 4 √N lists mean that below 24,000 tokens.
 *
 * Rejected: one FAISS object for all KV heads with a head in the id (a search cannot be limited to
 * one); index_factory's strings for what has a constructor; write_index through a temporary file
 * (the rows are in the store already, and a build takes seconds).
 */
#include "index/faiss.h"

#include <assert.h>
#include <faiss/c_api/AutoTune_c.h>
#include <faiss/c_api/Clustering_c.h>
#include <faiss/c_api/IndexFlat_c.h>
#include <faiss/c_api/IndexIVFFlat_c.h>
#include <faiss/c_api/IndexIVF_c.h>
#include <faiss/c_api/Index_c.h>
#include <faiss/c_api/clone_index_c.h>
#include <faiss/c_api/error_c.h>
#include <faiss/c_api/index_factory_c.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/pool.h"
#include "index/pick.h"

/* Of FAISS's OpenMP runtime; its header is not everywhere where the library is. */
void omp_set_num_threads(int count);

/* faiss::hnsw_stats, which the C API does not hand out: `distances` sums up the inner products of
 * all searches. The layout is that of the version that scripts/bootstrap builds. */
struct hnsw_stats {
    size_t searches, exhausted, distances, unused[2];
};
extern struct hnsw_stats hnsw_stats __asm__("_ZN5faiss10hnsw_statsE");

enum kind { KIND_FLAT, KIND_IVF, KIND_HNSW };
enum { IVF_PASSES = 10, IVF_RETRAIN = 4 };

struct version {
    struct layer_index base;
    enum kind kind;
    size_t kv_heads, head_dim;
    uint64_t trained; /* ivf: tokens its lists were trained on */
    size_t shape;     /* ivf: the option nlist; hnsw: m */
    pthread_rwlock_t lock; /* held for writing while `effort` changes */
    size_t effort;         /* ivf: nprobe; hnsw: ef_search; locked by lock */
    FaissIndex *knn[];     /* (G) */
};

#define COMMON_SPECS                                                                              \
    [FAISS_K] = OPTION_WHOLE("k", "tokens that each query head attends to beside sinks and "      \
                             "window", 100, 1, 65536),                                            \
    [FAISS_SINKS] = OPTION_WHOLE("sinks", "first tokens that are always read", 4, 0, 65536),      \
    [FAISS_WINDOW] = OPTION_WHOLE("window", "newest tokens that are always read", 512, 0, 1 << 24)

static const struct option_spec flat_specs[FAISS_COMMON] = { COMMON_SPECS };
static const struct option_spec ivf_specs[FAISS_IVF_OPTIONS] = {
    COMMON_SPECS,
    [FAISS_NLIST] = OPTION_WHOLE("nlist", "inverted lists; 0: 4 times the root of the tokens",
                                 0, 0, 1 << 20),
    [FAISS_NPROBE] = OPTION_WHOLE("nprobe", "lists that a search scans", 16, 1, 1 << 20),
};
static const struct option_spec hnsw_specs[FAISS_HNSW_OPTIONS] = {
    COMMON_SPECS,
    [FAISS_M] = OPTION_WHOLE("m", "links of a node (2 m at the bottom)", 32, 2, 512),
    [FAISS_EF_CONSTRUCTION] = OPTION_WHOLE("ef_construction", "list of a search while building",
                                           200, 1, 1 << 20),
    [FAISS_EF_SEARCH] = OPTION_WHOLE("ef_search", "list of a search; at least k",
                                     128, 1, 1 << 20),
};
static const struct option_table flat_table = { "faiss-flat", flat_specs, FAISS_COMMON };
static const struct option_table ivf_table = { "faiss-ivf", ivf_specs, FAISS_IVF_OPTIONS };
static const struct option_table hnsw_table = { "faiss-hnsw", hnsw_specs, FAISS_HNSW_OPTIONS };

static int faiss_failed(int rc, struct error *err)
{
    if (rc == 0) return 0;
    const char *text = faiss_get_last_error();
    if (text == NULL) text = "unknown error";
    int code = strstr(text, "bad_alloc") != NULL ? MEMD_ENOMEM : MEMD_EIO;
    return error_set(err, code, "FAISS: %.200s", text);
}

/* ---- building ---- */

struct build {
    const struct layer_source *source;
    struct rows rows;
    const struct version *before; /* to be copied from, or NULL */
    struct version *version;
    int *codes;           /* (G) */
    struct error *errors; /* (G) */
};

static void free_knn(FaissIndex **knn) { faiss_Index_free(*knn); }
static void free_clustering(FaissClustering **clustering) { faiss_Clustering_free(*clustering); }
static void free_space(FaissParameterSpace **space) { faiss_ParameterSpace_free(*space); }

static int set_parameter(FaissIndex *knn, const char *name, size_t value)
{
    CLEANUP(free_space) FaissParameterSpace *space = NULL;
    int rc = faiss_ParameterSpace_new(&space);
    if (rc == 0)
        rc = faiss_ParameterSpace_set_index_parameter(space, knn, name, (double)value);
    return rc;
}

static size_t list_count(size_t wanted, size_t tokens)
{
    if (wanted == 0) wanted = (size_t)(4.0 * sqrt((double)tokens));
    return wanted < tokens ? wanted : tokens;
}

/* keys (tokens, D) */
static int new_ivf(const struct build *build, const float *keys, size_t tokens,
                   FaissIndex **ret_knn)
{
    int dims = (int)build->version->head_dim;
    size_t lists = list_count(build->version->shape, tokens);
    FaissClusteringParameters parameters;
    faiss_ClusteringParameters_init(&parameters);
    parameters.niter = IVF_PASSES;
    parameters.spherical = 1;
    parameters.min_points_per_centroid = 1;
    CLEANUP(free_knn) FaissIndex *quantizer = NULL;
    CLEANUP(free_clustering) FaissClustering *clustering = NULL;
    int rc = faiss_IndexFlatIP_new_with((FaissIndexFlatIP **)&quantizer, dims);
    if (rc == 0)
        rc = faiss_Clustering_new_with_params(&clustering, dims, (int)lists, &parameters);
    if (rc == 0) rc = faiss_Clustering_train(clustering, (idx_t)tokens, keys, quantizer);
    FaissIndexIVFFlat *lists_of = NULL;
    if (rc == 0)
        rc = faiss_IndexIVFFlat_new_with_metric(&lists_of, quantizer, (size_t)dims, lists,
                                                METRIC_INNER_PRODUCT);
    if (rc != 0) return rc;
    faiss_IndexIVF_set_own_fields((FaissIndexIVF *)lists_of, 1);
    quantizer = NULL; /* its owner is the IVF now */
    *ret_knn = (FaissIndex *)lists_of;
    return faiss_Index_train(*ret_knn, (idx_t)tokens, keys); /* the lists are there: no work */
}

static int new_hnsw(const struct build *build, FaissIndex **ret_knn)
{
    char text[32];
    snprintf(text, sizeof text, "HNSW%zu,Flat", build->version->shape);
    int rc = faiss_index_factory(ret_knn, (int)build->version->head_dim, text,
                                 METRIC_INNER_PRODUCT);
    if (rc != 0) return rc;
    return set_parameter(*ret_knn, "efConstruction",
                         (size_t)build->source->options[FAISS_EF_CONSTRUCTION]);
}

static int build_head(const struct build *build, size_t g, struct error *err)
{
    struct version *version = build->version;
    size_t first = build->before == NULL ? 0 : (size_t)build->before->base.tokens;
    size_t count = (size_t)version->base.tokens - first;
    CLEANUP(free_ptr) float *keys = malloc((count * version->head_dim + 1) * sizeof *keys);
    if (keys == NULL) return error_set(err, MEMD_ENOMEM, "no memory for %zu keys", count);
    rows_keys(&build->rows, g, first, count, keys);
    FaissIndex **knn = &version->knn[g];
    int rc = 0;
    if (build->before != NULL) rc = faiss_clone_index(build->before->knn[g], knn);
    else if (version->kind == KIND_IVF) rc = new_ivf(build, keys, count, knn);
    else if (version->kind == KIND_HNSW) rc = new_hnsw(build, knn);
    else rc = faiss_IndexFlatIP_new_with((FaissIndexFlatIP **)knn, (idx_t)version->head_dim);
    if (rc == 0 && count > 0) rc = faiss_Index_add(*knn, (idx_t)count, keys);
    return faiss_failed(rc, err);
}

static void build_task(void *arg, size_t g)
{
    struct build *build = arg;
    const struct layer_source *source = build->source;
    omp_set_num_threads(1);
    build->codes[g] = source->stop == NULL ? 0 : source->stop(source->stop_arg);
    if (build->codes[g] != 0)
        error_set(&build->errors[g], build->codes[g], "%s while FAISS builds",
                  error_text(build->codes[g]));
    else build->codes[g] = build_head(build, g, &build->errors[g]);
}

static size_t memory_bytes(const struct version *version)
{
    size_t tokens = (size_t)version->base.tokens, row_bytes = 4 * version->head_dim;
    size_t each = tokens * row_bytes;
    if (version->kind == KIND_IVF)
        each += tokens * sizeof(idx_t) +
                list_count(version->shape, (size_t)version->trained) * row_bytes;
    if (version->kind == KIND_HNSW) each += tokens * (2 * version->shape + 3) * sizeof(int32_t);
    return version->kv_heads * each;
}

static void free_version(struct layer_index *base)
{
    if (base == NULL) return;
    struct version *version = (struct version *)(void *)base;
    for (size_t g = 0; g < version->kv_heads; g++) faiss_Index_free(version->knn[g]);
    pthread_rwlock_destroy(&version->lock);
    free(version);
}

static void put_version(struct version **version)
{
    if (*version != NULL) layer_index_put(&(*version)->base);
}

static struct version *new_version(const struct layer_source *source, enum kind kind,
                                   const struct layer_index_type *type)
{
    struct version *version = calloc(1, sizeof *version +
                                            source->kv_heads * sizeof *version->knn);
    if (version == NULL) return NULL;
    if (pthread_rwlock_init(&version->lock, NULL) != 0) {
        free(version);
        return NULL;
    }
    version->base.type = type;
    atomic_init(&version->base.references, 1);
    version->base.tokens = version->trained = source->tokens;
    version->kind = kind;
    version->kv_heads = source->kv_heads;
    version->head_dim = source->head_dim;
    if (kind == KIND_IVF) version->shape = (size_t)source->options[FAISS_NLIST];
    if (kind == KIND_HNSW) version->shape = (size_t)source->options[FAISS_M];
    return version;
}

/* Can the next version be `before` and more keys? */
static bool continues(const struct version *before, const struct version *version)
{
    if (before == NULL || before->shape != version->shape) return false;
    if (before->base.tokens == 0 || before->base.tokens > version->base.tokens) return false;
    return version->kind != KIND_IVF || version->base.tokens < IVF_RETRAIN * before->trained;
}

static int build_kind(const struct layer_source *source, const struct layer_index *before,
                      struct version *version, struct error *err)
{
    const struct version *old = (const struct version *)(const void *)before;
    struct build build = {
        .source = source, .version = version, .before = continues(old, version) ? old : NULL,
        .rows = { source->views, source->view_count, source->head_dim, source->rope } };
    if (build.before != NULL) {
        version->trained = old->trained;
        version->effort = old->effort;
    }
    CLEANUP(free_ptr) int *codes = calloc(source->kv_heads, sizeof *codes);
    CLEANUP(free_ptr) struct error *errors = calloc(source->kv_heads, sizeof *errors);
    if (codes == NULL || errors == NULL) return error_set(err, MEMD_ENOMEM, "no memory for FAISS");
    build.codes = codes;
    build.errors = errors;
    pool_for(source->pool, source->kv_heads, build_task, &build);
    for (size_t g = 0; g < source->kv_heads; g++)
        if (codes[g] != 0) return error_set(err, codes[g], "%s", errors[g].text);
    version->base.bytes = sizeof *version + memory_bytes(version);
    return 0;
}

static int build_type(const struct layer_source *source, const struct layer_index *before,
                      enum kind kind, struct layer_index **ret_version, struct error *err)
{
    CLEANUP(put_version) struct version *version = new_version(source, kind, faiss_types[kind]);
    if (version == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a version of FAISS");
    int rc = build_kind(source, before, version, err);
    if (rc == 0) *ret_version = &TAKE(version)->base;
    return rc;
}

static int build_flat(const struct layer_source *source, const struct layer_index *before,
                      struct layer_index **ret_version, struct error *err)
{
    return build_type(source, before, KIND_FLAT, ret_version, err);
}

static int build_ivf(const struct layer_source *source, const struct layer_index *before,
                     struct layer_index **ret_version, struct error *err)
{
    return build_type(source, before, KIND_IVF, ret_version, err);
}

static int build_hnsw(const struct layer_source *source, const struct layer_index *before,
                      struct layer_index **ret_version, struct error *err)
{
    return build_type(source, before, KIND_HNSW, ret_version, err);
}

/* ---- searching ---- */

/* Scratch of a task. */
struct found {
    idx_t *labels;       /* (group, k) */
    idx_t *lists;        /* (group, nprobe) */
    uint64_t *positions; /* (k) */
    float *products;     /* (group, k) */
    float *nearness;     /* (group, nprobe) */
};

static size_t probes(const struct version *version)
{
    return version->kind == KIND_IVF ? version->effort : 0;
}

static size_t found_bytes(size_t group, size_t k, size_t nprobe)
{
    return (group * (k + nprobe) + k) * sizeof(idx_t) + group * (k + nprobe) * sizeof(float);
}

static struct found found_at(void *scratch, size_t group, size_t k, size_t nprobe)
{
    struct found found = { .labels = scratch };
    found.lists = found.labels + group * k;
    found.positions = (uint64_t *)(void *)(found.lists + group * nprobe);
    found.products = (float *)(void *)(found.positions + k);
    found.nearness = found.products + group * k;
    return found;
}

/* Lists first, so that what is scanned can be counted; then what IndexIVF::search does. */
static int search_lists(struct pick *pick, const struct version *version, size_t k,
                        const struct found *found)
{
    const FaissIndexIVF *knn = (const FaissIndexIVF *)version->knn[pick->kv_head];
    const FaissIndex *quantizer = faiss_IndexIVF_quantizer(knn);
    size_t nprobe = version->effort, lists = faiss_IndexIVF_nlist(knn), scanned = 0;
    size_t row_bytes = 4 * pick->head_dim;
    int rc = faiss_Index_search(quantizer, (idx_t)pick->group, pick->q, (idx_t)nprobe,
                                found->nearness, found->lists);
    pick_count(pick, INDEX_CLUSTERS, pick->group * lists, pick->group * lists * row_bytes);
    for (size_t i = 0; rc == 0 && i < pick->group * nprobe; i++)
        if (found->lists[i] >= 0)
            scanned += faiss_IndexIVF_get_list_size(knn, (size_t)found->lists[i]);
    pick_count(pick, INDEX_EXACT, scanned, scanned * (row_bytes + sizeof(idx_t)));
    if (rc == 0)
        rc = faiss_IndexIVF_search_preassigned(knn, (idx_t)pick->group, pick->q, (idx_t)k,
                                               found->lists, found->nearness, found->products,
                                               found->labels, 0);
    return rc;
}

static int search_heads(struct pick *pick, const struct version *version, size_t k,
                        const struct found *found)
{
    if (version->kind == KIND_IVF) return search_lists(pick, version, k, found);
    int rc = faiss_Index_search(version->knn[pick->kv_head], (idx_t)pick->group, pick->q,
                                (idx_t)k, found->products, found->labels);
    size_t scanned = pick->group * (size_t)version->base.tokens;
    if (version->kind == KIND_HNSW)
        scanned = __atomic_exchange_n(&hnsw_stats.distances, 0, __ATOMIC_RELAXED);
    pick_count(pick, INDEX_EXACT, scanned, scanned * 4 * pick->head_dim);
    return rc;
}

/* How many FAISS must be asked for, so that `k` are left when rows outside of the middle are taken
 * off. */
static size_t asked(size_t k, uint64_t covered, struct pick_middle middle)
{
    uint64_t outside = middle.begin + (covered > middle.end ? covered - middle.end : 0);
    return (size_t)(k + outside < covered ? k + outside : covered);
}

static int task(struct pick *pick, struct error *err)
{
    const struct version *version = pick->call->version;
    const double *options = pick->call->options;
    uint64_t covered = version == NULL ? 0 : version->base.tokens;
    struct pick_middle middle = pick_steady(pick, (uint64_t)options[FAISS_SINKS],
                                            (uint64_t)options[FAISS_WINDOW], covered);
    size_t k = pick->call->hits != NULL ? pick->call->hits->k : (size_t)options[FAISS_K];
    if (middle.end - middle.begin <= k) {
        pick_range(pick, middle.begin, middle.end);
        return 0;
    }
    size_t wanted = asked(k, covered, middle);
    struct found found = found_at(pick->scratch, pick->group, wanted, probes(version));
    omp_set_num_threads(1);
    int rc = faiss_failed(search_heads(pick, version, wanted, &found), err);
    for (size_t m = 0; rc == 0 && m < pick->group; m++) {
        size_t count = 0;
        for (size_t i = 0; i < wanted && count < k; i++) {
            idx_t label = found.labels[m * wanted + i];
            if (label >= 0 && (uint64_t)label >= middle.begin && (uint64_t)label < middle.end)
                found.positions[count++] = (uint64_t)label;
        }
        pick_list(pick, m, found.positions, count);
    }
    pick_dropped(pick, PICK_GROUP);
    return rc;
}

/* Let `version` search with the effort that options ask for; the lock is then held for reading. */
static int take_effort(struct version *version, const double *options, struct error *err)
{
    size_t wanted = 0;
    if (version->kind == KIND_IVF) {
        wanted = (size_t)options[FAISS_NPROBE];
        size_t lists = list_count(version->shape, (size_t)version->trained);
        if (wanted > lists) wanted = lists;
    }
    if (version->kind == KIND_HNSW) wanted = (size_t)options[FAISS_EF_SEARCH];
    pthread_rwlock_rdlock(&version->lock);
    int rc = 0;
    while (rc == 0 && version->effort != wanted) {
        pthread_rwlock_unlock(&version->lock);
        pthread_rwlock_wrlock(&version->lock);
        for (size_t g = 0; rc == 0 && g < version->kv_heads; g++)
            rc = set_parameter(version->knn[g], version->kind == KIND_IVF ? "nprobe" : "efSearch",
                               wanted);
        if (rc == 0) version->effort = wanted;
        pthread_rwlock_unlock(&version->lock);
        pthread_rwlock_rdlock(&version->lock);
    }
    if (rc != 0) pthread_rwlock_unlock(&version->lock);
    return faiss_failed(rc, err);
}

/* Scratch of a task: the query with the most rows outside of its middle decides. */
static size_t scratch_bytes(const struct version *version, const struct pick_call *call)
{
    const struct attend_args *args = &call->args->attend;
    uint64_t window = (uint64_t)call->options[FAISS_WINDOW], least = UINT64_MAX;
    for (size_t i = 0; i < args->q.shape[0]; i++)
        if (args->limits[i] < least) least = args->limits[i];
    struct pick_middle middle = { (uint64_t)call->options[FAISS_SINKS],
                                  least > window ? least - window : 0 };
    size_t k = call->hits != NULL ? call->hits->k : (size_t)call->options[FAISS_K];
    return found_bytes(args->q.shape[1] / args->kv_heads, asked(k, version->base.tokens, middle),
                       probes(version));
}

static int run(struct pick_call *call, const struct layer_index *base, struct arena *arena,
               struct error *err)
{
    /* not const: `effort` inside changes, under its lock; what a reader can see of it does not */
    struct version *version = (struct version *)(uintptr_t)base;
    call->task = task;
    call->version = version;
    if (version == NULL) return pick_run(call, arena, err);
    assert(version->kv_heads == call->args->attend.kv_heads);
    assert(version->head_dim == call->args->attend.q.shape[2]);
    int rc = take_effort(version, call->options, err);
    if (rc < 0) return rc;
    call->scratch_bytes = scratch_bytes(version, call);
    rc = pick_run(call, arena, err);
    pthread_rwlock_unlock(&version->lock);
    return rc;
}

static int knn_attend(const struct layer_index *version, const struct index_args *args,
                      const double *options, struct arena *arena,
                      const struct index_answer *ret_answer, struct error *err)
{
    struct pick_call call = { .args = args, .options = options, .partial = &ret_answer->partial,
                              .quality = ret_answer->quality, .plan = args->plan };
    return run(&call, version, arena, err);
}

static int knn_search(const struct layer_index *version, const struct index_args *args,
                      const double *options, struct arena *arena,
                      const struct index_found *ret_found, struct error *err)
{
    struct pick_call call = { .args = args, .options = options, .hits = &ret_found->hits,
                              .quality = ret_found->quality };
    if (ret_found->hits.k == 0) return 0;
    return run(&call, version, arena, err);
}

const struct layer_index_type faiss_flat_type = {
    .name = "faiss-flat", .options = &flat_table, .step_tokens = 1024, .build = build_flat,
    .free = free_version, .attend = knn_attend, .search = knn_search };
const struct layer_index_type faiss_ivf_type = {
    .name = "faiss-ivf", .options = &ivf_table, .step_tokens = 1024, .build = build_ivf,
    .free = free_version, .attend = knn_attend, .search = knn_search };
const struct layer_index_type faiss_hnsw_type = {
    .name = "faiss-hnsw", .options = &hnsw_table, .step_tokens = 1024, .build = build_hnsw,
    .free = free_version, .attend = knn_attend, .search = knn_search };

const struct layer_index_type *const faiss_types[] = {
    [KIND_FLAT] = &faiss_flat_type, [KIND_IVF] = &faiss_ivf_type,
    [KIND_HNSW] = &faiss_hnsw_type, NULL };
