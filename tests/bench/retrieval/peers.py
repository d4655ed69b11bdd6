# SPDX-License-Identifier: Apache-2.0
"""Other people's indexes over the same keys: faiss-cpu, hnswlib and usearch, as far as they are installed.

Each is built per KV head over the rows that our own indexes cover, searched by inner product for the top k of
every query head, and its hits are attended to exactly together with 4 sinks and the newest rows; the rest is
dropped, as systems that retrieve the top k do. Times are of the search of one query group (the query heads
of a KV head in one call, one thread) and what our own exact kernel needs for as many rows; gathering the
hits is not counted, in their favour. Bytes are vectors compared times their size in fp32 where a library
tells how many it compared, else unknown.
"""
from __future__ import annotations

import importlib
import os
import tempfile
import time
from typing import Iterator

import numpy as np

from traces import Layer

SINKS = 4


class Peer:
    """An index over keys (T, D) fp32 of one KV head."""

    def __init__(self, keys: np.ndarray):
        self.keys, self.bytes = keys, 0
        began = time.process_time()
        self._build(keys)
        self.build_seconds = time.process_time() - began

    def search(self, q: np.ndarray, k: int, knob: int) -> np.ndarray:
        """ids (m, k), -1 where nothing was found."""
        raise NotImplementedError

    def compared(self) -> float:
        """Vectors compared by the last search, in all; NaN: it does not say."""
        return float("nan")


class FaissIvf(Peer):
    name, knobs = "faiss-cpu IVF", (4, 16, 64, 128)  # nprobe

    def _build(self, keys):
        import faiss
        faiss.omp_set_num_threads(1)
        self.lists = int(4 * len(keys) ** 0.5)
        self._index = faiss.IndexIVFFlat(faiss.IndexFlatIP(keys.shape[1]), keys.shape[1], self.lists,
                                         faiss.METRIC_INNER_PRODUCT)
        self._index.cp.min_points_per_centroid = 1
        self._index.train(keys)
        self._index.add(keys)
        self.bytes = keys.nbytes + 8 * len(keys) + self.lists * keys.shape[1] * 4

    def search(self, q, k, knob):
        import faiss
        faiss.cvar.indexIVF_stats.reset()
        self._index.nprobe = knob
        ids = self._index.search(q, k)[1]
        self._compared = faiss.cvar.indexIVF_stats.ndis + len(q) * self.lists
        return ids

    def compared(self):
        return self._compared


class FaissHnsw(Peer):
    name, knobs = "faiss-cpu HNSW", (100, 400, 1600)  # efSearch

    def _build(self, keys):
        import faiss
        faiss.omp_set_num_threads(1)
        self._index = faiss.IndexHNSWFlat(keys.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = 100
        self._index.add(keys)
        self.bytes = keys.nbytes + len(keys) * (2 * 32 * 4 + 8)

    def search(self, q, k, knob):
        import faiss
        faiss.cvar.hnsw_stats.reset()
        self._index.hnsw.efSearch = knob
        ids = self._index.search(q, k)[1]
        self._compared = faiss.cvar.hnsw_stats.ndis
        return ids

    def compared(self):
        return self._compared


class FaissFlat(Peer):
    name, knobs = "faiss-cpu flat", (0,)

    def _build(self, keys):
        import faiss
        faiss.omp_set_num_threads(1)
        self._index = faiss.IndexFlatIP(keys.shape[1])
        self._index.add(keys)
        self.bytes = keys.nbytes

    def search(self, q, k, knob):
        self._compared = len(self.keys)  # shared by the group, as far as the caches allow
        return self._index.search(q, k)[1]

    def compared(self):
        return self._compared


class Hnswlib(Peer):
    name, knobs = "hnswlib", (100, 400, 1600)  # ef

    def _build(self, keys):
        import hnswlib
        self._index = hnswlib.Index("ip", keys.shape[1])
        self._index.init_index(len(keys), ef_construction=100, M=16)
        self._index.set_num_threads(1)
        self._index.add_items(keys)
        with tempfile.TemporaryDirectory() as folder:
            self._index.save_index(folder + "/index")
            self.bytes = os.path.getsize(folder + "/index")

    def search(self, q, k, knob):
        self._index.set_ef(max(k, knob))
        return self._index.knn_query(q, k, num_threads=1)[0].astype(np.int64)


class Usearch(Peer):
    name, knobs = "usearch", (100, 400, 1600)  # expansion_search

    def _build(self, keys):
        from usearch.index import Index
        self._index = Index(ndim=keys.shape[1], metric="ip", dtype="f32", connectivity=16,
                            expansion_add=100)
        self._index.add(np.arange(len(keys)), keys, threads=1)
        self.bytes = self._index.serialized_length

    def search(self, q, k, knob):
        self._index.expansion_search = knob
        found = self._index.search(q, k, threads=1)
        self._compared = found.computed_distances
        ids = np.asarray(found.keys).astype(np.int64).reshape(len(q), -1)
        return np.pad(ids, ((0, 0), (0, k - ids.shape[1])), constant_values=-1)

    def compared(self):
        return self._compared


def installed() -> Iterator[type[Peer]]:
    for module, kinds in (("faiss", (FaissFlat, FaissIvf, FaissHnsw)), ("hnswlib", (Hnswlib,)),
                          ("usearch.index", (Usearch,))):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        yield from kinds


def attend_to(layer: Layer, rows: np.ndarray, limits: np.ndarray, ids: np.ndarray):
    """Exact attention over sinks, hits ids (n, H, k) among the rows before layer.built, and the rows from
    there on; o (n, H, D), lse (n, H) in float64."""
    G, _, D = layer.k.shape
    group, built = layer.H // G, layer.built
    o, lse = np.zeros((len(rows), layer.H, D)), np.zeros((len(rows), layer.H))
    for i, (row, limit) in enumerate(zip(rows, limits)):
        for g in range(G):
            near = np.concatenate([np.arange(min(SINKS, built)), np.arange(built, limit)])
            near_k, near_v = layer.k[g, near].astype(np.float64), layer.v[g, near].astype(np.float64)
            for head in range(g * group, (g + 1) * group):
                hit = np.unique(ids[i, head])
                hit = hit[(hit >= SINKS) & (hit < built)]
                q = layer.q[row, head].astype(np.float64) * D ** -0.5
                scores = np.concatenate([near_k @ q, layer.k[g, hit].astype(np.float64) @ q])
                top = scores.max()
                weights = np.exp(scores - top)
                total = weights.sum()
                o[i, head] = (weights[:len(near)] @ near_v
                              + weights[len(near):] @ layer.v[g, hit].astype(np.float64)) / total
                lse[i, head] = np.log(total) + top
    return o, lse
