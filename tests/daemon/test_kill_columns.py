# SPDX-License-Identifier: Apache-2.0
"""kill -9 in the middle of appends that bring more than keys and values: marks, queries, attention mass, states.

Each kind is sent twice, by a method that keeps it: to a daemon that nobody disturbs, and in streams of requests to one
that is killed three times while it takes them. Rows and what came with them are committed together or not at
all: what is there after a restart is a prefix of what was sent, with all that was acknowledged; and when the rest has
been sent too, the answers are those of the other daemon, bit for bit, Fetch gives the rows that were sent, and Verify
finds nothing. (With a device: up to rounding, since its window after a restart is not the one before.)
"""
import os
import random
import struct
import threading
import time

from past import ACK, rows, verify
from wire import Daemon, Payload, model

QUERY_HEADS, HEADS, DIM, WIDTH = 4, 2, 16, 64
TOKENS, STEP, KILLS, BLOCK = 2800, 40, 3, 20
ACKS, AHEAD = 8, 12  # answers before a kill are fewer, requests on the way are as many; so no kill comes too late
METHODS = {  # what comes with the tokens, and parameters with which 2,800 tokens are many
    "landmark": (["marks"], {"k": 3}),
    "longheads": (["q"], {"chunk": 32, "attention": 160}),
    "infllm": (["scores"], {"block": 32, "topk": 3, "local": 64, "sinks": 16, "repr_tokens": 2, "repr": "mass"}),
    "neurocache": (["states"], {"width": WIDTH, "memory": 1024, "k": 8}),
}


def numbers(seed, first, count, width, what):
    """fp32 numbers between 0 and 1, as bytes."""
    return b"".join(b"\0\0" + half[:1] + b"\x3f" for half in
                    (rows(seed, 0, first, count, width, what)[i:i + 2] for i in range(0, 2 * count * width, 2)))


class Stream:
    """One context of a daemon, by `method`, and everything that it is sent."""

    def __init__(self, client, method):
        self.client, self.method = client, method
        self.kinds, parameters = METHODS[method]
        self.model = model(layers=1, query_heads=QUERY_HEADS, kv_heads=HEADS, head_dim=DIM, rope={"theta": 10000.0})
        self.id = client.ask("open", {
            "name": method, "model": self.model, "create": True, "method": method,
            "parameters": [{"name": name, "value": str(value)} for name, value in parameters.items()]})["context_id"]
        if method == "neurocache":
            payload = Payload()
            tensors = [{"name": name, "value": payload.add("FP16", (HEADS, DIM, WIDTH),
                                                           rows(9, 0, 0, HEADS * DIM, WIDTH, name))}
                       for name in ("key", "value")]
            client.ask("put_params", {"context_id": self.id, "params": tensors}, payload.data)

    def fields(self, position):
        payload, part = Payload(), {"layer": 0, "position": position}
        if "states" in self.kinds:
            part["states"] = payload.add("FP16", (STEP, WIDTH), rows(1, 0, position, STEP, WIDTH, "state"))
            return {"context_id": self.id, "layers": [part], "ack": ACK["committed"]}, payload.data
        for name in ("k", "v"):
            part[name] = payload.add("FP16", (STEP, HEADS, DIM), rows(1, 0, position, STEP, HEADS * DIM, name))
        if "q" in self.kinds:
            part["q"] = payload.add("FP16", (STEP, QUERY_HEADS, DIM),
                                    rows(1, 0, position, STEP, QUERY_HEADS * DIM, "q"))
        if "marks" in self.kinds:
            part["marks"] = bytes(int((position + i) % BLOCK == BLOCK - 1) for i in range(STEP))
        if "scores" in self.kinds:
            part["scores"] = payload.add("FP32", (STEP, QUERY_HEADS), numbers(1, position, STEP, QUERY_HEADS, "mass"))
        return {"context_id": self.id, "layers": [part], "ack": ACK["committed"]}, payload.data

    def append(self, begin, end):
        for position in range(begin, end, STEP):
            self.client.ask("append", *self.fields(position))

    def append_until_killed(self, daemon, begin, acks):
        """Requests are sent as quickly as they are taken; the daemon dies after so many answers, which are counted in
        tokens and returned."""
        requests = [self.fields(begin + i * STEP) for i in range(acks + AHEAD)]

        def send():
            try:
                for fields, payload in requests:
                    self.client.send("append", fields, payload)
            except OSError:
                pass  # killed

        sender = threading.Thread(target=send)
        sender.start()
        for _ in range(acks):
            self.client.receive().check()
        daemon.kill()
        sender.join()
        return begin + acks * STEP

    def tokens(self):
        return self.client.ask("stat", {"context_id": self.id})["context"]["tokens"]

    def answers(self):
        """Bytes of attends over everything, one request each."""
        out = []
        for number in range(6):
            payload = Payload()
            item = {"context_id": self.id, "layer": 0, "positions": [TOKENS],
                    "q": payload.add("FP16", (1, QUERY_HEADS, DIM), rows(2, 0, number, 1, QUERY_HEADS * DIM, "ask"))}
            if "states" in self.kinds:
                item["states"] = payload.add("FP16", (1, WIDTH), rows(2, 0, number, 1, WIDTH, "ask"))
            reply = self.client.call("attend", {"items": [item]}, payload.data)
            answer = reply.message["answers"][0]
            assert answer["status"] == 0, answer
            out.append((answer["quality"]["rows"], bytes(reply.payload)))
        return out

    def check_rows(self):
        if "states" in self.kinds:
            return
        reply = self.client.call("fetch", {"context_id": self.id, "layer": 0, "ids": list(range(TOKENS))})
        for name in ("k", "v"):
            at, bytes_ = reply.message[name]["offset"], 2 * TOKENS * HEADS * DIM
            assert reply.payload[at:at + bytes_] == rows(1, 0, 0, TOKENS, HEADS * DIM, name), name


def undisturbed(method):
    with Daemon("--sync", "interval 20ms") as daemon:
        stream = Stream(daemon.client(timeout=60), method)
        stream.append(0, TOKENS)
        return stream.answers()


def disturbed(method, rng):
    with Daemon("--sync", "interval 20ms") as daemon:
        stream, stored = Stream(daemon.client(timeout=60), method), 0
        for _ in range(KILLS):
            acknowledged = stream.append_until_killed(daemon, stored, rng.randrange(1, ACKS))
            daemon.start()
            stream.client = daemon.client(timeout=60)
            stored = stream.tokens()
            most = acknowledged + AHEAD * STEP
            assert acknowledged <= stored <= most and stored % STEP == 0, (method, acknowledged, stored)
            findings, _ = verify(stream.client)
            assert findings == [], (method, findings[:5])
        assert stored < TOKENS, "a kill came when everything had been taken"
        stream.append(stored, TOKENS)
        answers = stream.answers()
        stream.check_rows()
        findings, _ = verify(stream.client)
        assert findings == [], (method, findings[:5])
        return answers


def alike(one, other):
    if "MEMD_DEVICE_PLUGIN" not in os.environ:
        return one == other
    pairs = zip(*(struct.unpack(f"<{len(payload) // 4}f", payload) for _, payload in (one, other)))
    return one[0] == other[0] and len(one[1]) == len(other[1]) and all(abs(x - y) <= 1e-5 for x, y in pairs)


def main(seed):
    rng = random.Random(seed)
    print(f"seed {seed}")
    for method in METHODS:
        wanted, got = undisturbed(method), disturbed(method, rng)
        assert all(rows_read < TOKENS * HEADS for rows_read, _ in wanted), f"{method} read everything"
        assert len({payload for _, payload in wanted}) > 1, f"{method} answers all questions alike"
        for number, (one, other) in enumerate(zip(wanted, got)):
            assert alike(one, other), f"{method}: answer {number}, {one[0]} and {other[0]} rows read"
        print(f"{method}: good", flush=True)


main(int(os.environ.get("MEMD_TEST_SEED", time.time_ns() % 10**9)))
