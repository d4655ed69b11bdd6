# SPDX-License-Identifier: Apache-2.0
"""Everything is declared in pyproject.toml; this adds the one build step: proto/memd.proto is compiled
into a descriptor set (memd/memd.binpb) that travels in the wheel.

A descriptor set, not memd_pb2.py: generated Python code refuses to run beside a protobuf library of
another age (Debian's protoc is of 2022, PyPI's protobuf of today), descriptors are plain data that every
version reads. They need `protoc` here, at build time only.
"""
import os
import runpy
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = os.path.dirname(os.path.abspath(__file__))
PROTO = os.path.join(HERE, "..", "..", "proto", "memd.proto")


def write_descriptors(folder: str) -> None:
    """Compile memd.proto into `folder`; an unpacked sdist, which has no proto/, brings them compiled."""
    path = os.path.join(folder, "memd.binpb")
    if not os.path.exists(PROTO):
        shutil.copyfile(os.path.join(HERE, "memd", "memd.binpb"), path)
        return
    compile_proto = runpy.run_path(os.path.join(HERE, "memd", "schema.py"))["compile_proto"]
    with open(path, "wb") as out:
        out.write(compile_proto(PROTO))


class BuildWithDescriptors(build_py):
    def run(self):
        super().run()
        if not getattr(self, "editable_mode", False):
            write_descriptors(os.path.join(self.build_lib, "memd"))


class SdistWithDescriptors(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        write_descriptors(os.path.join(base_dir, "memd"))


setup(cmdclass={"build_py": BuildWithDescriptors, "sdist": SdistWithDescriptors})
