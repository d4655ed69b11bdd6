# SPDX-License-Identifier: Apache-2.0
"""TCP: only with a token file, nothing before a Hello with a valid token, roles by token."""
import os
import subprocess

from wire import Client, Daemon, frame

TOKENS = "# comment\nreader-token-0123456789 read\nwriter-token-0123456789\nadmin-token-0123456789 admin\n"


def write(path, text, mode=0o600):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


def refuses(*flags):
    """The configuration must be refused; the message is returned."""
    run = subprocess.run([os.environ["MEMD"], "--check-config", *flags], capture_output=True, text=True,
                         check=False)
    assert run.returncode != 0, f"{flags} was accepted"
    return run.stderr


def token_files(directory):
    path = os.path.join(directory, "bad")
    assert "token_file" in refuses("--listen", "127.0.0.1:0")
    assert "No such file" in refuses("--listen", "127.0.0.1:0", "--token-file", path)
    for text, mode, why in ((TOKENS, 0o604, "everybody"), ("short\n", 0o600, "token of 5 bytes"),
                            ("# none\n", 0o600, "no token"),
                            ("writer-token-0123456789 root\n", 0o600, "bad:1:")):
        write(path, text, mode)
        said = refuses("--listen", "127.0.0.1:0", "--token-file", path)
        assert why in said, (why, said)


def roles(address):
    client = Client(address)
    client.fails("EPERM", "health")
    for token in ("", "wrong", "writer-token-012345678", "writer-token-01234567890", "x" * 300):
        client.fails("EPERM", "hello", {"version": 1, "token": token})
    assert client.ask("hello", {"version": 1, "token": "reader-token-0123456789"})["role"] == "read"
    client.fails("EPERM", "open", {"name": "x", "create": True, "model": {"layers": 1, "query_heads": 1,
                 "kv_heads": 1, "head_dim": 8, "dtype": 1}})
    for method in "append", "observe", "compress", "put_params":
        client.fails("EPERM", method, {"context_id": 1})
    client.fails("EPERM", "drop_params", {"set": "gates"})
    client.fails("EPERM", "verify")
    assert client.ask("list")["contexts"] == []
    assert client.ask("hello", {"version": 1, "token": "admin-token-0123456789"})["role"] == "admin"
    assert client.ask("verify")["findings"] == []


def strangers_send_little(address):
    client = Client(address)
    client.socket.sendall(frame("append", b"", b"", payload_bytes=1 << 20))
    reply = client.receive()
    assert reply.status == -14, reply.status
    assert client.is_closed()


def main():
    with Daemon() as probe:  # only for its directory
        token_path = os.path.join(probe.directory, "tokens")
        token_files(probe.directory)
        write(token_path, TOKENS)
        with Daemon("--listen", "127.0.0.1:0", "--token-file", token_path) as daemon:
            port = int(daemon.wait_log(r"tcp:127\.0\.0\.1:(\d+)")[1])
            roles(("127.0.0.1", port))
            strangers_send_little(("127.0.0.1", port))
            assert daemon.client().ask("hello", {"version": 1})["role"] == "admin"
            daemon.stop()


main()
