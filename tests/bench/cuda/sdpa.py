# SPDX-License-Identifier: Apache-2.0
"""PyTorch's attention over the same shapes as bench_cuda, where PyTorch and a GPU are: one JSON object a line.

    sdpa.py [TOKENS]        128K tokens of a layer of Llama-3-8B, all of them in the GPU's memory
"""
import json
import statistics
import sys
import time

HEADS, KV_HEADS, DIM, ROUNDS, WARM = 32, 8, 128, 21, 3


def main(tokens=131072):
    try:
        import torch
    except ImportError:
        print("no PyTorch: nothing to compare with")
        return
    if not torch.cuda.is_available():
        print("PyTorch sees no GPU: nothing to compare with")
        return
    q = torch.randn(1, HEADS, 1, DIM, device="cuda", dtype=torch.float16)
    k, v = (torch.randn(1, KV_HEADS, tokens, DIM, device="cuda", dtype=torch.float16) for _ in "kv")
    seconds = []
    for _ in range(WARM + ROUNDS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[WARM:])
    print(json.dumps({"device": torch.cuda.get_device_name(), "what": "torch sdpa over everything",
                      "us": round(median * 1e6, 2), "gb_s": round(4 * tokens * KV_HEADS * DIM / median * 1e-9, 2)}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
