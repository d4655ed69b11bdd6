#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make tests/golden/kv_smollm2.npz: real keys, values and queries of a small model.

    scripts/capture_golden.py [--out FILE]      (in the virtual environment that ./quickstart makes)

Random vectors have no attention sinks, no outlier dimensions and no peaked softmax; real ones do, and
kernels that are right on the former can be wrong on the latter. The file is one KV head of one layer of
SmolLM2-135M reading the GPL-3, as the model of examples/long_document sees it: small enough for git, long
enough (1,300 tokens) for a sealed segment and a tail.
"""
import argparse
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "clients/python"), str(ROOT / "examples/long_document")]

from attention import FullAttention  # noqa: E402
from llama import Llama  # noqa: E402
from long_document import TEXT, find_model  # noqa: E402

TOKENS, LAYER, KV_HEAD, QUERIES = 1300, 12, 1, 48


class Recorder(FullAttention):
    """Full attention that keeps what one layer saw."""

    def attend(self, layer, start, q, k, v):
        if layer == LAYER:
            self.seen = q, k, v
        return super().attend(layer, start, q, k, v)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(ROOT / "tests/golden/kv_smollm2.npz"))
    args = parser.parse_args()
    model = Llama(find_model())
    ids = np.array(model.tokenizer.encode(Path(TEXT).read_text()))[:TOKENS]
    attention = Recorder(model.layers, TOKENS, model.G, model.D)
    model.forward(ids, 0, attention)
    q, k, v = attention.seen
    group = model.H // model.G
    positions = np.linspace(0, TOKENS - 1, QUERIES).astype(np.uint32)
    np.savez_compressed(
        args.out,
        k=np.float16(k[:, KV_HEAD:KV_HEAD + 1]), v=np.float16(v[:, KV_HEAD:KV_HEAD + 1]),  # (T, 1, D)
        q=np.float16(q[positions, KV_HEAD * group:(KV_HEAD + 1) * group]),   # (n, H, D)
        q_positions=positions,                                               # (n)
        about=f"{model.name}, layer {LAYER}, KV head {KV_HEAD}, rotated (half, theta {model.theta}), "
              f"first {TOKENS} tokens of the GPL-3")
    print(f"{args.out}: {os.path.getsize(args.out):,} bytes")


if __name__ == "__main__":
    main()
