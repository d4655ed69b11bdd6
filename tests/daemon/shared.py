# SPDX-License-Identifier: Apache-2.0
"""Memory that a test shares with the daemon, and tensors in it."""
import fcntl
import mmap
import os

from wire import ENUMS

F_ADD_SEALS, SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_WRITE = 1033, 1, 2, 4, 8
ALIGN = 64
FEATURES = {"version": 1, "features": ["shared-memory", "device-memory"]}
KINDS = ENUMS["MemoryKind"]


def memfd(size, seals=SEAL_SHRINK, flags=0):
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, F_ADD_SEALS, seals)
    return fd


class Region:
    """Shared memory, mapped here; tensors are put one behind the other."""

    def __init__(self, number, size, fd=None):
        self.number, self.size, self.end = number, size, 0
        self.fd = memfd(size) if fd is None else fd
        self.memory = mmap.mmap(self.fd, size)

    def fields(self, **change):
        return {"region": self.number, "bytes": self.size, **change}

    def map(self, client, **change):
        return client.ask("map_memory", self.fields(**change), fds=[self.fd])

    def place(self, dtype, shape, size):
        self.end += -self.end % ALIGN
        offset, self.end = self.end, self.end + size
        assert self.end <= self.size, (self.end, self.size)
        return {"dtype": ENUMS["DType"]["DTYPE_" + dtype], "shape": list(shape), "offset": offset,
                "region": self.number}

    def put(self, dtype, shape, data):
        tensor = self.place(dtype, shape, len(data))
        self.memory[tensor["offset"]:tensor["offset"] + len(data)] = bytes(data)
        return tensor

    def move(self, tensor, payload, element):
        """The same tensor, out of a payload into this memory."""
        size = element
        for length in tensor["shape"]:
            size *= length
        name = {value: key for key, value in ENUMS["DType"].items()}[tensor["dtype"]]
        return self.put(name.removeprefix("DTYPE_"), tensor["shape"],
                        payload[tensor["offset"]:tensor["offset"] + size])

    def bytes(self, tensor, size):
        return self.memory[tensor["offset"]:tensor["offset"] + size]

    def close(self):
        self.memory.close()
        os.close(self.fd)


def greet(client):
    """A client that is going to share memory."""
    return client.ask("hello", FEATURES)


def descriptors(daemon):
    """How many the daemon has open, but for files of the store, which it opens for a moment now and then."""
    folder, count = f"/proc/{daemon.process.pid}/fd", 0
    for name in os.listdir(folder):
        try:
            count += not os.readlink(os.path.join(folder, name)).startswith(daemon.data)
        except FileNotFoundError:
            pass  # closed since
    return count
