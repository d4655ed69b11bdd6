# SPDX-License-Identifier: Apache-2.0
"""What callers hand over, and how it becomes the message and the tensors of a request."""
from __future__ import annotations

from typing import TYPE_CHECKING, Mapping, NamedTuple, Sequence

import numpy as np

from . import dtypes, wire

if TYPE_CHECKING:
    from .client import Context

WINDOWS = ("any", "resident", "none")  # in the order of the protocol's numbers
MARK_LANDMARK, MARK_SPECIAL = 1, 2  # a token ends a block and stands for it; it is BOS, EOS, padding


class Query(NamedTuple):
    """One item of `Client.attend_many`; the fields of `Context.attend`."""

    context: Context
    layer: int
    q: np.ndarray
    positions: Sequence[int]
    limits: Sequence[int] | None = None
    target_error: float | None = None
    max_bytes: int | None = None
    states: np.ndarray | None = None
    explain: bool = False
    local: tuple[np.ndarray, np.ndarray] | None = None
    rope_theta: float | None = None
    window: str = "any"
    out: tuple[np.ndarray | None, np.ndarray | None] | None = None


class Tokens(NamedTuple):
    """What `Context.append_layers` stores in one layer; the fields of `Context.append`."""

    layer: int
    k: np.ndarray | None = None
    v: np.ndarray | None = None
    q: np.ndarray | None = None
    marks: Sequence[int] | None = None
    scores: np.ndarray | None = None
    states: np.ndarray | None = None

    def part(self, part: slice) -> "Tokens":
        """Some of them."""
        return Tokens(self.layer, *(None if field is None else field[part] for field in self[1:]))


def add_tokens(request: wire.Request, item, tokens: Tokens, dtype: str) -> None:
    item.layer = tokens.layer
    for name in ("k", "v", "states"):
        rows = getattr(tokens, name)
        if rows is not None:
            request.tensor(getattr(item, name), dtypes.to_model(rows, dtype), dtypes.WIRE[dtype])
    for name in ("q", "scores"):
        array = getattr(tokens, name)
        if array is not None:
            request.tensor(getattr(item, name), *dtypes.to_query(array, dtype))
    if tokens.marks is not None:
        marks = np.asarray(tokens.marks)
        if marks.size and (marks.min() < 0 or marks.max() > 255):
            raise ValueError("marks are bits of one byte: MARK_LANDMARK, MARK_SPECIAL")
        item.marks = marks.astype(np.uint8).tobytes()


def add_params(request: wire.Request, params: Mapping[str, np.ndarray], layer: int | None) -> None:
    for name, value in params.items():
        item = request.message.params.add(name=name)
        if layer is not None:
            item.layer = layer
        request.tensor(item.value, *dtypes.to_query(value, "float32"))


def add_query(request: wire.Request, item, query: Query) -> None:
    item.context_id = query.context.id
    item.layer = query.layer
    request.tensor(item.q, *dtypes.to_query(query.q, query.context.model.dtype))
    item.positions.extend(np.asarray(query.positions, dtype=np.uint64).tolist())
    if query.limits is not None:
        item.limits.extend(np.asarray(query.limits, dtype=np.uint64).tolist())
    add_wish(item, query.target_error, query.max_bytes)
    if query.states is not None:
        request.tensor(item.states, *dtypes.to_query(query.states, query.context.model.dtype))
    if query.explain:
        item.explain = True
    if query.rope_theta is not None:
        item.rope_theta = float(query.rope_theta)
    if query.window != "any":
        if query.window not in WINDOWS:
            raise ValueError(f"window is {query.window!r}, must be one of {', '.join(WINDOWS)}")
        item.window = WINDOWS.index(query.window)
    if query.local is not None:
        for wire_tensor, array in zip((item.local_o, item.local_lse), query.local):
            request.tensor(wire_tensor, np.ascontiguousarray(array, dtype="<f4"), dtypes.WIRE["float32"])


def add_out(request: wire.Request, item, query: Query) -> None:
    """Where the answer goes, as far as it lies in a region."""
    shape = np.shape(query.q)
    for name, array, wanted in zip(("o", "lse"), query.out or (None, None), (shape, shape[:-1])):
        if array is None:
            continue
        if array.dtype != np.float32 or array.shape != wanted or not array.flags.c_contiguous:
            raise ValueError(f"out: {name} is {array.dtype} {array.shape}, must be float32 {wanted}, contiguous")
        field = getattr(item, "into_" + name)
        if not request.place(field, array, dtypes.WIRE["float32"]):
            item.ClearField("into_" + name)


def add_wish(message, target_error: float | None, max_bytes: int | None) -> None:
    """What is None is left to the context."""
    if target_error is not None:
        message.target_error = float(target_error)
    if max_bytes is not None:
        message.max_bytes = int(max_bytes)
