# SPDX-License-Identifier: Apache-2.0
"""SIGTERM drains, SIGHUP reloads whole files or nothing, one daemon per directory, stale sockets."""
import os
import signal
import socket
import subprocess
import time

from past import Past
from wire import Daemon, Failed


def wait_for(daemon, text, seconds=20):
    end = time.monotonic() + seconds
    while text not in daemon.log():
        assert time.monotonic() < end, f"no '{text}' in:\n{daemon.log()}"
        os.sched_yield()


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def reload(directory):
    path = os.path.join(directory, "memd.conf")
    write(path, "sync = interval 1s\nworkers = 2\ncontexts_resident_max = 7\n")
    with Daemon(config=path) as daemon:
        client = daemon.client()
        write(path, "sync = interval 2s\ncontexts_resident_max = 9\n\nnonsense = 1\n")
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(daemon, "memd.conf:4: unknown key 'nonsense'")
        assert client.ask("status")["sync"] == "interval 1s", "a bad file changed something"
        write(path, "sync = interval 2s\ncontexts_resident_max = 9\n")
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(daemon, "info reloaded ")
        assert client.ask("status")["sync"] == "interval 2s"
        assert "reload-needs-restart key=contexts_resident_max running='7' file='9'" in daemon.log()
        daemon.stop()


def drain():
    with Daemon("--drain-timeout", "5s") as daemon:
        client = daemon.client()
        past = Past(client, "book")
        sent = []
        for position in range(0, 2000, 100):
            fields, payload = past.append_fields(position, 100)
            sent.append(client.send("append", fields, payload))
        daemon.process.send_signal(signal.SIGTERM)
        acknowledged = 0
        for _ in sent:
            try:
                acknowledged = max(acknowledged, client.receive().check()["committed_tokens"])
            except Failed as error:
                assert error.name == "EDRAINING", error
            except ConnectionError:
                break  # what it had not read when it was done is not answered
        assert daemon.process.wait(30) == 0, daemon.log()
        assert "info stopped" in daemon.log()
        daemon.start()
        past.client = daemon.client()
        tokens = past.client.ask("stat", {"context_id": past.id})["context"]["tokens"]
        assert tokens >= acknowledged, (tokens, acknowledged)
        past.check(tokens)
        daemon.stop()


def refuses_to_start(daemon, *flags):
    run = subprocess.run([os.environ["MEMD"], *flags], capture_output=True, text=True, timeout=30,
                         check=False)
    assert run.returncode == 1, (run.returncode, run.stderr)
    return run.stderr


def neighbours():
    with Daemon() as daemon:
        other = os.path.join(daemon.directory, "other")
        said = refuses_to_start(daemon, "--data", daemon.data, "--socket", other)
        assert "ELOCKED" in said, said
        said = refuses_to_start(daemon, "--data", other, "--socket", daemon.address)
        assert "another process listens" in said, said
        plain = os.path.join(daemon.directory, "plain")
        write(plain, "")
        said = refuses_to_start(daemon, "--data", other, "--socket", plain)
        assert "not a socket" in said, said
        daemon.kill()
        assert os.path.exists(daemon.address), "SIGKILL leaves the socket file"
        daemon.start()  # and it is replaced
        assert os.stat(daemon.address).st_mode & 0o777 == 0o660
        daemon.stop()


def activation():
    """systemd's protocol by hand: descriptor 3 listens, LISTEN_FDS says so."""
    with Daemon() as probe:
        path = os.path.join(probe.directory, "given")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(8)
        fd = listener.fileno()
        program = (f"export LISTEN_PID=$$ LISTEN_FDS=1; exec {os.environ['MEMD']} "
                   f"--data {probe.directory}/other 3<&{fd}")
        process = subprocess.Popen(["/bin/sh", "-c", program], pass_fds=[fd],
                                   stderr=subprocess.DEVNULL)
        client = type(probe.client())(path)
        status = client.ask("status")
        process.terminate()
        assert process.wait(30) == 0
        if any(path in name for name in status["listeners"]):
            assert os.path.exists(path), "a socket of systemd must not be removed"
        else:
            raise AssertionError(status["listeners"])


def main():
    with Daemon() as probe:
        reload(probe.directory)
    drain()
    neighbours()
    if os.environ.get("MEMD_SYSTEMD", "1") == "1":
        activation()


main()
