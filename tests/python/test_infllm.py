# SPDX-License-Identifier: Apache-2.0
"""`infllm` replayed on a real model's keys (replay.py), against float64 NumPy written from the paper's description.
Blocks of 16 tokens and a window of 200, so that a capture of 1,300 has 67 of them."""
import unittest

import numpy as np

from live import memd, needs_daemon
from replay import DIM, GROUP, HEADS, TOKENS, Read, Replay, best, model, rotate

BLOCK, LOCAL, SINKS, TOPK, TOKENS_OF = 16, 200, 20, 5, 4
PARAMETERS = {"block": BLOCK, "local": LOCAL, "sinks": SINKS, "topk": TOPK}


def formed(tokens):
    """Blocks whose tokens all are LOCAL behind."""
    return max(0, (tokens - LOCAL - SINKS) // BLOCK)


@needs_daemon
class InfLLM(Replay):
    method, parameters = "infllm", PARAMETERS | {"repr": "mean"}
    share = True

    def setUp(self):
        super().setUp()
        self.choices, self.vectors = set(), {}

    def scores(self, capture, head, tokens):
        """By what tokens come to represent a block; None: all of them do."""
        return None

    def represent(self, capture, head, block):
        """(D) the mean of the unrotated keys of the best tokens."""
        key = float(capture.k[5, 0, 0]), head, block
        if key not in self.vectors:
            tokens = np.arange(BLOCK) + SINKS + block * BLOCK
            scores = self.scores(capture, head, tokens)
            chosen = tokens if scores is None else tokens[best(scores, TOKENS_OF)]
            self.vectors[key] = capture.k[chosen, head // GROUP].mean(0)
        return self.vectors[key]

    def choose(self, capture, q, blocks):
        """Of each head: the best blocks for the queries q (n, H, D) of an execution block."""
        query = rotate(q.astype(float).mean(0), np.full(HEADS, LOCAL - 1))
        products = np.array([[query[head] @ self.represent(capture, head, block) for block in range(blocks)]
                             for head in range(HEADS)]).reshape(HEADS, blocks)
        if self.share:
            products[:] = products.sum(0)
        return [best(products[head], TOPK) for head in range(HEADS)]

    def reads(self, capture, q, positions, limits):
        blocks = formed(min(min(positions), min(limits)))
        chosen = self.choose(capture, q, blocks)
        reads = []
        for position, limit in zip(positions, limits):
            tokens = np.arange(limit)
            block = np.where(tokens < SINKS, blocks, (tokens - SINKS) // BLOCK)
            far = position - tokens >= LOCAL
            places = np.where(far, 0, tokens), np.where(far, LOCAL - 1, position)
            kept = [(block >= blocks) | np.isin(block, chosen[head]) for head in range(HEADS)]
            reads.append([Read(tokens[kept[head]], places[0][kept[head]], places[1][kept[head]])
                          for head in range(HEADS)])
        return reads

    def seen(self, past, wanted):
        for of_query in wanted:
            self.choices.update(tuple(np.unique((read.tokens - SINKS) // BLOCK)) for read in of_query)

    def test_fp32(self):
        self.replay("float32")
        self.assertGreater(len(self.choices), 40, "the choice hardly changes")


class Mean(InfLLM, unittest.TestCase):
    def test_fp16(self):
        self.replay("float16")

    def test_execution_block(self):
        """Queries of a request share a choice."""
        past = self.open("past", "float32")
        self.append(past, 0, TOKENS)
        positions = self.capture.positions[36:44]
        self.check(past, self.capture.q[36:44], positions, positions + 1)

    def test_enough_for_all(self):
        """All blocks are read: everything in the window where it is, everything else at one distance."""
        past = self.open("past", "float32", parameters=self.parameters | {"topk": TOKENS})
        self.append(past, 0, TOKENS)
        tokens = np.arange(TOKENS)
        far = TOKENS - tokens >= LOCAL
        read = Read(tokens, np.where(far, 0, tokens), np.where(far, LOCAL - 1, TOKENS))
        self.reads = lambda *_: [[read] * HEADS]
        self.ask(past, 47, TOKENS, TOKENS)

    def test_short_is_full(self):
        answers = []
        for name, method, parameters in (("short", "infllm", self.parameters), ("full", "full", {})):
            past = self.open(name, "float32", method=method, parameters=parameters)
            self.append(past, 0, LOCAL)
            answers.append(past.attend(0, self.capture.q[7:8], [LOCAL - 1], [LOCAL]).o)
        np.testing.assert_allclose(*answers, rtol=0, atol=1e-5)

    def test_refused(self):
        with self.assertRaises(memd.UnsupportedError):
            self.live.client.open("rotated", model("float32", rotated=True), method="infllm", create=True,
                                  parameters={"positions": "constant"})
        self.live.client.open("rotated", model("float32", rotated=True), method="infllm", create=True)


class PerHead(InfLLM, unittest.TestCase):
    parameters = PARAMETERS | {"repr": "mean", "share": "none"}
    share = False


class Logit(InfLLM, unittest.TestCase):
    parameters = PARAMETERS | {"repr": "logit"}

    def append(self, past, begin, end):
        dtype, capture = past.model.dtype, self.capture
        past.append(0, begin, capture.k[begin:end].astype(dtype), capture.v[begin:end].astype(dtype),
                    q=capture.token_q[begin:end])

    def scores(self, capture, head, tokens):
        """Mean logit of the LOCAL queries behind each token."""
        scores = []
        for token in tokens:
            behind = np.arange(token + 1, token + 1 + LOCAL)
            queries = rotate(capture.token_q[behind, head].astype(float), behind)
            scores.append((queries @ rotate(capture.k[token, head // GROUP], token)).mean())
        return scores


class Mass(InfLLM, unittest.TestCase):
    parameters = PARAMETERS | {"repr": "mass"}

    def setUp(self):
        """(T, H) the probability that tokens received from the captured queries while in their windows."""
        super().setUp()
        self.mass = np.zeros((TOKENS, HEADS), np.float32)
        for position, q in zip(self.capture.positions, self.capture.q):
            tokens = np.arange(max(0, position + 1 - LOCAL), position + 1)
            for head in range(HEADS):
                keys = rotate(self.capture.k[tokens, head // GROUP], tokens)
                scores = keys @ rotate(q[head].astype(float), position) / np.sqrt(DIM)
                weights = np.exp(scores - scores.max())
                self.mass[tokens, head] += weights / weights.sum()
        self.told = self.mass.copy()

    def append(self, past, begin, end):
        """Half of the mass comes with the tokens, the other half before those that follow them."""
        dtype, capture = past.model.dtype, self.capture
        early = 1 if end - begin > LOCAL else 0.5  # else some leave the window at once
        if begin > 0:
            since = max(0, begin - 37)
            past.observe(0, since, self.mass[since:begin] - self.told[since:begin])
            self.told[since:begin] = self.mass[since:begin]
        self.told[begin:end] = self.mass[begin:end] * early
        past.append(0, begin, capture.k[begin:end].astype(dtype), capture.v[begin:end].astype(dtype),
                    scores=self.told[begin:end])

    def scores(self, capture, head, tokens):
        return self.mass[tokens, head]

    def test_state(self):
        """Blocks of which nobody reported anything are counted."""
        past = self.open("past", "float32")
        self.append(past, 0, 600)
        super().append(past, 600, TOKENS)
        past.attend(0, self.capture.q[:1], [TOKENS])
        state = past.state(0)
        self.assertEqual(state["blocks"], formed(TOKENS))
        self.assertEqual(state["blocks_without_mass"], formed(TOKENS) - (600 - SINKS + BLOCK - 1) // BLOCK)


if __name__ == "__main__":
    unittest.main()
