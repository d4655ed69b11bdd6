#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How much of a context must be in memory for its queries to be answered: pages of the data file that a
daemon touches, as a share of the fp16 keys and values.

    resident.py --memd build/daemon/memd traces/gemma3_policy.npz

The trace is appended to a real daemon, which codes it; the daemon is killed, the file's pages are dropped from
the page cache, a new daemon starts and answers the queries of the last 256 positions, one at a time. Figures
for each target error:

whole      answers that read every row of their layer, since that is quicker
resident   pages in memory after the first pass that were not before it (mincore over the data file): what a cold
           start needs, verification of what is read for the first time and the kernel's read-ahead included
touched    pages that a second pass reads or writes (the processor's access bits: /proc/PID/clear_refs and smaps):
           what has to stay in memory

Needs Linux; pages are dropped with POSIX_FADV_DONTNEED, for which nobody has to be root.
"""
from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "clients/python"), str(ROOT / "examples/long_document")]

import numpy as np  # noqa: E402

import memd  # noqa: E402
from daemon import Daemon  # noqa: E402
from compare import wait_until_built  # noqa: E402
from traces import Layer, load  # noqa: E402

PAGE = mmap.PAGESIZE


def data_files(folder: str) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if path.is_file() and path.stat().st_size > 0]


def drop_pages(folder: str) -> None:
    os.sync()
    for path in data_files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def resident(folder: str) -> int:
    """Bytes of the folder's files that are in the page cache."""
    libc, total = ctypes.CDLL(None, use_errno=True), 0
    for path in data_files(folder):
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            pages = -(-len(mapped) // PAGE)
            states = (ctypes.c_ubyte * pages)()
            anchor = ctypes.c_char.from_buffer(mapped)
            code = libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(len(mapped)),
                                states)
            del anchor
            if code != 0:
                raise OSError(ctypes.get_errno(), "mincore")
            total += int((np.frombuffer(states, np.uint8) & 1).sum()) * PAGE
    return total


def touched(pid: int, folder: str) -> int:
    """Bytes of the folder's files that the process touched since clear_refs."""
    total, ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:  # a mapping begins
            ours = folder in line
        elif ours and line.startswith("Referenced:"):
            total += int(line.split()[1]) << 10
    return total


def fill(client: memd.Client, layers: list[Layer], args: argparse.Namespace) -> memd.Context:
    G, _, D = layers[0].k.shape
    parameters = {} if args.exact_below is None else {"exact_below": str(args.exact_below)}
    past = client.open("resident", memd.Model(len(layers), layers[0].H, G, D, dtype="float16", rotated=True),
                       method=args.method, parameters=parameters, must_create=True)
    built = layers[0].built
    for number, layer in enumerate(layers):
        # The trace has a sample of the queries; a token without one gets the next one's.
        q = layer.q[np.searchsorted(layer.positions, np.arange(built)).clip(0, len(layer.q) - 1)]
        past.append(number, 0, layer.k[:, :built].swapaxes(0, 1), layer.v[:, :built].swapaxes(0, 1), q=q)
    print(f"  coded after {wait_until_built(past):.1f} s", file=sys.stderr)
    return past


def ask(past: memd.Context, layers: list[Layer], queries: int, target: float) -> dict:
    read = exact = whole = 0
    began = time.monotonic()
    for number, layer in enumerate(layers):
        for row in layer.asked(queries):
            answer = past.attend(number, layer.q[row:row + 1], [layer.positions[row]], target_error=target)
            read += answer.quality.bytes_read
            exact += answer.quality.bytes_exact
            whole += answer.quality.level_bytes[-1] >= 0.9 * answer.quality.bytes_exact
    return {"bytes_read": read / exact, "whole": int(whole), "seconds": round(time.monotonic() - began, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--memd", default="build/daemon/memd")
    parser.add_argument("--method", default="progressive")
    parser.add_argument("--exact-below", type=int, help="0: never read everything because it is quicker")
    parser.add_argument("--target", type=float, action="append", help="default: 0.05, 0.02 and 0.01")
    parser.add_argument("--queries", type=int, default=256, help="of the last 256 positions")
    args = parser.parse_args()
    _, layers = load(args.trace)
    layers = layers[:4]
    fp16 = sum(layer.built * layer.k.shape[0] * layer.k.shape[2] * 4 for layer in layers)
    daemon = Daemon(os.path.abspath(args.memd))
    results = []
    try:
        with memd.connect(daemon.address, timeout=600) as client:
            fill(client, layers, args)
        for target in args.target or (0.05, 0.02, 0.01):
            daemon.kill()
            drop_pages(daemon.data)
            daemon.start()
            with memd.connect(daemon.address, timeout=600) as client:
                past = client.open("resident")
                before = resident(daemon.data)
                result = ask(past, layers, args.queries, target)
                result.update(target=target, resident=(resident(daemon.data) - before) / fp16)
                Path(f"/proc/{daemon.pid}/clear_refs").write_text("1")
                ask(past, layers, args.queries, target)
                result.update(touched=touched(daemon.pid, daemon.data) / fp16,
                              before_bytes=before, fp16_bytes=fp16)
                results.append(result)
    finally:
        daemon.stop()
    print(json.dumps({"trace": Path(args.trace).stem, "method": args.method, "results": results}, indent=1))


if __name__ == "__main__":
    main()
