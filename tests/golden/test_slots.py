#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""CAMELoT's slots on keys and values of a real model: replay_slots (C) against float64 NumPy.

    test_slots.py REPLAY_SLOTS KV_BIN KV_NPZ

Written from the method's description alone: a slot is the list of its tokens, its mean is made anew from them for
every token, and an age is counted up. Chosen slots must be equal, means within 1e-5. A choice that is closer than fp32
can tell would prove nothing, so the least distance of all choices is printed and must be larger.
"""
import subprocess
import sys

import numpy

WINDOW = 128
CASES = [  # slots, novelty, tokens per write
    (64, 0.85, 2000),  # merges and replacements
    (64, 0.85, 7),
    (200, 0.9, 100),
    (16, 0.8, 33),
    (2000, 2.0, 2000),  # a token store
    (8, -2.0, 50),  # one mean
]


def unit(rows):
    length = numpy.linalg.norm(rows, axis=-1, keepdims=True)
    return numpy.divide(rows, length, out=numpy.zeros_like(rows), where=length > 0)


class Memory:
    def __init__(self, slots, novelty):
        self.novelty = novelty
        self.members = [[] for _ in range(slots)]
        self.age = [0] * slots
        self.lost = self.replaced = self.merged = 0
        self.margin = numpy.inf

    def cosines(self, keys, key):
        used = [slot for slot, tokens in enumerate(self.members) if tokens]
        means = numpy.array([keys[self.members[slot]].mean(axis=0) for slot in used])
        return used, unit(means) @ unit(key)

    def nearest(self, keys, key):
        used, cosines = self.cosines(keys, key)
        best = int(numpy.argmax(cosines))
        if len(used) > 1:
            self.margin = min(self.margin, cosines[best] - numpy.partition(cosines, -2)[-2])
        return used[best], cosines[best]

    def write(self, keys, token):
        slot, cosine = None, -numpy.inf
        if any(self.members):
            slot, cosine = self.nearest(keys, keys[token])
            self.margin = min(self.margin, abs(cosine - self.novelty))
        if cosine > self.novelty and slot is not None:
            self.merged += 1
        else:
            empty = [slot for slot, tokens in enumerate(self.members) if not tokens]
            slot = empty[0] if empty else int(numpy.argmax(self.age))
            self.replaced += not empty
            self.lost += len(self.members[slot])
            self.members[slot] = []
        self.members[slot].append(token)
        self.age = [age + 1 for age in self.age]
        self.age[slot] = 0
        return slot


def parse(text):
    tokens, slots, lost, read = [], [], None, None
    for line in text.splitlines():
        kind, *numbers = line.split()
        if kind == "token":
            tokens.append(int(numbers[0]))
        elif kind == "slot":
            slots.append([float(number) for number in numbers])
        elif kind == "lost":
            lost = int(numbers[0])
        else:
            read = [int(number) for number in numbers]
    return tokens, numpy.array(slots), lost, read


def compare(replay, path, k, v, case):
    slots, novelty, part = case
    text = subprocess.run([replay, path, *map(str, case)], check=True, capture_output=True, text=True).stdout
    tokens, state, lost, read = parse(text)
    memory = Memory(slots, novelty)
    written = len(k) - WINDOW
    assert tokens == [memory.write(k, token) for token in range(written)], case
    used = [members for members in memory.members if members]
    assert len(state) == len(used) and lost == memory.lost, case
    assert state[:, 0].tolist() == [len(members) for members in used], case
    assert state[:, 1].tolist() == memory.age[:len(used)], case
    for at, rows in ((2, k), (2 + k.shape[1], v)):
        means = numpy.array([rows[members].mean(axis=0) for members in used])
        assert numpy.abs(state[:, at:at + k.shape[1]] - means).max() <= 1e-5, case
    assert read == [memory.nearest(k, key)[0] for key in k[written:]], case
    print(f"{case}: {memory.merged} merged, {memory.replaced} replaced, {len(set(read))} of {len(used)} slots read, "
          f"least distance of a choice {memory.margin:.1e}")
    assert memory.margin > 5e-7, "closer than fp32 can tell: choose other numbers"
    return memory


def main(replay, path, arrays):
    kv = numpy.load(arrays)
    k, v = (kv[name][:, 0].astype(float) for name in "kv")
    seen = [compare(replay, path, k, v, case) for case in CASES]
    assert seen[0].merged > 100 and seen[0].replaced > 100
    assert seen[4].merged == 0 and seen[5].merged == len(k) - WINDOW - 1


if __name__ == "__main__":
    main(*sys.argv[1:])
