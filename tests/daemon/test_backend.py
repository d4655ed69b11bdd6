# SPDX-License-Identifier: Apache-2.0
"""CPU and device are interchangeable: the same daemon with a device that computes on the CPU, and without.

MEMD_FAKE_PLUGIN is the plugin of that device. Its answers are not the CPU's bits, they are sums in another
order: compared to 1e-5. That a device was used at all is seen in its counters.
"""
import math
import os
import re
import signal
import time

from past import Past, floats
from wire import Daemon

FAKE = os.environ["MEMD_FAKE_PLUGIN"]
PLUGIN = ("--accelerator", FAKE, "--device-window", "256")
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
        assert backend(client) == ("fake", "fake device"), backend(client)
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
            assert backend(client)[0] == "fake"
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
            assert os.path.basename(FAKE) not in maps.read()
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
    check_switch(wanted)
    check_lost(wanted)
    check_planes()
    check_not_asked(wanted)
    check_absent()


main()
