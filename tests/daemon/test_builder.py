# SPDX-License-Identifier: Apache-2.0
"""kill -9 while the builder makes planes, then fork and truncate, again and again.

    test_builder.py [ROUNDS]     default 5; MEMD_TEST_SEED=n repeats a run

Whatever was built when the daemon died: every row is there, answers stay within twice their target of the exact
ones (planes are used where there are some, whatever the length), Verify finds nothing, and the rest is built by
itself. Prints how much had been built at each kill.
"""
import math
import os
import random
import sys
import time

from past import Past, floats, verify
from wire import Daemon

TOKENS, TARGET, LAYERS = 7 * 1024 + 100, 0.02, 2
ALWAYS = [{"name": "exact_below", "value": "0"}]  # never exact because that would be quicker


def built(past):
    info = past.client.ask("stat", {"context_id": past.id})["context"]
    return info["built_segments"], info["sealed_segments"]


def answer(past, layer, target):
    """o of 8 queries, one list per query head."""
    fields, payload = past.attend_fields(layer, 8)
    fields["items"][0]["target_error"] = target
    reply = past.client.call("attend", fields, payload)
    got = reply.message["answers"][0]
    assert got["status"] == 0, got
    o = floats(reply.payload, got["o"])
    return [o[at:at + past.dim] for at in range(0, len(o), past.dim)], got["quality"]


def check_answers(past, when):
    """Rows read more coarsely than exactly; 0 when nothing was built."""
    coarse = 0
    for layer in range(LAYERS):
        truth, _ = answer(past, layer, 0.0)
        heads, quality = answer(past, layer, TARGET)
        coarse += sum(quality["level_rows"][:3])
        for number, (o, exact) in enumerate(zip(heads, truth)):
            error = math.dist(o, exact) / math.hypot(*exact)
            assert error <= 2 * TARGET, f"{when}: layer {layer}, head {number}: {error:.4f}"
    return coarse


def wait_built(past, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, sealed = built(past)
        if done == sealed:
            return
        time.sleep(0.01)
    raise AssertionError(f"{built(past)} after {seconds} s")


def change(past, number):
    """Odd rounds: cut into a sealed segment. Even ones: fork, and go on in the fork."""
    if number % 2 == 1:
        past.client.ask("truncate", {"context_id": past.id, "position": 5 * 1024 + 300})
        return 5 * 1024 + 300
    past.id = past.client.ask("fork", {"context_id": past.id, "name": f"fork{number}"})["context_id"]
    return TOKENS


def main(rounds, seed):
    rng, seen = random.Random(seed), []
    print(f"seed {seed}, {rounds} rounds")
    with Daemon() as daemon:
        for number in range(rounds):
            past = Past(daemon.client(), f"book{number}", seed=number, parameters=ALWAYS)
            past.append(0, TOKENS)
            begin, pause = time.monotonic(), rng.uniform(0, 0.06)
            while time.monotonic() - begin < pause and built(past)[0] < built(past)[1]:
                pass
            daemon.kill()
            daemon.start()
            past.client = daemon.client()
            seen.append(built(past)[0])
            past.check(TOKENS)
            check_answers(past, f"round {number}, restarted")
            tokens = change(past, number)
            past.check(tokens)
            check_answers(past, f"round {number}, changed")
            wait_built(past)
            assert check_answers(past, f"round {number}, built") > 0, "planes were never used"
            findings, _ = verify(past.client)
            assert findings == [], f"round {number}: {findings[:5]}"
        print(f"built at the kill, of {built(past)[1]}: {seen}")
        daemon.stop()


main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, int(os.environ.get("MEMD_TEST_SEED", time.time_ns() % 10**9)))
