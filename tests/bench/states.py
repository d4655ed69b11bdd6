#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""States of a real model as a Neurocache keeps them, for bench_lookup: what is made up says
nothing about the recall of a search.

    states.py --out states.f16 [--layer 22] [--width 1024] [--tokens 133120] [TEXT ...]

SmolLM2-135M reads the texts one after the other, in blocks of 2,048 tokens that do not see each
other, equally much of each (a text that is too short leaves its share to the others). Its hidden
states behind a layer, 576 numbers, go through a random map to W numbers and a LayerNorm. That is
what Neurocache trains (state = LayerNorm(W_p h)); nobody has trained it for this model, and a
random map keeps angles. Written: fp16 (tokens, W), in the order of reading. Texts are files (.gz
too), folders of C, or `python`, Python's own language reference. Default: five kinds that every
Debian with this project has, so that the subject changes within a ring.

Needs the packages of ./quickstart. Takes 10 to 20 minutes on two cores.
"""
from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "clients/python"), str(ROOT / "examples/long_document"),
                str(ROOT / "tests/bench/retrieval")]

import cores  # noqa: E402, F401  (before NumPy)
import numpy as np  # noqa: E402

from capture import causal, read_text  # noqa: E402
from llama import Llama  # noqa: E402
from long_document import Progress, find_model  # noqa: E402

BLOCK = 2048  # tokens that see each other
TEXTS = ["/usr/share/doc/debian-policy/policy.txt.gz", "python",
         "/usr/share/doc/xproto/x11protocol.txt.gz", str(ROOT / "memory"),
         "/usr/share/common-licenses/GPL-3"]


def text_of(name: str) -> str:
    path = Path(name)
    if name != "python" and path.is_dir():
        return "\n".join(part.read_text() for part in sorted(path.rglob("*.[ch]")))
    return read_text(name)


class Within:
    """Attention over the block that is read, and nothing before it."""

    def attend(self, layer, start, q, k, v):
        return causal(q, k.swapaxes(0, 1), v.swapaxes(0, 1), 0, 0, None)


class Enough(Exception):
    pass


class Shallow(Llama):
    """The model up to a layer."""
    deepest: int

    def states(self, ids: np.ndarray) -> np.ndarray:
        x, positions, attention = self._embed(ids), np.arange(len(ids)), Within()
        for layer in range(self.deepest + 1):
            q, k, v = cores.by_rows(partial(self._before_attention, layer), x, positions)
            o = attention.attend(layer, 0, q, k, v)
            x = cores.by_rows(partial(self._after_attention, layer), x, o)
        return x


def shares(lengths: list[int], tokens: int) -> list[int]:
    """Equally much of each, in whole blocks, and more of those that are left where one is short."""
    given = [0] * len(lengths)
    while sum(given) < tokens:
        able = [i for i, length in enumerate(lengths) if given[i] + BLOCK <= length]
        if not able:
            raise SystemExit(f"the texts have {sum(given)} tokens in whole blocks, not {tokens}")
        given[min(able, key=lambda i: given[i])] += BLOCK
    return given


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--layer", type=int, default=22)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=65 * BLOCK)
    parser.add_argument("texts", nargs="*", default=TEXTS)
    args = parser.parse_args()
    model = Shallow(find_model())
    model.deepest = args.layer
    ids = [np.array(model.tokenizer.encode(text_of(name))) for name in args.texts]
    given = shares([len(some) for some in ids], args.tokens)
    for name, count in zip(args.texts, given):
        print(f"{name}: {count} tokens", file=sys.stderr)
    progress, done, project = Progress("reading", sum(given)), 0, None
    with open(args.out, "wb") as out:
        for some, count in zip(ids, given):
            for start in range(0, count, BLOCK):
                hidden = model.states(some[start:start + BLOCK])
                if project is None:
                    random = np.random.default_rng(1)
                    project = random.standard_normal((hidden.shape[1], args.width), np.float32)
                states = hidden @ project
                states -= states.mean(-1, keepdims=True)
                states /= np.sqrt((states * states).mean(-1, keepdims=True) + np.float32(1e-6))
                out.write(states.astype(np.float16).tobytes())
                done += len(hidden)
                progress.show(done)


if __name__ == "__main__":
    main()
