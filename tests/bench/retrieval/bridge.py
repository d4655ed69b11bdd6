# SPDX-License-Identifier: Apache-2.0
"""bridge.c for Python: the memory methods of this build over arrays of one layer."""
from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

LEVELS = 4  # of index.h: clusters, hi, lo, exact
SEGMENT = 1024
AS_PARAMETERS = -1.0  # target_error: what the method's own parameters say
PLANES, LAYER_INDEX, NEEDS_QUERIES = 1, 2, 4


def _fields(names: str, kind=ctypes.c_uint64) -> list:
    return [(name, kind) for name in names.split()]


class _Shape(ctypes.Structure):
    _fields_ = _fields("query_heads kv_heads head_dim capacity") + _fields("k v", ctypes.c_void_p)


class _Query(ctypes.Structure):
    _fields_ = (_fields("q limits", ctypes.c_void_p) + _fields("n block tokens planed")
                + _fields("target_error", ctypes.c_double) + _fields("max_bytes evict"))


class _Answer(ctypes.Structure):
    _fields_ = _fields("o lse predicted mass limited seconds rows bytes", ctypes.c_void_p)


class _Build(ctypes.Structure):
    _fields_ = (_fields("tokens") + _fields("q positions", ctypes.c_void_p) + _fields("count")
                + _fields("seconds bytes", ctypes.c_void_p))


class _Option(ctypes.Structure):
    _fields_ = _fields("name value", ctypes.c_char_p)


@dataclass
class Answer:
    """Of n queries asked one at a time (or in blocks, then `calls` is less than n)."""
    o: np.ndarray          # (n, H, D)
    lse: np.ndarray        # (n, H)
    predicted: np.ndarray  # (n, H), NaN where the method does not know
    mass: np.ndarray       # (n, H, LEVELS)
    limited: np.ndarray    # (n, H)
    seconds: np.ndarray    # (calls)
    bytes: np.ndarray      # (calls, LEVELS)
    rows: np.ndarray       # (calls, LEVELS)


class Missing(Exception):
    """This build does not have the method."""


class Bench:
    """The rows of one layer: k, v (G, T, D) fp16, contiguous."""

    def __init__(self, library: str, k: np.ndarray, v: np.ndarray, query_heads: int):
        assert k.dtype == v.dtype == np.float16 and k.flags.c_contiguous and v.flags.c_contiguous
        self._lib = ctypes.CDLL(library)
        self._lib.bench_message.restype = ctypes.c_char_p
        self._lib.bench_plane_bytes.restype = ctypes.c_uint64
        self._rows = k, v  # kept alive
        self.H, (self.G, self.T, self.D) = query_heads, k.shape
        self._bench = ctypes.c_void_p()
        shape = _Shape(query_heads, self.G, self.D, self.T, k.ctypes.data, v.ctypes.data)
        self._check(self._lib.bench_open(ctypes.byref(shape), ctypes.byref(self._bench)))

    def close(self) -> None:
        self._lib.bench_close(self._bench)

    def _check(self, code: int) -> None:
        if code < 0:
            text = self._lib.bench_message(self._bench).decode() if self._bench else ""
            raise (Missing if text.startswith("no method") else RuntimeError)(f"{code}: {text}")

    def method(self, name: str, **parameters) -> int:
        """Choose the method; what it needs, as bits."""
        options = (_Option * max(1, len(parameters)))(
            *(_Option(key.encode(), str(value).encode()) for key, value in parameters.items()))
        self._check(self._lib.bench_method(self._bench, name.encode(), options,
                                           ctypes.c_uint64(len(parameters))))
        return self._lib.bench_needs(self._bench)

    def encode(self, segment: int, query_square: np.ndarray | None, queries: int) -> float:
        """Planes of one segment, all KV heads; query_square (G, D). Seconds."""
        seconds = ctypes.c_double()
        square = None if query_square is None else np.ascontiguousarray(query_square, np.float32)
        self._check(self._lib.bench_encode(
            self._bench, ctypes.c_uint64(segment), None if square is None else ctypes.c_void_p(
                square.ctypes.data), ctypes.c_uint64(queries), ctypes.byref(seconds)))
        return seconds.value

    def plane_bytes(self) -> tuple[int, int]:
        """hi, lo: of one segment and KV head."""
        return self._lib.bench_plane_bytes(self._bench, 0), self._lib.bench_plane_bytes(self._bench, 1)

    def build(self, tokens: int, q: np.ndarray, positions: np.ndarray) -> tuple[float, int]:
        """The method's index over the first rows, from queries q (n, H, D). Seconds, bytes."""
        q = np.ascontiguousarray(q, np.float16)
        positions = np.ascontiguousarray(positions, np.uint64)
        seconds, size = ctypes.c_double(), ctypes.c_uint64()
        build = _Build(tokens, q.ctypes.data, positions.ctypes.data, len(q), ctypes.addressof(seconds),
                       ctypes.addressof(size))
        self._check(self._lib.bench_make(self._bench, ctypes.byref(build)))
        return seconds.value, size.value

    def _query(self, q, limits, tokens, planed, block, target_error, max_bytes, evict) -> _Query:
        self._kept = np.ascontiguousarray(q, np.float32), np.ascontiguousarray(limits, np.uint64)
        return _Query(self._kept[0].ctypes.data, self._kept[1].ctypes.data, len(q), block, tokens,
                      tokens // SEGMENT if planed is None else planed, target_error, max_bytes, evict)

    def attend(self, q: np.ndarray, limits: np.ndarray, tokens: int, planed: int | None = None,
               block: int = 1, target_error: float = AS_PARAMETERS, max_bytes: int = 0,
               evict: bool = False) -> Answer:
        """q (n, H, D), each query sees rows below its limit of the `tokens` that are stored."""
        n, calls = len(q), -(-len(q) // block)
        answer = Answer(np.empty((n, self.H, self.D), np.float32), np.empty((n, self.H), np.float32),
                        np.full((n, self.H), np.nan, np.float32),
                        np.zeros((n, self.H, LEVELS), np.float32), np.zeros((n, self.H), bool),
                        np.zeros(calls), np.zeros((calls, LEVELS), np.uint64),
                        np.zeros((calls, LEVELS), np.uint64))
        pointers = _Answer(*(getattr(answer, name).ctypes.data for name, _ in _Answer._fields_))
        query = self._query(q, limits, tokens, planed, block, target_error, max_bytes, evict)
        self._check(self._lib.bench_attend(self._bench, ctypes.byref(query), ctypes.byref(pointers)))
        return answer

    def search(self, q: np.ndarray, limits: np.ndarray, tokens: int, k: int,
               planed: int | None = None) -> tuple[np.ndarray, float]:
        """ids (n, H, k), seconds in all."""
        ids, seconds = np.empty((len(q), self.H, k), np.uint64), ctypes.c_double()
        query = self._query(q, limits, tokens, planed, 1, AS_PARAMETERS, 0, False)
        self._check(self._lib.bench_search(
            self._bench, ctypes.byref(query), ctypes.c_uint64(k), ctypes.c_void_p(ids.ctypes.data),
            ctypes.byref(seconds)))
        return ids, seconds.value

    def empty_caches(self) -> None:
        self._check(self._lib.bench_empty_caches(self._bench))
