# SPDX-License-Identifier: Apache-2.0
"""A page of the store is damaged, and with it one context that is to be evicted: others go in its place, and
whoever runs the daemon can see it."""
import os
import re
import time

from past import Past
from wire import Daemon

PAGE, LEAF = 4096, 2
SHAPE = {"layers": 8, "kv_heads": 8, "query_heads": 8, "head_dim": 16}  # 8 MiB in 2,048 tokens, 256 values
SEGMENTS = 16  # of each context


def keys(page):
    """Of a leaf of LMDB: a header of 16 bytes, offsets of nodes, nodes: 6 bytes, the key's size, the key."""
    for i in range((int.from_bytes(page[12:14], "little") - 16) // 2):
        at = int.from_bytes(page[16 + 2 * i:18 + 2 * i], "little")
        yield page[at + 8:at + 8 + int.from_bytes(page[at + 6:at + 8], "little")]


def segments_of(page):
    """Which segments a page is about, if it is a leaf of the table segments (docs/FORMAT.md)."""
    found = list(keys(page)) if page[10:12] == LEAF.to_bytes(2, "little") else []
    return {int.from_bytes(key[:8], "big") for key in found if len(key) == 11}


def damage(data):
    """No longer a page: the leaf that begins with the values of segment 1 and has no other context's."""
    with open(os.path.join(data, "data.mdb"), "r+b") as file:
        pages, count = file.read(), 0
        for at in range(0, len(pages), PAGE):
            segments = segments_of(pages[at:at + PAGE])
            if 1 in segments and max(segments) <= SEGMENTS:
                file.seek(at)
                file.write(bytes(PAGE))
                count += 1
    assert count > 0, "the page was not found"


def names(client):
    return sorted(context["name"] for context in client.ask("list")["contexts"])


def counters(client):
    return {counter["name"]: counter["value"] for counter in client.ask("stats")["counters"]}


def await_evictions(client, wanted):
    """Over, with all their bytes: a name is gone before."""
    end = time.monotonic() + 60
    while (found := counters(client))["evicted_contexts_total"] != wanted:
        assert time.monotonic() < end, found
    return found


def main():
    with Daemon("--budget", "22MiB") as daemon:
        client = daemon.client()
        for name in "first", "second":
            Past(client, name, method="full", **SHAPE).append(0, 2048)
        daemon.stop()
        damage(daemon.data)
        daemon.start()
        client = daemon.client()
        assert counters(client)["damaged_drops"] == 0
        assert counters(client)["damaged_pages"] == client.ask("status")["damaged_pages"] > 0
        third = Past(client, "third", method="full", **SHAPE)
        third.append(0, 2048)
        found = await_evictions(client, 2)
        assert names(client) == ["third"] and client.ask("status")["damaged_drops"] == 1
        assert found["damaged_drops"] == 1, found
        assert 16 << 20 < found["stored_bytes"] < 18 << 20, found
        daemon.wait_log(r"damage drops=1 ")
        third.check(2048)
        daemon.stop()
        daemon.start()
        daemon.wait_log(r"ready.*\n(.*\n)*.*damage drops=1 ")
        client = daemon.client()
        assert names(client) == ["third"] and client.ask("status")["damaged_drops"] == 1
        daemon.stop()
        assert len(re.findall("damage drops", daemon.log())) <= 2, "it is said once by each process"


if __name__ == "__main__":
    main()
