# SPDX-License-Identifier: Apache-2.0
"""`loki` replayed (replay.py): ranked by the first components of the layer's own first tokens, the best k read."""
import unittest

import numpy as np

from live import memd, needs_daemon
from replay import DIM, GROUP, HEADS, TOKENS, Read, Replay, best, model, rotate

CALIBRATION, R, K = 300, 12, 40


def components(keys):
    """(D, D) of keys (n, D), the most important first, as columns; and how much of the keys is in each (D)."""
    values, vectors = np.linalg.eigh(keys.T @ keys)
    return vectors[:, ::-1], values[::-1]


class Ranked(Replay):
    method = "loki"
    parameters = {"components": R, "k": K, "calibration": CALIBRATION}
    rotary = "post"
    calibration = CALIBRATION
    near = 0.0  # how much worse than the k-th best a token may be that was read: projected keys are rounded

    def setUp(self):
        super().setUp()
        self.selected = [set() for _ in range(HEADS)]
        self.basis = {}

    def keys(self, capture, head):
        """As they are ranked, and the basis of those."""
        if head not in self.basis:
            keys = capture.k[:, head // GROUP]
            if self.rotary == "post":
                keys = rotate(keys, np.arange(TOKENS))
            self.basis[head] = keys, self.components(keys, head)
        return self.basis[head]

    def components(self, keys, head):
        return components(keys[:CALIBRATION])[0][:, :R]

    def check(self, past, q, positions, limits):
        if self.near > 0:
            self.plan = past.attend(0, q, positions, limits, explain=True).plan
        return super().check(past, q, positions, limits)

    def read(self, capture, q, i, head, position, limit):
        if limit < self.calibration:  # in these replays: the layer holds no more
            return Read(np.arange(limit), np.arange(limit), position)
        keys, basis = self.keys(capture, head)
        query = q.astype(float) if self.rotary == "pre" else rotate(q.astype(float), position)
        scores = (keys[:limit] @ basis) @ (query @ basis) / np.sqrt(DIM)
        chosen = best(scores, K)
        if self.near > 0:
            tokens, least = self.plan.tokens(i, head)[0], scores[chosen].min()
            self.assertEqual(len(tokens), len(chosen))
            self.assertGreater(scores[tokens].min(), least - self.near)
            chosen = tokens
        return Read(chosen, chosen, position)

    def reads(self, capture, q, positions, limits):
        return [[self.read(capture, q[i, head], i, head, position, limit) for head in range(HEADS)]
                for i, (position, limit) in enumerate(zip(positions, limits))]

    def seen(self, past, wanted):
        for heads in wanted:
            for head, read in enumerate(heads):
                self.selected[head].add(tuple(read.tokens))

    def replay(self, dtype, truncated=700):
        super().replay(dtype, truncated)
        for sets in self.selected:
            self.assertGreater(len(sets), 10)


@needs_daemon
class Loki(Ranked, unittest.TestCase):
    def test_fp32(self):
        self.replay("float32")

    def test_fp16(self):
        self.near = 2e-2
        self.replay("float16")

    def test_all_components_are_the_exact_top_k(self):
        answers = []
        for name, method, parameters in (("loki", "loki", {"components": DIM, "k": K}),
                                         ("best", "oracle-topk", {"sinks": 0, "window": 0, "k": K})):
            past = self.open(name, "float32", method=method, parameters=parameters)
            self.append(past, 0, TOKENS)
            answers.append(past.attend(0, self.capture.q[-1:], [TOKENS]))
        np.testing.assert_allclose(answers[0].o, answers[1].o, rtol=0, atol=1e-5)
        np.testing.assert_allclose(answers[0].lse, answers[1].lse, rtol=0, atol=1e-5)

    def test_all_tokens_are_full(self):
        answers = []
        for name, method, parameters in (("loki", "loki", {"k": 1}), ("full", "full", {})):
            past = self.open(name, "float32", method=method, parameters=parameters)
            self.append(past, 0, TOKENS)
            answers.append(past.attend(0, self.capture.q[-1:], [TOKENS]))
        np.testing.assert_allclose(answers[0].o, answers[1].o, rtol=0, atol=1e-5)
        self.assertTrue(answers[0].quality.exact)

    def test_rotated_keys_have_no_basis_before_rotation(self):
        with self.assertRaises(memd.UnsupportedError):
            self.live.client.open("rotated", model("float32", rotated=True), method=self.method,
                                  parameters={"rotary": "pre"}, create=True)


@needs_daemon
class BeforeRotation(Ranked, unittest.TestCase):
    parameters = {**Ranked.parameters, "rotary": "pre"}
    rotary = "pre"

    def test_fp32(self):
        self.replay("float32")


@needs_daemon
class Uploaded(Ranked, unittest.TestCase):
    """A basis of all keys, for both heads as many components as the one needs that needs more."""
    parameters = {"components": 0.8, "k": K, "calibration": 0}
    calibration = 0

    def setUp(self):
        super().setUp()
        keys = rotate(self.capture.k, np.arange(TOKENS)[:, None])
        bases, variances = zip(*(components(keys[:, head]) for head in range(2)))
        self.uploaded = {"basis": np.float32(bases), "variances": np.float32(variances)}
        shares = np.cumsum(variances, axis=1) / np.sum(variances, axis=1, keepdims=True)
        self.count = int((shares < 0.8).sum(1).max()) + 1

    def open(self, name, dtype, **more):
        past = super().open(name, dtype, **more)
        past.put_params(self.uploaded)
        return past

    def components(self, keys, head):
        return self.uploaded["basis"][head // GROUP, :, :self.count].astype(float)

    def test_fp32(self):
        self.assertTrue(1 < self.count < DIM)
        self.replay("float32")
        self.assertEqual(self.live.client.open("past").state(0)["components"], self.count)

    def test_it_is_needed(self):
        past = Replay.open(self, "past", "float32")
        self.append(past, 0, 100)
        with self.assertRaisesRegex(memd.UnsupportedError, "basis"):
            past.attend(0, self.capture.q[:1], [100])
        past.put_params(self.uploaded)
        self.ask(past, 0, 100, 100)
        with self.assertRaises(memd.ShapeError):
            past.put_params({"basis": np.zeros((2, DIM, 3), np.float32)})


if __name__ == "__main__":
    unittest.main()
