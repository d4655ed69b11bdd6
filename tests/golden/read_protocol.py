# SPDX-License-Identifier: Apache-2.0
"""A second reader and writer of the memd protocol, from docs/PROTOCOL.md and proto/memd.proto alone.

    read_protocol.py document ROOT         the document against the C headers; its example decoded
    read_protocol.py daemon ROOT MEMD      the example sent to a fresh daemon, which must answer as
                                           printed
    read_protocol.py library ROOT MINIMAL  the daemon for examples/minimal, which uses libmemd

It shares no code with the project: frames by struct, protobuf by hand, attention in plain Python.
Where it and the C code disagree, one of them or the document is wrong. Standard library only.
"""
import math
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading

from protocol_bytes import (HEADER, REPLY, REQUEST, Frame, Schema, add_tensor, attend, build_frame, decode, encode,
                            parse_frame, read_frame, read_tensor)


# ---- the document ----

class Document:
    def __init__(self, root):
        self.text = (root / "docs/PROTOCOL.md").read_text(encoding="utf-8")

    def table(self, heading):
        """The rows of the first table behind a heading, as lists of cells."""
        section = self.text.split(f"\n## {heading}\n", 1)[1]
        rows = []
        for line in section.splitlines():
            if line.startswith("|"):
                rows.append([cell.strip() for cell in line.strip("|").split("|")])
            elif rows:
                break
        return rows[2:]  # without head and rule

    def example(self):
        """The frames printed in hexadecimal, in order."""
        blocks = re.findall(r"((?:^ {4}[0-9a-f]{4}  [0-9a-f ]+\n)+)", self.text, re.M)
        return [bytes.fromhex("".join(line[10:] for line in block.splitlines()))
                for block in blocks]


def macro_list(text, name):
    """The argument lists of X(…) in an X-macro."""
    body = re.search(rf"#define {name}\(X\)(.*?)\n\n", text, re.S).group(1)
    return [[part.strip() for part in entry.split(",", 2)] for entry in re.findall(r"X\((.*?)\)", body)]


def limit_value(expression):
    expression = re.sub(r"U?INT(32|64)_C\((\d+)\)", r"\2", expression)
    expression = re.sub(r"\b(\d+)[uUlL]+\b", r"\1", expression)
    assert re.fullmatch(r"[\d\s()*<]+", expression), expression
    return eval(expression)  # pylint: disable=eval-used  (digits, brackets, * and << only)


def compare(what, document, header):
    for extra in sorted(set(document) - set(header)):
        print(f"{what}: only in PROTOCOL.md: {extra}")
    for extra in sorted(set(header) - set(document)):
        print(f"{what}: only in the header: {extra}")
    return set(document) == set(header)


def check_tables(root, document):
    good = True
    error_h = (root / "base/error.h").read_text(encoding="utf-8")
    errors = [(int(code), f"MEMD_{name}", text.strip('"'))
              for name, code, text in macro_list(error_h, "ERROR_MAP")]
    good &= compare("errors", [(int(code), name, text) for code, name, text in
                               document.table("Errors")], errors)
    public = (root / "clients/include/memd.h").read_text(encoding="utf-8")
    good &= compare("memd.h", re.findall(r"\b(MEMD_E\w+) = (-\d+)", public),
                    [(name, str(code)) for code, name, _ in errors])

    method_h = (root / "proto/method.h").read_text(encoding="utf-8")
    methods = re.findall(r"X\((\w+), (\d+), (\w+), (\w+), ROLE_(\w+)\)", method_h)
    good &= compare("methods", [tuple(row[:4]) for row in document.table("Methods")],
                    [(number, snake, message, role.lower())
                     for _, number, snake, message, role in methods])

    limits_h = (root / "proto/limits.h").read_text(encoding="utf-8")
    limits = re.findall(r"#define LIMIT_(\w+)\s+(.*?)\s*(?:/\*|$)", limits_h, re.M)
    good &= compare("limits", [(name, int(value)) for name, value, _ in document.table("Limits")],
                    [(name, limit_value(value)) for name, value in limits])

    tensor_h = (root / "base/tensor.h").read_text(encoding="utf-8")
    dtypes = re.findall(r"X\((\w+), (\d+), \d+, \"\w+\"\)", tensor_h)
    good &= compare("dtypes", [(name, number) for number, name, _ in document.table("Tensors")],
                    dtypes)

    frame_h = (root / "proto/frame.h").read_text(encoding="utf-8")
    fields = re.findall(r"^ \* +(\d+) +(\d+) (\w+) ", frame_h, re.M)
    rows = [tuple(row[:3]) for row in document.table("Frame")]
    good &= compare("frame", rows, fields)
    sizes = [int(size) for _, size, _ in rows]
    good &= sum(sizes) == HEADER.size and [int(row[0]) for row in rows] == [
        sum(sizes[:i]) for i in range(len(sizes))]
    return good


def message_names(document):
    return {int(number): message for number, _, message, *_ in document.table("Methods")}


def read_message(schema, names, frame):
    kind = ("ErrorReply" if frame.status else names[frame.method] +
            ("Request" if frame.kind == REQUEST else "Reply"))
    return decode(schema, kind, frame.message)


def check_example(schema, document):
    """What the text says about the example must stand in its bytes."""
    names = message_names(document)
    frames = []
    for data in document.example():
        frame, size = parse_frame(data)
        assert size == len(data), f"{len(data)} bytes printed, the header says {size}"
        assert build_frame(frame) == data
        frames.append((frame, read_message(schema, names, frame)))
    assert len(frames) == 8, len(frames)
    for (request, _), (reply, _) in zip(frames[::2], frames[1::2]):
        assert (request.kind, reply.kind) == (REQUEST, REPLY)
        assert (request.method, request.request_id) == (reply.method, reply.request_id)
    opened, append, appended, ask, answer, refused = (frames[i][1] for i in (1, 2, 3, 4, 5, 7))
    assert opened["context_id"] == 1 and opened["created"] and opened["method"] == "full"
    assert abs(opened["model"]["attention_scale"] - 1 / math.sqrt(8)) < 1e-15
    assert frames[0][0].deadline_ms == 1000 and frames[0][1]["create"]
    layer = append["layers"][0]
    assert layer["token_ids"] == [300] and append["ack"] == 2
    assert read_tensor(layer["k"], frames[2][0].payload) == ((1, 1, 8), [i / 2 for i in range(8)])
    assert read_tensor(layer["v"], frames[2][0].payload) == ((1, 1, 8), [-float(i) for i in range(8)])
    assert appended == {"tokens": 1, "committed_tokens": 1, "synced_tokens": 1}
    assert ask["items"][0]["positions"] == [1]
    item = answer["answers"][0]
    assert read_tensor(item["o"], frames[5][0].payload)[1] == [-float(i) for i in range(8)]
    lse = read_tensor(item["lse"], frames[5][0].payload)[1][0]
    assert abs(lse - 0.17677669) < 1e-8, lse
    assert item["quality"]["exact"] and item["quality"]["rows"] == 2
    assert frames[7][0].status == refused["code"] == -3
    return frames


def mode_document(root):
    document, schema = Document(root), Schema(root)
    good = check_tables(root, document)
    frames = check_example(schema, document)
    print(f"{len(frames)} frames of the example decoded, tables {'agree' if good else 'DIFFER'}")
    return 0 if good else 1


# ---- against the daemon ----

class Session:
    def __init__(self, root, path):
        self.schema, self.names = Schema(root), message_names(Document(root))
        self.numbers = {message: number for number, message in self.names.items()}
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(path)
        self.next_id = 100

    def exchange(self, data):
        self.sock.sendall(data)
        return read_frame(self.sock)

    def call(self, message, values, payload=b"", extra=b""):
        """(status, reply message, reply payload)."""
        self.next_id += 1
        body = encode(self.schema, message + "Request", values) + extra
        reply = self.exchange(build_frame(Frame(REQUEST, self.numbers[message], self.next_id, 0, 0,
                                                body, bytes(payload))))
        assert reply.request_id == self.next_id and reply.method == self.numbers[message]
        return reply.status, read_message(self.schema, self.names, reply), reply.payload


def check_attention(session):
    """A small context, appended in two pieces, against double precision."""
    heads, groups, dim, tokens = 4, 2, 16, 11
    noise = [math.sin(12.9898 * i) for i in range(2 * tokens * groups * dim + 2 * heads * dim)]
    k = [noise[i * dim:(i + 1) * dim] for i in range(tokens * groups)]
    v = [noise[i * dim:(i + 1) * dim] for i in range(tokens * groups, 2 * tokens * groups)]
    q = [noise[-i * dim - dim:-i * dim or None] for i in range(2 * heads)]
    model = {"layers": 2, "query_heads": heads, "kv_heads": groups, "head_dim": dim, "dtype": 1}
    status, opened, _ = session.call("Open", {"name": "reader", "model": model, "must_create": True},
                                     extra=b"\xa2\x06\x03new")  # field 100, which nobody knows
    assert status == 0, opened
    context = opened["context_id"]
    for first, count in ((0, 7), (7, tokens - 7)):
        payload, rows = bytearray(), slice(first * groups, (first + count) * groups)
        layer = {"layer": 1, "position": first}
        for name, data in (("v", v), ("k", k)):  # the order in the payload is free
            layer[name] = add_tensor(payload, "f", (count, groups, dim), sum(data[rows], []))
        status, reply, _ = session.call("Append", {"context_id": context, "layers": [layer]}, payload)
        assert status == 0 and reply["tokens"] == first + count, reply
    limits = [5, tokens]
    payload = bytearray()
    item = {"context_id": context, "layer": 1, "positions": [20, 21], "limits": limits,
            "q": add_tensor(payload, "f", (2, heads, dim), sum(q, []))}
    nobody = dict(item, context_id=context + 1000)
    status, reply, payload = session.call("Attend", {"items": [item, nobody]}, payload)
    assert status == 0 and reply["answers"][1]["status"] == -5, reply
    _, o = read_tensor(reply["answers"][0]["o"], payload)
    _, lse = read_tensor(reply["answers"][0]["lse"], payload)
    worst = 0.0
    for i in range(2 * heads):
        group = i % heads // (heads // groups)
        rows = range(group, limits[i // heads] * groups, groups)
        want_o, want_lse = attend(q[i], [k[r] for r in rows], [v[r] for r in rows], 1 / math.sqrt(dim))
        worst = max([worst, abs(want_lse - lse[i])] +
                    [abs(a - b) for a, b in zip(want_o, o[i * dim:(i + 1) * dim])])
    assert worst <= 1e-5, worst
    return max(worst, check_local(session, dict(item, limits=[5, 5]), (q, k, v)))


def check_local(session, item, rows):
    """The rows behind the limit as the client's own answer: both together are attention over everything. And the
    reading plan says what was read of what is stored."""
    q, k, v = rows
    heads, dim, tokens = 4, 16, len(k) // 2
    scale = 1 / math.sqrt(dim)
    own = [attend(q[i], *(x[10 + i % heads // 2::2] for x in (k, v)), scale) for i in range(2 * heads)]
    payload = bytearray()
    item = dict(item, explain=True, q=add_tensor(payload, "f", (2, heads, dim), sum(q, [])))
    item["local_o"] = add_tensor(payload, "f", (2, heads, dim), sum((o for o, _ in own), []))
    item["local_lse"] = add_tensor(payload, "f", (2, heads), [lse for _, lse in own])
    status, reply, payload = session.call("Attend", {"items": [item]}, payload)
    answer = reply["answers"][0]
    assert status == 0 and "status" not in answer, reply
    _, o = read_tensor(answer["o"], payload)
    _, lse = read_tensor(answer["lse"], payload)
    worst = 0.0
    for i in range(2 * heads):
        group = i % heads // 2
        want_o, want_lse = attend(q[i], k[group::2], v[group::2], scale)
        worst = max([worst, abs(want_lse - lse[i])] +
                    [abs(a - b) for a, b in zip(want_o, o[i * dim:(i + 1) * dim])])
    assert worst <= 1e-5, worst
    runs, groups = answer["plan"]["runs"], answer["plan"]["groups"]
    columns = [runs[name] for name in "query head heads group kind first count placed query_placed".split()]
    read = set()
    for query, head, many, group, kind, first, count, placed, query_placed in zip(*columns, strict=True):
        assert group == kind == 0 and placed == first and query_placed == 20 + query, answer["plan"]
        read |= {(query, h, t) for h in range(head, head + many) for t in range(first, first + count)}
    assert read == {(i, h, t) for i in range(2) for h in range(heads) for t in range(5)}, read
    assert [list(groups[name]) for name in ("query", "head", "merge", "weight")] == [[0], [0], [0], [1.0]], groups
    assert answer["quality"]["tokens"] == 5 < tokens, answer["quality"]
    return worst


def check_refusals(session):
    reply = session.exchange(build_frame(Frame(REQUEST, 999, 7, 0, 0, b"", b"")))
    assert (reply.status, reply.request_id, reply.method) == (-11, 7, 999), reply
    reply = session.exchange(build_frame(Frame(REQUEST, 16, 8, 0, 0, b"\x0a\x05ab", b"")))
    assert (reply.status, reply.request_id) == (-9, 8), reply
    session.sock.sendall(b"GET / HTTP/1.1\r\nHost: memd\r\nAccept: */*\r\n\r\n")
    reply = read_frame(session.sock)
    assert (reply.status, reply.request_id, reply.method) == (-9, 0, 0), reply
    assert read_frame(session.sock) is None


def mode_daemon(root, memd):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        with subprocess.Popen([memd, "--data", f"{folder}/data", "--socket", path],
                              stderr=subprocess.PIPE, text=True) as daemon:
            try:
                for line in daemon.stderr:
                    if " ready " in line:
                        break
                session = Session(root, path)
                frames = Document(root).example()
                for request, expected in zip(frames[::2], frames[1::2]):
                    reply = build_frame(session.exchange(request))
                    assert reply == expected, f"\n{reply.hex(' ')}\nPROTOCOL.md has\n{expected.hex(' ')}"
                worst = check_attention(session)
                check_refusals(session)
            finally:
                daemon.terminate()
                daemon.stderr.read()
    print(f"the example byte for byte; attention within {worst:.1e} of double precision")
    return 0


# ---- against libmemd ----

class FakeDaemon:
    """Answers what examples/minimal asks; keeps what it saw."""

    def __init__(self, root):
        self.schema, self.names = Schema(root), message_names(Document(root))
        self.model, self.k, self.v, self.lse, self.methods = None, [], [], [], []

    def serve(self, listener):
        sock, _ = listener.accept()
        with sock:
            while (frame := read_frame(sock)) is not None:
                name = self.names[frame.method]
                self.methods.append(name)
                assert frame.kind == REQUEST and frame.request_id != 0
                request = decode(self.schema, name + "Request", frame.message)
                payload = bytearray()
                reply = getattr(self, name.lower())(request, frame.payload, payload)
                message = encode(self.schema, name + "Reply", reply)
                sock.sendall(build_frame(Frame(REPLY, frame.method, frame.request_id, 0, 0, message,
                                               bytes(payload))))

    @staticmethod
    def hello(request, _, __):
        assert request["version"] == 1 and request["client"] == "libmemd"
        return {"version": 1, "build": "reader", "role": "admin", "requests_in_flight_max": 4}

    def open(self, request, _, __):
        self.model = request["model"]
        return {"context_id": 77, "created": True, "model": self.model, "method": "full"}

    def append(self, request, payload, _):
        layer = request["layers"][0]
        assert request["context_id"] == 77 and request["ack"] == 2 and "layer" not in layer
        groups, dim = self.model["kv_heads"], self.model["head_dim"]
        for name, rows in (("k", self.k), ("v", self.v)):
            shape, values = read_tensor(layer[name], payload)
            assert shape[1:] == (groups, dim), shape
            rows += [values[i:i + dim] for i in range(0, len(values), dim)]
        tokens = len(self.k) // groups
        return {"tokens": tokens, "committed_tokens": tokens, "synced_tokens": tokens}

    def attend(self, request, payload, reply_payload):
        item = request["items"][0]
        heads, groups, dim = (self.model[key] for key in ("query_heads", "kv_heads", "head_dim"))
        shape, q = read_tensor(item["q"], payload)
        assert shape == (1, heads, dim) and item["positions"] == [len(self.k) // groups]
        o = []
        for h in range(heads):
            group = h // (heads // groups)
            head_o, lse = attend(q[h * dim:(h + 1) * dim], self.k[group::groups],
                                 self.v[group::groups], 1 / math.sqrt(dim))
            o += head_o
            self.lse.append(lse)
        wire_o = add_tensor(reply_payload, "f", (1, heads, dim), o)
        wire_lse = add_tensor(reply_payload, "f", (1, heads), self.lse)
        return {"answers": [{"o": wire_o, "lse": wire_lse,
                             "quality": {"method": "full", "exact": True}}]}

    @staticmethod
    def drop(request, _, __):
        assert request["context_id"] == 77
        return {"bytes": 1}


def mode_library(root, minimal):
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen(1)
        daemon = FakeDaemon(root)
        thread = threading.Thread(target=daemon.serve, args=(listener,))
        thread.start()
        done = subprocess.run([minimal, f"unix:{folder}/socket"], capture_output=True, text=True,
                              check=False, timeout=60)
        thread.join()
    assert done.returncode == 0, done.stderr
    assert daemon.methods == ["Hello", "Open", "Append", "Attend", "Drop"], daemon.methods
    printed = [float(text) for text in re.findall(r"lse (-?[\d.]+)", done.stdout)]
    assert len(printed) == len(daemon.lse) > 0
    assert all(abs(a - b) < 6e-5 for a, b in zip(printed, daemon.lse)), (printed, daemon.lse)
    print(f"libmemd sent {', '.join(daemon.methods)}; {len(daemon.k)} rows read")
    return 0


if __name__ == "__main__":
    MODES = {"document": mode_document, "daemon": mode_daemon, "library": mode_library}
    sys.exit(MODES[sys.argv[1]](pathlib.Path(sys.argv[2]), *sys.argv[3:]))
