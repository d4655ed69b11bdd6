# SPDX-License-Identifier: Apache-2.0
"""The parts of the Python client that need no daemon: merging, dtypes, errors, model."""
import os
import re
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")
sys.path.insert(0, os.path.join(ROOT, "clients", "python"))

import numpy as np

import memd
from memd import wire
from memd.dtypes import to_model, to_query

SEED = int(os.environ.get("MEMD_TEST_SEED", "7"))


def attention(q, k, v):
    """float64 over one set of tokens: q (n, D); k, v (T, D) -> o (n, D), lse (n)."""
    if len(k) == 0:
        return memd.Partial(np.zeros((len(q), v.shape[1])), np.full(len(q), -np.inf))
    s = q @ k.T
    top = s.max(axis=1, keepdims=True)
    w = np.exp(s - top)
    return memd.Partial(w @ v / w.sum(axis=1, keepdims=True),
                        top[:, 0] + np.log(w.sum(axis=1)))


class Merge(unittest.TestCase):
    def setUp(self):
        self.rng = np.random.default_rng(SEED)
        self.q, self.k, self.v = (self.rng.standard_normal((n, 16)) for n in (5, 200, 200))

    def test_any_split_in_any_order_is_the_whole(self):
        whole = attention(self.q, self.k, self.v)
        for parts in (1, 2, 7, 50):
            owner = self.rng.integers(0, parts, 200)  # some parts may be empty
            split = [attention(self.q, self.k[owner == i], self.v[owner == i])
                     for i in self.rng.permutation(parts)]
            got = memd.merge(split)
            np.testing.assert_allclose(got.o, whole.o, rtol=0, atol=1e-13, err_msg=f"seed {SEED}")
            np.testing.assert_allclose(got.lse, whole.lse, rtol=0, atol=1e-13)

    def test_nested_merges_agree(self):
        a, b, c = (attention(self.q, self.k[i::3], self.v[i::3]) for i in range(3))
        flat, nested = memd.merge([a, b, c]), memd.merge([a, memd.merge([b, c])])
        np.testing.assert_allclose(flat.o, nested.o, rtol=0, atol=1e-14)

    def test_empty_sets(self):
        empty = attention(self.q, self.k[:0], self.v[:0])
        some = attention(self.q, self.k, self.v)
        np.testing.assert_array_equal(memd.merge([empty, some, empty]).o, some.o)
        nothing = memd.merge([empty, empty])
        self.assertTrue(np.isneginf(nothing.lse).all() and (nothing.o == 0).all())
        with self.assertRaises(ValueError):
            memd.merge([])

    def test_huge_logits_do_not_overflow(self):
        o = np.ones((1, 4), np.float32)
        parts = [(o, np.float32([3e30])), (2 * o, np.float32([3e30])), (9 * o, np.float32([-3e30]))]
        got = memd.merge(parts)
        np.testing.assert_allclose(got.o, 1.5 * o)
        self.assertEqual((got.o.dtype, got.lse.dtype), (np.float32, np.float32))


class Dtypes(unittest.TestCase):
    def test_bfloat16_rounds_to_nearest_even(self):
        cases = {1.0: 0x3F80, -2.5: 0xC020, 0.0: 0, np.inf: 0x7F80,
                 1 + 2**-8: 0x3F80,            # tie, down to even
                 1 + 3 * 2**-8: 0x3F82,        # tie, up to even
                 1 + 2**-8 + 2**-20: 0x3F81,   # above the tie
                 3.4e38: 0x7F80}               # rounds to infinity
        got = memd.float32_to_bfloat16(np.array(list(cases), np.float32))
        self.assertEqual([hex(x) for x in got], [hex(x) for x in cases.values()])
        nan = memd.float32_to_bfloat16(np.array([0x7FFFFFFF], np.uint32).view(np.float32))
        self.assertTrue(np.isnan(memd.bfloat16_to_float32(nan))[0])

    def test_every_bfloat16_survives_the_round_trip(self):
        bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
        bits = bits[np.isfinite(memd.bfloat16_to_float32(bits))]
        np.testing.assert_array_equal(
            memd.float32_to_bfloat16(memd.bfloat16_to_float32(bits)), bits)

    def test_into_a_model(self):
        x = np.array([1.5, -2.0])
        self.assertEqual(to_model(x, "float16").dtype, np.float16)
        self.assertEqual(to_model(x, "bfloat16").tolist(), [0x3FC0, 0xC000])
        bits = np.array([0x3FC0], np.uint16)
        self.assertIs(to_model(bits, "bfloat16"), bits)
        with self.assertRaisesRegex(TypeError, "uint16"):
            to_model(bits, "float16")
        with self.assertRaisesRegex(TypeError, "int64"):
            to_model(np.array([1]), "float32")
        same = np.zeros(3, np.float32)
        self.assertIs(to_model(same, "float32"), same)
        self.assertEqual([to_query(np.zeros(1, t), "bfloat16")[1]
                          for t in (np.float64, np.float32, np.float16, np.uint16)], [1, 1, 2, 3])


class Contracts(unittest.TestCase):
    """Lists that C has, too."""

    def read(self, path):
        with open(os.path.join(ROOT, path), encoding="utf-8") as file:
            return file.read()

    def test_error_codes_are_those_of_the_header(self):
        listed = dict(re.findall(r"X\((E\w+), (-\d+),", self.read("base/error.h")))
        ours = {kind.name[len("MEMD_"):]: str(kind.code) for kind in memd.Error.__subclasses__()}
        self.assertEqual(ours, listed)

    def test_methods_are_those_of_the_header(self):
        listed = re.findall(r"X\(\w+, (\d+), (\w+), (\w+), ROLE_\w+\)", self.read("proto/method.h"))
        ours = [(str(number), name, message) for name, (number, message, _) in wire.METHODS.items()]
        self.assertEqual(sorted(ours), sorted(listed))

    def test_limits_are_those_of_the_header(self):
        limits = dict(re.findall(r"#define (LIMIT_\w+)\s+(.*?)\s*(?:/\*|\n)",
                                 self.read("proto/limits.h")))
        for name, ours in (("LIMIT_FRAME_MESSAGE_BYTES", wire.MESSAGE_BYTES_MAX),
                           ("LIMIT_FRAME_PAYLOAD_BYTES", wire.PAYLOAD_BYTES_MAX)):
            number, shift = re.search(r"\((\d+)\) << (\d+)", limits[name]).groups()
            self.assertEqual(int(number) << int(shift), ours, name)
        self.assertEqual(limits["LIMIT_PAYLOAD_ALIGN"], f"{wire.ALIGN}u")

    def test_model_round_trip(self):
        model = memd.Model(3, 8, 2, 64, "bfloat16", memd.Rope(5e5, "interleaved", "llama3", 8.0, 1.0,
                           4.0, 8192, rotary_dims=32), False, 0.25, "weights")
        message = wire.Request("open").message.model
        model._write(message)
        self.assertEqual(memd.Model._read(message), model)
        with self.assertRaisesRegex(ValueError, "pairing"):
            memd.Model(1, 1, 1, 8, rope=memd.Rope(1e4, pairing="other"))._write(message)


if __name__ == "__main__":
    unittest.main()
