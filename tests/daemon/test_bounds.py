# SPDX-License-Identifier: Apache-2.0
"""Bad neighbours: a client that never reads, one that sends a byte a second, a flood, a thousand idle ones,
clients that vanish. The others must not notice; every queue has an end; order and deadlines hold.

MEMD_HEAVY is how many queries make an item heavy: fewer where a device is emulated."""
import os
import select
import threading
import time

from past import Past
from wire import Client, Daemon, Payload, encode, frame

HEAVY = int(os.environ.get("MEMD_HEAVY", "512"))


def median_ms(address, fields, payload, count=300):
    """Not the slowest ones: those are of a machine that has other things to do."""
    client, times = Client(address), []
    for _ in range(count):
        begin = time.perf_counter()
        client.call("attend", fields, payload)
        times.append(time.perf_counter() - begin)
    return sorted(times)[count // 2] * 1e3


def counters(client):
    return {c["name"]: c["value"] for c in client.ask("stats")["counters"]}


def neighbours(daemon, past):
    """A generous bound here; tests/bench measures the factor."""
    fields, payload = past.attend_fields()
    alone = median_ms(daemon.address, fields, payload)
    idle = [Client(daemon.address) for _ in range(1000)]
    slow = Client(daemon.address)
    slow.socket.sendall(frame("append", bytes(10), bytes(1 << 20))[:41])
    deaf = Client(daemon.address)
    deaf.socket.setblocking(False)
    request = frame("fetch", encode("FetchRequest", {"context_id": past.id, "ids": list(range(512))}))
    pushed = push(deaf, request * 2000)
    loaded = median_ms(daemon.address, fields, payload)
    print(f"median alone {alone:.3f} ms, with 1,000 idle, one slow, one deaf {loaded:.3f} ms")
    assert loaded < 10 * alone + 50, (alone, loaded)
    assert pushed < len(request) * 2000, "the daemon read everything from a client that never reads"
    stats = counters(past.client)
    assert stats["connections"] > 1000, stats["connections"]
    assert stats["memory_in_flight_bytes"] < 64 << 20, stats["memory_in_flight_bytes"]
    for client in idle + [slow, deaf]:
        client.close()


def push(client, data):
    """Send until the daemon stops reading; how much went."""
    sent, quiet = 0, 0
    while sent < len(data) and quiet < 10:
        try:
            sent += client.socket.send(data[sent:sent + 65536])
            quiet = 0
        except BlockingIOError:
            select.select([], [client.socket], [], 0.05)
            quiet += 1
    return sent


def slow_frames(daemon):
    """The fixture sets frame_timeout to 300 ms: a started frame that stalls ends its connection."""
    for data in (b"M", frame("health")[:39], frame("append", bytes(10), bytes(100))[:60]):
        client = daemon.client(timeout=10)
        client.socket.sendall(data)
        assert client.is_closed(), "a stalled frame was kept"
    client = daemon.client()
    assert client.ask("health")["ready"]
    select.select([], [], [], 0.7)  # silence between frames is no offence
    assert client.ask("health")["ready"]


def in_order(past):
    """Appends may be pipelined without waiting: they are applied in the order of sending."""
    client, first = past.client, past.client.ask("stat", {"context_id": past.id})["context"]["tokens"]
    ids = []
    for position in range(first, first + 600, 20):
        fields, payload = past.append_fields(position, 20, ack="memory")
        ids.append(client.send("append", fields, payload))
    for request_id in ids:
        reply = client.receive()
        assert reply.request_id == request_id
        reply.check()
    past.check(first + 600)


def heavy_request(past, items, queries):
    """Seconds of arithmetic in one frame."""
    fields, payload = past.attend_fields(queries=queries)
    return {"items": fields["items"] * items}, payload


def deadlines(past):
    fields, payload = heavy_request(past, 64, HEAVY)
    begin = time.monotonic()
    past.client.fails("EDEADLINE", "attend", fields, payload, deadline_ms=20)
    took = time.monotonic() - begin
    print(f"a deadline of 20 ms was kept after {took * 1e3:.0f} ms")
    assert took < 10, took  # generous: sanitizers are slow


def vanish(daemon, past):
    """Clients that leave in the middle of anything: nothing stays behind."""
    fields, payload = heavy_request(past, 32, HEAVY // 2)
    heavy = frame("attend", encode("AttendRequest", fields), payload)
    append, append_payload = past.append_fields(0, 50)
    for data in (heavy, heavy[:len(heavy) // 2], heavy * 4,
                 frame("append", encode("AppendRequest", append), append_payload) * 3):
        for _ in range(10):
            client = daemon.client()
            client.socket.settimeout(5)
            client.socket.sendall(data)
            client.close()
    end = time.monotonic() + 20
    while True:
        stats = counters(past.client)
        if stats["connections"] == 1 and stats["requests_active"] == 1:
            break
        assert time.monotonic() < end, stats
    assert stats["memory_in_flight_bytes"] < 1 << 20, stats


def half_frames_across_reads(past):
    """A frame in single bytes, and many frames in one write, are all the same."""
    client = past.client
    data = frame("health", request_id=77)
    for byte in data:
        client.socket.sendall(bytes([byte]))
    assert client.receive().request_id == 77
    client.socket.sendall(b"".join(frame("health", request_id=i) for i in range(500)))
    assert [client.receive().request_id for i in range(500)] == list(range(500))


def too_many_connections():
    with Daemon("--connections-max", "5") as daemon:
        held = [daemon.client()]
        while counters(held[0])["connections"] > 1:  # the fixture's own probe is leaving
            pass
        held += [daemon.client() for _ in range(4)]
        for client in held:
            assert client.ask("health")["ready"]
        refused = daemon.client()
        assert refused.receive().status == -13 and refused.is_closed()
        held.pop().close()
        end = time.monotonic() + 10
        while True:
            try:
                assert daemon.client().ask("health")["ready"]
                break
            except (AssertionError, ConnectionError, KeyError):
                assert time.monotonic() < end
        daemon.stop()


def floods():
    """One worker. What a connection sends at once waits for its share, and so does what many send; small requests are
    answered all the while."""
    with Daemon("--workers", "1") as daemon:
        past = Past(daemon.client(), "book")
        past.append(0, 1500)
        fields, payload = heavy_request(past, 2, HEAVY)
        for _ in range(20):
            past.client.send("attend", fields, payload)
        assert daemon.client(timeout=5).ask("health")["ready"]
        assert daemon.client(timeout=30).ask("stat", {"context_id": past.id}), "no turn for others"
        states = [past.client.receive().status for _ in range(20)]
        assert states == [0] * 20, states
        others = [daemon.client() for _ in range(12)]
        for client in others:
            client.send("attend", fields, payload)
        states = [client.receive().status for client in others]
        assert states == [0] * 12, states
        daemon.stop()


def deaf_clients_cost_little():
    """Clients that ask for much and read nothing hold a bounded amount of memory."""
    with Daemon("--memory-in-flight", "64MiB", "--output-buffer-max", "4MiB") as daemon:
        past = Past(daemon.client(), "book", head_dim=128)
        past.append(0, 4000)
        request = frame("fetch", encode("FetchRequest", {"context_id": past.id,
                                                         "ids": list(range(4000))}))
        deaf = [daemon.client() for _ in range(6)]
        for client in deaf:
            client.socket.sendall(request * 50)  # 50 replies of 4 MB each
        most, end = 0, time.monotonic() + 1.5
        while time.monotonic() < end:
            most = max(most, counters(past.client)["memory_in_flight_bytes"])
            past.check(100)
        print(f"six deaf clients hold {most / 1e6:.0f} MB")
        assert 1e6 < most < 130e6, most
        reply = deaf[0].receive()
        assert reply.status == 0, reply.status
        daemon.stop()


def large_frames_wait_their_turn():
    """Memory for two large frames and eight clients: all are served, none is refused."""
    with Daemon("--memory-in-flight", "3MiB") as daemon:
        pasts = [Past(daemon.client(), f"c{i}", seed=i) for i in range(8)]
        failures = []

        def run(past):
            try:
                for position in range(0, 4096, 2048):
                    past.append(position, 2048)
                past.check(4096)
            except Exception as error:  # the main thread reports it
                failures.append(error)

        threads = [threading.Thread(target=run, args=(past,)) for past in pasts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures
        pasts[0].client.socket.sendall(frame("append", b"", payload_bytes=4 << 20))
        assert pasts[0].client.receive().status == -14
        daemon.stop()


def process_bytes(daemon, field):
    with open(f"/proc/{daemon.process.pid}/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields[field].split()[0]) << 10


def own_bytes(daemon):
    """Memory of the process that is no file's."""
    return process_bytes(daemon, "RssAnon")


def memory_comes_back():
    """A bulk append leaves memory for the next one; some seconds later nothing of it is held."""
    with Daemon() as daemon:
        past = Past(daemon.client(), "bulk", layers=1, kv_heads=8, head_dim=128, query_heads=8)
        tokens, rest = 4096, own_bytes(daemon)
        for i in range(8):
            payload = Payload()
            k = payload.add("FP16", (tokens, 8, 128), bytes(tokens * 8 * 128 * 2))
            layer = {"layer": 0, "position": i * tokens, "k": k, "v": k}
            past.client.ask("append", {"context_id": past.id, "layers": [layer]}, payload.data)
        most = own_bytes(daemon)
        if process_bytes(daemon, "VmSize") > 1 << 43:  # a sanitizer's shadow: it keeps what is freed
            daemon.stop()
            return
        end = time.monotonic() + 60
        while own_bytes(daemon) - rest > 12 << 20:
            assert time.monotonic() < end, (rest, most, own_bytes(daemon))
            select.select([], [], [], 0.1)
        assert most - rest > 20 << 20, f"{most}: this shows nothing"
        past.client.ask("health")
        daemon.stop()


def main():
    with Daemon("--frame-timeout", "300ms") as daemon:
        slow_frames(daemon)
        daemon.stop()
    with Daemon() as daemon:
        past = Past(daemon.client(), "book")
        past.append(0, 600)
        neighbours(daemon, past)
        in_order(past)
        half_frames_across_reads(past)
        deadlines(past)
        vanish(daemon, past)
        past.check(1200)
        daemon.stop()
    too_many_connections()
    floods()
    deaf_clients_cost_little()
    large_frames_wait_their_turn()
    memory_comes_back()


main()
