# SPDX-License-Identifier: Apache-2.0
"""Frames: a request as buffers ready for sendmsg, and the header of a reply (docs/PROTOCOL.md).

Sans I/O, like proto/frame.c. Tensors are never copied into a message: a request keeps references to the
caller's arrays, with padding between them so that each starts at a multiple of 64.
"""
from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np

from . import dtypes
from .errors import LimitError, ProtocolError, VersionError
from .region import locate
from .schema import Schema

HEADER = struct.Struct("<4sBBHQiIIIQ")
MAGIC = b"MEMD"
VERSION = 1
REQUEST, REPLY = 1, 2
ALIGN = 64
MESSAGE_BYTES_MAX = 4 << 20
PAYLOAD_BYTES_MAX = 256 << 20

# proto/method.h: snake_name -> (number, message name, may it be repeated when its reply was lost)
METHODS = {
    "hello": (1, "Hello", True), "health": (2, "Health", True),
    "open": (16, "Open", True), "append": (17, "Append", True),
    "attend": (18, "Attend", True), "search": (19, "Search", True),
    "fetch": (20, "Fetch", True), "truncate": (21, "Truncate", False),
    "fork": (22, "Fork", False), "drop": (23, "Drop", False),
    "list": (24, "List", True), "stat": (25, "Stat", True), "pin": (26, "Pin", True),
    "methods": (27, "Methods", True),
    "observe": (28, "Observe", False), "compress": (29, "Compress", False),
    "put_params": (30, "PutParams", True), "drop_params": (31, "DropParams", False),
    "map_memory": (32, "MapMemory", True), "unmap_memory": (33, "UnmapMemory", True),
    "status": (48, "Status", True), "stats": (49, "Stats", True),
    "verify": (50, "Verify", True), "dump": (51, "Dump", True),
    "compact": (52, "Compact", False), "drain": (53, "Drain", False),
    "recall": (54, "Recall", True), "rebuild": (55, "Rebuild", True),
    "explain": (56, "Explain", True),
}

_schema = Schema()
_classes = {name: (_schema.message(message + "Request"), _schema.message(message + "Reply"))
            for name, (_, message, _) in METHODS.items()}
ErrorReply = _schema.message("ErrorReply")
_PADDING = bytes(ALIGN)


class Request:
    """One request under construction: fill `message`, hand tensors to `tensor`, then let a connection
    send `buffers(...)`."""

    def __init__(self, method: str, regions=(), fd: int | None = None):
        """regions: in which tensors may lie; fd: goes beside the first bytes."""
        self.method = method
        self.regions, self.fd = regions, fd
        self.number, _, self.repeatable = METHODS[method]
        self.message = _classes[method][0]()
        self.payload_bytes = 0
        self.named: set = set()  # numbers of regions
        self._payload: list = []

    def tensor(self, wire, array: np.ndarray, dtype: int) -> None:
        """Describe `array` (C-contiguous) in the message field `wire` and send its bytes, if they do not lie
        in a region."""
        if self.place(wire, array, dtype):
            return
        padding = -self.payload_bytes % ALIGN
        if padding:
            self._payload.append(_PADDING[:padding])
        wire.dtype = dtype
        wire.shape.extend(array.shape)
        wire.offset = self.payload_bytes + padding
        self.payload_bytes += padding + array.nbytes
        if array.nbytes:
            self._payload.append(array.reshape(-1).view(np.uint8).data)

    def place(self, wire, array: np.ndarray, dtype: int) -> bool:
        """Describe `array` in `wire` where it lies in a region; does it?"""
        found = locate(self.regions, array)
        if found is None:
            return False
        wire.dtype = dtype
        wire.shape.extend(array.shape)
        wire.region, wire.offset = found
        self.named.add(found.region)
        return True

    def buffers(self, request_id: int, deadline_ms: int) -> list:
        """Header and message, then the tensors, in the order they are sent."""
        message = self.message.SerializeToString()
        if len(message) > MESSAGE_BYTES_MAX or self.payload_bytes > PAYLOAD_BYTES_MAX:
            raise LimitError(f"{self.method} of {len(message)} + {self.payload_bytes} bytes; a frame "
                             f"holds {MESSAGE_BYTES_MAX} + {PAYLOAD_BYTES_MAX} at most")
        header = HEADER.pack(MAGIC, VERSION, REQUEST, self.number, request_id, 0, deadline_ms,
                             len(message), 0, self.payload_bytes)
        return [header + message, *self._payload]


class ReplyHeader(NamedTuple):
    request_id: int
    status: int
    message_bytes: int
    payload_bytes: int


def decode_reply_header(header: bytes | bytearray) -> ReplyHeader:
    """Check the 40 bytes in front of a reply; afterwards its lengths may be allocated."""
    (magic, version, kind, _, request_id, status, _, message_bytes, reserved,
     payload_bytes) = HEADER.unpack(header)
    if magic != MAGIC or kind != REPLY or reserved != 0:
        raise ProtocolError(f"not the header of a memd reply: {bytes(header[:8]).hex()}…")
    if version != VERSION:
        raise VersionError(f"the daemon speaks protocol version {version}, this client {VERSION}")
    if message_bytes > MESSAGE_BYTES_MAX or payload_bytes > PAYLOAD_BYTES_MAX:
        raise ProtocolError(f"a reply of {message_bytes} + {payload_bytes} bytes is over the limits")
    return ReplyHeader(request_id, status, message_bytes, payload_bytes)


class Reply(NamedTuple):
    """What came back: the message and the payload its tensors lie in (uint8, 64-byte aligned)."""

    message: Any
    payload: np.ndarray

    def tensor(self, wire) -> np.ndarray:
        """The array a message field describes: a view of the payload, checked against its bounds."""
        dtype = dtypes.NUMPY.get(wire.dtype)
        if wire.region:
            raise ProtocolError(f"a tensor in region {wire.region}, where none was asked for")
        if dtype is None:
            raise ProtocolError(f"a tensor of unknown dtype {wire.dtype}")
        shape = tuple(wire.shape)
        end = wire.offset + dtype.itemsize * int(np.prod(shape, dtype=object))
        if end > self.payload.nbytes or wire.offset % ALIGN:
            raise ProtocolError(f"a tensor of shape {shape} at {wire.offset} does not lie in the "
                                f"payload of {self.payload.nbytes} bytes")
        return self.payload[wire.offset:end].view(dtype).reshape(shape)


def parse(kind, data: bytes):
    """A message from the wire, or ProtocolError."""
    try:
        return kind.FromString(data)
    except Exception as failure:  # DecodeError, whose home differs between protobuf versions
        raise ProtocolError(f"not a {kind.DESCRIPTOR.name}: {failure}") from failure


def reply_class(method: str):
    return _classes[method][1]


def aligned_empty(size: int) -> np.ndarray:
    """uint8 (size), starting at a multiple of 64 in memory."""
    block = np.empty(size + ALIGN, dtype=np.uint8)
    start = -block.ctypes.data % ALIGN
    return block[start:start + size]
