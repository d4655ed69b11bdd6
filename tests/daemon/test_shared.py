# SPDX-License-Identifier: Apache-2.0
"""Memory that a client shares gives the same bits as frames do, and whatever a client hands over instead of it
hurts nobody: each wrong descriptor is refused with a reason and closed, and the daemon holds no more of them
after a test than before it."""
import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time

from past import Past, verify
from shared import (KINDS, SEAL_GROW, SEAL_SEAL, SEAL_SHRINK, SEAL_WRITE, Region, descriptors, greet, memfd)
from wire import CODES, ENUMS, Client, Daemon, Payload, encode, frame

MIB = 1 << 20
MFD_HUGETLB = 4
QUERIES, HEADS, DIM = 5, 4, 64


def counters(client):
    return {c["name"]: c["value"] for c in client.ask("stats")["counters"]}


def item_in(region, past, queries=QUERIES):
    """An attend whose tensors lie in a region, and the same in a frame. Many queries are the CPU's: a device that is
    emulated takes seconds for them."""
    fields, payload = past.attend_fields(queries=queries)
    item = fields["items"][0]
    if queries > QUERIES:
        item["window"] = ENUMS["Window"]["WINDOW_NONE"]
    inside = {**item, "q": region.move(item["q"], payload, 2),
              "into_o": region.place("FP32", (queries, HEADS, DIM), 4 * queries * HEADS * DIM),
              "into_lse": region.place("FP32", (queries, HEADS), 4 * queries * HEADS)}
    return inside, fields, payload


def same_bits(client, past):
    """Attend, Search and Append by both ways."""
    region = Region(7, MIB)
    device = "device-memory" in greet(client)["features"]
    assert region.map(client) == {"registered": device}
    inside, fields, payload = item_in(region, past)
    framed = client.call("attend", fields, payload)
    answer = framed.message["answers"][0]
    before = counters(client)
    shared = client.call("attend", {"items": [inside, fields["items"][0]]}, payload)
    told, other = shared.message["answers"]
    assert told["status"] == 0 and told["quality"] == answer["quality"], told
    o, lse = 4 * QUERIES * HEADS * DIM, 4 * QUERIES * HEADS
    wanted = [framed.payload[answer[name]["offset"]:][:size] for name, size in (("o", o), ("lse", lse))]
    assert [region.bytes(inside["into_o"], o), region.bytes(inside["into_lse"], lse)] == wanted
    assert told["o"] == {**inside["into_o"]} and told["lse"] == inside["into_lse"], told
    assert other["o"]["region"] == 0 and len(shared.payload) == o + lse, other  # in the frame, as before
    assert shared.payload[other["o"]["offset"]:][:o] == wanted[0]
    after = counters(client)
    assert after["shared_read_bytes_total"] - before["shared_read_bytes_total"] == 2 * QUERIES * HEADS * DIM
    assert after["shared_written_bytes_total"] - before["shared_written_bytes_total"] == o + lse
    for alone in ("o", "lse"):  # one there, the other in the frame
        half = {**fields["items"][0], "into_" + alone: inside["into_" + alone]}
        other = {"o": "lse", "lse": "o"}[alone]
        reply = client.call("attend", {"items": [half]}, payload)
        told = reply.message["answers"][0]
        assert told[alone]["region"] == 7 and told[other]["region"] == 0, told
        assert reply.payload == wanted[alone == "o"], alone
    search(client, region, fields["items"][0], inside, payload)
    fetch(client, region, past)
    append(client, region)
    client.ask("unmap_memory", {"region": 7})
    client.fails("EINVAL", "unmap_memory", {"region": 7})
    region.close()


def search(client, region, item, inside, payload):
    k = 9
    wish = {name: item[name] for name in ("context_id", "layer", "positions")}
    framed = client.call("search", {**wish, "q": item["q"], "k": k}, payload)
    shape, entries = (QUERIES, HEADS, k), QUERIES * HEADS * k
    ids, scores = region.place("U64", shape, 8 * entries), region.place("FP32", shape, 4 * entries)
    shared = client.call("search", {**wish, "q": inside["q"], "k": k, "into_ids": ids, "into_scores": scores})
    assert shared.message["ids"] == ids and shared.message["scores"] == scores and not shared.payload
    for name, tensor, size in (("ids", ids, 8 * entries), ("scores", scores, 4 * entries)):
        at = framed.message[name]["offset"]
        assert region.bytes(tensor, size) == framed.payload[at:at + size], name
    for alone, other in (("ids", "scores"), ("scores", "ids")):  # one there, the other in the frame
        reply = client.call("search", {**wish, "q": item["q"], "k": k, "into_" + alone: {"ids": ids, "scores": scores}[
            alone]}, payload)
        size = {"ids": 8, "scores": 4}[other] * entries
        assert reply.message[alone]["region"] == 7 and reply.message[other]["region"] == 0
        assert reply.payload == framed.payload[framed.message[other]["offset"]:][:size], other
    text = client.fails("ESHAPE", "search", {**wish, "q": inside["q"], "k": k, "into_ids": {**ids, "dtype": 1}})
    assert "into_ids" in text, text


def fetch(client, region, past):
    """Rows into a region, K and V each for itself."""
    ids, shape, size = [5, 0, 1499, 5], (4, past.heads, past.dim), 4 * past.heads * past.dim * 2
    wish = {"context_id": past.id, "layer": 1, "ids": ids}
    framed = client.call("fetch", wish)
    rows = {name: framed.payload[framed.message[name]["offset"]:][:size] for name in ("k", "v")}
    places = {name: region.place("FP16", shape, size) for name in ("k", "v")}
    reply = client.call("fetch", {**wish, "into_k": places["k"], "into_v": places["v"]})
    assert not reply.payload and {name: reply.message[name] for name in rows} == places, reply.message
    assert {name: region.bytes(places[name], size) for name in rows} == rows
    at = places["v"]["offset"]
    region.memory[at:at + size] = bytes(size)
    reply = client.call("fetch", {**wish, "into_v": places["v"]})
    assert reply.payload == rows["k"] and reply.message["k"]["region"] == 0, reply.message
    assert region.bytes(places["v"], size) == rows["v"]
    for name, change in (("into_k", {"dtype": 1}), ("into_v", {"shape": [3, *shape[1:]]}), ("into_v", {"region": 0}),
                         ("into_k", {"offset": region.size - 64})):
        wrong = {"into_k": places["k"], "into_v": places["v"]}
        wrong[name] = {**wrong[name], **change}
        said = client.fails("ESHAPE", "fetch", {**wish, **wrong})
        assert name in said, said


def append(client, region):
    """Rows out of a region are stored like others; what is stored is the daemon's copy of them."""
    past = Past(client, "appended")
    fields, payload = past.append_fields(0, 20)
    for layer in fields["layers"]:
        layer["k"], layer["v"] = (region.move(layer[name], payload, 2) for name in ("k", "v"))
    client.ask("append", fields)
    at = fields["layers"][0]["k"]["offset"]
    region.memory[at:at + 64] = bytes(64)  # after the answer it is ours again
    past.check(20)
    client.ask("append", {**fields, "layers": fields["layers"][1:]})  # the same bytes once more: a repetition
    client.fails("EPOSITION", "append", fields)  # the first layer's are others now
    findings, values = verify(client, past.id)
    assert not findings and values > 0, findings


def wrong_places(client, past):
    """Regions, offsets and lengths that are not there; overflow; places that are missing or misshapen."""
    region = Region(3, 4096)
    region.map(client)
    inside, fields, payload = item_in(region, past, queries=1)
    good = fields["items"][0]

    def fails(text, code="ESHAPE", **change):
        answer = client.ask("attend", {"items": [{**inside, **change}, good]}, payload)["answers"]
        assert [a["status"] for a in answer] == [CODES[code], 0] and text in answer[0]["error"], answer

    q, into_o, into_lse = inside["q"], inside["into_o"], inside["into_lse"]
    fails("there is no region 4", "EINVAL", q={**q, "region": 4})
    fails("there is no region", "EINVAL", into_o={**into_o, "region": (1 << 64) - 1})
    for offset in (4096, 4096 - 64, 1 << 40, 1 << 63, (1 << 64) - 64):
        fails("ends behind the region of 4096", q={**q, "offset": offset})
        fails("ends behind the region of 4096", into_o={**into_o, "offset": offset})
    fails("ends behind the region of 4096", into_lse={**into_lse, "offset": 4096})
    fails("multiple of 64", q={**q, "offset": 8})
    fails("multiple of 64", into_o={**into_o, "offset": 4})
    fails("into_o has 2 in dimension 0", into_o={**into_o, "shape": [2, HEADS, DIM]})
    fails("more than memory can hold", "ESHAPE", q={**q, "shape": [1 << 62, HEADS, DIM]})
    fails("into_o has dtype", into_o={**into_o, "dtype": 2})
    fails("into_lse has 3 dimensions", into_lse={**into_lse, "shape": [1, HEADS, 1]})
    fails("into_lse names no region", into_lse={**into_lse, "region": 0})
    assert bytes(region.memory) == bytes(region.memory[:region.end]) + bytes(4096 - region.end)
    other = Client(past.client_address)
    greet(other)
    answer = other.ask("attend", {"items": [inside]})["answers"][0]  # regions are a connection's own
    assert answer["status"] == CODES["EINVAL"], answer
    other.close()
    client.ask("unmap_memory", {"region": 3})
    region.close()


def wrong_descriptors(daemon, _):
    """Whatever is no sealed memfd of ordinary pages, too many, too few: refused, closed, nothing mapped."""
    client = daemon.client()
    fd = memfd(MIB)
    text = client.fails("EPERM", "map_memory", {"region": 1, "bytes": MIB}, fds=[fd])
    assert "shared-memory" in text, text
    hello = greet(client)
    assert "shared-memory" in hello["features"], hello
    device = "device-memory" in hello["features"]
    assert hello["region_bytes_max"] == 8 * MIB and hello["regions_max"] == 64, hello
    before = descriptors(daemon)

    def refused(code, text, fds, **fields):
        said = client.fails(code, "map_memory", {"region": 1, "bytes": 4096, **fields}, fds=fds)
        assert text in said, said
        assert descriptors(daemon) == before, (text, descriptors(daemon), before)

    with tempfile.TemporaryFile() as file:
        file.truncate(MIB)
        refused("EINVAL", "no memfd", [file.fileno()])
    ends = os.pipe()
    refused("EINVAL", "no memfd", [ends[0]])
    one, two = socket.socketpair()
    refused("EINVAL", "no memfd", [one.fileno()])
    directory = os.open("/", os.O_RDONLY)
    refused("EINVAL", "no memfd", [directory])
    shm = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)  # tmpfs, but nobody can seal it
    os.ftruncate(shm, MIB)
    refused("EINVAL", "not sealed against shrinking", [shm])
    wrong = [memfd(MIB, seals) for seals in (0, SEAL_GROW, SEAL_WRITE, SEAL_SEAL)]
    for each in wrong:
        refused("EINVAL", "not sealed against shrinking", [each])
    with contextlib.suppress(OSError):  # a kernel without huge pages
        wrong.append(memfd(2 * MIB, flags=MFD_HUGETLB))
        refused("EINVAL", "not of ordinary pages", [wrong[-1]])
    sealed = memfd(MIB, SEAL_SHRINK | SEAL_WRITE)
    refused("EINVAL", "cannot be mapped", [sealed])
    refused("EINVAL", "0 descriptors came", [])
    refused("EINVAL", "2 descriptors came", [fd, fd])
    refused("EINVAL", "60 descriptors came", [fd] * 60)
    if not device:
        refused("EPERM", "device-memory", [fd], kind=KINDS["MEMORY_DEVICE"])
    refused("EINVAL", "unknown kind", [fd], kind=9)
    refused("EINVAL", "handle of 3 bytes", [fd], handle=b"abc")
    refused("EINVAL", "region 0", [fd], region=0)
    refused("EINVAL", "of 0 bytes", [fd], bytes=0)
    refused("EINVAL", "bytes of a memfd of", [fd], bytes=MIB + 1)
    refused("ELIMIT", "limit", [fd], bytes=8 * MIB + 1)
    refused("ELIMIT", "limit", [fd], bytes=(1 << 64) - 1)
    for method, fields in (("health", {}), ("stats", {}), ("list", {}), ("unmap_memory", {"region": 1})):
        text = client.fails("EINVAL", method, fields, fds=[fd])
        assert "descriptors came with " + method in text, text
        assert descriptors(daemon) == before
    for each in (*ends, directory, shm, *wrong, sealed, fd):
        os.close(each)
    one.close()
    two.close()
    client.close()


def limits(daemon, _):
    """Regions by number and by bytes, over connections; what is given back can be had again."""
    client = daemon.client()
    greet(client)
    fd = [memfd(4096) for _ in range(65)]
    for i in range(64):
        client.ask("map_memory", {"region": i + 1, "bytes": 4096}, fds=[fd[i]])
    status = client.ask("status")
    assert (status["shared_regions"], status["shared_bytes"]) == (64, 64 * 4096), status
    assert status["shared_bytes_max"] == 8 * MIB
    assert "64 regions" in client.fails("ELIMIT", "map_memory", {"region": 65, "bytes": 4096}, fds=[fd[64]])
    client.ask("unmap_memory", {"region": 9})
    assert "mapped already" in client.fails("EEXIST", "map_memory", {"region": 8, "bytes": 4096}, fds=[fd[64]])
    client.ask("map_memory", {"region": 9, "bytes": 4096}, fds=[fd[64]])
    other = daemon.client()
    greet(other)
    large = memfd(8 * MIB)
    text = other.fails("EFULL", "map_memory", {"region": 1, "bytes": 8 * MIB}, fds=[large])
    assert "clients share" in text, text
    client.close()
    wait_for(lambda: other.ask("status")["shared_bytes"] == 0)
    for _ in range(20):  # what was answered to be gone is no longer counted
        other.ask("map_memory", {"region": 1, "bytes": 8 * MIB}, fds=[large])
        other.ask("unmap_memory", {"region": 1})
    other.close()
    for each in fd + [large]:
        os.close(each)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.005)


def settle(client):
    """The daemon has seen that others have gone: nothing is mapped any more."""
    wait_for(lambda: client.ask("status")["shared_regions"] == 0)


def one_memory_one_connection(daemon, past):
    """Who maps a memory takes it from who had it; both can go on with others."""
    first, second = daemon.client(), daemon.client()
    greet(first), greet(second)
    region = Region(1, MIB)
    region.map(first)
    inside, _, _ = item_in(region, past)
    assert first.ask("attend", {"items": [inside]})["answers"][0]["status"] == 0
    region.map(second)
    answer = first.ask("attend", {"items": [inside]})["answers"][0]
    assert answer["status"] == CODES["EINVAL"] and "mapped anew" in answer["error"], answer
    assert second.ask("attend", {"items": [inside]})["answers"][0]["status"] == 0
    first.ask("unmap_memory", {"region": 1})
    region.map(first, region=2)  # and back, under another number
    assert first.ask("attend", {"items": [{**inside, **{name: {**inside[name], "region": 2} for name in
                                                        ("q", "into_o", "into_lse")}}]})["answers"][0]["status"] == 0
    first.close()
    second.close()
    region.close()


def nothing_is_written_afterwards(daemon, past):
    """When a memory is mapped anew, or unmapped, the answer comes after the last byte that was asked for before.
    Every round a request is under way meanwhile: its answer has not come when the other is sent. Who comes third waits
    too, when the second left without an answer. Two of 5 MiB would not fit into what may be shared."""
    under_way = 0
    for how in ("anew", "unmap", "lost") * 4:
        first, second = daemon.client(), daemon.client()
        greet(first), greet(second)
        region = Region(1, 2 * MIB if how == "lost" else 5 * MIB)
        region.map(first)
        inside, _, _ = item_in(region, past, queries=64)
        at, size = inside["into_o"]["offset"], 4 * 64 * HEADS * DIM
        items = []
        for _ in range(24):  # each has a place of its own
            items.append({**inside, "into_o": region.place("FP32", (64, HEADS, DIM), size)})
        region.memory[at:] = bytes(region.size - at)
        asked = first.send("attend", {"items": items})
        under_way += not select.select([first.socket], [], [], 0)[0]
        replies = []
        if how == "unmap":
            first.send("unmap_memory", {"region": 1})
            replies = [first.receive()]
            while replies[-1].request_id == asked:
                replies.append(first.receive())
        elif how == "anew":
            region.map(second)
        else:
            second.send("map_memory", region.fields(), fds=[region.fd])
            second.close()
            third = daemon.client()
            greet(third)
            region.map(third)
            third.close()
        seen = bytes(region.memory)
        while not any(reply.request_id == asked for reply in replies):
            replies.append(first.receive())
        assert bytes(region.memory) == seen, "written after it was said to be over"
        first.close()
        if how != "lost":
            second.close()
        region.close()
        settle(past.client)
    assert under_way > 0


def many_at_once(daemon, past):
    """Requests that follow a MapMemory at once find the region, whatever else is in the same read; descriptors
    belong to the frame that they were sent with."""
    client = daemon.client()
    greet(client)
    region = Region(5, MIB)
    inside, fields, payload = item_in(region, past)
    attend = encode("AttendRequest", {"items": [inside]})
    framed = frame("attend", encode("AttendRequest", fields), payload, 1000)
    client.socket.sendall(framed * 3)
    data = frame("map_memory", encode("MapMemoryRequest", region.fields()), b"", 1001)
    assert client.send_with(data, [region.fd]) == len(data)
    client.socket.sendall(frame("attend", attend, b"", 1002) + framed)
    statuses = {}
    for _ in range(6):
        reply = client.receive()
        assert reply.status == 0, reply.message
        if reply.request_id == 1002:
            assert reply.message["answers"][0]["status"] == 0, reply.message
        statuses[reply.request_id] = reply.status
    assert set(statuses) == {1000, 1001, 1002}
    # In pieces: the descriptor with the first byte, or with the last.
    for cut in (1, 39, 40, len(data) - 1):
        client.ask("unmap_memory", {"region": 5})
        head, tail = data[:cut], data[cut:]
        client.send_with(head, [region.fd])
        client.socket.sendall(tail)
        assert client.receive().status == 0, cut
        client.ask("unmap_memory", {"region": 5})
        client.socket.sendall(head)
        client.send_with(tail, [region.fd])
        assert client.receive().status == 0, cut
        # What follows in the same read is not meant.
        client.ask("unmap_memory", {"region": 5})
        client.send_with(head, [region.fd])
        client.socket.sendall(tail + frame("health", b"", b"", 1500) + framed[:70])
        assert sorted((client.receive().status, client.receive().status)) == [0, 0], cut
        client.socket.sendall(framed[70:])
        assert client.receive().status == 0, cut
    # With a frame that is no MapMemory, in the middle of others: that one is refused, no other.
    client.socket.sendall(framed)
    client.send_with(frame("health", b"", b"", 2000), [region.fd])
    client.socket.sendall(framed)
    replies = [client.receive() for _ in range(3)]
    assert {r.request_id: r.status for r in replies} == {1000: 0, 2000: CODES["EINVAL"]}, replies
    # With a large frame, beside its body.
    body = Payload()
    body.add("FP16", (MIB,), bytes(2 * MIB))
    big = frame("attend", encode("AttendRequest", fields), bytes(body.data), 3000)
    client.socket.sendall(big[:100000])
    sent = client.send_with(big[100000:], [region.fd, region.fd])
    client.socket.sendall(big[100000 + sent:])
    reply = client.receive()
    assert reply.status == CODES["EINVAL"] and "2 descriptors" in reply.message["text"], reply.message
    client.close()
    region.close()


def vanishing_clients(daemon, past):
    """In the middle of a frame that brought descriptors, after garbage, at kill -9 with regions mapped: nothing is
    left of them."""
    region = Region(1, MIB)
    inside, _, _ = item_in(region, past, queries=64)
    for data in (b"garbage that is no frame at all, 40 bytes", frame("map_memory", b"", b"", 1)[:20],
                 frame("map_memory", b"", b"", 1, message_bytes=100), frame("attend", b"", b"", 1, magic=b"MAMD"),
                 frame("append", b"", b"", 1, payload_bytes=1 << 20)):
        client = daemon.client()
        greet(client)
        client.send_with(data, [region.fd] * 3)
        client.close()
    for _ in range(5):  # leaving with requests under way
        client = daemon.client()
        greet(client)
        region.map(client)
        for i in range(20):
            client.socket.sendall(frame("attend", encode("AttendRequest", {"items": [inside] * 3}), b"", i + 1))
        client.close()
    script = (f"import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})\n"
              "from shared import Region, greet\nfrom wire import Client, encode, frame\n"
              f"client = Client({daemon.address!r}); greet(client)\nregion = Region(1, {MIB}); region.map(client)\n"
              f"item = {inside!r}\n"  # of another region, with the same places
              "print('mapped', flush=True)\nwhile True: client.ask('attend', {'items': [item] * 3})\n")
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"mapped\n"
        before = counters(past.client)["shared_written_bytes_total"]
        wait_for(lambda: counters(past.client)["shared_written_bytes_total"] > before)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    region.close()


def churn(client, past):
    """A client that writes into its memory and cuts holes into it while it is read hurts nobody but itself."""
    region = Region(1, MIB)
    region.map(client)
    inside, fields, payload = item_in(region, past, queries=32)
    libc = ctypes.CDLL(None)
    unanswered = {client.send("attend", {"items": [inside] * 4}) for _ in range(24)}
    for _ in range(200):
        region.memory[:4096] = os.urandom(4096)
        libc.fallocate(region.fd, 3, 0, MIB)  # PUNCH_HOLE | KEEP_SIZE
        if unanswered and select.select([client.socket], [], [], 0)[0]:
            unanswered.remove(client.receive().request_id)
    while unanswered:
        unanswered.remove(client.receive().request_id)
    answer = client.ask("attend", fields, payload)["answers"][0]
    assert answer["status"] == 0
    client.ask("unmap_memory", {"region": 1})
    region.close()


def no_tcp(daemon, _):
    address = daemon.wait_log(r"on=tcp:(127\.0\.0\.1):(\d+)")
    client = Client((address[1], int(address[2])))
    hello = client.ask("hello", {"version": 1, "token": "0123456789abcdef", "features": ["shared-memory"]})
    assert "shared-memory" not in hello["features"] and hello["regions_max"] == 0, hello
    assert "Unix sockets" in client.fails("EUNSUPPORTED", "map_memory", {"region": 1, "bytes": 4096})
    client.close()


def copies_are_bounded():
    """Frames are small where tensors lie in regions: what is copied for requests under way has a bound of its own."""
    with Daemon("--memory-in-flight", "1MiB", "--workers", "4") as daemon:
        client = daemon.client()
        greet(client)
        past = Past(client, "book")
        past.append(0, 64)
        region = Region(1, 4 * MIB)
        region.map(client)
        inside, _, _ = item_in(region, past, queries=1400)  # 700 KiB of queries
        item = {key: inside[key] for key in ("context_id", "layer", "positions", "q", "window")}
        counts = {}
        for _ in range(10):
            for _ in range(8):
                client.send("attend", {"items": [item]})
            for _ in range(8):
                status = client.receive().check()["answers"][0]["status"]
                counts[status] = counts.get(status, 0) + 1
        assert set(counts) == {0, CODES["EBUSY"]}, counts
        assert client.ask("attend", {"items": [item]})["answers"][0]["status"] == 0
        daemon.stop()


def switched_off():
    with Daemon("--shared-memory", "0") as daemon:
        client = daemon.client()
        assert not {"shared-memory", "device-memory"} & set(greet(client)["features"])
        fd = memfd(4096)
        client.fails("EPERM", "map_memory", {"region": 1, "bytes": 4096}, fds=[fd])
        os.close(fd)
        daemon.stop()


def main():
    token = tempfile.NamedTemporaryFile("w", suffix=".token")
    token.write("0123456789abcdef write\n")
    token.flush()
    with Daemon("--shared-memory", "8MiB", "--listen", "127.0.0.1:0", "--token-file", token.name) as daemon:
        client = daemon.client()
        greet(client)
        past = Past(client, "book")
        past.client_address = daemon.address
        past.append(0, 1500)
        before = descriptors(daemon)
        for part in (same_bits, wrong_places, churn):
            part(client, past)
            settle(client)
        for part in (wrong_descriptors, limits, one_memory_one_connection, nothing_is_written_afterwards, many_at_once,
                     vanishing_clients, no_tcp):
            part(daemon, past)
            settle(client)
        wait_for(lambda: client.ask("status")["connections"] == 1)
        assert client.ask("status")["shared_bytes"] == 0
        wait_for(lambda: descriptors(daemon) == before)
        past.check(1500)
        daemon.stop()
    switched_off()
    copies_are_bounded()


if __name__ == "__main__":
    main()
