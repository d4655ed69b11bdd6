# SPDX-License-Identifier: Apache-2.0
"""What the calls return: plain objects with the field names of proto/memd.proto."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Iterator, NamedTuple

import numpy as np

from .model import Model


def fill(kind, message):
    """A dataclass of `kind` from the fields of the same names of a message."""
    def plain(value):
        return value if isinstance(value, (bool, int, float, str, bytes)) else list(value)
    return kind(**{name: plain(getattr(message, name)) for name in kind.__dataclass_fields__})


class Appended(NamedTuple):
    """How far an append is safe. tokens: of the layers of this request, visible now; committed and
    synced: of the context, common to all layers in use."""

    tokens: int
    committed: int
    synced: int


@dataclass(frozen=True)
class Quality:
    """What an answer was made from and what it left out; arrays are (n, H)."""

    method: str
    exact: bool                  # nothing was left out or approximated
    predicted_error: np.ndarray  # relative L2 error of o, as the daemon estimates it
    mass: np.ndarray             # share of the softmax mass that was read exactly
    limited: np.ndarray          # a budget cut this head short
    rows: int                    # K and V rows read, over all heads
    bytes_read: int
    bytes_exact: int             # what exact attention would have read
    tokens: int                  # tokens of the layer that the answer saw

    @classmethod
    def _read(cls, wire, shape: tuple) -> "Quality":
        def array(values, default, dtype):
            return np.array(values, dtype).reshape(shape) if len(values) else np.full(
                shape, default, dtype)
        return cls(wire.method, wire.exact, array(wire.predicted_error, 0, np.float32),
                   array(wire.mass, 1, np.float32), array(wire.limited, False, np.bool_),
                   wire.rows, wire.bytes_read, wire.bytes_exact, wire.tokens)


@dataclass(frozen=True)
class Answer:
    """Attention over the remembered tokens: o (n, H, D) and lse (n, H), float32; lse is the natural log
    of the softmax denominator, -inf (with o = 0) where nothing was visible."""

    o: np.ndarray
    lse: np.ndarray
    quality: Quality


@dataclass(frozen=True)
class Hits:
    """ids (n, H, k) uint64, best first, 2**64 - 1 where no token was left; scores (n, H, k)."""

    ids: np.ndarray
    scores: np.ndarray
    quality: Quality

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.ids, self.scores))


@dataclass(frozen=True)
class Rows:
    """k, v (m, G, D) as appended; token_ids (m) uint32 where the layer has them for all rows."""

    k: np.ndarray
    v: np.ndarray
    token_ids: np.ndarray | None

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.k, self.v))


@dataclass(frozen=True)
class ContextInfo:
    context_id: int
    name: str
    model: Model
    method: str
    parameters: dict[str, str]
    tokens: int             # common to all layers in use
    committed_tokens: int
    synced_tokens: int
    stored_bytes: int       # as if nothing were shared
    shared_bytes: int       # of those, in segments that other contexts hold too
    created_unix_ms: int
    used_unix_ms: int
    pinned_until_unix_ms: int
    parent_id: int          # fork of; 0 = none
    sealed_segments: int
    layer_tokens: list[int]
    resident: bool          # open in the daemon's memory

    @classmethod
    def _read(cls, wire) -> "ContextInfo":
        values = {name: getattr(wire, name) for name in cls.__dataclass_fields__}
        values["model"] = Model._read(wire.model)
        values["parameters"] = {item.name: item.value for item in wire.parameters}
        values["layer_tokens"] = list(wire.layer_tokens)
        return cls(**values)


@dataclass(frozen=True)
class Health:
    live: bool
    ready: bool      # recovered and taking work
    draining: bool
    reason: str      # when not ready


@dataclass(frozen=True)
class Status:
    build: str
    pid: int
    uptime_ms: int
    data: str
    listeners: list[str]
    sync: str
    simd: str
    workers: int
    connections: int
    contexts: int
    stored_bytes: int
    budget_bytes: int     # 0 = none
    map_bytes: int
    map_used_bytes: int
    file_bytes: int
    backend: str
    backend_reason: str
    draining: bool


@dataclass(frozen=True)
class Histogram:
    bounds: list[float]   # upper bounds
    counts: list[int]     # one more than bounds
    sum: float


@dataclass(frozen=True)
class Stats:
    counters: dict[str, int]
    histograms: dict[str, Histogram]

    @classmethod
    def _read(cls, wire) -> "Stats":
        return cls({counter.name: counter.value for counter in wire.counters},
                   {histogram.name: fill(Histogram, histogram) for histogram in wire.histograms})


@dataclass
class VerifyReport:
    values: int = 0
    bytes: int = 0
    findings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Record:
    table: str
    key: str
    bytes: int
    summary: str
