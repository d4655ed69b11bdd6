# SPDX-License-Identifier: Apache-2.0
"""`longheads` replayed on a real model's keys (replay.py), against float64 NumPy written from the paper's
description. Chunks of 32 tokens, so that a capture of 1,300 has 40 of them."""
import unittest

import numpy as np

from live import memd, needs_daemon
from replay import DIM, GROUP, HEADS, TOKENS, Read, Replay, best, model, rotate

CHUNK, ATTENTION = 32, 256
BUDGET = ATTENTION // CHUNK


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def represent(capture, head, chunk):
    """c (D): the chunk attends to itself, the mean of that attends once more."""
    here = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
    keys = rotate(capture.k[here, head // GROUP], np.arange(CHUNK))
    queries = rotate(capture.token_q[here, head].astype(float), np.arange(CHUNK))
    mean = (softmax(queries @ keys.T / np.sqrt(DIM)) @ keys).mean(0)
    return softmax(mean @ keys.T / np.sqrt(DIM)) @ keys


class Chunks:
    """Representatives, each made once: (dtype of the keys, head, chunk)."""

    def __init__(self):
        self.made = {}

    def of(self, capture, head, chunk):
        key = float(capture.k[5, 0, 0]), head, chunk
        if key not in self.made:
            self.made[key] = represent(capture, head, chunk)
        return self.made[key]


@needs_daemon
class LongHeads(Replay, unittest.TestCase):
    method, parameters = "longheads", {"chunk": CHUNK, "attention": ATTENTION}

    def setUp(self):
        super().setUp()
        self.chunks, self.choices = Chunks(), set()

    def append(self, past, begin, end):
        dtype, capture = past.model.dtype, self.capture
        past.append(0, begin, capture.k[begin:end].astype(dtype), capture.v[begin:end].astype(dtype),
                    q=capture.token_q[begin:end])

    def choose(self, capture, head, q, chunks):
        """The first, the last, and the best of the others."""
        scores = [q.astype(float) @ self.chunks.of(capture, head, chunk) for chunk in range(chunks)]
        middle = 1 + best(scores[1:-1], BUDGET - 3)
        return np.concatenate([[0], middle, [chunks - 1]])

    def reads(self, capture, q, positions, limits):
        reads = []
        for i, (position, limit) in enumerate(zip(positions, limits)):
            chunks = (limit - (len(q) > 1)) // CHUNK
            reads.append([])
            for head in range(HEADS):
                kept = np.arange(limit)
                if limit >= ATTENTION:
                    chosen = self.choose(capture, head, q[i, head], chunks)
                    kept = kept[np.isin(kept // CHUNK, chosen) | (kept // CHUNK >= chunks)]
                place = (kept < position).sum() + max(0, position - limit)
                reads[-1].append(Read(kept, np.arange(len(kept)), place))
        return reads

    def seen(self, past, wanted):
        for of_query in wanted:
            self.choices.update(tuple(np.unique(read.tokens // CHUNK)) for read in of_query)

    def test_fp32(self):
        self.replay("float32")
        self.assertGreater(len(self.choices), 60, "the heads hardly choose")

    def test_fp16(self):
        self.replay("float16")

    def test_prefill(self):
        """A batch, each query with the tokens before it and its own."""
        past = self.open("past", "float32")
        self.append(past, 0, TOKENS)
        for first in (8, 40):
            positions = self.capture.positions[first:first + 8]
            self.check(past, self.capture.q[first:first + 8], positions, positions + 1)
        at = 10 * CHUNK  # a chunk that was just completed: where prefill and decoding differ
        q = self.capture.q[40:42]
        batch = self.check(past, q, [at - 1, at - 1], [at, at])
        alone = self.check(past, q[:1], [at - 1], [at])
        self.assertGreater(abs(batch[0] - alone[0]).max(), 1e-4)

    def test_budget_for_all_is_full(self):
        answers = []
        for name, method, parameters in (("long", "longheads", {"chunk": CHUNK, "attention": 2 * TOKENS}),
                                         ("full", "full", {})):
            past = self.open(name, "float32", method=method, parameters=parameters)
            self.append(past, 0, TOKENS)
            answers.append(past.attend(0, self.capture.q[-1:], [TOKENS]).o)
        np.testing.assert_allclose(*answers, rtol=0, atol=1e-5)

    def test_refused(self):
        with self.assertRaises(memd.UnsupportedError):
            self.live.client.open("rotated", model("float32", rotated=True), method="longheads", create=True)
        self.live.client.open("true", model("float32", rotated=True), method="longheads", create=True,
                              parameters={"positions": "original"})
        past = self.open("past", "float32")
        with self.assertRaises(memd.InvalidError):  # queries are missing
            past.append(0, 0, self.capture.k[:5].astype(np.float32), self.capture.v[:5].astype(np.float32))


if __name__ == "__main__":
    unittest.main()
