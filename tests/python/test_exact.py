# SPDX-License-Identifier: Apache-2.0
"""Exact answers of a real daemon, against float64 NumPy.

Random and real keys and values; every ratio of heads, head dimension and dtype of the promise; counts and
limits that fall into tail and segments, on their edges and off them; and nothing that happens to a
context between append and attend (splits, restart, kill, fork, truncate and append again) changes what
it answers. Bounds on o and lse: 2e-5 for 16-bit keys and values (which the oracle gets rounded, too), 1e-5 for
float32.
"""
import os
import signal
import unittest

import numpy as np

from live import HERE, Live, needs_daemon
import memd

GOLDEN = os.path.join(HERE, "..", "golden", "kv_smollm2.npz")
SEED = int(os.environ.get("MEMD_TEST_SEED", "20240601"))
BOUND = {"float32": 1e-5, "float16": 2e-5, "bfloat16": 2e-5}
SEGMENT = 1024


def rounded(x, dtype):
    """x as the model stores it, and its exact value in float64."""
    if dtype == "bfloat16":
        bits = memd.float32_to_bfloat16(x.astype(np.float32))
        return bits, memd.bfloat16_to_float32(bits).astype(np.float64)
    stored = x.astype(dtype)
    return stored, stored.astype(np.float64)


def oracle(q, k, v, limits, scale=None):
    """Partial attention in float64: q (n, H, D); k, v (T, G, D) -> o (n, H, D), lse (n, H)."""
    n, H, D = q.shape
    group = H // k.shape[1]
    o, lse = np.zeros((n, H, D)), np.full((n, H), -np.inf)
    for i in range(n):
        end = min(int(limits[i]), len(k))
        for h in range(H if end else 0):
            s = k[:end, h // group] @ q[i, h].astype(np.float64) * (scale or D ** -0.5)
            top = s.max()
            w = np.exp(s - top)
            lse[i, h] = top + np.log(w.sum())
            o[i, h] = w @ v[:end, h // group] / w.sum()
    return o, lse


def rope64(x, positions, theta, pairing):
    """RoPE in float64: x (n, heads, D)."""
    half = x.shape[-1] // 2
    angle = np.asarray(positions, np.float64)[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = (x[..., :half], x[..., half:]) if pairing == "half" else (x[..., ::2], x[..., 1::2])
    out = np.empty(x.shape)
    parts = (slice(0, half), slice(half, None)) if pairing == "half" else (slice(0, None, 2),
                                                                           slice(1, None, 2))
    out[..., parts[0]], out[..., parts[1]] = a * cos - b * sin, b * cos + a * sin
    return out


@needs_daemon
class Exact(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.live = Live()
        cls.addClassCleanup(cls.live.close)
        cls.client = cls.live.client

    def check(self, got, expected, bound, what):
        o, lse = expected
        empty = np.isneginf(lse)
        np.testing.assert_array_equal(np.isneginf(got.lse), empty, what)
        o_error = np.abs(got.o - o).max()
        lse_error = np.abs(np.where(empty, 0, got.lse - np.where(empty, 0, lse))[~empty]).max(
            initial=0)
        self.assertLessEqual(o_error, bound, f"o, {what}, seed {SEED}")
        self.assertLessEqual(lse_error, bound * max(1, np.abs(lse[~empty]).max(initial=0)),
                             f"lse, {what}, seed {SEED}")
        self.assertTrue(got.quality.exact, what)

    def test_heads_dimensions_and_dtypes(self):
        rng = np.random.default_rng(SEED)
        for dtype in BOUND:
            for ratio in (1, 3, 4, 8):
                for D in (64, 80, 96, 128, 256):
                    self.one_shape(rng, dtype, ratio, D)

    def one_shape(self, rng, dtype, ratio, D):
        G = int(rng.integers(1, 4))
        T = int(rng.integers(1, 3 * SEGMENT))
        what = f"{dtype} H/G={ratio} G={G} D={D} T={T}"
        model = memd.Model(layers=2, query_heads=ratio * G, kv_heads=G, head_dim=D, dtype=dtype)
        context = self.client.open(f"random {what}", model, "full", must_create=True)
        (k, k64), (v, v64) = (rounded(rng.standard_normal((T, G, D)), dtype) for _ in "kv")
        context.append(1, 0, k, v)
        edges = [0, 1, T - 1, T, T + 7, SEGMENT - 1, SEGMENT, SEGMENT + 1, T // 2]
        q = rng.standard_normal((len(edges), ratio * G, D)).astype(np.float32)
        got = context.attend(1, q, edges, limits=edges)
        self.check(got, oracle(q, k64, v64, edges), BOUND[dtype], what)
        context.drop()

    def test_query_dtypes_and_scale(self):
        rng = np.random.default_rng(SEED + 1)
        model = memd.Model(layers=1, query_heads=4, kv_heads=2, head_dim=64, dtype="bfloat16",
                           attention_scale=0.3)
        context = self.client.open("queries", model, "full", must_create=True)
        (k, k64), (v, v64) = (rounded(rng.standard_normal((100, 2, 64)), "bfloat16") for _ in "kv")
        context.append(0, 0, k, v)
        for dtype in BOUND:
            q, q64 = rounded(rng.standard_normal((2, 4, 64)), dtype)
            got = context.attend(0, q, [100, 50], limits=[100, 50])
            self.check(got, oracle(q64, k64, v64, [100, 50], 0.3), 2e-5, f"q {dtype}")
            got = context.attend(0, q, [100, 50])  # no limits: everything, wherever the query stands
            self.check(got, oracle(q64, k64, v64, [100, 100], 0.3), 2e-5, f"q {dtype}, all")

    def test_rope_while_reading(self):
        """Keys sent without RoPE answer as keys that were rotated before."""
        rng = np.random.default_rng(SEED + 2)
        T, at = 1500, [1500, 1300, 9]
        k, v = (rng.standard_normal((T, 2, 64)).astype(np.float32) for _ in "kv")
        q = rng.standard_normal((3, 4, 64)).astype(np.float32)
        for pairing in ("half", "interleaved"):
            rope = memd.Rope(theta=1e4, pairing=pairing)
            model = memd.Model(layers=1, query_heads=4, kv_heads=2, head_dim=64, dtype="float32",
                               rope=rope, rotated=False)
            context = self.client.open(f"rope {pairing}", model, "full", must_create=True)
            context.append(0, 0, k, v)
            expected = oracle(rope64(q, at, 1e4, pairing), rope64(k, range(T), 1e4, pairing),
                              v.astype(np.float64), at)
            self.check(context.attend(0, q, at, limits=at), expected, 2e-5, f"rope {pairing}")
            other = oracle(rope64(q, at, 3e4, pairing), rope64(k, range(T), 3e4, pairing), v, at)
            self.assertGreater(np.abs(other[0] - expected[0]).max(), 1e-2)
            self.check(context.attend(0, q, at, limits=at, rope_theta=3e4), other, 2e-5, f"rope {pairing}, theta")
            with self.assertRaises(memd.InvalidError):
                context.attend(0, q, at, limits=at, rope_theta=0.5)
            coded = context.fork(f"rope {pairing} coded", method="progressive")
            with self.assertRaises(memd.UnsupportedError):
                coded.attend(0, q, at, limits=at, rope_theta=3e4)

    def test_batch_over_contexts(self):
        rng = np.random.default_rng(SEED + 3)
        model = memd.Model(layers=1, query_heads=3, kv_heads=1, head_dim=64, dtype="float32")
        queries, expected = [], []
        for i in range(20):
            context = self.client.open(f"batch {i}", model, "full", must_create=True)
            k, v = (rng.standard_normal((i * 70, 1, 64)).astype(np.float32) for _ in "kv")
            if i:
                context.append(0, 0, k, v)
            q = rng.standard_normal((2, 3, 64)).astype(np.float32)
            queries.append(memd.Query(context, 0, q, [i * 70, i * 30], [i * 70, i * 30]))
            expected.append(oracle(q, k.astype(np.float64), v.astype(np.float64), [i * 70, i * 30]))
        for i, got in enumerate(self.client.attend_many(queries)):
            self.check(got, expected[i], 1e-5, f"item {i}")


@needs_daemon
class RealPast(unittest.TestCase):
    """What a model really attended with; the context goes through everything that may not matter."""

    @classmethod
    def setUpClass(cls):
        golden = np.load(GOLDEN)
        cls.k, cls.v, cls.q = golden["k"], golden["v"], golden["q"]
        cls.at = golden["q_positions"].astype(np.int64) + 1  # a query sees its own token, too
        cls.T = len(cls.k)
        cls.expected = oracle(cls.q, cls.k.astype(np.float64), cls.v.astype(np.float64), cls.at)
        cls.model = memd.Model(layers=3, query_heads=cls.q.shape[1], kv_heads=1,
                               head_dim=cls.q.shape[2], rope=memd.Rope(theta=1e5), rotated=True)

    def setUp(self):
        self.live = Live()
        self.addCleanup(self.live.close)
        self.context = self.live.client.open("real", self.model, "full", must_create=True)

    def check(self, context=None, upto=None):
        context = context or self.context
        upto = upto or self.T
        some = self.at <= upto
        got = context.attend(0, self.q[some], self.at[some], limits=self.at[some])
        self.assertLessEqual(np.abs(got.o - self.expected[0][some]).max(), 2e-5)
        self.assertLessEqual(np.abs(got.lse - self.expected[1][some]).max(), 2e-5)
        ids = np.random.default_rng(SEED).permutation(upto)
        k, v = context.fetch(0, ids)
        np.testing.assert_array_equal(k.view(np.uint16), self.k[ids].view(np.uint16))
        np.testing.assert_array_equal(v.view(np.uint16), self.v[ids].view(np.uint16))

    def append(self, start, end, context=None, ack="committed"):
        return (context or self.context).append(0, start, self.k[start:end], self.v[start:end],
                                                ack=ack)

    def test_one_append(self):
        self.assertEqual(self.append(0, self.T).tokens, self.T)
        self.check()

    def test_many_appends_of_odd_sizes(self):
        rng, start = np.random.default_rng(SEED), 0
        while start < self.T:
            end = min(self.T, start + int(rng.integers(1, 120)))
            self.append(start, end, ack="memory")
            start = end
        self.check()

    def test_restart(self):
        self.append(0, 700)
        self.live.restart()
        self.check(upto=700)
        self.append(700, self.T)
        self.live.restart()
        self.check()

    def test_kill(self):
        done = self.append(0, 1100)
        self.assertEqual(done.committed, 1100)
        self.live.restart(signal.SIGKILL)
        self.assertEqual(self.context.stat().tokens, 1100)
        self.check(upto=1100)
        self.append(1100, self.T, ack="synced")
        self.live.restart(signal.SIGKILL)
        self.check()

    def test_repeated_append_is_taken_once(self):
        self.append(0, 1200)
        self.assertEqual(self.append(900, 1200).tokens, 1200)
        self.assertEqual(self.append(1000, self.T).tokens, self.T)
        self.check()
        other = np.flip(self.k, axis=0)
        with self.assertRaises(memd.PositionError):
            self.context.append(0, 900, other[:50], self.v[:50])
        with self.assertRaises(memd.PositionError):
            self.context.append(0, self.T + 1, self.k[:1], self.v[:1])
        self.check()

    def test_truncate_and_append_again(self):
        for cut in (1200, 1024, 1000, 1):
            self.append(self.context.stat().tokens, self.T)
            self.assertEqual(self.context.truncate(cut), cut)
            self.check(upto=cut)
        self.append(1, self.T)
        self.check()

    def test_fork(self):
        self.append(0, 1100)
        fork = self.context.fork("fork")
        noise = np.ones((50, 1, self.k.shape[2]), np.float16)
        self.context.append(0, 1100, noise, noise)
        self.append(1100, self.T, fork)
        self.check(fork)
        self.check(upto=1100)
        self.live.restart()
        self.context.drop()
        self.check(fork)
        self.assertEqual(self.live.client.verify().findings, [])

    def test_fork_to_another_method(self):
        past = self.live.client.open("ends", self.context.model, "streaming", {"sinks": 4, "window": 64}, create=True)
        self.append(0, self.T, past)
        fork = past.fork("all of it", method="full")
        self.check(fork)
        self.assertEqual(fork.method, "full")
        with self.assertRaises(memd.UnsupportedError):
            past.fork("states", method="neurocache")

    def test_search_finds_the_greatest_logits(self):
        self.append(0, self.T)
        q = self.q[-4:]
        ids, scores = self.context.search(0, q, k=10, limits=self.at[-4:])
        for i in range(len(q)):
            for h in range(q.shape[1]):
                s = self.k[:self.at[-4:][i], 0].astype(np.float64) @ q[i, h].astype(np.float64) / 8
                best = np.sort(s)[::-1][:10]
                np.testing.assert_allclose(scores[i, h], best, atol=2e-5)
                np.testing.assert_allclose(s[ids[i, h].astype(np.int64)], best, atol=2e-5)
        ids, scores = self.context.search(0, q, k=10, limits=[3, 3, 3, 0])
        self.assertTrue((ids[0, 0, 3:] == 2**64 - 1).all() and np.isneginf(scores[3]).all())

    def test_what_is_refused(self):
        bad = self.k[:4].copy()
        bad[2, 0, 5] = np.nan
        with self.assertRaises(memd.NonFiniteError):
            self.context.append(0, 0, bad, self.v[:4])
        with self.assertRaises(memd.ShapeError):
            self.context.append(0, 0, self.k[:4, :, :-1], self.v[:4])
        with self.assertRaises(memd.MismatchError):
            self.live.client.open("real", memd.Model(3, 3, 1, 64, dtype="bfloat16"))
        with self.assertRaises(memd.NoRowError):
            self.context.fetch(0, [0])
        with self.assertRaises(memd.NoContextError):
            self.live.client.open("another")
        with self.assertRaises(memd.ExistsError):
            self.live.client.open("real", self.model, must_create=True)
        self.assertEqual(self.context.stat().tokens, 0)

    def test_lists_and_counts(self):
        self.append(0, self.T)
        info = self.live.client.contexts("re")[0]
        self.assertEqual((info.name, info.tokens, info.model.kv_heads), ("real", self.T, 1))
        self.assertGreaterEqual(info.stored_bytes, self.k.nbytes + self.v.nbytes)
        self.assertEqual(self.live.client.status().contexts, 1)
        self.assertTrue(self.live.client.stats().counters)
        self.assertGreater(self.context.pin(60), info.used_unix_ms)
        self.context.drop()
        self.assertEqual(self.live.client.contexts(), [])


if __name__ == "__main__":
    unittest.main()
