# SPDX-License-Identifier: Apache-2.0
"""What a busy context costs its neighbours: attends of one context over 4,096 tokens, alone and beside another context
that is at work, on a daemon with its defaults.

    MEMD=build/daemon/memd bench_neighbours.py [KIND ...]     default: all; prints a table

    fold METHOD       a prompt of 8,192 tokens (or states) is folded in the background
    index METHOD      an index is made of 4,096 tokens in the background
    attends METHOD    64 attends over 8,192 tokens wait over one connection, as long as it takes
    batches full      requests of 64 attends over 8,192 tokens, two at a time
    appends full      a connection sends appends of 8 MiB as quickly as they are taken

Rounds alone and beside take turns, so that what else the machine does meets both. The neighbour's replies are read
between two attends by the same client, so that no second one takes processor time from it; appends have a thread."""
import os
import random
import select
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "daemon"))
from wire import Daemon, Payload, model  # noqa: E402

HEADS, DIM, WIDTH, TOKENS, PROMPT, INDEXED, STEP = 8, 64, 256, 4096, 8192, 4096, 1024
ATTENDS, ROUNDS, FLOOD, BATCH = 250, 3, 60, 64
ALL = ["fold camelot", "fold loki", "fold neurocache", "index retrieval-attention", "attends full", "attends longheads",
       "attends neurocache", "batches full", "appends full"]


def rows(count, width, seed):
    """fp16 numbers between 1 and 2, of either sign."""
    words = random.Random(seed).randbytes(2 * count * width)
    return b"".join(struct.pack("<H", 0x3C00 | word & 0x83FF) for (word,) in struct.iter_unpack("<H", words))


def quantile(times, share):
    return sorted(times)[min(len(times) - 1, int(len(times) * share))] * 1e6


class Bench:
    def __init__(self, daemon):
        self.daemon, self.client, self.names = daemon, daemon.client(timeout=300), 0
        self.block, self.states = rows(STEP, HEADS * DIM, 1), rows(STEP, WIDTH, 2)
        self.near = self.open("full")
        self.append(self.near, TOKENS, "full")

    def open(self, method):
        self.names += 1
        shape = model(layers=1, query_heads=HEADS, kv_heads=HEADS, head_dim=DIM, rope={"theta": 10000.0})
        parameters = [{"name": "width", "value": str(WIDTH)}] if method == "neurocache" else []
        context = self.client.ask("open", {"name": f"{self.names}", "model": shape, "create": True, "method": method,
                                           "parameters": parameters})["context_id"]
        if method == "neurocache":
            payload = Payload()
            weights = bytes(range(256)) * (HEADS * DIM * WIDTH // 512)
            params = [{"name": name, "value": payload.add("FP16", (HEADS, DIM, WIDTH), bytes(
                byte & 0x3B for byte in weights[:2 * HEADS * DIM * WIDTH]).ljust(2 * HEADS * DIM * WIDTH, b"\0"))}
                for name in ("key", "value")]
            self.client.ask("put_params", {"context_id": context, "params": params}, payload.data)
        return context

    def part(self, position, method, count=STEP):
        payload, part = Payload(), {"layer": 0, "position": position}
        if method == "neurocache":
            part["states"] = payload.add("FP16", (count, WIDTH), self.states)
            return part, payload.data
        for name in ("k", "v", "q") if method in ("longheads", "retrieval-attention") else ("k", "v"):
            part[name] = payload.add("FP16", (count, HEADS, DIM), self.block * (count // STEP))
        return part, payload.data

    def append(self, context, tokens, method):
        for position in range(0, tokens, STEP):
            part, payload = self.part(position, method)
            self.client.ask("append", {"context_id": context, "layers": [part]}, payload)

    def question(self, context, position, method, items=1):
        payload = Payload()
        item = {"context_id": context, "layer": 0, "positions": [position],
                "q": payload.add("FP16", (1, HEADS, DIM), self.block[:2 * HEADS * DIM])}
        if method == "neurocache":
            item["states"] = payload.add("FP16", (1, WIDTH), self.states[:2 * WIDTH])
        return {"items": [item] * items}, payload.data

    def attends(self, between=lambda: None):
        """Seconds of each."""
        fields, payload = self.question(self.near, TOKENS, "full")
        taken = []
        for _ in range(ATTENDS):
            begin = time.perf_counter()
            reply = self.client.call("attend", fields, payload)
            taken.append(time.perf_counter() - begin)
            assert reply.message["answers"][0]["status"] == 0, reply.message
            between()
        return taken

    def beside_build(self, method, tokens):
        far = self.open(method)
        self.append(far, tokens, method)
        taken = self.attends()
        self.client.ask("drop", {"context_id": far})
        return taken

    def beside_flood(self, method, items, flood):
        far, other = self.open(method), self.daemon.client(timeout=300)
        self.append(far, PROMPT, method)
        fields, payload = self.question(far, PROMPT, method, items)
        answer = other.call("attend", fields, payload).message["answers"][0]
        assert answer["status"] == 0, answer
        for _ in range(flood):
            other.send("attend", fields, payload)

        def refill():
            while select.select([other.socket], [], [], 0)[0]:
                other.receive()
                other.send("attend", fields, payload)

        taken = self.attends(refill)
        other.close()
        self.client.ask("drop", {"context_id": far})
        return taken

    def beside_appends(self):
        far, other, stop = self.open("full"), self.daemon.client(timeout=300), threading.Event()

        def work():
            position, count = 0, 4 * STEP
            while not stop.is_set():
                part, payload = self.part(position, "full", count)
                other.ask("append", {"context_id": far, "layers": [part]}, payload)
                position += count

        thread = threading.Thread(target=work)
        thread.start()
        taken = self.attends()
        stop.set()
        thread.join()
        self.client.ask("drop", {"context_id": far})
        return taken

    def beside(self, kind):
        what, method = kind.split()
        if what in ("fold", "index"):
            return self.beside_build(method, PROMPT if what == "fold" else INDEXED)
        if what == "appends":
            return self.beside_appends()
        return self.beside_flood(method, *((BATCH, 2) if what == "batches" else (1, FLOOD)))


def main(kinds):
    with Daemon("--sync", "never") as daemon:
        bench = Bench(daemon)
        print("| beside | alone p50, p99 us | beside p50, p99 us |\n|---|---|---|")
        for kind in kinds:
            quiet, busy = [], []
            for _ in range(ROUNDS):
                quiet += bench.attends()
                busy += bench.beside(kind)
            figures = ", ".join(f"{quantile(quiet, share):.0f}" for share in (0.5, 0.99))
            print(f"| {kind} | {figures} | {quantile(busy, 0.5):.0f}, {quantile(busy, 0.99):.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ALL)
