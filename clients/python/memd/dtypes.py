# SPDX-License-Identifier: Apache-2.0
"""Element types: names, wire numbers, and the way into a model's dtype.

NumPy has no bfloat16. Its bits travel as uint16 here (what `fetch` returns, and what `append` takes for a
bfloat16 model); arrays of `ml_dtypes.bfloat16` are recognised by name, without importing that package.
"""
from __future__ import annotations

import numpy as np

# Wire numbers of base/tensor.h.
WIRE = {"float32": 1, "float16": 2, "bfloat16": 3, "uint64": 4, "uint32": 5}
NUMPY: dict[int, np.dtype] = {1: np.dtype("<f4"), 2: np.dtype("<f2"), 3: np.dtype("<u2"),
                              4: np.dtype("<u8"), 5: np.dtype("<u4")}
FLOATS = ("float32", "float16", "bfloat16")


def float32_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The bits (uint16) of x rounded to bfloat16: to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded.astype(np.uint16))


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 bits (uint16); exact."""
    return (np.asarray(bits, dtype=np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def _as_bits(x: np.ndarray, bits_allowed: bool) -> np.ndarray | None:
    """uint16 bits when x is bfloat16 in one of its two guises, else None."""
    if x.dtype.name == "bfloat16":
        return x.view(np.uint16)
    if x.dtype == np.uint16 and bits_allowed:
        return x
    return None


def to_model(x: np.ndarray, dtype: str) -> np.ndarray:
    """x in a model's dtype, C-contiguous; no copy when it is already.

    Floats are rounded to nearest, ties to even; what is too large for float16 becomes infinite, which
    the daemon refuses (NonFiniteError). uint16 is taken as bits, for a bfloat16 model only.
    """
    x = np.asarray(x)
    bits = _as_bits(x, dtype == "bfloat16")
    if bits is not None and dtype == "bfloat16":
        return np.ascontiguousarray(bits, dtype="<u2")
    if bits is not None:
        x = bfloat16_to_float32(bits)
    if x.dtype.kind != "f":
        raise TypeError(f"expected floating point numbers for a {dtype} model, got {x.dtype}")
    if dtype == "bfloat16":
        return float32_to_bfloat16(x.astype(np.float32, copy=False))
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(x, dtype="<f4" if dtype == "float32" else "<f2")


def to_query(x: np.ndarray, dtype: str) -> tuple[np.ndarray, int]:
    """Queries as they travel, and their wire dtype: 16- and 32-bit floats as they are, float64 as
    float32, uint16 as bits for a bfloat16 model."""
    x = np.asarray(x)
    bits = _as_bits(x, dtype == "bfloat16")
    if bits is not None:
        return np.ascontiguousarray(bits, dtype="<u2"), WIRE["bfloat16"]
    if x.dtype == np.float16:
        return np.ascontiguousarray(x, dtype="<f2"), WIRE["float16"]
    if x.dtype.kind != "f":
        raise TypeError(f"expected floating point queries, got {x.dtype}")
    return np.ascontiguousarray(x, dtype="<f4"), WIRE["float32"]
