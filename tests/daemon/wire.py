# SPDX-License-Identifier: Apache-2.0
"""Raw frames for tests: a client that can also be wrong on purpose.

Independent of libmemd, of the Python client and of any protobuf library: the messages are encoded from the
text of proto/memd.proto by the few rules of protobuf's wire format, so that a test may leave out, repeat or
overflow any field. Needs nothing but the standard library (NumPy only where tensors are made by callers).
"""
import os
import re
import signal
import socket
import struct
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PROTO = os.path.join(HERE, "..", "..", "proto")
HEADER = struct.Struct("<4sBBHQiIIIQ")
MAGIC, VERSION, REQUEST, REPLY = b"MEMD", 1, 1, 2
ALIGN = 64


def _read(name):
    with open(os.path.join(PROTO, name), encoding="utf-8") as file:
        return file.read()


def _methods():
    found = re.findall(r"X\((\w+), (\d+), (\w+), (\w+), ROLE_\w+\)", _read("method.h"))
    return {name: (int(number), message) for _, number, name, message in found}


def _schema():
    text = re.sub(r"//[^\n]*", "", _read("memd.proto"))
    text = re.sub(r"oneof \w+ \{(.*?)\}", r"\1", text, flags=re.S)  # presence is all it adds
    enums = {name: {k: int(v) for k, v in re.findall(r"(\w+)\s*=\s*(\d+);", body)}
             for name, body in re.findall(r"enum (\w+) \{(.*?)\}", text, re.S)}
    field = re.compile(r"(repeated\s+)?(\w+)\s+(\w+)\s*=\s*(\d+);")
    messages = {name: {f: (int(n), t, bool(r)) for r, t, f, n in field.findall(body)}
                for name, body in re.findall(r"message (\w+) \{(.*?)\}", text, re.S)}
    return enums, messages


METHODS = _methods()
METHOD_NAMES = {number: name for name, (number, _) in METHODS.items()}
ENUMS, MESSAGES = _schema()
CODES = {name: int(value) for name, value in
         re.findall(r"X\((\w+), (-\d+), ", open(os.path.join(PROTO, "..", "base", "error.h"),
                                                encoding="utf-8").read())}
CODE_NAMES = {value: name for name, value in CODES.items()}
INTEGERS = ("uint32", "uint64", "sint32", "bool")


class Failed(Exception):
    """A reply with a status that is not 0."""

    def __init__(self, code, text):
        super().__init__(f"{CODE_NAMES.get(code, code)}: {text}")
        self.code, self.name, self.text = code, CODE_NAMES.get(code, "?"), text


def varint(value):
    out = bytearray()
    value &= (1 << 64) - 1
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _scalar(kind, value):
    if kind == "sint32":
        value = value << 1 ^ value >> 31
    return varint(int(value))


def _is_number(kind):
    return kind in INTEGERS or kind in ENUMS


def _encode_field(number, kind, value):
    if _is_number(kind):
        return varint(number << 3) + _scalar(kind, value)
    if kind == "double":
        return varint(number << 3 | 1) + struct.pack("<d", value)
    if kind == "float":
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if kind == "string":
        value = value if isinstance(value, bytes) else value.encode()
    elif kind in MESSAGES:
        value = value if isinstance(value, bytes) else encode(kind, value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def encode(name, fields):
    """The message `name` from a dict; sub-messages are dicts too (or ready bytes)."""
    out = b""
    for key, value in fields.items():
        number, kind, repeated = MESSAGES[name][key]
        if not repeated:
            out += _encode_field(number, kind, value)
        elif _is_number(kind):
            body = b"".join(_scalar(kind, item) for item in value)
            out += varint(number << 3 | 2) + varint(len(body)) + body
        else:
            out += b"".join(_encode_field(number, kind, item) for item in value)
    return out


def _take_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _value(kind, raw):
    if kind == "sint32":
        return (raw >> 1) ^ -(raw & 1)
    return bool(raw) if kind == "bool" else raw


def _default(kind, repeated):
    if repeated:
        return []
    if _is_number(kind):
        return False if kind == "bool" else 0
    return {"double": 0.0, "float": 0.0, "string": "", "bytes": b""}.get(kind)


def _packed(kind, body):
    if kind == "double":
        return list(struct.unpack(f"<{len(body) // 8}d", body))
    if kind == "float":
        return list(struct.unpack(f"<{len(body) // 4}f", body))
    values, at = [], 0
    while at < len(body):
        raw, at = _take_varint(body, at)
        values.append(_value(kind, raw))
    return values


def _take(kind, repeated, wire, data, at):
    """One field's value (a list when packed) and where the next field begins."""
    if wire == 0:
        raw, at = _take_varint(data, at)
        return _value(kind, raw), at
    if wire == 1:
        return struct.unpack_from("<d", data, at)[0], at + 8
    if wire == 5:
        return struct.unpack_from("<f", data, at)[0], at + 4
    size, at = _take_varint(data, at)
    body, at = data[at:at + size], at + size
    if kind in MESSAGES:
        return decode(kind, body), at
    if kind == "string":
        return body.decode(), at
    if repeated and kind != "bytes":
        return _packed(kind, body), at
    return bytes(body), at


def decode(name, data):
    """A dict with every field of the message, defaults filled in."""
    by_number = {number: (key, kind, repeated)
                 for key, (number, kind, repeated) in MESSAGES[name].items()}
    out = {key: _default(kind, repeated) for key, (_, kind, repeated) in MESSAGES[name].items()}
    at = 0
    while at < len(data):
        tag, at = _take_varint(data, at)
        key, kind, repeated = by_number.get(tag >> 3, (None, "bytes", False))
        value, at = _take(kind, repeated, tag & 7, data, at)
        if key is None:
            continue
        if repeated:
            out[key].extend(value if isinstance(value, list) else [value])
        else:
            out[key] = value
    return out


class Payload:
    """Tensors one after another, each at a multiple of 64."""

    def __init__(self):
        self.data = bytearray()

    def add(self, dtype, shape, data):
        self.data += bytes(-len(self.data) % ALIGN)
        offset = len(self.data)
        self.data += data
        return {"dtype": ENUMS["DType"]["DTYPE_" + dtype], "shape": list(shape), "offset": offset}


def frame(method, message=b"", payload=b"", request_id=1, deadline_ms=0, **fields):
    """Header and body; `fields` override what the header says: magic, version, kind, status, …"""
    number = METHODS[method][0] if isinstance(method, str) else method
    head = {"magic": MAGIC, "version": VERSION, "kind": REQUEST, "method": number,
            "request_id": request_id, "status": 0, "deadline_ms": deadline_ms,
            "message_bytes": len(message), "reserved": 0, "payload_bytes": len(payload)}
    head.update(fields)
    return HEADER.pack(*head.values()) + message + bytes(payload)


class Reply:
    def __init__(self, method, request_id, status, message, payload):
        self.method, self.request_id, self.status = method, request_id, status
        self.raw, self.payload = message, payload

    @property
    def message(self):
        if self.status != 0:
            return decode("ErrorReply", self.raw)
        return decode(METHODS[METHOD_NAMES[self.method]][1] + "Reply", self.raw)

    def check(self):
        if self.status != 0:
            raise Failed(self.status, self.message["text"])
        return self.message


class Client:
    """A blocking socket with frames on it. `address` is a path or (host, port)."""

    def __init__(self, address, timeout=30):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self.socket.connect(address)
        self.next_id = 1

    def close(self):
        self.socket.close()

    def send(self, method, fields=None, payload=b"", deadline_ms=0, fds=()):
        request_id, self.next_id = self.next_id, self.next_id + 1
        message = encode(METHODS[method][1] + "Request", fields or {})
        data = frame(method, message, payload, request_id, deadline_ms)
        if fds:
            data = data[self.send_with(data, fds):]
        self.socket.sendall(data)
        return request_id

    def send_with(self, data, fds):
        """Bytes with descriptors beside them; how many bytes went."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))
        return self.socket.sendmsg([data], [rights])

    def read(self, count):
        out = bytearray(count)
        view = memoryview(out)
        while view:
            got = self.socket.recv_into(view)
            if got == 0:
                raise ConnectionError("closed by the daemon")
            view = view[got:]
        return bytes(out)

    def receive(self):
        (magic, version, kind, method, request_id, status, _, message_bytes, _,
         payload_bytes) = HEADER.unpack(self.read(HEADER.size))
        assert (magic, version, kind) == (MAGIC, VERSION, REPLY), (magic, version, kind)
        message = self.read(message_bytes)
        return Reply(method, request_id, status, message, self.read(payload_bytes))

    def call(self, method, fields=None, payload=b"", deadline_ms=0, fds=()):
        request_id = self.send(method, fields, payload, deadline_ms, fds)
        reply = self.receive()
        assert reply.request_id == request_id, (reply.request_id, request_id)
        reply.check()
        return reply

    def ask(self, method, fields=None, payload=b"", deadline_ms=0, fds=()):
        return self.call(method, fields, payload, deadline_ms, fds).message

    def fails(self, code, method, fields=None, payload=b"", deadline_ms=0, fds=()):
        """The call must fail with this code; the text is returned."""
        try:
            reply = self.ask(method, fields, payload, deadline_ms, fds)
        except Failed as error:
            assert error.name == code, f"{method}: expected {code}, got {error}"
            return error.text
        raise AssertionError(f"{method}: expected {code}, got {reply}")

    def is_closed(self):
        """Has the daemon closed the connection (after whatever it sent)?"""
        try:
            while self.socket.recv(65536):
                pass
            return True
        except ConnectionError:
            return True
        except (socket.timeout, BlockingIOError):
            return False


class Daemon:
    """A real memd on a private directory and socket; killed when the test ends."""

    def __init__(self, *flags, data=None, config=None, log=None):
        self.directory = tempfile.mkdtemp(prefix="memd-test-")
        self.data = data or os.path.join(self.directory, "data")
        self.address = os.path.join(self.directory, "socket")
        self.config, self.flags = config, list(flags)
        self.log_path = log or os.path.join(self.directory, "log")
        self.process = None
        self.start()

    def command(self):
        program = os.environ.get("MEMD", "memd")
        config = ["--config", self.config] if self.config else []
        return [program, *config, "--data", self.data, "--socket", self.address,
                "--map-size", "4GiB", *os.environ.get("MEMD_FLAGS", "").split(), *self.flags]

    def start(self, wait=True):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command(), stderr=log, stdout=log)
        if wait:
            self.wait_ready()

    def wait_ready(self, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"memd exited with {self.process.returncode}:\n{self.log()}")
            try:
                Client(self.address).close()
                return
            except OSError:
                time.sleep(0.005)
        raise AssertionError(f"memd is not ready:\n{self.log()}")

    def client(self, **options):
        return Client(self.address, **options)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, seconds=60):
        """SIGTERM; the exit status must be 0."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(seconds)
        assert code == 0, f"memd exited with {code}:\n{self.log()}"

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()[-4000:]

    def wait_log(self, pattern, seconds=60):
        """The first match in the log: a daemon that answers on one listener may still be opening the next."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if match := re.search(pattern, self.log()):
                return match
            time.sleep(0.005)
        raise AssertionError(f"{pattern} is not in the log:\n{self.log()}")

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if kind is not None:
            print(f"---- log of memd ----\n{self.log()}")
        subprocess.run(["rm", "-rf", self.directory], check=False)


def model(layers=2, query_heads=4, kv_heads=2, head_dim=64, dtype="FP16", **more):
    return {"layers": layers, "query_heads": query_heads, "kv_heads": kv_heads, "head_dim": head_dim,
            "dtype": ENUMS["DType"]["DTYPE_" + dtype], **more}
