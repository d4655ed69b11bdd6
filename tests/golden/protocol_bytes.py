# SPDX-License-Identifier: Apache-2.0
"""What PROTOCOL.md says of bytes, written from its text: protobuf by the schema of memd.proto, frames, tensors; and
attention, the truth that answers are compared with. Standard library only."""
import math
import re
import struct
from typing import NamedTuple

HEADER = struct.Struct("<4sBBHQiIIIQ")
REQUEST, REPLY = 1, 2
DTYPES = {1: "f", 2: "e", 4: "Q", 5: "I"}  # of struct; bfloat16 has none
DTYPE_NUMBERS = {letter: number for number, letter in DTYPES.items()}


# ---- protobuf ----

class Field(NamedTuple):
    name: str
    kind: str
    repeated: bool


class Schema:
    """The messages of memd.proto: name -> {field number: Field}."""

    def __init__(self, root):
        text = (root / "proto/memd.proto").read_text(encoding="utf-8")
        text = re.sub(r"//[^\n]*", "", text)
        text = re.sub(r"oneof \w+ \{(.*?)\}", r"\1", text, flags=re.S)  # presence is all it adds
        self.enums = dict(re.findall(r"enum (\w+) \{(.*?)\}", text, re.S))
        self.messages = {name: self.fields(body)
                         for name, body in re.findall(r"message (\w+) \{(.*?)\}", text, re.S)}

    @staticmethod
    def fields(body):
        found = re.findall(r"(repeated )?(\w+) (\w+) = (\d+);", body)
        return {int(number): Field(name, kind, bool(many)) for many, kind, name, number in found}

    def kind(self, field):
        return "int32" if field.kind in self.enums else field.kind


FIXED = {"double": "<d", "float": "<f"}


def read_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def write_varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def scalar(kind, value):
    """What a varint of this kind means."""
    if kind == "sint32":
        return value >> 1 ^ -(value & 1)
    if kind == "bool":
        return bool(value)
    return value


def decode_packed(kind, data):
    values, at = [], 0
    while at < len(data):
        if kind in FIXED:
            size = struct.calcsize(FIXED[kind])
            values.append(struct.unpack_from(FIXED[kind], data, at)[0])
            at += size
        else:
            value, at = read_varint(data, at)
            values.append(scalar(kind, value))
    return values


def decode(schema, message, data):
    """A dict of the fields that are there; repeated ones are always there."""
    fields = schema.messages[message]
    values = {field.name: [] for field in fields.values() if field.repeated}
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = read_varint(data, at)
        elif wire == 2:
            size, at = read_varint(data, at)
            assert at + size <= len(data), f"{message}: field {number} is cut"
            value, at = data[at:at + size], at + size
        else:
            size = {1: 8, 5: 4}[wire]
            value, at = data[at:at + size], at + size
        if number in fields:
            store(schema, values, fields[number], wire, value)
    return values


def store(schema, values, field, wire, value):
    kind = schema.kind(field)
    if kind in schema.messages:
        value = [decode(schema, kind, value)]
    elif kind == "string":
        value = [value.decode("utf-8")]
    elif kind == "bytes":
        value = [value]
    elif kind in FIXED:
        value = decode_packed(kind, value)
    else:
        value = decode_packed(kind, value) if wire == 2 else [scalar(kind, value)]
    if field.repeated:
        values[field.name] += value
    else:
        values[field.name] = value[-1]


def encode(schema, message, values):
    """Fields in the order of their numbers, defaults left out, numbers packed: as protobuf does."""
    out = b""
    for number, field in sorted(schema.messages[message].items()):
        value = values.get(field.name)
        if value is None or (not field.repeated and not isinstance(value, dict) and not value):
            continue
        out += encode_field(schema, number, field, value if field.repeated else [value])
    return out


def encode_field(schema, number, field, items):
    kind = schema.kind(field)
    if kind in schema.messages or kind in ("string", "bytes"):
        parts = [encode(schema, kind, item) if isinstance(item, dict) else
                 item.encode() if isinstance(item, str) else item for item in items]
        return b"".join(write_varint(number << 3 | 2) + write_varint(len(part)) + part
                        for part in parts)
    if kind in FIXED:
        body = b"".join(struct.pack(FIXED[kind], item) for item in items)
        wire = 5 if kind == "float" else 1
    else:
        codes = [item << 1 ^ item >> 31 if kind == "sint32" else int(item) for item in items]
        body, wire = b"".join(write_varint(code & (1 << 64) - 1) for code in codes), 0
    if field.repeated:
        return write_varint(number << 3 | 2) + write_varint(len(body)) + body if items else b""
    return write_varint(number << 3 | wire) + body


# ---- frames and tensors ----

class Frame(NamedTuple):
    kind: int
    method: int
    request_id: int
    status: int
    deadline_ms: int
    message: bytes
    payload: bytes


def parse_frame(data):
    """The frame at the start of `data`, and how long it is."""
    (magic, version, kind, method, request_id, status, deadline_ms, message_bytes, reserved,
     payload_bytes) = HEADER.unpack_from(data)
    assert magic == b"MEMD" and version == 1 and kind in (REQUEST, REPLY) and reserved == 0, data[:40]
    assert kind == REPLY or status == 0
    assert kind == REQUEST or (deadline_ms == 0 and status <= 0)
    message_end = HEADER.size + message_bytes
    end = message_end + payload_bytes
    return Frame(kind, method, request_id, status, deadline_ms, data[HEADER.size:message_end],
                 data[message_end:end]), end


def build_frame(frame):
    return HEADER.pack(b"MEMD", 1, frame.kind, frame.method, frame.request_id, frame.status,
                       frame.deadline_ms, len(frame.message), 0, len(frame.payload)
                       ) + frame.message + frame.payload


def read_frame(sock):
    header = read_bytes(sock, HEADER.size)
    if not header:
        return None
    lengths = HEADER.unpack(header)
    return parse_frame(header + read_bytes(sock, lengths[7] + lengths[9]))[0]


def read_bytes(sock, size):
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            return b""
        data += part
    return data


def read_tensor(wire, payload):
    """(shape, flat list of numbers)."""
    letter, offset = DTYPES[wire["dtype"]], wire.get("offset", 0)
    count = math.prod(wire["shape"])
    assert offset % 64 == 0 and count > 0
    assert offset + count * struct.calcsize(letter) <= len(payload)
    return tuple(wire["shape"]), list(struct.unpack_from(f"<{count}{letter}", payload, offset))


def add_tensor(payload, letter, shape, values):
    """Put numbers into the bytearray `payload`; the Tensor message that describes them."""
    payload += bytes(-len(payload) % 64)
    offset = len(payload)
    payload += struct.pack(f"<{len(values)}{letter}", *values)
    return {"dtype": DTYPE_NUMBERS[letter], "shape": list(shape), "offset": offset}


def attend(q, k, v, scale):
    """One query over rows, in double precision: (o, lse)."""
    scores = [scale * sum(a * b for a, b in zip(q, row)) for row in k]
    if not scores:
        return [0.0] * len(q), -math.inf
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = sum(weights)
    o = [sum(w * row[i] for w, row in zip(weights, v)) / total for i in range(len(q))]
    return o, top + math.log(total)
