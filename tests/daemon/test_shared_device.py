# SPDX-License-Identifier: Apache-2.0
"""Memory of a device that a client hands over: a plugin whose device's memory is a memfd stands in for the GPU, so
that bytes, bounds, roles and lives are tested; what a GPU does with them is not. And memory of the host is pinned
where a device is used, and given free again."""
import os

from past import Past
from shared import KINDS, Region, descriptors, greet, memfd
from test_shared import item_in, wait_for
from wire import CODES, Daemon

FAKE = os.environ["MEMD_FAKE_PLUGIN"]
DEVICE = ("--accelerator", FAKE, "--backend", "auto", "--device-window", "256", "--shared-memory", "8MiB")
MIB = 1 << 20


def handle(fd):
    """What stands for a cudaIpcMemHandle_t: whose memory it is."""
    return f"{os.getpid()} {fd}".encode().ljust(64, b"\0")


def same_bits(client, past):
    """Attend with queries and answer on the device, by descriptor and by handle; and both kinds in one item."""
    host = Region(1, MIB)
    assert host.map(client) == {"registered": True}
    inside, fields, payload = item_in(host, past)
    framed = client.call("attend", fields, payload)
    answer = framed.message["answers"][0]
    wanted = [framed.payload[answer[name]["offset"]:][:size] for name, size in (("o", 5120), ("lse", 80))]
    device = Region(2, MIB, memfd(MIB, seals=0))  # nobody asks for seals there
    device.memory[:] = host.memory[:]
    assert client.ask("map_memory", device.fields(kind=KINDS["MEMORY_DEVICE"]), fds=[device.fd])["registered"]
    third = Region(3, MIB, memfd(MIB, seals=0))
    third.memory[:] = host.memory[:]
    assert client.ask("map_memory", third.fields(kind=KINDS["MEMORY_DEVICE_HANDLE"], handle=handle(third.fd)))
    names = ("q", "into_o", "into_lse")
    for where in ((1, 1, 1), (2, 2, 2), (3, 3, 3), (1, 2, 3), (3, 1, 2)):
        regions = {1: host, 2: device, 3: third}
        for region in regions.values():
            region.memory[inside["into_o"]["offset"]:] = bytes(MIB - inside["into_o"]["offset"])
        item = {**inside, **{name: {**inside[name], "region": number} for name, number in zip(names, where)}}
        told = client.ask("attend", {"items": [item]})["answers"][0]
        assert told["status"] == 0 and told["o"] == item["into_o"] and told["lse"] == item["into_lse"], told
        got = [regions[item[name]["region"]].bytes(item[name], size)
               for name, size in (("into_o", 5120), ("into_lse", 80))]
        assert got == wanted, where
    fields, payload = Past(client, "appended").append_fields(0, 20)
    for layer in fields["layers"]:
        for name in ("k", "v"):
            layer[name] = {**device.move(layer[name], payload, 2), "region": 2}
    client.ask("append", fields)
    device.memory[:] = bytes(MIB)
    Past(client, "appended").check(20)
    bad = {**inside, "q": {**inside["q"], "region": 2, "offset": MIB - 64}}
    assert client.ask("attend", {"items": [bad]})["answers"][0]["status"] == CODES["ESHAPE"]
    for number in (1, 2, 3):
        client.ask("unmap_memory", {"region": number})
    for region in (host, device, third):
        region.close()


def refused(daemon):
    """What is no memory of the device, too little of it, or comes in the wrong way."""
    client = daemon.client()
    fd = memfd(MIB)
    small = os.pipe()
    device, ipc = KINDS["MEMORY_DEVICE"], KINDS["MEMORY_DEVICE_HANDLE"]
    client.ask("hello", {"version": 1, "features": ["shared-memory"]})
    client.fails("EPERM", "map_memory", {"region": 1, "bytes": MIB, "kind": device}, fds=[fd])
    greet(client)
    before = descriptors(daemon)
    for fields, fds, text in (({"kind": device, "bytes": MIB + 1}, [fd], "no memory of the fake device"),
                              ({"kind": device}, [small[0]], "no memory of the fake device"),
                              ({"kind": device}, [], "0 descriptors came"),
                              ({"kind": device, "handle": handle(fd)}, [fd], "handle of 64 bytes"),
                              ({"kind": ipc}, [], "handle of 0 bytes"),
                              ({"kind": ipc, "handle": bytes(63)}, [], "handle of 63 bytes"),
                              ({"kind": ipc, "handle": bytes(64)}, [], "no memory of the fake device"),
                              ({"kind": ipc, "handle": handle(fd)}, [fd], "1 descriptors came, must be 0")):
        said = client.fails("EINVAL", "map_memory", {"region": 1, "bytes": MIB, **fields}, fds=fds)
        assert text in said, said
    assert descriptors(daemon) == before
    wait_for(lambda: client.ask("status")["shared_regions"] == 0)
    client.ask("map_memory", {"region": 1, "bytes": MIB, "kind": device}, fds=[fd])
    assert "mapped already" in client.fails("EEXIST", "map_memory", {"region": 1, "bytes": 4096}, fds=[fd])
    client.close()
    for each in (fd, *small):
        os.close(each)


def handles_are_for_administrators():
    with Daemon(*DEVICE) as daemon:
        uid = os.getuid()
        client = daemon.client()
        if client.ask("hello", {"version": 1})["role"] == "admin" and uid == 0:
            os.chmod(daemon.directory, 0o755)
            os.chmod(daemon.address, 0o666)
            child = os.fork()
            if child == 0:
                os.setuid(65534)
                status = 1
                try:
                    other = daemon.client()
                    greet(other)
                    fd = memfd(MIB)
                    said = other.fails("EPERM", "map_memory", {
                        "region": 1, "bytes": MIB, "kind": KINDS["MEMORY_DEVICE_HANDLE"], "handle": handle(fd)})
                    assert "admin" in said, said
                    other.ask("map_memory", {"region": 1, "bytes": MIB, "kind": KINDS["MEMORY_DEVICE"]}, fds=[fd])
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
        daemon.stop()


def lost(past_tokens=300):
    """The device goes while memory of it is mapped: requests that name it fail, all others are answered."""
    os.environ["MEMD_FAKE_LOSE"] = "40"
    try:
        with Daemon(*DEVICE) as daemon:
            client = daemon.client()
            assert "device-memory" in greet(client)["features"]
            past = Past(client, "book")
            past.append(0, past_tokens)
            device = Region(1, MIB, memfd(MIB, seals=0))
            client.ask("map_memory", device.fields(kind=KINDS["MEMORY_DEVICE"]), fds=[device.fd])
            inside, fields, payload = item_in(device, past)
            statuses = [client.ask("attend", {"items": [inside]})["answers"][0]["status"] for _ in range(40)]
            assert statuses[0] == 0 and statuses[-1] == CODES["EDEVICE"], statuses
            assert client.ask("attend", fields, payload)["answers"][0]["status"] == 0
            assert "device-memory" not in greet(client)["features"]
            client.ask("unmap_memory", {"region": 1})
            device.close()
            wait_for(lambda: client.ask("status")["shared_regions"] == 0)
            daemon.stop()
    finally:
        del os.environ["MEMD_FAKE_LOSE"]


def main():
    with Daemon(*DEVICE) as daemon:
        client = daemon.client()
        assert {"shared-memory", "device-memory"} <= set(greet(client)["features"])
        past = Past(client, "book")
        past.append(0, 1500)
        before = descriptors(daemon)
        same_bits(client, past)
        refused(daemon)
        wait_for(lambda: client.ask("status")["shared_regions"] == 0)
        wait_for(lambda: descriptors(daemon) == before)
        daemon.stop()
    handles_are_for_administrators()
    lost()


if __name__ == "__main__":
    main()
