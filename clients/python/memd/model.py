# SPDX-License-Identifier: Apache-2.0
"""The model descriptor: what the bytes of a context mean. Stored with it, compared at every open."""
from __future__ import annotations

from dataclasses import dataclass

from .dtypes import FLOATS, WIRE

_PAIRINGS = ("half", "interleaved")
_SCALINGS = ("none", "linear", "llama3", "yarn")


def _choice(what: str, value: str, choices: tuple[str, ...]) -> int:
    if value not in choices:
        raise ValueError(f"{what} is {value!r}, must be one of {', '.join(choices)}")
    return choices.index(value)


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    theta     base of the frequencies: dimension pair i turns by position * theta**(-2i / rotary_dims)
    pairing   "half": dimension i with i + rotary_dims/2 (Hugging Face Llama, NeoX);
              "interleaved": 2i with 2i + 1 (GPT-J, original Llama)
    scaling   "none", "linear", "llama3" or "yarn", with the fields below as the model's
              configuration names them; 0 means the usual default
    rotary_dims   leading dimensions that rotate; 0 = all
    """

    theta: float
    pairing: str = "half"
    scaling: str = "none"
    factor: float = 0.0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_context: int = 0
    beta_fast: float = 0.0
    beta_slow: float = 0.0
    attention_factor: float = 0.0
    rotary_dims: int = 0

    def _write(self, wire) -> None:
        for name, value in vars(self).items():
            if name not in ("pairing", "scaling"):
                setattr(wire, name, value)
        wire.pairing = _choice("pairing", self.pairing, _PAIRINGS)
        wire.scaling = _choice("scaling", self.scaling, _SCALINGS)

    @classmethod
    def _read(cls, wire) -> "Rope":
        values = {name: getattr(wire, name) for name in cls.__dataclass_fields__}
        values["pairing"] = _PAIRINGS[wire.pairing]
        values["scaling"] = _SCALINGS[wire.scaling]
        return cls(**values)


@dataclass(frozen=True)
class Model:
    """What a context's keys and values belong to.

    layers, query_heads (H), kv_heads (G; H a multiple of G), head_dim (D, a multiple of 8)
    dtype     "float32", "float16" or "bfloat16": of stored keys and values
    rope      None: keys are opaque and are read at their original positions only
    rotated   keys and queries arrive with RoPE applied already
    attention_scale   multiplies q·k; 0 = 1/sqrt(head_dim)
    fingerprint   free text, compared byte by byte: name the weights, so that a context is never read
              by another model of the same shape
    """

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    dtype: str = "float16"
    rope: Rope | None = None
    rotated: bool = True
    attention_scale: float = 0.0
    fingerprint: str = ""

    def _write(self, wire) -> None:
        for name in ("layers", "query_heads", "kv_heads", "head_dim", "rotated", "attention_scale",
                     "fingerprint"):
            setattr(wire, name, getattr(self, name))
        _choice("dtype", self.dtype, FLOATS)
        wire.dtype = WIRE[self.dtype]
        if self.rope is not None:
            wire.rope.SetInParent()
            self.rope._write(wire.rope)

    @classmethod
    def _read(cls, wire) -> "Model":
        values = {name: getattr(wire, name) for name in cls.__dataclass_fields__}
        values["dtype"] = {WIRE[name]: name for name in FLOATS}[wire.dtype]
        values["rope"] = Rope._read(wire.rope) if wire.HasField("rope") else None
        return cls(**values)
