# SPDX-License-Identifier: Apache-2.0
"""`extended-mind` replayed (replay.py): per query head the keys of the largest cosine with the rotated query, read at
position 0; special tokens never; a local window of memd at its own places."""
import unittest

import numpy as np

from live import memd, needs_daemon
from replay import GROUP, HEADS, TOKENS, Read, Replay, best, model, rotate

K, WINDOW = 10, 30


def special(begin, end):
    return [memd.MARK_SPECIAL if token % 17 == 3 else 0 for token in range(begin, end)]


class Extended(Replay):
    method = "extended-mind"
    window, threshold, memory = WINDOW, -2.0, TOKENS

    def setUp(self):
        super().setUp()
        masks = {"mask_by_similarity": 1, "threshold": self.threshold} if self.threshold > -2 else {}
        self.parameters = {"k": K, "window": self.window, "memory": self.memory, **masks}
        self.retrieved = [set() for _ in range(HEADS)]

    def append(self, past, begin, end):
        dtype = past.model.dtype
        past.append(0, begin, self.capture.k[begin:end].astype(dtype), self.capture.v[begin:end].astype(dtype),
                    marks=special(begin, end))

    def read(self, capture, q, head, position, limit):
        end = max(0, limit - self.window)
        memory = np.array([t for t in range(max(0, end - self.memory), end) if special(t, t + 1) == [0]], int)
        place, local = max(0, position - end), np.arange(end, limit)
        turned, keys = rotate(q.astype(float), place), capture.k[memory, head // GROUP]
        cosines = keys @ turned / np.linalg.norm(keys, axis=1) / np.linalg.norm(turned)
        found = memory[[at for at in best(cosines, K) if cosines[at] > self.threshold]]
        return Read(np.concatenate([found, local]), np.concatenate([0 * found, local - end]), place)

    def reads(self, capture, q, positions, limits):
        return [[self.read(capture, q[i, head], head, position, limit) for head in range(HEADS)]
                for i, (position, limit) in enumerate(zip(positions, limits))]

    def seen(self, past, wanted):
        for heads in wanted:
            for head, read in enumerate(heads):
                self.retrieved[head].add(tuple(read.tokens[read.places == 0]))

    def replay(self, dtype, truncated=700):
        super().replay(dtype, truncated)
        for sets in self.retrieved:
            self.assertGreater(len(sets), 10)


@needs_daemon
class ExtendedMind(Extended, unittest.TestCase):
    def test_fp32(self):
        self.replay("float32")

    def test_fp16(self):
        self.replay("float16")

    def test_rotated_keys_keep_their_positions(self):
        with self.assertRaises(memd.UnsupportedError):
            self.live.client.open("rotated", model("float32", rotated=True), method=self.method,
                                  parameters={"positions": "zero"}, create=True)


@needs_daemon
class Masked(Extended, unittest.TestCase):
    """As published for MPT, of the newest 300 tokens: those of the k that are not similar enough are left out. This
    model's cosines are small."""
    window, threshold, memory = 0, 0.02, 300

    def test_fp32(self):
        self.replay("float32")

    def test_threshold_of_one_reads_nothing(self):
        past = self.open("past", "float32", parameters={"mask_by_similarity": 1, "threshold": 1})
        self.append(past, 0, 500)
        answer = past.attend(0, self.capture.q[:1], [500])
        self.assertTrue(np.all(answer.o == 0) and np.all(np.isneginf(answer.lse)))


if __name__ == "__main__":
    unittest.main()
