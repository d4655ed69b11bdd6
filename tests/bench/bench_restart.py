# SPDX-License-Identifier: Apache-2.0
"""How long a daemon with a large store is away after SIGKILL: until it answers Health, and until it answers the
first attend over the stored past (which verifies what it reads from the store for the first time).

    MEMD=build/daemon/memd bench_restart.py [GIB]     default 4; prints JSON, one object per sync mode

The store is filled with the shape of Llama-3-8B (32 layers, 8 KV heads of 128, fp16) through a real socket. With
`interval` the kill comes after everything was synced, with `never` while nothing was."""
import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "daemon"))
from past import ACK  # noqa: E402
from wire import Client, Daemon, Payload, model  # noqa: E402

LAYERS, HEADS, DIM, STEP = 32, 8, 128, 4096
TOKEN_BYTES = 2 * HEADS * DIM * 2  # of one layer


def fill(client, context, gib, ack):
    tokens = int(gib * (1 << 30)) // (LAYERS * TOKEN_BYTES) // STEP * STEP
    for position in range(0, tokens, STEP):
        for layer in range(LAYERS):
            payload = Payload()
            rows = payload.add("FP16", (STEP, HEADS, DIM), bytes(STEP * HEADS * DIM * 2))
            part = {"layer": layer, "position": position, "k": rows, "v": rows}
            client.ask("append", {"context_id": context, "layers": [part], "ack": ACK[ack]}, payload.data)
    return tokens


def attend(client, context):
    payload = Payload()
    q = payload.add("FP16", (1, 4 * HEADS, DIM), bytes(4 * HEADS * DIM * 2))
    item = {"context_id": context, "layer": 0, "q": q, "positions": [0]}
    answer = client.ask("attend", {"items": [item]}, payload.data)["answers"][0]
    assert answer["status"] == 0, answer
    return answer["quality"]["tokens"]


def measure(sync, ack, gib):
    with Daemon("--sync", sync, "--map-size", "64GiB") as daemon:
        client = daemon.client(timeout=300)
        shape = model(layers=LAYERS, query_heads=4 * HEADS, kv_heads=HEADS, head_dim=DIM)
        opened = client.ask("open", {"name": "large", "model": shape, "create": True})
        tokens = fill(client, opened["context_id"], gib, ack)
        daemon.kill()
        begin = time.monotonic()
        daemon.start()
        client = Client(daemon.address, timeout=300)
        assert client.ask("health")["ready"]
        ready = time.monotonic()
        seen = attend(client, opened["context_id"])
        answered = time.monotonic()
        assert seen == tokens, (seen, tokens)
        again = time.monotonic()
        attend(client, opened["context_id"])
        end = time.monotonic()
        daemon.stop(300)
    return {"case": f"restart, sync {sync}", "stored_gib": tokens * LAYERS * TOKEN_BYTES / (1 << 30),
            "ready_ms": round((ready - begin) * 1e3, 1), "first_attend_ms": round((answered - ready) * 1e3, 1),
            "second_attend_ms": round((end - again) * 1e3, 1)}


def main():
    gib = float(sys.argv[1]) if len(sys.argv) > 1 else 4
    cases = [measure("interval 1s", "synced", gib), measure("never", "committed", gib)]
    print(json.dumps(cases, indent=1))


main()
