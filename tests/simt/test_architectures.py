# SPDX-License-Identifier: Apache-2.0
"""Is the code of every architecture in the plugin, for every .cu file? Run by Meson: PLUGIN FILES CODE…

A build that silently left one out would fail on the first machine that has it. Each .cu file is one container in
the section .nv_fatbin (magic 0xBA55ED50, u16 version, u16 header bytes, u64 bytes) of entries (u16 kind, u16
version, u32 header bytes, u64 bytes, …, u32 architecture at 28; kind 1 is PTX, 2 machine code). cuobjdump, where
there is one, has to find the same.
"""
import re
import shutil
import struct
import subprocess
import sys

MAGIC, PTX, MACHINE = 0xBA55ED50, 1, 2


def entries(data, at):
    """The codes of the container at `at`: sm_80 is machine code, compute_80 PTX."""
    _, _, header, size = struct.unpack_from("<IHHQ", data, at)
    place, end = at + header, at + header + size
    while place < end:
        kind, _, header, size = struct.unpack_from("<HHIQ", data, place)
        architecture, = struct.unpack_from("<I", data, place + 28)
        yield {PTX: "compute_", MACHINE: "sm_"}.get(kind, f"kind{kind}_") + str(architecture)
        place += header + size


def containers(data):
    """The codes of every container that is not empty."""
    at = -1
    while (at := data.find(struct.pack("<I", MAGIC), at + 1)) >= 0:
        if at % 8 == 0 and (codes := sorted(entries(data, at))):
            yield codes


def by_cuobjdump(program, plugin):
    """How many pieces of each code NVIDIA's own tool lists."""
    listed = subprocess.run([program, "-lelf", "-lptx", plugin], capture_output=True, text=True, check=True).stdout
    found = {}
    for number, kind in re.findall(r"\.sm_(\d+)[af]?\.(cubin|ptx)", listed):
        code = ("sm_" if kind == "cubin" else "compute_") + number
        found[code] = found.get(code, 0) + 1
    return found


def main(plugin, files, *wanted):
    with open(plugin, "rb") as file:
        data = file.read()
    found = list(containers(data))
    wrong = [codes for codes in found if codes != sorted(wanted)]
    for codes in wrong:
        print(f"FAILED: has {' '.join(codes)}, wanted {' '.join(sorted(wanted))}")
    if len(found) != int(files):
        print(f"FAILED: {len(found)} files, wanted {files}")
        wrong.append([])
    if list(containers(data.replace(struct.pack("<I", MAGIC), b"\0\0\0\0"))):
        print("FAILED: the test itself sees what is not there")
        wrong.append([])
    if program := shutil.which("cuobjdump"):
        listed = by_cuobjdump(program, plugin)
        if listed != {code: int(files) for code in wanted}:
            print(f"FAILED: cuobjdump lists {listed}")
            wrong.append([])
    print(f"{len(found)} files for {' '.join(wanted)}, {len(wrong)} findings, " +
          ("cuobjdump was asked too" if program else "no cuobjdump here"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
