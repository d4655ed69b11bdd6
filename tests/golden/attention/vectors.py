#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vectors.py [--check] FILE: the truth about attention and RoPE, in float64 and without a line of memd.

Writes (or, with --check, compares with what it would write) the golden file that test_golden.c reads.
Inputs are not stored: both sides draw them from the same integers (splitmix64), as whole numbers over 128,
which fp32 and fp16 hold exactly; bf16 is rounded here. Only every STRIDE-th output is kept.

RoPE follows transformers/modeling_rope_utils.py (functions _compute_*_parameters), attention the definition.

Little-endian: magic "MEMDGOLD", u32 version, u32 seed, u32 RoPE cases, u32 attention cases; the cases, each
starting with its parameters; see the two pack_ functions. Needs NumPy.
"""
import argparse
import math
import struct
import sys

import numpy as np

MAGIC, VERSION, SEED, STRIDE = b"MEMDGOLD", 1, 20240607, 7
FP32, FP16, BF16 = 1, 2, 3
NONE, LINEAR, LLAMA3, YARN = 0, 1, 2, 3
HALF, INTERLEAVED = 0, 1
POSITIONS = [0, 1, 17, 4095, 131071, 1000003]


def splitmix64(seed, count):
    """The first `count` outputs, as uint64."""
    with np.errstate(over="ignore"):
        state = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def draw(seed, shape):
    """About N(0, 1.15): four bytes of each number added up, less their mean, over 128."""
    bits = splitmix64(seed, math.prod(shape))
    total = sum((bits >> np.uint64(8 * i)) & np.uint64(255) for i in range(4))
    return ((total.astype(np.float64) - 510.0) / 128.0).reshape(shape)


def to_bf16(x):
    """Round to nearest even, back as float64."""
    bits = x.astype(np.float32).view(np.uint32)
    bits = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


class Rope:
    """One declared RoPE; fields as in attention/rope.h."""

    def __init__(self, theta, dims, pairing=HALF, scaling=NONE, factor=0.0, low=0.0, high=0.0, context=0,
                 fast=0.0, slow=0.0, attention=0.0, rotary=0):
        self.fields = (theta, factor, low, high, fast, slow, attention)
        self.ints = (dims, pairing, scaling, rotary, context)
        self.dims, self.pairing = dims, pairing
        self.rotary = rotary or dims
        self.magnitude = 1.0
        # Python's own powers: those of NumPy differ in the last bit between CPUs, which at position 1,000,003 is seven digits.
        inv_freq = np.array([1.0 / theta ** (index / self.rotary) for index in range(0, self.rotary, 2)])
        if scaling == LINEAR:
            inv_freq = inv_freq / factor
        elif scaling == LLAMA3:
            inv_freq = self.llama3(inv_freq, factor, low, high, context)
        elif scaling == YARN:
            inv_freq = self.yarn(inv_freq, theta, factor, context, fast or 32.0, slow or 1.0)
            self.magnitude = attention or (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
        self.inv_freq = inv_freq

    @staticmethod
    def llama3(inv_freq, factor, low, high, context):
        wavelen = 2 * math.pi / inv_freq
        scaled = np.where(wavelen > context / low, inv_freq / factor, inv_freq)
        smooth = (context / wavelen - low) / (high - low)
        smoothed = (1 - smooth) * scaled / factor + smooth * scaled
        medium = ~(wavelen < context / high) & ~(wavelen > context / low)
        return np.where(medium, smoothed, scaled)

    def yarn(self, inv_freq, theta, factor, context, fast, slow):
        def correction(rotations):
            return self.rotary * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))
        low = max(math.floor(correction(fast)), 0)
        high = min(math.ceil(correction(slow)), self.rotary - 1)
        if low == high:
            high += 0.001
        ramp = np.clip((np.arange(self.rotary // 2, dtype=np.float64) - low) / (high - low), 0, 1)
        extrapolation = 1 - ramp
        return inv_freq / factor * (1 - extrapolation) + inv_freq * extrapolation

    def rotate(self, x, positions):
        """x (n, heads, D) at positions (n)."""
        angle = np.asarray(positions, dtype=np.float64)[:, None] * self.inv_freq
        cos = (np.cos(angle) * self.magnitude)[:, None, :]
        sin = (np.sin(angle) * self.magnitude)[:, None, :]
        y = x.copy()
        half = self.rotary // 2
        first = slice(0, half) if self.pairing == HALF else slice(0, self.rotary, 2)
        second = slice(half, self.rotary) if self.pairing == HALF else slice(1, self.rotary, 2)
        a, b = x[..., first], x[..., second]
        y[..., first] = a * cos - b * sin
        y[..., second] = b * cos + a * sin
        return y


def ropes():
    """Every scaling, both pairings, partial rotation; numbers of published models where there are any."""
    yield Rope(10000.0, 64)
    yield Rope(1000000.0, 256, INTERLEAVED)
    yield Rope(10000.0, 80, rotary=32)
    yield Rope(10000.0, 96, INTERLEAVED, LINEAR, factor=4.0, rotary=48)
    yield Rope(500000.0, 128, HALF, LLAMA3, factor=8.0, low=1.0, high=4.0, context=8192)
    yield Rope(500000.0, 64, INTERLEAVED, LLAMA3, factor=32.0, low=1.0, high=4.0, context=8192)
    yield Rope(10000.0, 128, HALF, YARN, factor=16.0, context=4096)
    yield Rope(1000000.0, 128, HALF, YARN, factor=4.0, context=32768, fast=64.0, slow=2.0)
    yield Rope(10000.0, 64, INTERLEAVED, YARN, factor=40.0, context=4096, attention=1.25)
    yield Rope(150000.0, 64, HALF, YARN, factor=1.0, context=2048)


def pack_rope(rope):
    """7 f64 parameters, 5 u64 parameters, magnitude, inv_freq, then cos and sin (times magnitude) at each of
    POSITIONS, all f64."""
    angle = np.asarray(POSITIONS, dtype=np.float64)[:, None] * rope.inv_freq
    table = np.stack([np.cos(angle), np.sin(angle)], axis=1) * rope.magnitude
    return (struct.pack("<7d5Qd", *rope.fields, *rope.ints, rope.magnitude) +
            rope.inv_freq.astype("<f8").tobytes() + table.astype("<f8").tobytes())


def attention(q, k, v, limits, scale):
    """q (n, H, D), k and v (T, G, D) -> o (n, H, D), lse (n, H); a query sees tokens below its limit."""
    group = q.shape[1] // k.shape[1]
    o, lse = np.zeros(q.shape), np.full(q.shape[:2], -np.inf)
    for i, limit in enumerate(limits):
        if limit == 0:
            continue
        for h in range(q.shape[1]):
            keys, values = k[:limit, h // group], v[:limit, h // group]
            score = scale * keys @ q[i, h]
            top = score.max()
            weight = np.exp(score - top)
            o[i, h] = weight @ values / weight.sum()
            lse[i, h] = top + math.log(weight.sum())
    return o, lse


def pack_attention(number, case):
    """u32 kv_heads, group, head_dim, dtype, tokens, queries, rope index + 1 or 0, realistic; u64 limits; then
    lse and every STRIDE-th element of o, f32."""
    heads_kv, group, dims, dtype, tokens, queries, rope, realistic = case
    seed = SEED + 1000 * number
    q = draw(seed, (queries, heads_kv * group, dims))
    k, v = draw(seed + 1, (tokens, heads_kv, dims)), draw(seed + 2, (tokens, heads_kv, dims))
    if realistic:
        q, k = outliers(q), outliers(k)
    if dtype == BF16:
        k, v = to_bf16(k), to_bf16(v)
    limits = [int(x) % (tokens + 1) for x in splitmix64(seed + 3, queries)]
    limits[0] = tokens
    if rope:
        table = list(ropes())[rope - 1]
        q = table.rotate(q, [tokens + i for i in range(queries)])
        k = table.rotate(k, range(tokens))
    o, lse = attention(q, k, v, limits, 1.0 / math.sqrt(dims))
    return (struct.pack("<8I", *case) + np.asarray(limits, "<u8").tobytes() +
            lse.astype("<f4").tobytes() + o.reshape(-1)[::STRIDE].astype("<f4").tobytes())


def outliers(x):
    """As real keys are: a few channels eight times larger, one with an offset."""
    y = x.copy()
    y[..., 3] *= 8.0
    y[..., 10] = y[..., 10] * 2.0 + 6.0
    return y


def cases():
    number = 0
    for dims in (64, 80, 96, 128, 256):
        for group in (1, 3, 4, 8):
            for dtype in (FP32, FP16, BF16):
                tokens = (1, 33, 200, 517)[number % 4]
                yield 2 if group < 8 else 1, group, dims, dtype, tokens, 2, 0, number % 3 == 2
                number += 1
    for index, rope in enumerate(ropes()):
        yield 2, 2, rope.dims, (FP16, FP32, BF16)[index % 3], 150, 2, index + 1, 0


def build():
    """The bytes of the file, in two parts: up to the last RoPE case, and the attention cases."""
    rope_list, case_list = list(ropes()), list(cases())
    head = MAGIC + struct.pack("<4I", VERSION, SEED, len(rope_list), len(case_list))
    return (head + b"".join(pack_rope(rope) for rope in rope_list),
            b"".join(pack_attention(number, case) for number, case in enumerate(case_list)))


def compare(stored, first, second):
    """None, or what differs. Another NumPy may round the last bit of cos or exp otherwise."""
    if len(stored) != len(first) + len(second):
        return f"{len(stored)} bytes, expected {len(first) + len(second)}"
    if stored[:24] != first[:24]:
        return "another header"
    old, new = (np.frombuffer(part[24:], "<f8") for part in (stored[:len(first)], first))
    if not np.allclose(old, new, rtol=1e-12, atol=1e-15):
        return "another RoPE"
    old, new = (np.frombuffer(part, "<i4").astype(np.int64) for part in (stored[len(first):], second))
    worst = np.abs(old - new).max()
    return None if worst <= 2 else f"an attention value differs by {worst} units in the last place"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("file")
    args = parser.parse_args()
    first, second = build()
    if not args.check:
        with open(args.file, "wb") as file:
            file.write(first + second)
        return print(f"{args.file}: {len(first + second)} bytes")
    with open(args.file, "rb") as file:
        difference = compare(file.read(), first, second)
    if difference:
        sys.exit(f"{args.file}: {difference}")
    return print(f"{args.file}: as it would be written now")


if __name__ == "__main__":
    main()
