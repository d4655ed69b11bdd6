# SPDX-License-Identifier: Apache-2.0
"""Nothing a client sends may hurt: every field of every request missing, zero, huge or of a wrong kind; shapes
that do not fit; frames that are cut, too large or not frames at all. Each gets a typed answer, the daemon
lives on, and the stored rows stay what they were."""
import copy
import os
import random
import struct

from past import Past
from wire import (CODE_NAMES, ENUMS, HEADER, MESSAGES, METHODS, Client, Daemon, Failed, Payload,
                  encode, frame, model, varint)

HUGE = {"uint32": [0, 1, 0xFFFFFFFF], "uint64": [0, 1, 1 << 32, (1 << 63), (1 << 64) - 1],
        "sint32": [0, -1, 1 << 30], "bool": [0, 1, 7], "double": [0.0, -1.0, 1e308, float("nan"),
                                                                 float("inf")],
        "string": ["", "x" * 256, "x" * 5000, "\x01", b"\xff\xfe", "\U0001F600" * 64],
        "bytes": [b"", b"\xff" * 64, b"\0" * 600]}


def good_requests(past):
    """Method → (fields, payload) that succeeds (or would, but for its side effects)."""
    append, append_payload = past.append_fields(0, 3)
    attend, query_payload = past.attend_fields(queries=2)
    tensors = Payload()
    tensors.data += query_payload
    local_o, local_lse = tensors.add("FP32", (2, 4, 64), bytes(2048)), tensors.add("FP32", (2, 4), bytes(32))
    attend_payload = bytes(tensors.data)
    attend["items"][0]["limits"] = [5, 6]
    item = attend["items"][0]
    rope = {"theta": 1e4, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_context": 8192, "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.0,
            "rotary_dims": 64, "scaling": 3, "pairing": 1}
    shape = model(rope=rope, rotated=True, attention_scale=0.125, fingerprint="f")
    item.update(target_error=0.05, max_bytes=1 << 20)
    item.update(window=1, explain=True, local_o=local_o, local_lse=local_lse)
    item.update(into_o={**local_o, "region": 1}, into_lse={**local_lse, "region": 1})  # which is not there
    search = {key: item[key] for key in ("context_id", "layer", "q", "positions", "limits", "target_error",
                                         "max_bytes")}
    return {
        "hello": ({"version": 1, "client": "c", "token": "t"}, b""),
        "health": ({}, b""),
        "open": ({"name": "roped", "model": shape, "method": "full",
                  "parameters": [{"name": "a", "value": "b"}], "create": True}, b""),
        "append": (append, append_payload),
        "attend": (attend, attend_payload),
        "search": ({**search, "k": 4}, attend_payload),
        "fetch": ({"context_id": past.id, "layer": 0, "ids": [0, 2, 1, 2]}, b""),
        "truncate": ({"context_id": past.id, "position": 3}, b""),
        "fork": ({"context_id": past.id, "name": "forked"}, b""),
        "drop": ({"context_id": 999}, b""),
        "list": ({"prefix": "b", "after": "a", "limit": 3}, b""),
        "stat": ({"context_id": past.id, "state": True}, b""),
        "pin": ({"context_id": past.id, "seconds": 1}, b""),
        "methods": ({}, b""),
        "observe": ({"context_id": past.id, "layer": 1, "position": 0, "mass": {**local_lse, "shape": [2, 4]}},
                    attend_payload),
        "compress": ({"context_id": past.id, "layers": [{"layer": 0, "tokens": 2, "q": item["q"]}]}, query_payload),
        "put_params": ({"set": "gates", "model": shape, "method": "landmark",
                        "parameters": [{"name": "k", "value": "2"}],
                        "params": [{"name": "gate", "layer": 1, "value": {"dtype": 1, "shape": [2, 64],
                                                                          "offset": 0}}]}, bytes(512)),
        "drop_params": ({"set": "gates"}, b""),
        "map_memory": ({"region": 1, "kind": 0, "bytes": 4096, "handle": b""}, b""),  # without a descriptor
        "unmap_memory": ({"region": 1}, b""),
        "recall": ({"context_id": past.id, "layer": 0, "target_error": 0.1, "max_bytes": 4096}, b""),
        "rebuild": ({"context_id": past.id, "cursor": b"", "ask": True}, b""),
        "explain": ({"context_id": past.id, "layer": 0, "query": 0, "target_error": 0.1, "max_bytes": 4096}, b""),
        "status": ({}, b""),
        "stats": ({}, b""),
        "verify": ({"context_id": past.id}, b""),
        "dump": ({"context_id": past.id, "limit": 3}, b""),
        "compact": ({"path": "relative"}, b""),
    }


def mutations(name, fields):
    """Copies of `fields` with one field, at any depth, changed; (what was changed, copy)."""
    for key, (_, kind, repeated) in MESSAGES[name].items():
        if key in fields:
            out = copy.deepcopy(fields)
            del out[key]
            yield f"no {key}", out
        values = HUGE.get(kind, [0, 1, 2, 77, 0xFFFFFFFF] if kind in ENUMS else [])
        for value in values:
            out = copy.deepcopy(fields)
            out[key] = [value] * 3 if repeated else value
            yield f"{key} = {str(value)[:40]!r}", out
        if repeated and kind in HUGE:
            many = 10000 if kind == "string" else 70000  # it has to fit into a frame
            yield f"{key} * {many}", {**fields, key: HUGE[kind][1:2] * many}
        inner = fields.get(key)
        if kind in MESSAGES and inner:
            first = inner[0] if repeated else inner
            for what, changed in mutations(kind, first):
                out = copy.deepcopy(fields)
                out[key] = [changed] + inner[1:] if repeated else changed
                yield f"{key}.{what}", out
            yield f"{key} empty", {**fields, key: [{}] if repeated else {}}


def every_field(daemon, past):
    client, counts, dropped = daemon.client(), {}, {past.id}
    for method, (fields, payload) in good_requests(past).items():
        for what, changed in mutations(METHODS[method][1] + "Request", fields):
            if method == "drop" and changed.get("context_id") in dropped:
                continue
            if method == "truncate" and changed.get("context_id") == past.id:
                continue
            request_id = client.send(method, changed, payload)
            reply = client.receive()
            assert reply.request_id == request_id, (method, what)
            assert reply.status == 0 or reply.status in CODE_NAMES, (method, what, reply.status)
            if reply.status != 0:
                assert reply.message["text"], f"{method}: {what}: an error without a reason"
            counts[reply.status] = counts.get(reply.status, 0) + 1
    print("answers by status:", {CODE_NAMES.get(code, "ok"): n for code, n in sorted(counts.items())})
    assert sum(counts.values()) > 400 and len(counts) > 5, counts


def shapes(past):
    client = past.client

    def append(what, expected, **change):
        fields, payload = past.append_fields(3, 2)
        layer = fields["layers"][0]
        for key, value in change.items():
            if isinstance(value, dict) and isinstance(layer.get(key), dict):
                layer[key] = {**layer[key], **value}
            else:
                layer[key] = value
        text = client.fails(expected, "append", fields, payload)
        print(f"  {what}: {expected}: {text}")

    append("other dtype", "ESHAPE", k={"dtype": 1})
    append("no such dtype", "ESHAPE", k={"dtype": 9})
    append("rank 2", "ESHAPE", k={"shape": [2, 128]})
    append("rank 9", "ESHAPE", k={"shape": [1] * 9})
    append("heads", "ESHAPE", k={"shape": [2, 3, 64]})
    append("v differs from k", "ESHAPE", v={"shape": [1, 2, 64]})
    append("no rows", "ESHAPE", k={"shape": [0, 2, 64]}, v={"shape": [0, 2, 64]})
    append("overflow", "ESHAPE", k={"shape": [1 << 62, 2, 64]})
    append("behind the payload", "ESHAPE", k={"offset": 1 << 20})
    append("offset wraps", "ESHAPE", k={"offset": (1 << 64) - 64})
    append("unaligned", "ESHAPE", k={"offset": 1})
    append("token ids", "ESHAPE", token_ids=[1, 2, 3])
    append("layer", "EINVAL", layer=2)
    append("gap", "EPOSITION", position=9)
    append("other bytes", "EPOSITION", position=1)
    fields, payload = past.append_fields(3, 2)
    bad = bytearray(payload)
    bad[1] = bad[0] = 0xFF  # NaN in the first element
    text = client.fails("ENONFINITE", "append", fields, bytes(bad))
    assert "layer 0" in text, text
    client.fails("EINVAL", "append", {**fields, "ack": 7}, payload)
    client.fails("ELIMIT", "append", {"context_id": past.id})
    client.fails("ENOROW", "fetch", {"context_id": past.id, "layer": 0, "ids": [3]})
    client.fails("EPOSITION", "truncate", {"context_id": past.id, "position": 4})
    client.fails("EEXIST", "fork", {"context_id": past.id, "name": past.name})
    client.fails("EEXIST", "open", {"name": past.name, "model": past.model, "must_create": True})
    client.fails("EMISMATCH", "open", {"name": past.name, "model": model(layers=3)})
    client.fails("EMISMATCH", "open", {"name": past.name, "model": model(fingerprint="other")})
    client.fails("EINVAL", "open", {"name": "new", "model": model(head_dim=65), "create": True})
    client.fails("ENOCONTEXT", "open", {"name": "missing"})
    client.fails("EVERSION", "hello", {})
    client.fails("ELIMIT", "hello", {"version": 1, "client": "x" * 5000})
    client.fails("EINVAL", "compact", {"path": "relative"})


def inputs(past):
    """What comes with tokens and queries besides: each in the one shape that it may have."""
    client = past.client
    fields, payload = past.append_fields(3, 2)
    layer, tensors = fields["layers"][0], Payload()
    tensors.data += payload
    scores = tensors.add("FP32", (2, 4), bytes(32))

    def append(code, text, **change):
        said = client.fails(code, "append", {**fields, "layers": [{**layer, **change}]}, tensors.data)
        assert text in said, said

    append("ESHAPE", "marks", marks=b"\1")
    append("ESHAPE", "marks", marks=b"\1\2\3")
    append("EINVAL", "mark 4 of token 1", marks=b"\3\4")
    append("ESHAPE", "scores", scores={**scores, "shape": [2, 2]})
    append("ESHAPE", "scores", scores={**scores, "shape": [1, 4]})
    append("ESHAPE", "scores", scores={**scores, "dtype": 5})
    append("EUNSUPPORTED", "states", states={**scores, "shape": [2, 4]})

    fields, payload = past.attend_fields(queries=2)
    item, tensors = fields["items"][0], Payload()
    tensors.data += payload
    o = tensors.add("FP32", (2, 4, 64), bytes(2048))
    lse = tensors.add("FP32", (2, 4), bytes(32))
    nan = tensors.add("FP32", (2, 4, 64), struct.pack("<512f", *[1.0] * 511, float("nan")))
    bad = [tensors.add("FP32", (2, 4), struct.pack("<8f", *[0.0] * 7, x)) for x in (float("nan"), float("inf"))]

    def attend(code, text, **change):
        answer = client.ask("attend", {"items": [{**item, **change}]}, tensors.data)["answers"][0]
        assert CODE_NAMES.get(answer["status"]) == code and text in answer["error"], answer

    attend("ESHAPE", "local_lse", local_o=o)
    attend("ESHAPE", "local_o", local_lse=lse)
    attend("ESHAPE", "local_o", local_o={**o, "shape": [1, 4, 64]}, local_lse=lse)
    attend("ESHAPE", "local_lse", local_o=o, local_lse={**lse, "shape": [2, 2]})
    attend("ESHAPE", "local_o", local_o={**o, "dtype": 2}, local_lse=lse)
    attend("ENONFINITE", "local_o", local_o=nan, local_lse=lse)
    for wrong in bad:
        attend("ENONFINITE", "local_lse 7", local_o=o, local_lse=wrong)
    attend("EUNSUPPORTED", "states", states={**lse})
    client.fails("EUNSUPPORTED", "search", {**item, "k": 1, "states": lse}, tensors.data)
    text = client.fails("ELIMIT", "attend", {"items": [{**item, "explain": True}] * 17}, tensors.data)
    assert "reading plan" in text, text
    answers = client.ask("attend", {"items": [{**item, "explain": True}] * 16 + [item] * 3}, tensors.data)
    assert [answer["plan"] is not None for answer in answers["answers"]] == [True] * 16 + [False] * 3


def uploads(past):
    """What is told of tokens that are stored, and of a prompt."""
    client, tensors = past.client, Payload()
    other = Past(client, "observed", method="infllm")
    other.append(0, 8)
    good = tensors.add("FP32", (3, 4), bytes(48))
    bad = {name: tensors.add("FP32", (3, 4), struct.pack("<12f", *[1.0] * 11, value))
           for name, value in (("nan", float("nan")), ("inf", float("inf")), ("negative", -1e-6))}
    seen = {"context_id": other.id, "layer": 0, "position": 0, "mass": good}

    def observe(code, text, **change):
        said = client.fails(code, "observe", {**seen, **change}, tensors.data)
        assert text in said, said

    assert client.ask("observe", seen, tensors.data)["tokens"] == 8
    observe("EUNSUPPORTED", "progressive", context_id=past.id)
    observe("ENOCONTEXT", "", context_id=999)
    observe("EINVAL", "layer 2", layer=2)
    observe("EPOSITION", "8", position=6)
    observe("EPOSITION", "", position=(1 << 64) - 1)
    observe("ESHAPE", "mass", mass={**good, "shape": [3, 2]})
    observe("ESHAPE", "mass", mass={**good, "shape": [12]})
    observe("ESHAPE", "mass", mass={**good, "dtype": 4})
    client.fails("ESHAPE", "observe", {key: seen[key] for key in seen if key != "mass"})
    observe("ENONFINITE", "token 2, head 3", mass=bad["nan"])
    observe("ENONFINITE", "", mass=bad["inf"])
    observe("EINVAL", "token 2, head 3", mass=bad["negative"])

    prompt = {"context_id": other.id, "layers": [{"layer": 0}]}
    assert "infllm" in client.fails("EUNSUPPORTED", "compress", prompt)
    client.fails("ENOCONTEXT", "compress", {**prompt, "context_id": 999})
    client.fails("ELIMIT", "compress", {"context_id": other.id})
    client.fails("ELIMIT", "compress", {**prompt, "layers": [{}] * 1025})
    client.fails("EINVAL", "compress", {**prompt, "layers": [{"layer": 0}, {"layer": 2}]})
    client.fails("ESHAPE", "compress", {**prompt, "layers": [{"q": {**good, "shape": [3, 4, 1]}}]}, tensors.data)
    many = {"dtype": 2, "shape": [4097, 4, 64], "offset": 0}
    client.fails("ELIMIT", "compress", {**prompt, "layers": [{"q": many}]}, bytes(2 * 4097 * 256))
    client.ask("drop", {"context_id": other.id})


def tensors(past):
    """Uploads: for a context or a set, of the shape that the method declares, with numbers in it."""
    client, payload = past.client, Payload()
    gated = Past(client, "gated", method="landmark")
    gate = payload.add("FP32", (2, 64), bytes(512))
    nan = payload.add("FP32", (2, 64), struct.pack("<128f", *[0.0] * 127, float("nan")))
    good = {"name": "gate", "value": gate}

    def put(code, text, param=good, **change):
        fields = {"context_id": gated.id, "params": [param], **change}
        said = client.fails(code, "put_params", fields, payload.data)
        assert text in said, said

    client.ask("put_params", {"context_id": gated.id, "params": [good]}, payload.data)
    put("ENOCONTEXT", "", context_id=999)
    put("EUNSUPPORTED", "progressive", context_id=past.id)
    put("EINVAL", "nothing", {**good, "name": "nothing"})
    put("EINVAL", "", {**good, "name": ""})
    put("EINVAL", "", {**good, "name": "x" * 300})
    put("EINVAL", "layer 2", {**good, "layer": 2})
    put("EINVAL", "layer 65535", {**good, "layer": 65535})
    put("ESHAPE", "gate", {**good, "value": {**gate, "shape": [64, 2]}})
    put("ESHAPE", "gate", {**good, "value": {**gate, "shape": [1, 1, 1, 2, 64]}})
    put("ESHAPE", "gate", {**good, "value": {**gate, "dtype": 4}})
    put("ESHAPE", "gate", {"name": "gate"})
    put("ENONFINITE", "", {**good, "value": nan})
    put("ELIMIT", "0 tensors", params=[])
    put("ELIMIT", "4097 tensors", params=[good] * 4097)
    put("EINVAL", "either", set="both")
    put("EINVAL", "either", context_id=0)
    shared = {"context_id": 0, "set": "gates", "model": gated.model, "method": "landmark"}
    put("EINVAL", "name", **{**shared, "set": "\1"})
    put("EINVAL", "model", **{key: shared[key] for key in shared if key != "model"})
    put("EINVAL", "", **{**shared, "model": model(head_dim=65)})
    put("EUNSUPPORTED", "magic", **{**shared, "method": "magic"})
    put("EINVAL", "", **{**shared, "parameters": [{"name": "nothing", "value": "1"}]})
    client.ask("put_params", {**shared, "params": [good]}, payload.data)
    put("EMISMATCH", "", **{**shared, "model": model(layers=3)})
    client.fails("EINVAL", "drop_params", {"set": ""})
    client.fails("EINVAL", "drop_params", {"set": "nobody"})
    client.ask("drop_params", {"set": "gates"})
    client.ask("drop", {"context_id": gated.id})


def wishes(past):
    """How good an answer has to be: what is out of range is refused, by the item alone in an Attend."""
    client = past.client
    attend, payload = past.attend_fields()
    item = attend["items"][0]
    other = {"search": {**item, "k": 3}, "recall": {"context_id": past.id, "layer": 0},
             "explain": {"context_id": past.id, "layer": 0}}
    for target in (-1e-9, 1.000001, 1e308, float("nan"), float("inf"), float("-inf")):
        wrong = {**item, "target_error": target}
        answers = client.ask("attend", {"items": [wrong, item]}, payload)["answers"]
        assert [CODE_NAMES.get(answer["status"], 0) for answer in answers] == ["EINVAL", 0], answers
        assert "target_error" in answers[0]["error"], answers
        for method, fields in other.items():
            text = client.fails("EINVAL", method, {**fields, "target_error": target},
                                payload if method == "search" else b"")
            assert "target_error" in text, text
    for target in (0.0, 1e-300, 0.5, 1.0):
        for max_bytes in (0, 1, (1 << 64) - 1):
            good = {**item, "target_error": target, "max_bytes": max_bytes}
            answer = client.ask("attend", {"items": [good]}, payload)["answers"][0]
            assert answer["status"] == 0, answer
            client.ask("search", {**good, "k": 3}, payload)
    client.fails("EINVAL", "recall", {"context_id": past.id, "layer": 2})
    client.fails("ENOCONTEXT", "recall", {"context_id": 999})
    client.fails("EINVAL", "explain", {"context_id": past.id, "layer": 2})
    client.fails("ENOCONTEXT", "explain", {"context_id": 999})
    client.fails("ENOROW", "explain", {"context_id": past.id, "layer": 0, "query": 1 << 40})
    client.fails("ENOCONTEXT", "rebuild", {"context_id": 999})
    client.fails("ENOCONTEXT", "rebuild", {"context_id": 999, "ask": True})
    client.fails("EINVAL", "rebuild", {"ask": True})
    client.fails("EINVAL", "rebuild", {"context_id": past.id, "ask": True, "cursor": b"x"})
    client.fails("ELIMIT", "rebuild", {"cursor": bytes(513)})
    parameters = [{"name": "target_error", "value": "1.7"}]
    client.fails("EINVAL", "open", {"name": "wish", "model": past.model, "create": True,
                                    "method": "progressive", "parameters": parameters})
    client.fails("EINVAL", "open", {"name": "wish", "model": past.model, "create": True,
                                    "method": "full", "parameters": parameters})
    client.fails("EUNSUPPORTED", "open", {"name": "wish", "model": past.model, "create": True,
                                          "method": "nonsense"})


def frames(daemon):
    """Broken framing: a reply with id 0 where one can be given, and the connection ends."""
    message = encode("HealthRequest", {})
    header = bytearray(frame("health", message))
    cases = {
        "magic": (frame("health", magic=b"HTTP"), "EPROTO"),
        "version": (frame("health", version=9), "EVERSION"),
        "kind": (frame("health", kind=3), "EPROTO"),
        "reply": (frame("health", kind=2), "EPROTO"),
        "reserved": (frame("health", reserved=1), "EPROTO"),
        "message too long": (frame("health", message_bytes=(4 << 20) + 1), "ELIMIT"),
        "payload too long": (frame("health", payload_bytes=(256 << 20) + 1), "ELIMIT"),
        "payload endless": (frame("health", payload_bytes=(1 << 64) - 1), "ELIMIT"),
        "text": (b"GET / HTTP/1.1\r\nHost: memd\r\n\r\n" * 4, "EPROTO"),
    }
    for what, (data, code) in cases.items():
        client = daemon.client()
        client.socket.sendall(data)
        reply = client.receive()
        assert (CODE_NAMES[reply.status], reply.request_id) == (code, 0), (what, reply.status)
        assert client.is_closed(), what
    for cut in (1, 20, HEADER.size - 1, HEADER.size):
        client = daemon.client()
        client.socket.sendall(bytes(header[:cut]) if cut < HEADER.size else
                              frame("health", b"", message_bytes=10)[:cut])
        client.close()
    client = daemon.client()
    for number in (0, 3, 15, 999, 65535):
        client.socket.sendall(frame(number, b"\x08\x01", bytes(100), request_id=number))
        reply = client.receive()
        assert (CODE_NAMES[reply.status], reply.request_id) == ("EUNSUPPORTED", number)
    garbage = [b"\xff" * 20, b"\x08", b"\x0a\xff\xff\xff\xff\x0f", b"\x12\x80\x80\x80\x80\x10",
               varint(1 << 3 | 7) + b"\0", b"\x0a\x02\xc3\x28"]
    for data in garbage:
        client.socket.sendall(frame("open", data))
        assert CODE_NAMES[client.receive().status] in ("EPROTO", "EINVAL"), data
    unknown = varint(900 << 3) + b"\x01"  # an unknown field is ignored
    client.socket.sendall(frame("health", unknown))
    assert client.receive().status == 0


def noise(daemon, seed):
    """Random bytes behind a valid header, and valid frames with flipped bytes."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    past = Past(daemon.client(), "noise")
    requests = list(good_requests(past).items())
    client = daemon.client()
    for _ in range(600):
        method, (fields, payload) = rng.choice(requests)
        if method in ("drop", "truncate", "compact"):
            continue
        body = bytearray(encode(METHODS[method][1] + "Request", fields))
        for _ in range(rng.randint(0, 3)):
            if body:
                body[rng.randrange(len(body))] = rng.randrange(256)
        client.socket.sendall(frame(method, bytes(body), payload))
        reply = client.receive()
        assert reply.status == 0 or reply.status in CODE_NAMES, reply.status


def main():
    with Daemon() as daemon:
        past = Past(daemon.client(), "book")
        past.append(0, 3)
        every_field(daemon, past)
        past.check(3)
        shapes(past)
        inputs(past)
        uploads(past)
        tensors(past)
        wishes(past)
        frames(daemon)
        noise(daemon, int(os.environ.get("MEMD_TEST_SEED", "1")))
        past.check(3)
        assert past.client.ask("health")["ready"]
        daemon.stop()


main()
