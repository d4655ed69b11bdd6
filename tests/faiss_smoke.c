/* SPDX-License-Identifier: Apache-2.0 */
/* faiss_smoke.c — FAISS as scripts/bootstrap builds it: does its C API load, train and find?
 *
 * Not a test of FAISS: of the build. Headers, both libraries, BLAS and the run path must fit
 * together. A flat index must find each vector as its own nearest neighbour at distance zero; an
 * inverted file made by index_factory, as indexes will be, must train and find most of them when it
 * looks into every list.
 */
#include <faiss/c_api/AutoTune_c.h>
#include <faiss/c_api/Index_c.h>
#include <faiss/c_api/error_c.h>
#include <faiss/c_api/index_factory_c.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"

enum { DIMS = 16, VECTORS = 512 };

static void free_knn(FaissIndex **knn) { faiss_Index_free(*knn); }

/* xorshift: the same vectors everywhere. */
static void fill(float *vectors, size_t count)
{
    uint32_t state = 2463534242u;
    for (size_t i = 0; i < count; i++) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        vectors[i] = (float)state / (float)UINT32_MAX - 0.5f;
    }
}

/* How many of the vectors find themselves first, at distance about zero; -1 when FAISS
 * complains. */
static int found_themselves(const char *description, const float *vectors)
{
    CLEANUP(free_knn) FaissIndex *knn = NULL;
    CLEANUP(free_ptr) float *distances = calloc(VECTORS, sizeof *distances);
    CLEANUP(free_ptr) idx_t *labels = calloc(VECTORS, sizeof *labels);
    if (distances == NULL || labels == NULL) return -1;
    int rc = faiss_index_factory(&knn, DIMS, description, METRIC_L2);
    if (rc == 0) rc = faiss_Index_train(knn, VECTORS, vectors);
    if (rc == 0) rc = faiss_Index_add(knn, VECTORS, vectors);
    if (rc == 0) rc = faiss_Index_search(knn, VECTORS, vectors, 1, distances, labels);
    if (rc != 0) {
        fprintf(stderr, "%s: %s\n", description, faiss_get_last_error());
        return -1;
    }
    int found = 0;
    for (int i = 0; i < VECTORS; i++) found += labels[i] == i && distances[i] < 1e-5f;
    printf("%s: %d of %d vectors found themselves\n", description, found, VECTORS);
    return found;
}

int main(void)
{
    CLEANUP(free_ptr) float *vectors = calloc((size_t)VECTORS * DIMS, sizeof *vectors);
    if (vectors == NULL) return 1;
    fill(vectors, (size_t)VECTORS * DIMS);
    return found_themselves("Flat", vectors) == VECTORS &&
                   found_themselves("IVF8,Flat", vectors) == VECTORS &&
                   found_themselves("HNSW16", vectors) >= VECTORS * 9 / 10
               ? 0
               : 1;
}
