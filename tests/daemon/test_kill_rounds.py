# SPDX-License-Identifier: Apache-2.0
"""kill -9 in the middle of four clients' appends, again and again.

    test_kill_rounds.py [ROUNDS]     default 20; MEMD_TEST_SEED=n repeats a run

After each restart every token that was acknowledged as committed or synced is there, bit for bit; each context
is a prefix of what its client sent; Verify finds nothing. Prints the restart times.
"""
import os
import random
import sys
import threading
import time

from past import Past, verify
from wire import Daemon, Failed

CLIENTS, KEEP_TOKENS = 4, 6000


class Writer(threading.Thread):
    """One client that appends until its daemon dies; remembers what it was promised."""

    def __init__(self, daemon, past, rng):
        super().__init__()
        self.past, self.rng = past, rng
        self.past.client = daemon.client(timeout=30)
        self.tokens = self.synced = 0
        self.failure = None

    def run(self):
        position = self.past.client.ask("stat", {"context_id": self.past.id})["context"]["tokens"]
        self.tokens = position
        try:
            while True:
                count = self.rng.choice((1, 1, 7, 64, 200))
                ack = self.rng.choice(("committed", "committed", "memory", "synced"))
                reply = self.past.append(position, count, ack)
                position += count
                self.tokens = max(self.tokens, reply["committed_tokens"])
                self.synced = max(self.synced, reply["synced_tokens"])
        except (ConnectionError, OSError):
            pass  # killed
        except Exception as error:  # reported by the main thread
            self.failure = error


def check_round(daemon, writers, number):
    client = daemon.client(timeout=60)
    for writer in writers:
        assert writer.failure is None, writer.failure
        writer.past.client = client
        info = client.ask("stat", {"context_id": writer.past.id})["context"]
        assert info["tokens"] >= writer.tokens, \
            f"round {number}: {info['name']}: {info['tokens']} of {writer.tokens} committed tokens"
        assert set(info["layer_tokens"]) == {info["tokens"]}, info
        writer.past.check(info["tokens"])
        if info["tokens"] > KEEP_TOKENS:  # keep rounds alike
            client.ask("truncate", {"context_id": writer.past.id, "position": KEEP_TOKENS // 8})
    findings, values = verify(client)
    assert findings == [], f"round {number}: {findings[:5]}"
    return values


def main(rounds, seed):
    rng = random.Random(seed)
    print(f"seed {seed}, {rounds} rounds")
    with Daemon("--sync", "interval 20ms") as daemon:
        pasts = [Past(daemon.client(), f"client{i}", seed=i, head_dim=16) for i in range(CLIENTS)]
        restarts = []
        for number in range(rounds):
            writers = [Writer(daemon, past, random.Random(rng.random())) for past in pasts]
            for writer in writers:
                writer.start()
            writers[0].join(rng.uniform(0.01, 0.4))
            daemon.kill()
            for writer in writers:
                writer.join()
            begin = time.monotonic()
            daemon.start()
            restarts.append(time.monotonic() - begin)
            values = check_round(daemon, writers, number)
        restarts.sort()
        print(f"restart: median {restarts[len(restarts) // 2] * 1e3:.0f} ms, most "
              f"{restarts[-1] * 1e3:.0f} ms; last verify read {values} values")
        daemon.stop()


main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, int(os.environ.get("MEMD_TEST_SEED", time.time_ns() % 10**9)))
