#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Unpack kv_smollm2.npz for tests in C, which have no inflate: unpack_kv.py IN.npz OUT.bin

Little-endian: u32 tokens, u32 KV heads, u32 head_dim, u32 queries, u32 query heads; u64 positions (queries);
fp16 k (T, G, D), v (T, G, D), q (n, H, D).
"""

import sys

import numpy as np


def main(source, target):
    arrays = np.load(source)
    k, v, q = (arrays[name].astype("<f2") for name in "kvq")
    shape = np.array([*k.shape, *q.shape[:2]], dtype="<u4")
    with open(target, "wb") as out:
        for array in (shape, arrays["q_positions"].astype("<u8"), k, v, q):
            out.write(np.ascontiguousarray(array).tobytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
