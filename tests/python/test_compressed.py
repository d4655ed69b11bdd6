# SPDX-License-Identifier: Apache-2.0
"""`snapkv`, `pyramidkv` and `l2norm` replayed (replay.py): a prompt is compressed once it is there, what is kept of it
and everything behind it is read."""
import unittest

import numpy as np

from live import memd, needs_daemon
from replay import DIM, GROUP, HEADS, THETA, Read, Replay, best, rotate

LAYERS, WINDOW, KERNEL, CAPACITY = 4, 16, 5, 90


class Compressed(Replay):
    prompt = 0  # its tokens
    capacities = None  # by KV head, uploaded

    def open(self, name, dtype, **more):
        """Layer 0 is replayed, the others are empty."""
        model = memd.Model(layers=LAYERS, query_heads=HEADS, kv_heads=2, head_dim=DIM, dtype=dtype, rotated=False,
                           rope=memd.Rope(theta=THETA, pairing="half"))
        past = self.live.client.open(name, model, **{"method": self.method, "parameters": self.parameters,
                                                     "create": True, **more})
        if self.capacities:
            past.put_params({"capacity": np.array(self.capacities, np.float32)})
        return past

    def append(self, past, begin, end):
        if begin < self.prompt <= end:
            super().append(past, begin, self.prompt)
            past.compress([0], q=self.queries())
            begin = self.prompt
        if begin < end:
            super().append(past, begin, end)

    def queries(self):
        return {0: self.capture.token_q[self.prompt - WINDOW:self.prompt]}

    def kept(self, capture):
        """Of the prompt, by query head."""
        raise NotImplementedError

    def reads(self, capture, q, positions, limits):
        if not hasattr(self, "chosen") or self.chosen[0] != (self.prompt, capture.k.tobytes()):
            self.chosen = (self.prompt, capture.k.tobytes()), self.kept(capture)
        reads = []
        for position, limit in zip(positions, limits):
            whole = np.arange(limit)
            tokens = [np.concatenate([kept[kept < limit], whole[self.prompt:]]) if limit >= self.prompt else whole
                      for kept in self.chosen[1]]
            reads.append([Read(each, each, position) for each in tokens])
        return reads


class Votes(Compressed):
    method = "snapkv"
    parameters = {"capacity": CAPACITY, "window": WINDOW}
    reduction = "mean"

    def budget(self):
        return CAPACITY - WINDOW

    def budget_of(self, head):
        return self.capacities[head // GROUP] - WINDOW if self.capacities else self.budget()

    def kept(self, capture):
        past = self.prompt - WINDOW
        pooled = []
        for head in range(HEADS):
            keys = rotate(capture.k[:self.prompt, head // GROUP], np.arange(self.prompt))
            queries = rotate(capture.token_q[past:self.prompt, head].astype(float), np.arange(past, self.prompt))
            scores = queries @ keys.T / np.sqrt(DIM)
            scores[np.arange(self.prompt) > np.arange(past, self.prompt)[:, None]] = -np.inf
            weights = np.exp(scores - scores.max(1, keepdims=True))
            votes = (weights / weights.sum(1, keepdims=True)).sum(0)[:past]
            pooled.append(np.convolve(votes, np.ones(KERNEL) / KERNEL, "same"))
        reduce = {"mean": np.mean, "max": np.max, "none": None}[self.reduction]
        if reduce:
            groups = reduce(np.reshape(pooled, (HEADS // GROUP, GROUP, past)), axis=1)
            pooled = np.repeat(groups, GROUP, 0)
        window = np.arange(past, self.prompt)
        return [np.concatenate([best(scores, self.budget_of(head)), window]) for head, scores in enumerate(pooled)]


@needs_daemon
class SnapKV(Votes, unittest.TestCase):
    def test_fp32(self):
        self.prompt = 600
        self.replay("float32")

    def test_another_prompt(self):
        self.prompt = 130
        self.replay("float32")

    def test_fp16(self):
        self.prompt = 350
        self.replay("float16")

    def test_heads_apart(self):
        self.prompt, self.reduction, self.parameters = 400, "none", {**self.parameters, "gqa_reduce": "none"}
        self.replay("float32")
        self.assertNotEqual(list(self.chosen[1][0]), list(self.chosen[1][1]))

    def test_maximum(self):
        self.prompt, self.reduction, self.parameters = 400, "max", {**self.parameters, "gqa_reduce": "max"}
        self.replay("float32")

    def test_capacities_of_heads(self):
        self.prompt, self.capacities = 500, [WINDOW, 333]
        self.replay("float32")
        self.assertEqual([len(kept) for kept in self.chosen[1]], [WINDOW] * GROUP + [333] * GROUP)

    def test_a_short_prompt_keeps_everything(self):
        past = self.open("past", "float32")
        Replay.append(self, past, 0, CAPACITY - 1)
        self.assertEqual(past.compress([0]), {0: 2 * (CAPACITY - 1)})
        self.assertTrue(past.attend(0, self.capture.q[:1], [CAPACITY]).quality.exact)
        Replay.append(self, past, CAPACITY - 1, CAPACITY + 200)
        with self.assertRaises(memd.InvalidError):
            past.compress([0])
        self.prompt = CAPACITY + 200
        self.assertEqual(past.compress([0], q=self.queries()), {0: 2 * CAPACITY})
        answer = past.attend(0, self.capture.q[:1], [CAPACITY + 200])
        self.assertTrue(np.isnan(answer.quality.mass).all())
        with self.assertRaises(memd.ExistsError):
            past.compress([0], q=self.queries())
        with self.assertRaises(memd.UnsupportedError):
            past.truncate(100)


@needs_daemon
class PyramidKV(Votes, unittest.TestCase):
    method = "pyramidkv"

    def budget(self, layer=0):
        past, uniform = self.prompt - WINDOW, CAPACITY - WINDOW
        if self.prompt < 2 * uniform:
            return uniform
        least = uniform // 20
        most = min(2 * uniform - least, past)
        least = 2 * uniform - most
        return most - layer * ((most - least) // (LAYERS - 1))

    def test_fp32(self):
        self.prompt = 600
        self.replay("float32")

    def test_a_prompt_too_short_for_the_pyramid(self):
        self.prompt = 130
        self.replay("float32")

    def test_layers_keep_less_and_less(self):
        self.prompt = 700
        past = self.open("past", "float16")
        k, v = (x[:700].astype(np.float16) for x in (self.capture.k, self.capture.v))
        past.append_layers(0, [(layer, k, v) for layer in range(LAYERS)])
        kept = past.compress(q={layer: self.queries()[0] for layer in range(LAYERS)})
        self.assertEqual(kept, {layer: 2 * (WINDOW + self.budget(layer)) for layer in range(LAYERS)})
        self.assertGreater(kept[0], kept[3] * 3)


@needs_daemon
class L2Norm(Compressed, unittest.TestCase):
    method = "l2norm"
    parameters = {"ratio": 0.25, "prune_after": 100, "skip_layers": 0}

    def queries(self):
        return None

    def kept(self, capture):
        lengths = np.linalg.norm(capture.k[:self.prompt], axis=2)
        kept = self.capacities or [-(-self.prompt // 4)] * 2
        return [best(-lengths[:, head // GROUP], kept[head // GROUP]) for head in range(HEADS)]

    def test_fp32(self):
        self.prompt = 601
        self.replay("float32")

    def test_fp16(self):
        self.prompt = 130
        self.replay("float16")

    def test_capacities_of_heads(self):
        self.prompt, self.capacities = 400, [1, 250]
        self.replay("float32")

    def test_first_layers_keep_everything(self):
        past = self.open("past", "float32", parameters={"prune_after": 300})
        k, v = (x[:300].astype(np.float32) for x in (self.capture.k, self.capture.v))
        past.append_layers(0, [(layer, k, v) for layer in range(LAYERS)])
        self.assertEqual(past.compress(tokens=299), {layer: 2 * 299 for layer in range(LAYERS)})
        self.assertEqual(past.compress(), {0: 600, 1: 600, 2: 300, 3: 300})


if __name__ == "__main__":
    unittest.main()
