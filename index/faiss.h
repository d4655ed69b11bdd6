/* SPDX-License-Identifier: Apache-2.0 */
/* faiss.h — FAISS (Douze et al., arXiv 2401.08281) as an index of keys: flat scan, inverted lists,
 * HNSW; for comparison, not for use.
 *
 * One FAISS object per KV head holds the rotated keys of positions 0 … tokens-1 by inner product. A
 * query reads sinks, window and what the version does not cover exactly, asks FAISS for the best k
 * of the rest for each of its query heads, attends to those rows as stored, and drops the tail.
 *
 *     faiss-flat   every key, as FAISS scans them
 *     faiss-ivf    nlist inverted lists (0: 4 √tokens), the best nprobe of them are scanned
 *     faiss-hnsw   graph with m links, ef_construction and ef_search
 *
 * FAISS cannot leave rows out of a search through its C API, so it is asked for as many more as
 * sinks and window could take. nprobe and ef_search live inside FAISS's objects: a call with other
 * values than the last one waits for the searches in flight.
 *
 * The next version is a copy with the new keys added; an IVF is trained anew when there are four
 * times as many keys as it was trained on. Nothing is kept on the disk (the C API writes to files
 * only): versions are built again after a restart.
 *
 * A build without FAISS links faiss_none.c, which has no types.
 *
 * Memory   keys in fp32: as much as K and V of the context in fp16 once more (HNSW: plus 8 m bytes
 *          per token), twice that while a version is copied
 * Threads  one per call: OpenMP inside FAISS is held to one thread, the pool works on KV heads
 * Counted  keys whose inner product FAISS forms, 4 D bytes each and for each query head (it shares
 *          no scan), as exact rows; IVF's centroids as clusters. HNSW's count comes from FAISS's
 *          global statistics: calls at the same time may be counted for one another. Links of the
 *          graph are not counted.
 * Errors   MEMD_ENOMEM · MEMD_EIO with FAISS's own words
 * Quality  mass and error unknown (NaN) once anything is dropped; max_bytes is not looked at
 * Tests    tests/unit/test_faiss.c
 */
#ifndef MEMD_INDEX_FAISS_H
#define MEMD_INDEX_FAISS_H

#include "index/layer_index.h"

/* The first options of every kind. */
enum faiss_option { FAISS_K, FAISS_SINKS, FAISS_WINDOW, FAISS_COMMON };
enum faiss_ivf_option { FAISS_NLIST = FAISS_COMMON, FAISS_NPROBE, FAISS_IVF_OPTIONS };
enum faiss_hnsw_option {
    FAISS_M = FAISS_COMMON,
    FAISS_EF_CONSTRUCTION,
    FAISS_EF_SEARCH,
    FAISS_HNSW_OPTIONS
};

/* faiss-flat, faiss-ivf, faiss-hnsw; NULL at the end. Without FAISS only the NULL. */
extern const struct layer_index_type *const faiss_types[];
/* The same by name; only in builds with FAISS. */
extern const struct layer_index_type faiss_flat_type, faiss_ivf_type, faiss_hnsw_type;

#endif
