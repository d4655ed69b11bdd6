# SPDX-License-Identifier: Apache-2.0
"""The attentions of examples/long_document, with random tensors instead of a model: a window and memd
together see exactly what full attention sees, over a kill of the daemon, too."""
import os
import sys
import unittest
from unittest import mock

from live import BINARY, HERE, needs_daemon

sys.path.insert(0, os.path.join(HERE, "..", "..", "examples", "long_document"))

import numpy as np

import compare
import memd
from attention import FullAttention, MemdAlone, MemdAttention, WindowAttention, column_mass
from daemon import Daemon

SEED = int(os.environ.get("MEMD_TEST_SEED", "11"))
LAYERS, H, G, D, TOKENS = 2, 6, 2, 64, 700


def turn(x, positions):
    """x (n, heads, D) rotated to positions, in double precision: pairs (i, i + D/2), theta 1e4."""
    angles = np.asarray(positions)[:, None, None] * 1e4 ** (-np.arange(D // 2) / (D // 2))
    turned = (x[..., :D // 2] + 1j * x[..., D // 2:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1).astype(np.float32)


class Tiny:
    """What compare.py asks of a model, with random weights: queries, keys and values depend on the token alone."""

    name, layers, H, G, D, theta = "tiny", LAYERS, H, G, D, 1e4
    words = 50

    def __init__(self):
        rng = np.random.default_rng(SEED)
        self.q, self.k, self.v = (rng.standard_normal((LAYERS, self.words, heads, D)).astype(np.float32)
                                  for heads in (H, G, G))
        self.head = rng.standard_normal((H * D, self.words)).astype(np.float32)

    def rope(self, x, positions):
        return turn(x, positions)

    def forward(self, ids, start, attention):
        positions = np.arange(start, start + len(ids))
        return sum(attention.attend(layer, start, turn(self.q[layer, ids], positions),
                                    turn(self.k[layer, ids], positions), self.v[layer, ids])
                   for layer in range(LAYERS)).reshape(len(ids), -1)

    def losses(self, hidden, targets):
        scores = (hidden @ self.head).astype(float)
        return np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(targets)), targets]


class LongDocument(unittest.TestCase):
    def read(self, attention, chunk, between=lambda start: None):
        """All tokens through all layers; o (LAYERS, TOKENS, H, D)."""
        rng = np.random.default_rng(SEED)
        q, k, v = (rng.standard_normal((LAYERS, TOKENS, heads, D)).astype(np.float32)
                   for heads in (H, G, G))
        out = np.empty_like(q)
        for start in range(0, TOKENS, chunk):
            between(start)
            part = slice(start, start + chunk)
            for layer in range(LAYERS):
                out[layer, part] = attention.attend(layer, start, q[layer, part], k[layer, part],
                                                    v[layer, part])
        return out

    def full(self, chunk=64):
        return self.read(FullAttention(LAYERS, TOKENS, G, D), chunk)

    def test_chunks_do_not_matter(self):
        np.testing.assert_allclose(self.full(64), self.full(150), rtol=0, atol=2e-6)
        window = [self.read(WindowAttention(LAYERS, 4, 100), chunk) for chunk in (64, 150)]
        np.testing.assert_allclose(*window, rtol=0, atol=2e-6)

    def test_window_of_everything_is_full_attention(self):
        got = self.read(WindowAttention(LAYERS, 0, TOKENS), 64)
        np.testing.assert_allclose(got, self.full(), rtol=0, atol=2e-6)
        narrow = self.read(WindowAttention(LAYERS, 4, 100), 64)
        self.assertGreater(np.abs(narrow - self.full())[:, 200:].max(), 0.1)

    @needs_daemon
    def test_window_and_memd_are_full_attention(self):
        model = memd.Model(LAYERS, H, G, D, dtype="float32")
        expected = self.full()
        daemon = Daemon(BINARY)
        self.addCleanup(daemon.stop)
        with memd.connect(daemon.address, timeout=60) as client:
            for sinks, window, chunk in ((4, 100, 64), (0, 1, 33), (4, 100, 150), (7, 650, 64)):
                past = client.open(f"{sinks} {window} {chunk}", model, "full", create=True)

                def kill_once(start):
                    if start == 5 * chunk and chunk == 64:
                        daemon.kill()
                        daemon.start()
                got = self.read(MemdAttention(past, sinks, window), chunk, kill_once)
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5,
                                           err_msg=f"{past.name}, seed {SEED}")
                self.assertEqual(past.stat().tokens, TOKENS - sinks)
            self.assertEqual(client.reconnects, 2)
            self.assertEqual(client.verify().findings, [])

    def test_column_mass(self):
        rng = np.random.default_rng(SEED)
        q, k = (rng.standard_normal((5, heads, D)).astype(np.float32) for heads in (H, G))
        mass = column_mass(q, k)
        np.testing.assert_allclose(mass.sum(axis=0), np.full(H, 5), rtol=1e-5)  # each query gives 1
        scores = q[4, 5] @ k[:, 1].T / np.sqrt(D)  # of the last query alone, head 5 reads KV head 1
        self.assertAlmostEqual(float(mass[4, 5]), float(np.exp(scores[4]) / np.exp(scores).sum()), places=5)

    @needs_daemon
    def test_keys_that_are_turned_back_are_turned_again(self):
        daemon = Daemon(BINARY)
        self.addCleanup(daemon.stop)
        model = memd.Model(LAYERS, H, G, D, dtype="float32", rope=memd.Rope(theta=1e4), rotated=False)
        with memd.connect(daemon.address, timeout=60) as client:
            past = client.open("turned", model, method="full", create=True)
            attention = MemdAlone(past, turn)
            np.testing.assert_allclose(self.read(attention, 150), self.full(), rtol=0, atol=2e-5)
            infllm = client.open("mass", model, method="infllm", parameters={"local": 64}, create=True)
            self.read(MemdAlone(infllm, turn, mass=True), 150)
            self.assertEqual(infllm.state(0)["blocks_without_mass"], 0)

    @needs_daemon
    def test_memd_alone_is_full_attention_and_says_what_it_read(self):
        daemon = Daemon(BINARY)
        self.addCleanup(daemon.stop)
        with memd.connect(daemon.address, timeout=60) as client:
            past = client.open("alone", memd.Model(LAYERS, H, G, D, dtype="float32"), method="full", create=True)
            attention = MemdAlone(past)
            np.testing.assert_allclose(self.read(attention, 150), self.full(), rtol=0, atol=1e-5)
            said = attention.quality.summary()
            self.assertEqual(attention.quality.calls, LAYERS * TOKENS)
            self.assertEqual((said["bytes"], said["predicted_error"]), (1, 0))
            self.assertEqual(said["level_mass"], [0, 0, 0, 1])
            streaming = client.open("window", past.model, method="streaming", parameters={"window": 100},
                                    create=True)
            window = MemdAlone(streaming)
            np.testing.assert_allclose(self.read(window, 64),
                                       self.read(WindowAttention(LAYERS, 4, 100), 64), rtol=0, atol=1e-5)
            self.assertLess(window.quality.summary()["bytes"], 0.5)

    @needs_daemon
    def test_comparison(self):
        """Rows appear as they are measured and are those of the table; exact memory, turned keys or not, changes
        nothing."""
        daemon = Daemon(BINARY)
        self.addCleanup(daemon.stop)
        model, shown = Tiny(), []
        ids = np.random.default_rng(SEED).integers(0, Tiny.words, TOKENS)
        comparison = compare.Comparison(compare.Text(model, ids, 40, 150), 16, shown.append)
        cases = [compare.Case("full"), compare.Case("full", rotated=False), compare.Case("unheard-of"),
                 compare.Case("streaming", {"window": 8}), compare.Case("snapkv", {"capacity": 64}),
                 compare.Case("retroinfer"), compare._progressive(0.1)]
        with mock.patch.object(compare, "CASES", cases), memd.connect(daemon.address, timeout=60) as client:
            comparison.in_process()
            self.assertEqual(len(shown), 2)
            comparison.through_memd(client, ["all"])
            self.assertEqual(client.contexts(), [])
        self.assertEqual(comparison.missing, ["unheard-of"])
        self.assertEqual(comparison.table().splitlines()[2:-4], shown)
        self.assertIn("progressive target_error 0.1 reads 100.0%", comparison.table())  # below 1,024 tokens, as both
        self.assertEqual(comparison.table().splitlines()[-1], "Not in this build: unheard-of")
        rows = comparison.rows
        for name in ("full", "full, moved"):
            self.assertLess(rows[name]["mean_change"], 0.01, name)  # fp16
            self.assertEqual(rows[name]["bytes"], 1)
        self.assertGreater(rows["streaming window 8"]["mean_change"], 0.05)
        self.assertLess(rows["streaming window 8"]["bytes"], 0.05)
        self.assertLess(rows["snapkv capacity 64"]["bytes"], 0.2)


if __name__ == "__main__":
    unittest.main()
