# SPDX-License-Identifier: Apache-2.0
"""`landmark` replayed on a real model's keys (replay.py), against float64 NumPy written from the paper's description.
Every 16th token is marked as a landmark, so that a capture of 1,300 has 81 blocks; that it was not trained as one does
not matter to the arithmetic."""
import unittest
from typing import NamedTuple

import numpy as np

from live import memd, needs_daemon
from replay import DIM, GROUP, HEADS, TOKENS, Read, Replay, best, model, rotate

BLOCK, K = 16, 3


class Sight(NamedTuple):
    """What a query sees: complete blocks first … first + count - 1, and rows of its own from `begin` on."""
    first: int
    count: int
    begin: int
    end: int


def sight(position, limit, most):
    blocks, end = limit // BLOCK, limit
    if limit > 0 and limit % BLOCK == 0 and position + 1 == limit:  # the query is the last block's landmark
        blocks, end = blocks - 1, limit - 1
    first = max(0, blocks - most) if most else 0
    return Sight(first, blocks - first, blocks * BLOCK, end)


def logit(capture, head, q, token, place, position):
    key = rotate(capture.k[token, head // GROUP], place)
    return rotate(q.astype(float), position) @ key / np.sqrt(DIM)


def shares(capture, head, q, position, see):
    """Of each landmark, after a softmax: all but the last k stand where the oldest of the stingy frame would."""
    k = min(K, see.count)
    places = np.full(see.count, see.begin - k * BLOCK - 1)
    places[see.count - k:] = see.begin - 1 - BLOCK * np.arange(k)[::-1]
    ends = (see.first + np.arange(see.count) + 1) * BLOCK - 1
    scores = np.array([logit(capture, head, q, *pair, position) for pair in zip(ends, places)])
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def choose(chances, see):
    return see.first + best(chances, K) if see.count else np.empty(0, int)


def read(chosen, see, position):
    """Chosen blocks without their landmarks, one after the other; a gap of a block before the last k."""
    k, tokens, places = len(chosen), [], []
    for j, block in enumerate(chosen):
        place = see.begin - (k + 1) * BLOCK + (j + (block >= see.first + see.count - k)) * BLOCK
        tokens.extend(block * BLOCK + np.arange(BLOCK - 1))
        places.extend(place + np.arange(BLOCK - 1))
    own = np.arange(see.begin, see.end)
    return Read(np.concatenate([tokens, own]).astype(int), np.concatenate([places, own]).astype(int), position)


@needs_daemon
class Landmark(Replay, unittest.TestCase):
    method, parameters = "landmark", {"k": K}
    most, share = 0, "none"

    def setUp(self):
        super().setUp()
        self.choices = set()

    def append(self, past, begin, end):
        dtype, capture = past.model.dtype, self.capture
        marks = np.where(np.arange(begin, end) % BLOCK == BLOCK - 1, memd.MARK_LANDMARK, 0)
        past.append(0, begin, capture.k[begin:end].astype(dtype), capture.v[begin:end].astype(dtype), marks=marks)

    def reads(self, capture, q, positions, limits):
        sights = [sight(*pair, self.most) for pair in zip(positions, limits)]
        chances = np.array([[shares(capture, head, q[i, head], positions[i], see) if see.count else np.empty(0)
                             for head in range(HEADS)] for i, see in enumerate(sights)])
        if self.share == "max-over-heads":
            chances = np.broadcast_to(chances.max(1, keepdims=True), chances.shape)
        if self.share == "max-over-tokens":
            chances = np.broadcast_to(chances.max(0), chances.shape)
        return [[read(choose(chances[i, head], see), see, positions[i]) for head in range(HEADS)]
                for i, see in enumerate(sights)]

    def attend(self, capture, head, q, read):
        """Grouped softmax: what stands at its own place behind the last block is joint, the rest gated."""
        scores = np.array([logit(capture, head, q, *pair, read.place) for pair in zip(read.tokens, read.places)])
        values = capture.v[read.tokens, head // GROUP]
        blocks = np.where(np.arange(len(scores)) < self.gated(read), read.tokens // BLOCK, -1)
        total, o = 0.0, np.zeros(DIM)
        for block in np.unique(blocks):
            here = blocks == block
            weights = np.exp(scores[here])
            gate = weights.sum()
            if block >= 0:  # the landmark stands behind its block
                last = np.flatnonzero(here)[-1]
                gate = np.exp(logit(capture, head, q, read.tokens[last] + 1, read.places[last] + 1, read.place))
            total += gate
            o += gate * (weights @ values[here]) / weights.sum()
        return o / total, scores

    def gated(self, read):
        """How many of the tokens are in chosen blocks; the rest is the query's own block."""
        count = 0
        while count + BLOCK - 1 <= len(read.tokens) and read.tokens[count] % BLOCK == 0:
            run = read.tokens[count:count + BLOCK - 1]
            if run[-1] - run[0] != BLOCK - 2 or run[-1] + 1 >= self.closed:
                break
            count += BLOCK - 1
        return count

    def check(self, past, q, positions, limits):
        self.closed = max(sight(*pair, self.most).begin for pair in zip(positions, limits))
        return super().check(past, q, positions, limits)

    def seen(self, past, wanted):
        for of_query in wanted:
            self.choices.update(tuple(np.unique(read.tokens // BLOCK)) for read in of_query)

    def test_fp32(self):
        self.replay("float32")
        self.assertGreater(len(self.choices), 60, "the heads hardly choose")

    def test_fp16(self):
        self.replay("float16")

    def with_options(self, **options):
        self.parameters = {"k": K, **options}
        past = self.open(f"past {options}", "float32")
        self.append(past, 0, TOKENS)
        return past

    def test_newest_blocks(self):
        self.most = 20
        past = self.with_options(blocks=20)
        for query in (10, 30, 47):
            at = self.capture.positions[query]
            self.ask(past, query, at, at)

    def test_shared_choices(self):
        for self.share in ("max-over-heads", "max-over-tokens"):
            past = self.with_options(share=self.share)
            at = 50 * BLOCK
            self.check(past, self.capture.q[40:44], [at, at + 1, at + 2, at + 3], [at] * 4)
        with self.assertRaises(memd.InvalidError):  # tokens that choose together see the same
            past.attend(0, self.capture.q[40:42], [at, at + 1], [at, at - BLOCK])

    def test_all_blocks_are_the_grouped_softmax(self):
        """k for all, true positions: weights as the paper defines them for training, over every token at once."""
        past = self.with_options(k=100, positions="original")
        at, capture = TOKENS - 3, self.capture
        q = capture.q[-1:]
        answer = past.attend(0, q, [at], [at])
        weights = [plan_group["weight"] for plan_group in
                   past.attend(0, q, [at], [at], explain=True).plan.groups if plan_group["merge"] == 1]
        self.assertEqual(len(weights), HEADS * (at // BLOCK))
        for head in range(HEADS):
            scores = np.array([logit(capture, head, q[0, head], t, t, at) for t in range(at)])
            tokens = np.arange(at)
            own = tokens // BLOCK == at // BLOCK  # the query's block; landmarks of other blocks compete with it
            rivals = own | (tokens % BLOCK == BLOCK - 1)
            weight = np.where(rivals, np.exp(scores), 0) / np.exp(scores[rivals]).sum()
            for block in range(at // BLOCK):
                landmark, inside = block * BLOCK + BLOCK - 1, slice(block * BLOCK, block * BLOCK + BLOCK - 1)
                weight[inside] = weight[landmark] * np.exp(scores[inside]) / np.exp(scores[inside]).sum()
                weight[landmark] = 0
            self.assertAlmostEqual(weight.sum(), 1)
            np.testing.assert_allclose(answer.o[0, head], weight @ capture.v[:at, head // GROUP], rtol=0, atol=1e-5)

    def test_refused(self):
        past = self.open("uneven", "float32")
        k, v = (x[:40].astype(np.float32) for x in (self.capture.k, self.capture.v))
        past.append(0, 0, k, v, marks=[memd.MARK_LANDMARK if t in (9, 25) else 0 for t in range(40)])
        with self.assertRaisesRegex(memd.UnsupportedError, "ends at token 25"):
            past.attend(0, self.capture.q[:1], [40])
        past.attend(0, self.capture.q[:1], [20], [20])  # one block is of one length
        with self.assertRaises(memd.UnsupportedError):
            self.live.client.open("rotated", model("float32", rotated=True), method="landmark",
                                  parameters={"positions": "stingy"}, create=True)


if __name__ == "__main__":
    unittest.main()
