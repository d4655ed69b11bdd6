# SPDX-License-Identifier: Apache-2.0
"""Every request once, the way a good client sends it."""
import math
import os
import struct

from past import Past, floats, verify
from wire import Daemon, Payload


def contexts(client):
    past = Past(client, "book")
    opened = client.ask("open", {"name": "book"})
    assert opened["context_id"] == past.id and not opened["created"], opened
    assert opened["model"]["head_dim"] == 64 and opened["method"] == "progressive", opened
    for position in range(0, 1500, 100):
        reply = past.append(position, 100)
        assert reply["tokens"] == position + 100, reply
        assert reply["committed_tokens"] == position + 100, reply
    reply = past.append(1500, 1, ack="synced")
    assert reply["synced_tokens"] == 1501, reply
    past.check(1501)
    return past


def answers(client, past):
    answer, payload = past.attend(layer=1, queries=3)
    assert answer["status"] == 0 and answer["quality"]["exact"], answer
    assert answer["o"]["shape"] == [3, 4, 64] and answer["lse"]["shape"] == [3, 4], answer
    assert all(math.isfinite(x) for x in floats(payload, answer["lse"])), answer
    fields, body = past.attend_fields()
    item = fields["items"][0]
    fields["items"] = [item, {**item, "layer": 99}, {**item, "context_id": 12345}, item]
    batch = client.call("attend", fields, body)
    states = [a["status"] for a in batch.message["answers"]]
    assert states[0] == states[3] == 0 and states[1] == -1 and states[2] == -5, states
    first, last = batch.message["answers"][0]["o"], batch.message["answers"][3]["o"]
    assert floats(batch.payload, first) == floats(batch.payload, last)
    item["limits"] = [0]
    nothing = client.call("attend", {"items": [item]}, body)
    lse = floats(nothing.payload, nothing.message["answers"][0]["lse"])
    assert all(x == -math.inf for x in lse), lse
    found = client.call("search", {"context_id": past.id, "layer": 0, "q": item["q"],
                                   "positions": [1501], "k": 5}, body).message
    assert found["ids"]["shape"] == [1, 4, 5], found


def merged(parts):
    """One answer from lists (o, lse) of one query head each."""
    top = max(lse for _, lse in parts)
    weights = [math.exp(lse - top) for _, lse in parts]
    total = sum(weights)
    o = [sum(w * part[0][i] for w, part in zip(weights, parts)) / total for i in range(len(parts[0][0]))]
    return o, top + math.log(total)


def explained(client):
    """What was read, told as it happened; and an answer that holds the client's own."""
    past = Past(client, "told", method="streaming", parameters=[{"name": "sinks", "value": "2"},
                                                                {"name": "window", "value": "5"}])
    past.append(0, 20)
    fields, body = past.attend_fields(queries=2)
    item = fields["items"][0]
    item.update(limits=[20, 4], explain=True)
    answer = client.ask("attend", {"items": [item, {**item, "explain": False}]}, body)["answers"]
    assert answer[1]["plan"] is None, answer
    plan = answer[0]["plan"]
    runs, groups = plan["runs"], plan["groups"]
    read = sorted(zip(runs["query"], runs["head"], runs["heads"], runs["first"], runs["count"]))
    assert read == [(0, 0, 2, 0, 2), (0, 0, 2, 15, 5), (0, 2, 2, 0, 2), (0, 2, 2, 15, 5),
                    (1, 0, 2, 0, 4), (1, 2, 2, 0, 4)], read
    assert runs["placed"] == runs["first"] and set(runs["query_placed"]) == {1 << 20}, runs
    assert set(runs["group"]) == set(runs["kind"]) == {0} and not plan["cut"], plan
    assert groups == {"query": [0], "head": [0], "merge": [0], "weight": [1.0]}, groups

    shares = [share for head, query, share in zip(runs["head"], runs["query"], runs["share"])
              if (head, query) == (0, 0)]
    assert len(shares) == 2 and abs(sum(shares) - 1) < 1e-4, shares  # of what was read, all of the answer
    assert all(abs(share - 1) < 1e-4 for query, share in zip(runs["query"], runs["share"]) if query == 1), runs
    again = client.ask("explain", {"context_id": past.id, "layer": 0, "query": 1})
    assert (again["queries"], again["position"], again["tokens"]) == (4, 1 << 20, 20), again
    assert again["plan"]["runs"]["first"] == [0, 15, 0, 15] and len(again["lse"]) == 4, again
    assert again["quality"]["method"] == "streaming", again
    assert client.ask("explain", {"context_id": past.id, "layer": 1})["queries"] == 0

    fields, body = past.attend_fields()
    item = fields["items"][0]
    whole = client.call("attend", fields, body)
    stored = whole.message["answers"][0]
    o, lse = floats(whole.payload, stored["o"]), floats(whole.payload, stored["lse"])
    payload = Payload()
    payload.data += body
    item["local_o"] = payload.add("FP32", (1, 4, 64), struct.pack("<256f", *range(256)))
    item["local_lse"] = payload.add("FP32", (1, 4), struct.pack("<4f", lse[0], lse[1] + 1, 0, -math.inf))
    both = client.call("attend", fields, payload.data)
    answer = both.message["answers"][0]
    local = [lse[0], lse[1] + 1, 0.0, -math.inf]
    got_o, got_lse = floats(both.payload, answer["o"]), floats(both.payload, answer["lse"])
    for head in range(4):
        at = slice(64 * head, 64 * head + 64)
        want_o, want_lse = merged([(o[at], lse[head]), (list(map(float, range(256)[at])), local[head])])
        assert abs(got_lse[head] - want_lse) < 1e-5, (head, got_lse, want_lse)
        assert all(abs(a - b) < 1e-3 for a, b in zip(got_o[at], want_o)), (head, got_o[at], want_o)
    for key in ("method", "rows", "bytes_read", "tokens"):  # of what is stored
        assert answer["quality"][key] == stored["quality"][key], answer
    client.ask("drop", {"context_id": past.id})


def mass(client):
    """Attention mass comes with tokens and after them; a method without use for it says so."""
    past = Past(client, "mass", method="infllm")
    payload = Payload()
    layer = past.layer(payload, 1, 0, 40)
    layer["scores"] = payload.add("FP32", (40, 4), struct.pack("<160f", *[0.5] * 160))
    client.ask("append", {"context_id": past.id, "layers": [layer]}, payload.data)
    payload = Payload()
    seen = {"context_id": past.id, "layer": 1, "position": 10,
            "mass": payload.add("FP16", (30, 4), struct.pack("<120e", *[0.25] * 120))}
    assert client.ask("observe", seen, payload.data)["tokens"] == 40
    text = client.fails("EPOSITION", "observe", {**seen, "position": 11}, payload.data)
    assert "40" in text, text
    client.fails("EUNSUPPORTED", "compress", {"context_id": past.id, "layers": [{"layer": 1}]})
    client.ask("drop", {"context_id": past.id})


def prompts(client):
    """A prompt is compressed once; what was kept is read, what was not is still there."""
    past = Past(client, "prompt", method="snapkv", parameters=[{"name": "capacity", "value": "24"},
                                                               {"name": "window", "value": "8"}])
    past.append(0, 100)
    payload = Payload()
    q = payload.add("FP16", (8, 4, 64), bytes(8 * 4 * 64 * 2))
    prompt = {"context_id": past.id, "layers": [{"layer": 0, "tokens": 90, "q": q}]}
    kept = client.ask("compress", prompt, payload.data)["kept"]
    assert len(kept) == 1 and 0 < kept[0] <= 24 * 4, kept
    client.fails("EEXIST", "compress", prompt, payload.data)
    client.fails("EPOSITION", "compress", {"context_id": past.id, "layers": [{"layer": 1, "tokens": 101, "q": q}]},
                 payload.data)
    fields, body = past.attend_fields()
    fields["items"][0]["explain"] = True
    runs = client.ask("attend", fields, body)["answers"][0]["plan"]["runs"]
    read = {t for first, count in zip(runs["first"], runs["count"]) for t in range(first, first + count)}
    assert set(range(90, 100)) <= read and len(read) < 100, sorted(read)
    client.fails("EUNSUPPORTED", "truncate", {"context_id": past.id, "position": 50})
    past.check(100)
    client.ask("drop", {"context_id": past.id})


def tensors(client):
    """A method's tensors: of one context, and of a set that contexts share."""
    methods = {method["name"]: method for method in client.ask("methods")["methods"]}
    assert [(tensor["name"], tensor["shape"]) for tensor in methods["landmark"]["tensors"]] == [("gate", "GD")]
    past = Past(client, "gated", method="landmark")
    past.append(0, 3)
    payload = Payload()
    gate = payload.add("FP32", (2, 64), bytes(512))
    params = [{"name": "gate", "value": gate}, {"name": "gate", "layer": 1, "value": gate}]
    assert client.ask("put_params", {"context_id": past.id, "params": params}, payload.data) == {}
    shared = {"set": "gates", "model": past.model, "method": "landmark", "params": params[:1]}
    client.ask("put_params", shared, payload.data)
    client.ask("put_params", shared, payload.data)  # in place of itself
    fields = {"name": "sharing", "model": past.model, "method": "landmark", "create": True,
              "parameters": [{"name": "params", "value": "gates"}]}
    sharing = client.ask("open", fields)["context_id"]
    client.fails("EUNSUPPORTED", "put_params", {"context_id": sharing, "params": params}, payload.data)
    client.fails("EBUSY", "drop_params", {"set": "gates"})
    client.ask("drop", {"context_id": sharing})
    assert client.ask("drop_params", {"set": "gates"})["bytes"] > 512
    client.fails("EINVAL", "drop_params", {"set": "gates"})
    client.ask("drop", {"context_id": past.id})


def states(client):
    """What a method keeps of each layer in use."""
    past = Past(client, "kept", method="extended-mind", layers=3)
    payload = Payload()
    layers = [past.layer(payload, layer, 0, 700) for layer in (0, 2)]
    client.ask("append", {"context_id": past.id, "layers": layers}, payload.data)
    told = client.ask("stat", {"name": "kept", "state": True})
    assert [state["layer"] for state in told["states"]] == [0, 2], told
    facts = {fact["name"]: fact["value"] for fact in told["states"][1]["facts"]}
    assert facts["tokens"] <= 700 and facts["bytes"] > 0, facts
    assert told["context"]["tokens"] == 700 and client.ask("stat", {"name": "kept"})["states"] == []
    assert client.ask("stat", {"name": "book", "state": True})["states"] == []
    client.ask("drop", {"context_id": past.id})


def derived(client, past):
    """What is made from the rows: built in the background, proved, deleted and made again."""
    def wait():
        while True:
            state = client.ask("rebuild", {"context_id": past.id, "ask": True})
            assert state["failure"] == "", state
            if state["built_segments"] == state["segments"] and state["built_indexes"] == state["indexes"]:
                return state
    state = wait()
    assert state["segments"] == 2 and state["deleted_segments"] == 0, state
    stat = client.ask("stat", {"context_id": past.id})["context"]
    assert stat["built_segments"] == stat["sealed_segments"] == 2, stat
    assert 0 < stat["derived_bytes"] < stat["stored_bytes"], stat
    recall = client.ask("recall", {"context_id": past.id, "layer": 1})
    assert recall["method"] == "progressive" and recall["target_error"] == 0.02, recall
    assert recall["queries"] == 3 and recall["answers"] == 12 and recall["tokens"] == 1501, recall
    assert recall["within_twice"] == 1 and recall["error"]["max"] <= 0.04, recall
    assert abs(sum(recall["level_mass"]) - 1) < 0.01 and recall["bytes_exact"] > 0, recall
    fields, body = past.attend_fields()
    fields["items"][0]["target_error"] = 0.0
    exact = client.ask("attend", fields, body)["answers"][0]["quality"]
    assert exact["exact"] and exact["bytes_read"] == exact["bytes_exact"], exact
    assert exact["level_mass"] == exact["predicted_error"] == [], exact
    step = client.ask("rebuild", {"context_id": past.id})
    assert step["deleted_segments"] == 2 and step["deleted_bytes"] > 0 and step["context_id"] == past.id, step
    cursor, seen = step["cursor"], []
    while cursor:
        step = client.ask("rebuild", {"context_id": past.id, "cursor": cursor})
        cursor = step["cursor"]
    while True:  # all contexts, one a step
        step = client.ask("rebuild", {"cursor": cursor})
        seen.append(step["context_id"])
        cursor = step["cursor"]
        if not cursor:
            break
    assert past.id in seen, seen
    assert wait()["built_segments"] == 2
    past.check(1501)


def changes(client, past):
    fork = client.ask("fork", {"context_id": past.id, "name": "fork"})
    assert fork["tokens"] == 1501, fork
    assert client.ask("truncate", {"context_id": past.id, "position": 1200})["tokens"] == 1200
    past.append(1200, 10)
    past.check(1210)
    stat = client.ask("stat", {"name": "fork"})["context"]
    assert stat["context_id"] == fork["context_id"] and stat["tokens"] == 1501, stat
    assert stat["parent_id"] == past.id, stat
    names = [c["name"] for c in client.ask("list")["contexts"]]
    assert names == ["book", "fork"], names
    page = client.ask("list", {"limit": 1, "after": "book"})
    assert [c["name"] for c in page["contexts"]] == ["fork"] and not page["more"], page
    assert client.ask("pin", {"context_id": past.id, "seconds": 60})["until_unix_ms"] > 0
    client.ask("drop", {"context_id": fork["context_id"]})
    client.fails("ENOCONTEXT", "stat", {"name": "fork"})


def operation(client, daemon):
    hello = client.ask("hello", {"version": 1, "client": "test"})
    assert hello["role"] == "admin" and "full" in hello["methods"], hello
    assert {"levels", "methods", "recall", "rebuild", "inputs", "explain", "local",
            "observe", "compress", "params"} <= set(hello["features"]), hello
    methods = client.ask("methods")["methods"]
    assert [method["name"] for method in methods] == hello["methods"], methods
    chosen = [method for method in methods if method["is_default"]]
    assert [method["name"] for method in chosen] == ["progressive"], methods
    options = {option["name"]: option for option in chosen[0]["options"]}
    assert options["target_error"]["fallback"] == 0.02 and options["target_error"]["help"], options
    abilities = {method["name"]: method for method in methods}
    assert abilities["retrieval-attention"]["samples_queries"], abilities
    assert not any(abilities["full"][key] for key in ("tensors", "takes_mass", "compresses", "wants_queries",
                                                      "wants_marks", "folds", "state_width")), abilities
    assert client.ask("health")["ready"]
    status = client.ask("status")
    assert status["pid"] == daemon.process.pid and status["contexts"] == 1, status
    stats = client.ask("stats")
    counters = {c["name"]: c["value"] for c in stats["counters"]}
    assert counters["requests_append_total"] == 22 and counters["errors_enocontext_total"] == 2, counters
    assert counters["built_segments_total"] >= 4 and counters["build_failures_total"] == 0, counters
    layers = {h["name"]: h for h in stats["histograms"] if "_layer_" in h["name"]}
    assert sum(layers["attend_predicted_error_layer_1"]["counts"]) == 12, layers
    assert sum(layers["attend_bytes_share_layer_1"]["counts"]) == 1, layers
    assert counters["connections"] >= 1 and counters["received_bytes_total"] > 1e6, counters
    findings, values = verify(client)
    assert findings == [] and values > 0, (findings, values)
    assert client.ask("dump", {"limit": 10})["records"]
    copy = os.path.join(daemon.directory, "copy")
    assert client.ask("compact", {"path": copy})["bytes_after"] > 0
    return copy


def main():
    with Daemon() as daemon:
        client = daemon.client()
        past = contexts(client)
        answers(client, past)
        explained(client)
        states(client)
        mass(client)
        prompts(client)
        tensors(client)
        derived(client, past)
        changes(client, past)
        copy = operation(client, daemon)
        left = client.ask("drain", {"deadline_ms": 5000})["requests_left"]
        assert left == 0, left
        assert daemon.process.wait(30) == 0
        assert not os.path.exists(daemon.address), "the socket file outlived its daemon"
        daemon.start()
        past.client = daemon.client()
        past.check(1210)
        daemon.stop()
        with Daemon(data=copy) as other:
            past.client = other.client()
            past.check(1210)


main()
