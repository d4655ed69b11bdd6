# SPDX-License-Identifier: Apache-2.0
"""Every request once, the way a good client sends it."""
import math
import os

from past import Past, floats, verify
from wire import Daemon


def contexts(client):
    past = Past(client, "book")
    opened = client.ask("open", {"name": "book"})
    assert opened["context_id"] == past.id and not opened["created"], opened
    assert opened["model"]["head_dim"] == 64 and opened["method"] == "full", opened
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
    assert client.ask("health")["ready"]
    status = client.ask("status")
    assert status["pid"] == daemon.process.pid and status["contexts"] == 1, status
    counters = {c["name"]: c["value"] for c in client.ask("stats")["counters"]}
    assert counters["requests_append_total"] == 17 and counters["errors_enocontext_total"] == 2, counters
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
