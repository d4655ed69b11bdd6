# SPDX-License-Identifier: Apache-2.0
"""CPU and device are interchangeable: the same daemon with a device that computes on the CPU, and without.

MEMD_DEVICE_PLUGIN is the plugin of that device, or of a real one (tests/simt/on_device.sh). Its answers are not the
CPU's bits, they are sums in another order: compared to 1e-5. That a device was used at all is seen in its counters.
"""
import math
import os
import re
import signal
import time

from past import Past, floats, rows
from wire import ENUMS, Daemon, Payload

DEVICE_PLUGIN = os.environ["MEMD_DEVICE_PLUGIN"]
KIND = "fake" if "fake" in os.path.basename(DEVICE_PLUGIN) else "cuda"
PLUGIN = ("--accelerator", DEVICE_PLUGIN, "--device-window", "256")
DEVICE = (*PLUGIN, "--backend", "auto")
TOKENS = 1500


def counters(client):
    return {c["name"]: c["value"] for c in client.ask("stats")["counters"]}


def answers(past, queries=3):
    """(o, lse) of both layers."""
    found = []
    for layer in range(past.layers):
        answer, payload = past.attend(layer=layer, queries=queries)
        assert answer["status"] == 0 and answer["quality"]["exact"], answer
        found += floats(payload, answer["o"]) + floats(payload, answer["lse"])
    return found


def close(some, others):
    worst = max(abs(a - b) for a, b in zip(some, others))
    assert len(some) == len(others) and worst < 1e-5, worst


def backend(client):
    status = client.ask("status")
    return status["backend"], status["backend_reason"]


def truth():
    """What the CPU answers, after 1500 tokens, after one more, after cutting 100 off and appending 7."""
    with Daemon("--accelerator", "") as daemon:
        client = daemon.client()
        assert backend(client) == ("cpu", "no plugin for a device is installed")
        past = Past(client, "book")
        found = life(past)
        assert counters(client)["device_steps_total"] == 0
        daemon.stop()
        return found


def life(past):
    found = []
    past.append(0, TOKENS)
    found.append(answers(past))
    past.append(TOKENS, 1)
    found.append(answers(past))
    past.client.ask("truncate", {"context_id": past.id, "position": TOKENS - 99})
    past.seed += 1  # other tokens at the same positions
    past.append(TOKENS - 99, 7)
    past.seed -= 1
    found.append(answers(past))
    return found


def check_device(wanted):
    with Daemon(*DEVICE) as daemon:
        client = daemon.client()
        assert backend(client)[0] == KIND, backend(client)
        assert KIND == "cuda" or backend(client)[1] == "fake device", backend(client)
        past = Past(client, "book")
        for some, others in zip(life(past), wanted):
            close(some, others)
        counts = counters(client)
        assert counts["device_steps_total"] == 6 and counts["device_declined_total"] == 0, counts
        assert counts["device_windows"] == 2 and counts["device_fed_bytes_total"] > 0, counts
        daemon.stop()
        daemon.start()  # what was on the device is made again
        client = past.client = daemon.client()
        past.id = client.ask("open", {"name": "book"})["context_id"]
        close(answers(past), wanted[2])
        assert counters(client)["device_rebuilt_bytes_total"] > 0
        client.ask("drop", {"context_id": past.id})
        assert counters(client)["device_windows"] == 0
        daemon.stop()


def ask_many(client, pasts, **wish):
    """Both layers of all of them in one request: (o, lse) in the order of `answers`, and the answers."""
    payload, items = Payload(), []
    for past in pasts:
        for layer in range(past.layers):
            heads = past.model["query_heads"]
            q = payload.add("FP16", (3, heads, past.dim), rows(past.seed, layer, 0, 3, heads * past.dim, "q"))
            items.append({"context_id": past.id, "layer": layer, "q": q, "positions": [1 << 20] * 3, **wish})
    reply = client.call("attend", {"items": items}, payload.data)
    found = []
    for answer in reply.message["answers"]:
        assert answer["status"] == 0, answer
        found += floats(reply.payload, answer["o"]) + floats(reply.payload, answer["lse"])
    return found, reply.message["answers"]


def moved(client, before):
    """What the device's counters grew by."""
    return {name: value - before[name] for name, value in counters(client).items() if name.startswith("device_")}


def check_many(wanted):
    """Items of one request are one batch, whatever their contexts and layers, and answered as if alone."""
    with Daemon(*DEVICE, "--workers", "1") as daemon:
        client = daemon.client()
        pasts = [Past(client, f"book {i}", method="full" if i == 1 else "") for i in range(3)]
        for past in pasts:
            past.append(0, TOKENS)
        before = counters(client)
        found, replies = ask_many(client, pasts)
        close(found, wanted[0] * 3)
        assert all(answer["quality"]["window_tokens"] == 260 for answer in replies), replies  # 256 and 4
        grown = moved(client, before)
        assert grown["device_batches_total"] == 1 and grown["device_steps_total"] == 6, grown
        assert grown["device_declined_total"] == 0, grown
        # What is wrong with one is said of it alone.
        fields, payload = pasts[0].attend_fields(queries=3)
        good, other = fields["items"][0], pasts[1].attend_fields(queries=3)[0]["items"][0]
        replies = client.call("attend", {"items": [good, {**good, "layer": 9}, {**other, "rope_theta": 5.0},
                                                   {**good, "target_error": 0.0}, other]}, payload)
        answers_ = replies.message["answers"]
        assert [answer["status"] for answer in answers_] == [0, -1, -11, 0, 0], answers_
        for i in (0, 3, 4):
            at = floats(replies.payload, answers_[i]["o"])
            close(at, wanted[0][:len(at)])
        daemon.stop()


def check_window(wanted):
    """What a client may wish of the resident window, and what it is told of it."""
    with Daemon(*DEVICE) as daemon:
        client = daemon.client()
        past = Past(client, "book")
        past.append(0, TOKENS)
        wish = ENUMS["Window"]
        for name, tokens in (("ANY", 260), ("RESIDENT", 260), ("NONE", 0)):
            before = counters(client)
            for wished in ({"window": wish["WINDOW_" + name]},) if name != "ANY" else ({}, {"window": 0}):
                found, replies = ask_many(client, [past], **wished)
                if name == "NONE":
                    assert found == wanted[0]  # the CPU's own bits
                close(found, wanted[0])
                assert [answer["quality"]["window_tokens"] for answer in replies] == [tokens] * 2, replies
            grown = moved(client, before)
            assert (grown["device_steps_total"] > 0) == (name != "NONE"), grown
        fields, payload = past.attend_fields()
        fields["items"][0]["window"] = 7
        answer = client.ask("attend", fields, payload)["answers"][0]
        assert answer["status"] == -1 and "window 7" in answer["error"], answer
        # A few rows are answered by the loop, unless a device is asked for.
        small = Past(client, "leaflet")
        small.append(0, 20)
        for name in ("ANY", "RESIDENT"):
            fields, payload = small.attend_fields()
            fields["items"][0]["window"] = wish["WINDOW_" + name]
            answer = client.ask("attend", fields, payload)["answers"][0]
            assert answer["quality"]["window_tokens"] == (20 if name == "RESIDENT" else 0), answer
        daemon.stop()
    with Daemon("--accelerator", "") as daemon:  # nothing is refused for want of a device
        client = daemon.client()
        past = Past(client, "book")
        past.append(0, TOKENS)
        found, replies = ask_many(client, [past], window=wish["WINDOW_RESIDENT"])
        assert found == wanted[0] and replies[0]["quality"]["window_tokens"] == 0
        assert "window" in client.ask("hello", {"version": 1})["features"]
        daemon.stop()


def check_far():
    """More rows than travel at once: the CPU's, unless the device is asked for; then it gets them in pieces."""
    with Daemon(*PLUGIN, "--backend", "auto", "--device-window", "64") as daemon:
        client = daemon.client()
        past = Past(client, "book", layers=1, kv_heads=1, query_heads=1, head_dim=16)
        for position in range(0, 9000, 1500):
            past.append(position, 1500)
        found = {}
        for name in ("ANY", "RESIDENT", "NONE"):
            before = counters(client)
            fields, payload = past.attend_fields()
            fields["items"][0].update(window=ENUMS["Window"]["WINDOW_" + name], target_error=0.0)
            reply = client.call("attend", fields, payload)
            answer = reply.message["answers"][0]
            assert answer["quality"]["exact"], answer
            found[name] = floats(reply.payload, answer["o"])
            grown = moved(client, before)
            steps, declined = grown["device_steps_total"], grown["device_declined_total"]
            assert (steps, declined) == {"ANY": (0, 1), "RESIDENT": (1, 0), "NONE": (0, 0)}[name], (name, grown)
            assert answer["quality"]["window_tokens"] == (68 if name == "RESIDENT" else 0), answer
            assert grown["device_batches_total"] == (2 if name == "RESIDENT" else 0), grown
        assert found["ANY"] == found["NONE"]
        close(found["RESIDENT"], found["NONE"])
        daemon.stop()


def check_switch(wanted):
    """Back and forth while it runs, with an append in between that the device does not hear of."""
    with Daemon("--accelerator", "") as other:
        path = os.path.join(other.directory, "memd.conf")

        def write(choice):
            with open(path, "w", encoding="utf-8") as file:
                file.write(f"backend = {choice}\n")

        write("auto")
        with Daemon(*PLUGIN, config=path) as daemon:
            client = daemon.client()
            past = Past(client, "book")
            past.append(0, TOKENS)
            close(answers(past), wanted[0])
            write("cpu")
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_log("reloaded")
            assert backend(client) == ("cpu", "the device is switched off"), backend(client)
            past.append(TOKENS, 1)
            assert answers(past) == wanted[1]  # the CPU's own bits
            write("auto")
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_log("(?s)reloaded.*reloaded")
            assert backend(client)[0] == KIND
            close(answers(past), wanted[1])
            assert counters(client)["device_steps_total"] == 4
            daemon.stop()
        other.stop()


def check_lost(wanted):
    """The device goes away between two questions. Nobody but the log and Status notices."""
    os.environ["MEMD_FAKE_LOSE"] = "4"
    with Daemon(*DEVICE) as daemon:
        del os.environ["MEMD_FAKE_LOSE"]
        client = daemon.client()
        past = Past(client, "book")
        for some, others in zip(life(past), wanted):
            close(some, others)
        name, reason = backend(client)
        assert name == "cpu" and "fake device was lost: the fake device fell off" in reason, reason
        counts = counters(client)
        assert counts["device_steps_total"] == 2 and counts["device_failures_total"] == 1, counts
        assert len(re.findall("device-lost", daemon.log())) == 1, daemon.log()
        daemon.stop()


def wait_built(past, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        info = past.client.ask("stat", {"context_id": past.id})["context"]
        if info["built_segments"] == info["sealed_segments"] > 0:
            return
        time.sleep(0.02)
    raise AssertionError("planes were not built")


def from_planes(flags):
    """o of one query over planes and a tail, its quality, and the counters."""
    with Daemon(*flags) as daemon:
        client = daemon.client()
        past = Past(client, "book", parameters=[{"name": "exact_below", "value": "0"}])
        past.append(0, 2100)
        wait_built(past)
        answer, payload = past.attend()
        found = floats(payload, answer["o"]), answer["quality"], counters(client)
        daemon.stop()
        return found


def check_planes():
    cpu, _, counts = from_planes(("--accelerator", ""))
    assert counts["device_planes_steps_total"] == 0
    device, quality, counts = from_planes(DEVICE)
    assert counts["device_planes_steps_total"] == 1 and counts["device_failures_total"] == 0, counts
    assert counts["device_planes_sent_bytes_total"] > 0 and not quality["exact"], quality
    assert all(0 < error <= 0.02 for error in quality["predicted_error"]), quality
    off = math.dist(cpu, device) / math.hypot(*cpu)
    assert 0 < off < 0.06, off  # each within twice its target of 0.02
    _, _, counts = from_planes((*DEVICE, "--device-planes", "0"))
    assert counts["device_planes_steps_total"] == 0


def check_not_asked(wanted):
    """Unless the configuration says so, a plugin that is there is not even loaded."""
    with Daemon(*PLUGIN) as daemon:
        client = daemon.client()
        name, reason = backend(client)
        assert name == "cpu" and reason.startswith("backend = cpu") and "not run on a GPU yet" in reason, reason
        with open(f"/proc/{daemon.process.pid}/maps", encoding="utf-8") as maps:
            assert os.path.basename(DEVICE_PLUGIN) not in maps.read()
        past = Past(client, "book")
        past.append(0, TOKENS)
        assert answers(past) == wanted[0]
        assert counters(client)["device_steps_total"] == 0
        daemon.stop()


def check_absent():
    with Daemon("--accelerator", "/no/such/plugin.so", "--backend", "auto") as daemon:
        client = daemon.client()
        name, reason = backend(client)
        assert name == "cpu" and reason.startswith("/no/such/plugin.so: cannot open"), reason
        assert "no-device" in daemon.log()
        past = Past(client, "book")
        past.append(0, 10)
        assert past.attend()[0]["status"] == 0
        daemon.stop()
    if cuda := os.environ.get("MEMD_CUDA_PLUGIN"):
        with Daemon("--accelerator", cuda, "--backend", "auto") as daemon:
            name, reason = backend(daemon.client())
            assert name == "cuda" or "CUDA" in reason, (name, reason)
            daemon.stop()


def main():
    wanted = truth()
    check_device(wanted)
    check_many(wanted)
    check_window(wanted)
    check_far()
    check_switch(wanted)
    if KIND == "fake":
        check_lost(wanted)  # a real one stays
    check_planes()
    check_not_asked(wanted)
    check_absent()


main()
