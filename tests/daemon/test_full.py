# SPDX-License-Identifier: Apache-2.0
"""No space left: the map is full, the file system is full. Clean errors, nothing acknowledged is lost, and
service returns with the space."""
import os
import shutil
import subprocess
import tempfile

from past import Past, verify
from wire import Daemon, Failed


def fill(past, step=128, limit=1 << 20):
    """Append until the daemon says EFULL; tokens acknowledged as committed."""
    committed = 0
    while committed < limit:
        try:
            committed = past.append(committed, step)["committed_tokens"]
        except Failed as error:
            assert error.name in ("EFULL", "EBUSY"), error
            if error.name == "EFULL":
                return committed
    raise AssertionError(f"never full after {limit} tokens")


def tokens_of(past):
    return past.client.ask("stat", {"context_id": past.id})["context"]["tokens"]


def full_and_back(daemon, make_room):
    victim, past = Past(daemon.client(), "victim", seed=2), Past(daemon.client(), "book")
    victim.append(0, 2048)
    committed = fill(past)
    print(f"full after {committed} tokens")
    assert committed > 0 and tokens_of(past) >= committed
    past.check(committed)
    assert past.client.ask("health")["ready"]
    daemon.kill()
    daemon.start()
    past.client = victim.client = daemon.client()
    assert tokens_of(past) >= committed
    past.check(committed)
    victim.check(2048)
    make_room(victim)
    tokens = tokens_of(past)
    past.append(tokens, 256)
    past.check(tokens + 256)
    findings, _ = verify(past.client)
    assert findings == [], findings
    daemon.stop()


def small_map():
    with Daemon("--map-size", "8MiB") as daemon:
        full_and_back(daemon, lambda victim: victim.client.ask("drop", {"context_id": victim.id}))


def small_disk():
    """A tmpfs of its own; without the right to mount there is nothing to test."""
    folder = tempfile.mkdtemp(prefix="memd-test-")
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=False,
        stderr=subprocess.DEVNULL).returncode == 0
    if not mounted:
        print("cannot mount a tmpfs: skipped the full disk")
        os.rmdir(folder)
        return
    ballast = os.path.join(folder, "ballast")
    try:
        with open(ballast, "wb") as file:
            file.write(bytes(2 << 20))
        with Daemon(data=os.path.join(folder, "data")) as daemon:
            full_and_back(daemon, lambda victim: os.unlink(ballast))
    finally:
        subprocess.run(["umount", "-l", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)


small_map()
small_disk()
