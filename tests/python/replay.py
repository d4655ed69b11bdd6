# SPDX-License-Identifier: Apache-2.0
"""Keys, values and queries of a real model, replayed through a daemon: what the replays of methods share.

The capture (tests/golden/kv_smollm2.npz, SmolLM2) has rotated keys and one KV head; they are turned back, and a
second head is the first one shifted. A method's test says which tokens a query head reads and where they are; here
is the softmax over them in float64, and a life: appends of odd sizes, kill -9 in the middle, fork, truncate, restart,
one append against many. In each step outputs, tokens, places and hits are compared.
"""
import os
import signal
from typing import NamedTuple

import numpy as np

from live import HERE, Live, memd

CAPTURE = os.path.join(HERE, "..", "golden", "kv_smollm2.npz")
TOKENS, HEADS, GROUP, DIM, THETA = 1300, 6, 3, 64, 1e5
NONE = 2**64 - 1
# (places, D / 2): taken from here they cost half of what a replay took when each rotation worked them out.
ANGLES = np.arange(4 * TOKENS)[:, None] * THETA ** (-np.arange(0, DIM, 2) / DIM)
COS, SIN = np.cos(ANGLES), np.sin(ANGLES)
TOLERANCE = {"float32": 1e-5, "float16": 2e-3}


class Capture(NamedTuple):
    """All unrotated."""

    k: np.ndarray          # (T, 2, D) float64
    v: np.ndarray
    q: np.ndarray          # (n, 6, D) float32
    positions: np.ndarray  # (n) of q
    token_q: np.ndarray    # (T, 6, D) of each token that of the captured position at or before it; fp16 holds them

    def stored(self, dtype):
        """The capture as a daemon of this dtype has it."""
        return self._replace(k=self.k.astype(dtype).astype(float), v=self.v.astype(dtype).astype(float))


class Read(NamedTuple):
    """What a query head reads."""

    tokens: np.ndarray  # ascending
    places: np.ndarray  # where their keys are rotated
    place: int          # where the query is rotated; an array (tokens) where it is not one place


def rotate(x, positions, direction=1):
    """x (..., D) float64, pairs of dimension i and i + D/2; positions from 0."""
    places = np.asarray(positions)
    assert places.min(initial=0) >= 0, places
    cos, sin = COS[places], direction * SIN[places]
    a, b = x[..., :DIM // 2], x[..., DIM // 2:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def load():
    file = np.load(CAPTURE)
    positions = file["q_positions"].astype(int)
    k = rotate(file["k"].astype(float), np.arange(TOKENS)[:, None], -1)
    v = file["v"].astype(float)
    q = rotate(file["q"].astype(float), positions[:, None], -1).astype(np.float32)
    k, v = (np.concatenate([x, np.roll(x, TOKENS // 2, 0)], 1) for x in (k, v))
    q = np.concatenate([q, np.roll(q, len(q) // 2, 0)], 1)
    owner = np.searchsorted(positions, np.arange(TOKENS), side="right") - 1
    return Capture(k, v, q, positions, q[owner].astype(np.float16))


def attend(capture, head, q, read):
    """o (D) of one query head, q (D)."""
    keys = rotate(capture.k[read.tokens, head // GROUP], read.places)
    queries = rotate(np.broadcast_to(q.astype(float), keys.shape), np.broadcast_to(read.place, len(keys)))
    scores = (queries * keys).sum(1) / np.sqrt(DIM)
    weights = np.exp(scores - scores.max())
    return weights @ capture.v[read.tokens, head // GROUP] / weights.sum(), scores


def best(scores, count):
    """The `count` best, ties to the lower index, ascending."""
    return np.sort(np.argsort(-np.asarray(scores), kind="stable")[:count])


def model(dtype, rotated=False):
    return memd.Model(layers=1, query_heads=HEADS, kv_heads=2, head_dim=DIM, dtype=dtype, rotated=rotated,
                      rope=memd.Rope(theta=THETA, pairing="half"))


class Replay:
    """Beside unittest.TestCase. A method says `method`, `parameters`, and

        reads(capture, q, positions, limits) -> for each query and head a Read

    where q (n, H, D) are the queries of one request. What it wants with tokens is in `append`."""

    method, parameters = "", {}
    behind = (0, -1, 40)  # positions of queries, from their limits

    def setUp(self):
        self.live = Live()
        self.addCleanup(self.live.close)
        self.capture = load()

    def open(self, name, dtype, **more):
        return self.live.client.open(name, model(dtype), **{"method": self.method, "parameters": self.parameters,
                                                            "create": True, **more})

    def append(self, past, begin, end):
        """Tokens begin … end-1, as the method wants them."""
        dtype = past.model.dtype
        past.append(0, begin, self.capture.k[begin:end].astype(dtype), self.capture.v[begin:end].astype(dtype))

    def attend(self, capture, head, q, read):
        """o (D) and the scores of the tokens; methods with another softmax have their own."""
        return attend(capture, head, q, read)

    def check(self, past, q, positions, limits):
        """o of the answer, after all was compared."""
        capture = self.capture.stored(past.model.dtype)
        wanted = self.reads(capture, q, positions, limits)
        answer = past.attend(0, q, positions, limits, explain=True)
        hits = past.search(0, q, k=TOKENS, limits=limits, positions=positions).ids
        self.assertFalse(answer.plan.cut)
        for i in range(len(q)):
            for head in range(HEADS):
                read = wanted[i][head]
                tokens, places = answer.plan.tokens(i, head)
                np.testing.assert_array_equal(tokens, read.tokens, f"query {i} head {head}")
                np.testing.assert_array_equal(places, read.places, f"query {i} head {head}")
                np.testing.assert_array_equal(np.sort(hits[i, head][:len(tokens)]), tokens)
                self.assertTrue((hits[i, head][len(tokens):] == NONE).all())
                if len(tokens) == 0:
                    continue
                o, scores = self.attend(capture, head, q[i, head], read)
                np.testing.assert_allclose(answer.o[i, head], o, rtol=0, atol=TOLERANCE[past.model.dtype])
                ranked = scores[np.searchsorted(tokens, hits[i, head][:len(tokens)])]
                self.assertTrue((np.diff(ranked) <= 1e-4).all(), "hits are not best first")
        self.seen(past, wanted)
        return answer.o

    def seen(self, past, wanted):
        """Called with every comparison: a test counts here what changes."""

    def ask(self, past, query, position, limit):
        return self.check(past, self.capture.q[query:query + 1], [position], [limit])

    def replay(self, dtype, truncated=700):
        past, at = self.open("past", dtype), 0
        positions = self.capture.positions
        for query, position in list(enumerate(positions))[1:]:
            while at < position:
                count = min(37, position - at)
                self.append(past, at, at + count)
                at += count
            for behind in self.behind:
                self.ask(past, query, position + behind, position)
            if query == len(positions) // 2:
                self.live.restart(signal.SIGKILL)
                past = self.live.client.open("past")
        last = len(positions) - 1
        before = self.ask(past, last, at, at)
        fork = past.fork("fork")
        fork.truncate(truncated)
        self.ask(fork, 30, truncated, truncated)
        self.ask(fork, 30, truncated + 2, truncated - 50)
        self.live.restart()
        past = self.live.client.open("past")
        np.testing.assert_array_equal(self.ask(past, last, at, at), before)
        once = self.open("once", dtype)
        self.append(once, 0, at)
        np.testing.assert_array_equal(self.ask(once, last, at, at), before)
        return past
