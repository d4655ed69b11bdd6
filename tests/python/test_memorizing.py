# SPDX-License-Identifier: Apache-2.0
"""`memorizing` replayed on a real model's keys (replay.py), against float64 NumPy written from the paper's description.
A ring of 192 tokens, so that a capture of 1,300 turns it over six times."""
import unittest

import numpy as np

from live import memd, needs_daemon
from replay import DIM, GROUP, HEADS, TOKENS, Read, Replay, model

MEMORY, K = 192, 12
SCALE = np.array([8, -5, 11, 3, 9, 14], np.float32)  # magnitudes count
GATE = np.array([-2, 0, 1, 3, -30, 30], np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@needs_daemon
class Memorizing(Replay, unittest.TestCase):
    method, parameters = "memorizing", {"memory": MEMORY, "k": K}

    def setUp(self):
        super().setUp()
        self.choices = set()

    def open(self, name, dtype, **more):
        past = super().open(name, dtype, **more)
        past.put_params({"scale": SCALE, "gate": GATE})
        return past

    def logits(self, capture, head, q, tokens):
        return unit(capture.k[tokens, head // GROUP]) @ unit(q.astype(float)) * abs(SCALE[head])

    def reads(self, capture, q, positions, limits):
        reads = []
        for i, limit in enumerate(limits):
            ring = np.arange(max(0, limit - MEMORY), limit)
            reads.append([])
            for head in range(HEADS):
                scores = self.logits(capture, head, q[i, head], ring)
                best = {}  # of each bucket; ties to the lower token
                for token, score in zip(ring, scores):
                    if token % K not in best or score > best[token % K][0]:
                        best[token % K] = score, token
                chosen = np.sort([token for _, token in best.values()]).astype(int)
                reads[-1].append(Read(chosen, np.full(len(chosen), -1), 0))
        return reads

    def attend(self, capture, head, q, read):
        """With keys of zeros in place of what is missing to k."""
        scores = self.logits(capture, head, q, read.tokens)
        weights = np.exp(scores)
        total = weights.sum() + K - len(weights)
        return weights @ capture.v[read.tokens, head // GROUP] / total, scores

    def seen(self, past, wanted):
        for of_query in wanted:
            self.choices.update(tuple(read.tokens) for read in of_query)

    def test_fp32(self):
        self.replay("float32")
        self.assertGreater(len(self.choices), 100, "the heads hardly choose")

    def test_fp16(self):
        self.replay("float16")

    def test_window(self):
        """A window that comes along is gated, head by head; the memory alone otherwise."""
        past = self.open("past", "float32")
        self.append(past, 0, TOKENS)
        q, at = self.capture.q[5:7], [TOKENS, TOKENS]
        memory = past.attend(0, q, at).o
        window = memd.Partial(np.full((2, HEADS, DIM), 7, np.float32), np.zeros((2, HEADS), np.float32))
        both = past.attend(0, q, at, local=window)
        share = 1 / (1 + np.exp(-GATE.astype(float)))[:, None]
        np.testing.assert_allclose(both.o, 7 * (1 - share) + memory * share, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(both.lse, window.lse)

    def test_all_of_the_memory(self):
        """k for all, exactly: attention over the whole ring, at length 1."""
        past = self.open("past", "float32", parameters={"memory": MEMORY, "k": MEMORY, "search": "exact"})
        self.append(past, 0, TOKENS)
        q = self.capture.q[-1:]
        answer, ring = past.attend(0, q, [TOKENS]), np.arange(TOKENS - MEMORY, TOKENS)
        for head in range(HEADS):
            weights = np.exp(self.logits(self.capture, head, q[0, head], ring))
            np.testing.assert_allclose(answer.o[0, head], weights @ self.capture.v[ring, head // GROUP] / weights.sum(),
                                       rtol=0, atol=1e-5)

    def test_refused(self):
        past = self.live.client.open("bare", model("float32"), method="memorizing", create=True)
        self.append(past, 0, 9)
        with self.assertRaisesRegex(memd.UnsupportedError, "scale"):
            past.attend(0, self.capture.q[:1], [9])
        with self.assertRaises(memd.ShapeError):
            past.put_params({"scale": SCALE[:3]})
        with self.assertRaisesRegex(memd.InvalidError, "multiple of k"):
            self.live.client.open("odd", model("float32"), method="memorizing", create=True, parameters={"k": 100})
        raw = self.live.client.open("raw", model("float32"), method="memorizing", create=True,
                                    parameters={"normalise": 0, "search": "exact", "k": 9, "memory": 9})
        full = self.live.client.open("full", memd.Model(layers=1, query_heads=HEADS, kv_heads=2, head_dim=DIM,
                                                        dtype="float32"), method="full", create=True)
        for context in (raw, full):  # raw keys, not rotated, all of them: plain attention
            self.append(context, 0, 9)
        np.testing.assert_allclose(raw.attend(0, self.capture.q[:1], [9]).o, full.attend(0, self.capture.q[:1], [9]).o,
                                   rtol=0, atol=1e-5)


if __name__ == "__main__":
    unittest.main()
