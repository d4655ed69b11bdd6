# SPDX-License-Identifier: Apache-2.0
"""Pasts for one model: all of it in the process, a window only, a window and memd, memd alone.

They share one function, attention over a set of tokens, which returns a *partial*: the output o and lse,
the log of the softmax denominator. Partials over sets that do not overlap merge into attention over their
union (memd.merge); where each set lives does not matter.
"""
from __future__ import annotations

import time

from cores import each

import numpy as np

import memd

LEARNS_FROM_QUERIES = {"retrieval-attention"}  # others profit from the queries they are asked


def partial_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray,
                      visible: np.ndarray | None = None) -> memd.Partial:
    """q (n, H, D) over k, v (t, G, D), where query i sees token j if visible (n, t) says so (None: all).

    Query head h reads KV head h // (H/G), so the H/G heads of a group are rows of one matrix product.
    A query that sees nothing gets the empty partial, o = 0 and lse = -inf.
    """
    n, H, D = q.shape
    G = k.shape[1]
    o, lse = np.empty((n, H, D), np.float32), np.empty((n, H), np.float32)
    hidden = None if visible is None else np.where(visible, np.float32(0), np.float32(-np.inf))

    def group(g: int) -> None:
        heads = slice(g * H // G, (g + 1) * H // G)
        scores = (q[:, heads].reshape(-1, D) * np.float32(D ** -0.5)) @ k[:, g].T
        scores = scores.reshape(n, H // G, -1)
        if hidden is not None:
            scores += hidden[:, None]
        top = np.maximum(scores.max(axis=-1, keepdims=True), np.finfo(np.float32).min)
        weights = np.exp(np.subtract(scores, top, out=scores), out=scores)
        total = weights.sum(axis=-1, keepdims=True)
        weighted = (weights.reshape(n * (H // G), -1) @ v[:, g]).reshape(n, H // G, D)
        o[:, heads] = weighted / np.where(total == 0, 1, total)
        with np.errstate(divide="ignore"):
            lse[:, heads] = (top + np.log(total))[..., 0]
    each(group, range(G))
    return memd.Partial(o, lse)


class FullAttention:
    """Everything the model has read, in the process: the reference."""

    def __init__(self, layers: int, tokens: int, kv_heads: int, head_dim: int):
        self._k = np.zeros((layers, kv_heads, tokens, head_dim), np.float32)
        self._v = np.zeros_like(self._k)

    def attend(self, layer, start, q, k, v):
        end = start + len(q)
        self._k[layer, :, start:end] = k.swapaxes(0, 1)
        self._v[layer, :, start:end] = v.swapaxes(0, 1)
        own = partial_attention(q, k, v, np.tri(len(q), dtype=bool))
        if start == 0:
            return own.o
        past_k, past_v = (x[layer, :, :start].swapaxes(0, 1) for x in (self._k, self._v))
        return memd.merge([own, partial_attention(q, past_k, past_v)]).o


class WindowAttention:
    """The first `sinks` tokens and the newest `window`, the query's own included; the rest is forgotten.

    The sinks are there because a model parks attention it has no use for on its first tokens; without
    them a window does not work at all (StreamingLLM, arXiv 2309.17453).
    """

    def __init__(self, layers: int, sinks: int, window: int):
        self.sinks, self.window = sinks, window
        self._kept: list = [None] * layers  # per layer: positions (t), k, v (t, G, D)

    def start(self, layer: int, k: np.ndarray, v: np.ndarray) -> None:
        """As if these tokens had been read."""
        at = np.arange(len(k))
        stays = (at < self.sinks) | (at > len(k) - self.window)
        self._kept[layer] = (at[stays], k[stays], v[stays])

    def local(self, layer, start, q, k, v) -> memd.Partial:
        positions = np.arange(start, start + len(q))
        kept = (positions, k, v)
        if self._kept[layer] is not None:
            kept = tuple(np.concatenate(pair) for pair in zip(self._kept[layer], kept))
        at, query = kept[0], positions[:, None]
        visible = (at <= query) & ((at < self.sinks) | (at > query - self.window))
        part = partial_attention(q, kept[1], kept[2], visible)
        stays = (at < self.sinks) | (at > positions[-1] + 1 - self.window)  # for the next query
        self._kept[layer] = tuple(x[stays] for x in kept)
        return part

    def attend(self, layer, start, q, k, v):
        return self.local(layer, start, q, k, v).o


class AnswerQuality:
    """What memd said of its answers, over all of them: how much it read, how wrong it may be."""

    def __init__(self):
        self.calls = self._read = self._exact = 0
        self._predicted: list[np.ndarray] = []
        self._mass: list[np.ndarray] = []

    def add(self, quality: memd.Quality) -> None:
        self.calls += 1
        self._read += quality.bytes_read
        self._exact += quality.bytes_exact
        self._predicted.append(quality.predicted_error.ravel())
        self._mass.append(quality.level_mass.mean(axis=(0, 1)))

    def summary(self) -> dict:
        """bytes: read, as a share of what exact fp16 attention reads; None: the method cannot tell. bytes_read: in
        all."""
        predicted, mass = np.concatenate(self._predicted), np.mean(self._mass, axis=0)
        return {"bytes": self._read / max(self._exact, 1), "bytes_read": self._read,
                "predicted_error": None if np.isnan(predicted).any() else float(predicted.mean()),
                "level_mass": None if np.isnan(mass).any() else [float(x) for x in mass]}


class MemdAttention(WindowAttention):
    """The same sinks and window, and everything else in memd.

    memd numbers the tokens of a context 0, 1, 2, … and the sinks are not among them: the token at
    position p is row p - sinks of the context. (RoPE depends on differences of positions only, and these
    stay the same.) Tokens are sent as soon as they exist, while they still are in the window, so that
    nothing is lost when this process dies; the limits keep the two sets of tokens apart.
    """

    def __init__(self, past: memd.Context, sinks: int, window: int):
        super().__init__(past.model.layers, sinks, window)
        self.past = past
        self.quality = AnswerQuality()

    def attend(self, layer, start, q, k, v):
        local = self.local(layer, start, q, k, v)
        new = max(self.sinks - start, 0)  # of the first tokens, the sinks are not sent
        wanted = q[new:] if self.past.method in LEARNS_FROM_QUERIES else None
        self.past.append(layer, start + new - self.sinks, k[new:], v[new:], q=wanted)
        rows = np.arange(start, start + len(q)) - self.sinks
        limits = np.maximum(rows - self.window + 1, 0)  # what has left the window of each query
        remembered = self.past.attend(layer, q, np.maximum(rows, 0), limits)
        self.quality.add(remembered.quality)
        return memd.merge([local, remembered]).o


def column_mass(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The attention that n tokens pay to each other: per token and query head, the sum over the queries behind it
    of the weight that each gives it. (n, H); what an engine sees of its own window anyway."""
    n, H, D = q.shape
    seen = np.tri(n, dtype=bool)
    mass = np.empty((n, H), np.float32)
    for h in range(H):
        scores = np.where(seen, (q[:, h] @ k[:, h * k.shape[1] // H].T) * np.float32(D ** -0.5), -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        mass[:, h] = (weights / weights.sum(axis=1, keepdims=True)).sum(axis=0)
    return mass


class MemdAlone:
    """Everything in memd: the tokens of a block are appended, then asked for with all the others. Only here
    do all of a method's approximations reach the model; a window of its own would hide most of them. Queries
    are asked one by one (in one request), as a model that generates asks: together they could share rows.

    turn   (x, positions): takes the rotation of keys and queries away, for contexts whose keys memd rotates
    mass   the attention that the tokens of a block pay to each other is sent with them
    """

    def __init__(self, past: memd.Context, turn=None, mass: bool = False):
        self.past, self._turn, self._mass = past, turn, mass
        self.quality = AnswerQuality()
        self.seconds = 0.0  # waited for memd

    def attend(self, layer, start, q, k, v):
        scores = column_mass(q, k) if self._mass else None
        if self._turn is not None:
            positions = np.arange(start, start + len(q))
            q, k = self._turn(q, -positions), self._turn(k, -positions)
        began = time.monotonic()
        self.past.append(layer, start, k, v, q=q, ack="memory", scores=scores)
        answers = self.past.client.attend_many(
            [memd.Query(self.past, layer, q[i:i + 1], [start + i], [start + i + 1]) for i in range(len(q))])
        self.seconds += time.monotonic() - began
        for answer in answers:
            self.quality.add(answer.quality)
        return np.concatenate([answer.o for answer in answers])
