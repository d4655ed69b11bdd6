# SPDX-License-Identifier: Apache-2.0
"""Contexts with rows that a test can predict: the bytes of token t are a function of (seed, layer, t)."""
import hashlib
import struct

from wire import ENUMS, Payload, model

ACK = {name: ENUMS["Ack"]["ACK_" + name.upper()] for name in ("committed", "memory", "synced")}


def rows(seed, layer, first, count, width, what):
    """count rows of `width` finite fp16 numbers, as bytes; the same for the same arguments."""
    out = []
    for token in range(first, first + count):
        block = hashlib.sha512(f"{seed} {layer} {token} {what}".encode()).digest()
        block *= -(-2 * width // len(block))
        # Clear the top exponent bit of each little-endian fp16: neither infinity nor NaN, below 2.
        out.append(bytes(b & 0xBF if i & 1 else b for i, b in enumerate(block[:2 * width])))
    return b"".join(out)


class Past:
    """One context of a client, and what it should hold."""

    def __init__(self, client, name, seed=1, parameters=(), method="", **shape):
        self.client, self.name, self.seed = client, name, seed
        self.model = model(**shape)
        self.layers, self.heads = self.model["layers"], self.model["kv_heads"]
        self.dim = self.model["head_dim"]
        self.id = client.ask("open", {"name": name, "model": self.model, "create": True,
                                  "method": method, "parameters": list(parameters)})["context_id"]

    def layer(self, payload, layer, position, count):
        width, shape = self.heads * self.dim, (count, self.heads, self.dim)
        k = payload.add("FP16", shape, rows(self.seed, layer, position, count, width, "k"))
        v = payload.add("FP16", shape, rows(self.seed, layer, position, count, width, "v"))
        return {"layer": layer, "position": position, "k": k, "v": v}

    def append_fields(self, position, count, ack="committed"):
        payload = Payload()
        layers = [self.layer(payload, layer, position, count) for layer in range(self.layers)]
        return {"context_id": self.id, "layers": layers, "ack": ACK[ack]}, payload.data

    def append(self, position, count, ack="committed"):
        fields, payload = self.append_fields(position, count, ack)
        return self.client.ask("append", fields, payload)

    def check(self, tokens, step=256):
        """Every row below `tokens` comes back bit for bit."""
        width = self.heads * self.dim
        for layer in range(self.layers):
            for first in range(0, tokens, step):
                count = min(step, tokens - first)
                ids = list(range(first, first + count))
                reply = self.client.call("fetch", {"context_id": self.id, "layer": layer, "ids": ids})
                for what in ("k", "v"):
                    at = reply.message[what]["offset"]
                    got = reply.payload[at:at + 2 * width * count]
                    wanted = rows(self.seed, layer, first, count, width, what)
                    assert got == wanted, f"{self.name}: layer {layer}, tokens {first}+{count}: {what}"

    def attend_fields(self, layer=0, queries=1, position=1 << 20):
        payload = Payload()
        heads = self.model["query_heads"]
        q = payload.add("FP16", (queries, heads, self.dim),
                        rows(self.seed, layer, 0, queries, heads * self.dim, "q"))
        return {"items": [{"context_id": self.id, "layer": layer, "q": q,
                           "positions": [position] * queries}]}, payload.data

    def attend(self, layer=0, queries=1):
        fields, payload = self.attend_fields(layer, queries)
        reply = self.client.call("attend", fields, payload)
        return reply.message["answers"][0], reply.payload


def floats(payload, tensor):
    """A reply's fp32 tensor as a flat list."""
    count = 1
    for size in tensor["shape"]:
        count *= size
    return list(struct.unpack_from(f"<{count}f", payload, tensor["offset"]))


def verify(client, context_id=0):
    """Run Verify to its end: (findings, values)."""
    findings, values, cursor = [], 0, b""
    while True:
        step = client.ask("verify", {"context_id": context_id, "cursor": cursor})
        findings += step["findings"]
        values += step["values"]
        cursor = step["cursor"]
        if not cursor:
            return findings, values
