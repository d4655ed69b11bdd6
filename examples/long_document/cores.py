# SPDX-License-Identifier: Apache-2.0
"""Work on all cores, without BLAS's own threads.

BLAS splits each of the many small matrix products over its threads, which then spin while they wait for
one another: on a busy machine two such threads burned 13 to 17 seconds of processor time over what one
did in 5. So BLAS gets one thread (this module has to be imported before NumPy), and the example gives
each core some rows or heads of a chunk instead; NumPy lets them run side by side.
"""
from __future__ import annotations

import os

for _library in ("OPENBLAS", "MKL", "OMP"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from typing import Callable, Iterable  # noqa: E402

import numpy as np  # noqa: E402

COUNT = min(8, len(os.sched_getaffinity(0)))
_pool = ThreadPoolExecutor(COUNT)


def each(work: Callable, *arguments: Iterable) -> list:
    """[work(a, b, …) for a, b, … in zip(*arguments)], side by side."""
    return list(_pool.map(work, *arguments))


def by_rows(work: Callable, *arrays: np.ndarray):
    """work(*arrays), on one block of rows per core: for work that treats every row by itself. Returns an
    array, or a list of arrays where `work` returns a tuple."""
    parts = each(work, *(np.array_split(array, min(COUNT, len(array))) for array in arrays))
    if isinstance(parts[0], tuple):
        return [np.concatenate(part) for part in zip(*parts)]
    return np.concatenate(parts)
