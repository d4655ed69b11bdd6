# SPDX-License-Identifier: Apache-2.0
"""Memory that a client shares with a daemon on its host: a memfd, seen as NumPy arrays.

Arrays that lie in a region do not travel, requests name their place. That an array lies there is seen by its
address, so the calls are those without shared memory.
"""
from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from .connection import Connection

ALIGN = 64
# Of linux/fcntl.h; Python has names for them since 3.9.
_F_ADD_SEALS, _SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW = 1033, 1, 2, 4


class Place(NamedTuple):
    """Where an array lies: in which region, how far from its beginning."""

    region: int
    offset: int


class Region:
    """Shared memory, made by `Client.share`. Arrays come from `array`, one behind the other.

    From a call until it returns, the arrays that it was given, and those that it fills, are the daemon's. A daemon
    that was started anew may refuse the memory (others have its `shared_memory`): a call that named it already fails
    with what the daemon said, and from then on its arrays travel.
    """

    def __init__(self, connection: Connection, number: int, size: int):
        if size <= 0:
            raise ValueError(f"a region of {size} bytes")
        self._connection = connection
        self.number = number
        self.registered = False  # the daemon's device can reach it
        self.refused: Exception | None = None  # what the daemon of the newest connection did not take it with
        self._used = 0
        page = mmap.PAGESIZE
        self.size = -(-size // page) * page
        self.fd = os.memfd_create("memd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self.fd, 0, self.size)
            fcntl.fcntl(self.fd, _F_ADD_SEALS, _SEAL_SHRINK | _SEAL_GROW | _SEAL_SEAL)
            self._bytes = np.frombuffer(mmap.mmap(self.fd, self.size), dtype=np.uint8)
        except BaseException:
            os.close(self.fd)
            raise
        self.address = self._bytes.ctypes.data

    def __enter__(self) -> "Region":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def array(self, shape: int | tuple, dtype=np.float32) -> np.ndarray:
        """An array behind the others, zeros at first; MemoryError when there is no room left. `clear` makes
        room again."""
        dtype = np.dtype(dtype)
        begin = -(-self._used // ALIGN) * ALIGN
        end = begin + dtype.itemsize * int(np.prod(shape, dtype=object))
        if end > self.size:
            raise MemoryError(f"{end - begin} bytes behind {begin} of a region of {self.size}")
        self._used = end
        return self._bytes[begin:end].view(dtype).reshape(shape)

    def clear(self) -> None:
        """Begin anew: later arrays take the places of those that were given out."""
        self._used = 0

    def close(self) -> None:
        """Take it back: afterwards the daemon does not touch it. Its arrays stay, as memory of this process
        alone. Closing the client does the same. But where a request with `out=` ran out of time and its connection
        is gone, the daemon may still write what was asked for there for a moment."""
        self._connection.unshare(self)

    def _forget(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def locate(regions, array: np.ndarray) -> Place | None:
    """Where a contiguous array lies, or None: in no region, or not where it can be named."""
    address = array.__array_interface__["data"][0]
    for region in regions:
        offset = address - region.address
        if region.refused is None and 0 <= offset and offset + array.nbytes <= region.size and offset % ALIGN == 0:
            return Place(region.number, offset)
    return None
