# SPDX-License-Identifier: Apache-2.0
"""The protobuf messages of memd, built at import from compiled descriptors.

No generated code: a wheel carries `memd.binpb` (see setup.py); in a checkout, where there is none, the
one source of truth, proto/memd.proto, is compiled by `protoc` while importing (about 10 ms). The
descriptors go into a pool of our own, so that two versions of memd in one process cannot collide.
"""
from __future__ import annotations

import os
import subprocess


def compile_proto(path: str) -> bytes:
    """The serialised FileDescriptorSet of one .proto file, made by the `protoc` on PATH."""
    folder, name = os.path.split(os.path.abspath(path))
    command = [os.environ.get("PROTOC", "protoc"), f"--proto_path={folder}",
               "--descriptor_set_out=/dev/stdout", name]
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    except FileNotFoundError:
        raise RuntimeError("protoc is needed to compile memd.proto: install the package "
                           "protobuf-compiler, or install memd from a wheel") from None


def _read_descriptors() -> bytes:
    here = os.path.dirname(os.path.abspath(__file__))
    packaged = os.path.join(here, "memd.binpb")
    if os.path.exists(packaged):
        with open(packaged, "rb") as file:
            return file.read()
    return compile_proto(os.path.join(here, "..", "..", "..", "proto", "memd.proto"))


class Schema:
    """Message classes by their name in memd.proto: `schema.message("AttendRequest")`."""

    def __init__(self) -> None:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
        files = descriptor_pb2.FileDescriptorSet.FromString(_read_descriptors())
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            pool.Add(file)
        # Debian 12's protobuf (4.21) knows the older way only, today's the newer only.
        make_class = getattr(message_factory, "GetMessageClass", None)
        if make_class is None:
            make_class = message_factory.MessageFactory(pool).GetPrototype
        self._classes = {
            name: make_class(pool.FindMessageTypeByName(f"memd.{name}"))
            for file in files.file for name in (message.name for message in file.message_type)}

    def message(self, name: str):
        return self._classes[name]
