# SPDX-License-Identifier: Apache-2.0
"""A server that says what a test tells it to, so that the client meets replies no good daemon sends.

It reads frames with its own few lines (docs/PROTOCOL.md), not with the client's. A test gives it a
function `answer(server, method, request_id, message, payload)` that returns bytes to send back, or None to close the
connection; `reply(...)` builds the bytes of a well-formed reply.
"""
import os
import socket
import struct
import tempfile
import threading

from memd import wire

IN_FLIGHT_MAX = 4  # what hello tells the client
HEADER = "<IBBHQiIIIQ"
NAMES = {number: name for name, (number, _, _) in wire.METHODS.items()}


def reply(method, request_id, message=None, payload=b"", status=0):
    body = message.SerializeToString() if message is not None else b""
    return struct.pack(HEADER, 0x444D454D, 1, 2, wire.METHODS[method][0], request_id, status, 0,
                       len(body), 0, len(payload)) + body + payload


def error(method, request_id, code, text):
    return reply(method, request_id, wire.ErrorReply(code=code, text=text), status=code)


def new(method):
    """An empty reply message of a method."""
    return wire.reply_class(method)()


class Half(bytes):
    """Bytes of which the first half is sent; then the connection is closed."""


class FakeServer:
    def __init__(self, answer):
        self._answer = answer
        self._folder = tempfile.TemporaryDirectory(prefix="memd-fake-")
        self._path = os.path.join(self._folder.name, "s")
        self.address = f"unix:{self._path}"
        self.seen = []          # (method, request id, message, payload) of everything but hello
        self.connections = 0
        self.socket = None      # of the client served now
        self.errors = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self._folder.cleanup()
        if self.errors:
            raise self.errors[0]

    def _run(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self.socket = sock
            with sock:
                try:
                    while self._serve_one(sock):
                        pass
                except ConnectionError:
                    pass
                except Exception as failure:  # told to the test by __exit__
                    self.errors.append(failure)

    def _serve_one(self, sock):
        header = self._exactly(sock, 40)
        if header is None:
            return False
        magic, version, kind, number, request_id, status, _, message_bytes, reserved, payload_bytes = \
            struct.unpack(HEADER, header)
        assert (magic, version, kind, status, reserved) == (0x444D454D, 1, 1, 0, 0), header.hex()
        method = NAMES[number]
        message = wire.Request(method).message
        message.ParseFromString(self._exactly(sock, message_bytes))
        payload = self._exactly(sock, payload_bytes)
        if method == "hello":
            hello = new("hello")
            hello.version, hello.build, hello.role = 1, "fake 1", "admin"
            hello.requests_in_flight_max = IN_FLIGHT_MAX
            sock.sendall(reply(method, request_id, hello))
            return True
        self.seen.append((method, request_id, message, payload))
        answer = self._answer(self, method, request_id, message, payload)
        if answer is None:
            return False
        if isinstance(answer, Half):
            sock.sendall(answer[:len(answer) // 2])
            return False
        sock.sendall(answer)
        return True

    @staticmethod
    def _exactly(sock, size):
        data = bytearray(size)
        done = 0
        while done < size:
            count = sock.recv_into(memoryview(data)[done:])
            if count == 0:
                return None
            done += count
        return bytes(data)
