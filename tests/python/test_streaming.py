# SPDX-License-Identifier: Apache-2.0
"""`streaming` replayed on keys, values and queries of a real model, against float64 NumPy.

The capture (tests/golden/kv_smollm2.npz, SmolLM2) has rotated keys and one KV head; they are turned back, and a
second head is the first one shifted. Each answer: outputs and the set of tokens. In between the daemon is killed,
restarted, the context forked and truncated.
"""
import os
import signal
import unittest

import numpy as np

from live import HERE, Live, memd, needs_daemon

CAPTURE = os.path.join(HERE, "..", "golden", "kv_smollm2.npz")
TOKENS, DIM, THETA, SINKS, WINDOW = 1300, 64, 1e5, 4, 100
PARAMETERS = {"sinks": SINKS, "window": WINDOW}
NONE = 2**64 - 1
TOLERANCE = {"float32": 1e-5, "float16": 2e-3}


def rotate(x, positions, direction=1):
    """x (..., D) float64, pairs of dimension i and i + D/2."""
    angles = direction * np.asarray(positions, float)[..., None] * THETA ** (-np.arange(0, DIM, 2) / DIM)
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = x[..., :DIM // 2], x[..., DIM // 2:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def load():
    """k, v (T, 2, D), q (n, 6, D), all unrotated, and the positions of q."""
    file = np.load(CAPTURE)
    k = rotate(file["k"].astype(float), np.arange(TOKENS)[:, None], -1)
    q = rotate(file["q"].astype(float), file["q_positions"][:, None], -1).astype(np.float32)
    v = file["v"].astype(float)
    k, v = (np.concatenate([x, np.roll(x, TOKENS // 2, 0)], 1) for x in (k, v))
    return k, v, np.concatenate([q, np.roll(q, len(q) // 2, 0)], 1), file["q_positions"].astype(int)


def truth(k, v, q, position, limit):
    """The tokens that are kept, and o (H, D): keys at 0 … n-1, the query behind those before it."""
    begin = max(limit - WINDOW, min(SINKS, limit), 0)
    kept = list(range(min(SINKS, limit))) + list(range(begin, limit))
    place = sum(token < position for token in kept) + max(0, position - limit)
    o = np.zeros((len(q), DIM))
    for head, row in enumerate(q.astype(float)):
        keys = rotate(k[kept, head // 3], np.arange(len(kept)))
        scores = keys @ rotate(row, place) / np.sqrt(DIM)
        weights = np.exp(scores - scores.max())
        o[head] = weights @ v[kept, head // 3] / weights.sum()
    return kept, o


def model(dtype, rotated=False):
    return memd.Model(layers=1, query_heads=6, kv_heads=2, head_dim=DIM, dtype=dtype, rotated=rotated,
                      rope=memd.Rope(theta=THETA, pairing="half"))


@needs_daemon
class Streaming(unittest.TestCase):
    def setUp(self):
        self.live = Live()
        self.addCleanup(self.live.close)
        self.k, self.v, self.q, self.positions = load()

    def open(self, name, dtype, **more):
        return self.live.client.open(name, model(dtype), **{"method": "streaming", "parameters": PARAMETERS,
                                                            "create": True, **more})

    def check(self, past, k, v, query, position, limit):
        q = self.q[query:query + 1]
        kept, o = truth(k, v, q[0], position, limit)
        answer = past.attend(0, q, [position], [limit])
        np.testing.assert_allclose(answer.o[0], o, rtol=0, atol=TOLERANCE[past.model.dtype])
        ids = past.search(0, q, k=2 * WINDOW, limits=[limit], positions=[position]).ids[0]
        for head in ids:
            self.assertEqual(sorted(int(token) for token in head if token != NONE), kept)
        return answer.o

    def replay(self, dtype):
        k, v, at = self.k.astype(dtype), self.v.astype(dtype), 0
        exact = k.astype(float), v.astype(float)
        past = self.open("past", dtype)
        for query, position in list(enumerate(self.positions))[1:]:
            while at < position:
                count = min(37, position - at)
                past.append(0, at, k[at:at + count], v[at:at + count])
                at += count
            for asked in (position, position - 1, position + 40):
                self.check(past, *exact, query, asked, position)
            if query == len(self.positions) // 2:
                self.live.restart(signal.SIGKILL)
                past = self.live.client.open("past")
        last = len(self.positions) - 1
        before = self.check(past, *exact, last, at, at)
        fork = past.fork("fork")
        fork.truncate(700)
        self.check(fork, *exact, 30, 700, 700)
        self.check(fork, *exact, 30, 702, 650)
        self.live.restart()
        past = self.live.client.open("past")
        np.testing.assert_array_equal(self.check(past, *exact, last, at, at), before)
        once = self.open("once", dtype)
        once.append(0, 0, k[:at], v[:at])
        np.testing.assert_array_equal(self.check(once, *exact, last, at, at), before)

    def test_fp32(self):
        self.replay("float32")

    def test_fp16(self):
        self.replay("float16")

    def test_all_in_the_window_is_full(self):
        answers = []
        for name, method, parameters in (("wide", "streaming", {"window": 2 * TOKENS}), ("full", "full", {})):
            past = self.open(name, "float32", method=method, parameters=parameters)
            past.append(0, 0, self.k.astype(np.float32), self.v.astype(np.float32))
            answers.append(past.attend(0, self.q[-1:], [TOKENS]).o)
        np.testing.assert_allclose(*answers, rtol=0, atol=1e-5)

    def test_rotated_keys_keep_their_positions(self):
        with self.assertRaises(memd.UnsupportedError):
            self.live.client.open("rotated", model("float32", rotated=True), method="streaming",
                                  parameters={"positions": "cache-index"}, create=True)


if __name__ == "__main__":
    unittest.main()
