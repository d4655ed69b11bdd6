# SPDX-License-Identifier: Apache-2.0
"""`streaming` replayed on a real model's keys (replay.py), against float64 NumPy."""
import unittest

import numpy as np

from live import memd, needs_daemon
from replay import HEADS, TOKENS, Read, Replay, model

SINKS, WINDOW = 4, 100


@needs_daemon
class Streaming(Replay, unittest.TestCase):
    method, parameters = "streaming", {"sinks": SINKS, "window": WINDOW}

    def reads(self, capture, q, positions, limits):
        """Keys at 0 … n-1, the query behind those before it."""
        reads = []
        for position, limit in zip(positions, limits):
            begin = max(limit - WINDOW, min(SINKS, limit), 0)
            kept = np.array(list(range(min(SINKS, limit))) + list(range(begin, limit)), int)
            place = (kept < position).sum() + max(0, position - limit)
            reads.append([Read(kept, np.arange(len(kept)), place)] * HEADS)
        return reads

    def test_fp32(self):
        self.replay("float32")

    def test_fp16(self):
        self.replay("float16")

    def test_all_in_the_window_is_full(self):
        answers = []
        for name, method, parameters in (("wide", "streaming", {"window": 2 * TOKENS}), ("full", "full", {})):
            past = self.open(name, "float32", method=method, parameters=parameters)
            self.append(past, 0, TOKENS)
            answers.append(past.attend(0, self.capture.q[-1:], [TOKENS]).o)
        np.testing.assert_allclose(*answers, rtol=0, atol=1e-5)

    def test_rotated_keys_keep_their_positions(self):
        with self.assertRaises(memd.UnsupportedError):
            self.live.client.open("rotated", model("float32", rotated=True), method="streaming",
                                  parameters={"positions": "cache-index"}, create=True)


if __name__ == "__main__":
    unittest.main()
