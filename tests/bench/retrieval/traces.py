# SPDX-License-Identifier: Apache-2.0
"""What a benchmark asks and over which rows: layers of captured traces, synthetic ones, and the exact answers.

Test hygiene lives here: an index covers rows 0 … `built`-1 only, where `built` is the last segment boundary
before the test positions; queries it may learn from lie before that; what is asked are queries at the last
positions, and every row from `built` on is read exactly by every method (768 to 1,024 newest tokens).
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

SEGMENT = 1024
TEST = 256  # the last so many positions are for testing


@dataclass
class Layer:
    name: str
    k: np.ndarray          # (G, T, D) fp16
    v: np.ndarray
    q: np.ndarray          # (n, H, D) fp32, after RoPE
    positions: np.ndarray  # (n) ascending
    real: bool = True

    @property
    def H(self) -> int:
        return self.q.shape[1]

    @property
    def tokens(self) -> int:
        return self.k.shape[1]

    @property
    def built(self) -> int:
        return (self.tokens - TEST) // SEGMENT * SEGMENT

    def kept(self, end: int | None = None) -> np.ndarray:
        """Which of the queries an index over the first `end` rows may learn from."""
        return np.flatnonzero(self.positions < (self.built if end is None else end))

    def asked(self, count: int) -> np.ndarray:
        """Which of the queries are asked: `count` of the last TEST positions, evenly."""
        last = np.flatnonzero(self.positions >= self.tokens - TEST)
        return last[np.linspace(0, len(last) - 1, min(count, len(last))).astype(int)]

    def query_square(self, end: int) -> tuple[np.ndarray | None, int]:
        """Mean of q_c² (G, D) of the queries before `end`, and how many."""
        rows = self.kept(end)
        if len(rows) == 0:
            return None, 0
        G = self.k.shape[0]
        q = self.q[rows].reshape(len(rows), G, self.H // G, -1)
        return np.square(q, dtype=np.float32).mean(axis=(0, 2)), len(rows) * (self.H // G)

    def exact(self, rows: np.ndarray, limits: np.ndarray) -> "Exact":
        return Exact(self, rows, limits)


class Exact:
    """Attention of some queries in float64, and the weights and the order of the tokens behind it."""

    def __init__(self, layer: Layer, rows: np.ndarray, limits: np.ndarray):
        G, _, D = layer.k.shape
        group = layer.H // G
        self.layer, self.rows, self.limits = layer, rows, limits
        self.o = np.zeros((len(rows), layer.H, D))
        self.lse = np.zeros((len(rows), layer.H))
        for at in range(0, len(rows), 8):
            part = slice(at, at + 8)
            for g in range(G):
                heads = slice(g * group, (g + 1) * group)
                scores = self._scores(part, heads, g)
                top = scores.max(-1, keepdims=True)
                weights = np.exp(scores - top)
                total = weights.sum(-1, keepdims=True)
                self.o[part, heads] = self._values(weights / total, g)
                self.lse[part, heads] = (np.log(total) + top)[..., 0]

    def _scores(self, part: slice, heads: slice, g: int) -> np.ndarray:
        """(n, r, T) float64, -inf behind the limits."""
        q = self.layer.q[self.rows[part]][:, heads].astype(np.float64) * self.layer.k.shape[2] ** -0.5
        tokens = int(self.limits[part].max())
        scores = np.empty((*q.shape[:2], tokens))
        for low in range(0, tokens, 1 << 16):
            high = min(low + (1 << 16), tokens)
            scores[..., low:high] = (q.reshape(-1, q.shape[-1]) @ self.layer.k[g, low:high].T.astype(
                np.float64)).reshape(*q.shape[:2], -1)
        hidden = np.arange(tokens) >= self.limits[part, None]
        scores[np.broadcast_to(hidden[:, None], scores.shape)] = -np.inf
        return scores

    def _values(self, weights: np.ndarray, g: int) -> np.ndarray:
        tokens, o = weights.shape[-1], 0.0
        for low in range(0, tokens, 1 << 16):
            high = min(low + (1 << 16), tokens)
            o = o + weights[..., low:high] @ self.layer.v[g, low:high].astype(np.float64)
        return o

    def top(self, k: int, limit: int) -> np.ndarray:
        """ids (n, H, k) of the greatest scores among rows below `limit`, in no order."""
        G, group = self.layer.k.shape[0], self.layer.H // self.layer.k.shape[0]
        ids = np.empty((len(self.rows), self.layer.H, k), np.int64)
        for at in range(0, len(self.rows), 8):
            part = slice(at, at + 8)
            for g in range(G):
                scores = self._scores(part, slice(g * group, (g + 1) * group), g)[..., :limit]
                ids[part, g * group:(g + 1) * group] = np.argpartition(scores, -k, axis=-1)[..., -k:]
        return ids

    @cached_property
    def top100(self) -> np.ndarray:
        return self.top(100, self.layer.built)


def load(path: str, only: list[int] | None = None) -> tuple[dict, list[Layer]]:
    """A file of capture.py: its facts and its layers."""
    facts = json.loads(Path(path).with_suffix(".json").read_text())
    layers = []
    with np.load(path) as file:
        positions = file["positions"].astype(np.int64)
        for number in facts["layers"]:
            if only is None or number in only:
                k, v = (np.ascontiguousarray(file[f"{number}.{x}"].swapaxes(0, 1)) for x in "kv")
                layers.append(Layer(f"{Path(path).stem}.{number}", k, v,
                                    file[f"{number}.q"].astype(np.float32), positions))
    return facts, layers


def synthetic(tokens: int, dim: int = 128, group: int = 4, sharpness: float = 8.0,
              noise: float = 0.35, seed: int = 1) -> Layer:
    """One KV head of keys that drift through topics and have outlier channels, as real ones do. Queries look
    for topics; `sharpness` is the standard deviation of their scores: 2 is flat, 8 is peaked. `noise` is what keys
    of a topic differ by; at 0.35 the scores inside a cluster of 16 deviate by a fifth of what all scores deviate
    by, as they do in captured keys (Gemma: 1.55 of 8.2 nats; SmolLM2: 1.7 of 5.5). Good for times
    and bytes; its errors say nothing about a model."""
    rng = np.random.default_rng(seed)
    scale = np.ones(dim, np.float32)
    scale[rng.choice(dim, dim // 32, replace=False)] = 8  # outlier channels
    topics = rng.standard_normal((256, dim), dtype=np.float32)
    values = rng.standard_normal((256, dim), dtype=np.float32)
    mean = 2 * rng.standard_normal(dim, dtype=np.float32)
    k, v = np.empty((1, tokens, dim), np.float16), np.empty((1, tokens, dim), np.float16)
    for low in range(0, tokens, 1 << 16):
        n = min(1 << 16, tokens - low)
        # A topic lasts for about 32 tokens, and there are 16 of them around at a time.
        runs = np.repeat(rng.integers(0, 16, n // 32 + 1), 32)[:n]
        topic = (runs + (low + np.arange(n)) // 4096 * 5) % len(topics)
        k[0, low:low + n] = (topics[topic] + noise * rng.standard_normal((n, dim), dtype=np.float32)
                             + mean) * scale
        v[0, low:low + n] = values[topic] + rng.standard_normal((n, dim), dtype=np.float32)
    positions = np.concatenate([np.arange(0, tokens - TEST, max(1, tokens // 4096)),
                                np.arange(tokens - TEST, tokens)])
    wanted = topics[rng.integers(0, len(topics), (len(positions), 1))]
    q = wanted + noise * rng.standard_normal((len(positions), group, dim), dtype=np.float32)
    q /= scale
    spread = (q[-1] @ k[0, ::max(1, tokens // 4096)].T.astype(np.float32)).std() * dim ** -0.5
    return Layer(f"synthetic {tokens // 1024}K, 1:{group}, sharpness {sharpness:g}, noise {noise:g}", k, v,
                 q * np.float32(sharpness / spread), positions, real=False)
