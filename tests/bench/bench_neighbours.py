# SPDX-License-Identifier: Apache-2.0
"""What a context that consolidates costs its neighbours: attends of one context, alone and while the daemon folds a
long prompt of another into the state of its method.

    MEMD=build/daemon/memd bench_neighbours.py [METHOD ...]     default: camelot longheads loki; prints JSON

Quiet and busy rounds take turns, so that what else the machine does meets both. Folding has a thread of its own with a
low priority: on two cores, client and worker run beside it, and what is left to see is caches and memory."""
import json
import os
import random
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "daemon"))
from wire import Daemon, Payload, model  # noqa: E402

HEADS, DIM, TOKENS, PROMPT, ATTENDS, ROUNDS = 8, 64, 4096, 8192, 300, 3


def rows(count, width, seed):
    """fp16 numbers between 1 and 2, of either sign."""
    words = random.Random(seed).randbytes(2 * count * width)
    return b"".join(struct.pack("<H", 0x3C00 | word & 0x83FF) for (word,) in struct.iter_unpack("<H", words))


def append(client, context, tokens, block, queries):
    step = 1024
    for position in range(0, tokens, step):
        payload = Payload()
        part = {"layer": 0, "position": position, "k": payload.add("FP16", (step, HEADS, DIM), block),
                "v": payload.add("FP16", (step, HEADS, DIM), block)}
        if queries:
            part["q"] = payload.add("FP16", (step, HEADS, DIM), block)
        client.ask("append", {"context_id": context, "layers": [part]}, payload.data)


def attends(client, context):
    """Seconds of each."""
    payload, taken = Payload(), []
    q = payload.add("FP16", (1, HEADS, DIM), rows(1, HEADS * DIM, 5))
    item = {"context_id": context, "layer": 0, "q": q, "positions": [TOKENS]}
    for _ in range(ATTENDS):
        begin = time.perf_counter()
        answer = client.ask("attend", {"items": [item]}, payload.data)["answers"][0]
        taken.append(time.perf_counter() - begin)
        assert answer["status"] == 0, answer
    return taken


def quantiles(times):
    times = sorted(times)
    return {"count": len(times), "p50_us": round(times[len(times) // 2] * 1e6, 1),
            "p99_us": round(times[len(times) * 99 // 100] * 1e6, 1)}


def measure(client, method, near, block):
    shape = model(layers=1, query_heads=HEADS, kv_heads=HEADS, head_dim=DIM, rope={"theta": 10000.0})
    quiet, busy = [], []
    for turn in range(ROUNDS):
        quiet += attends(client, near)
        far = client.ask("open", {"name": f"{method} {turn}", "model": shape, "create": True,
                                  "method": method})["context_id"]
        append(client, far, PROMPT, block, method == "longheads")
        busy += attends(client, near)
        client.ask("drop", {"context_id": far})
    return {"method": method, "alone": quantiles(quiet), "beside": quantiles(busy)}


def main(methods):
    with Daemon("--sync", "never") as daemon:
        client, block = daemon.client(timeout=300), rows(1024, HEADS * DIM, 1)
        shape = model(layers=1, query_heads=HEADS, kv_heads=HEADS, head_dim=DIM)
        near = client.ask("open", {"name": "near", "model": shape, "create": True, "method": "full"})["context_id"]
        append(client, near, TOKENS, block, False)
        print(json.dumps([measure(client, method, near, block) for method in methods], indent=2))


if __name__ == "__main__":
    main(sys.argv[1:] or ["camelot", "longheads", "loki"])
