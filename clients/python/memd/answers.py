# SPDX-License-Identifier: Apache-2.0
"""What the calls return: plain objects with the field names of proto/memd.proto."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Iterator, NamedTuple

import numpy as np

from .errors import Error, ProtocolError, error_from_code
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


# The levels that an answer can be made from, coarse to exact: a centroid and a mean value for several
# tokens, 4-bit codes, 8-bit codes, rows as appended. Arrays by level stand in this order.
LEVELS = ("clusters", "hi", "lo", "exact")


@dataclass(frozen=True)
class Quality:
    """What an answer was made from and what it left out; arrays are (n, H) unless said otherwise."""

    method: str
    exact: bool                  # nothing was left out or approximated
    predicted_error: np.ndarray  # relative L2 error of o, as the method expects it; NaN: it cannot tell
    mass: np.ndarray             # share of the softmax mass that was read exactly
    limited: np.ndarray          # max_bytes cut this head short of target_error
    rows: int                    # K and V rows read, over all heads and levels
    bytes_read: int
    bytes_exact: int             # what exact attention would have read
    tokens: int                  # tokens of the layer that the answer saw
    level_mass: np.ndarray       # (n, H, 4) share of the mass by LEVELS; what misses to 1 was left out
    level_rows: np.ndarray       # (4) of rows
    level_bytes: np.ndarray      # (4) of bytes_read
    window_tokens: int = 0       # of tokens, read exactly in a device's resident window

    @classmethod
    def _read(cls, wire, shape: tuple) -> "Quality":
        def array(values, default, dtype, shape=shape):
            return np.array(values, dtype).reshape(shape) if len(values) else np.broadcast_to(
                np.asarray(default, dtype), shape).copy()

        def by_level(whole):
            return [0] * (len(LEVELS) - 1) + [whole]
        level = (len(LEVELS),)
        try:
            return cls(wire.method, wire.exact, array(wire.predicted_error, 0, np.float32),
                       array(wire.mass, 1, np.float32), array(wire.limited, False, np.bool_),
                       wire.rows, wire.bytes_read, wire.bytes_exact, wire.tokens,
                       array(wire.level_mass, by_level(1), np.float32, shape + level),
                       array(wire.level_rows, by_level(wire.rows), np.uint64, level),
                       array(wire.level_bytes, by_level(wire.bytes_read), np.uint64, level),
                       wire.window_tokens)
        except ValueError as failure:
            raise ProtocolError(f"the quality of an answer has arrays of a wrong length: {failure}"
                                ) from failure


# What `kind` of a run and `merge` of a group in a plan mean.
PLAN_KINDS = ("tokens", "slots")
PLAN_MERGES = ("joint", "gated", "separate")
UNPLACED = 2**64 - 1  # as `placed` or `query_placed` of a run: not rotated at all

_RUN = np.dtype([(name, np.uint32) for name in ("query", "head", "heads", "group", "kind")]
                + [(name, np.uint64) for name in ("first", "count", "placed", "query_placed")]
                + [("share", np.float32)])
_GROUP = np.dtype([("query", np.uint32), ("head", np.uint32), ("merge", np.uint32),
                   ("weight", np.float32)])


def _columns(wire, dtype: np.dtype) -> np.ndarray:
    """A structured array from a message with one repeated field per column."""
    table = np.empty(len(getattr(wire, dtype.names[0])), dtype)
    for name in dtype.names:
        column = getattr(wire, name)
        if name == "share" and not len(column):  # of a daemon that does not tell
            column = [np.nan] * len(table)
        if len(column) != len(table):
            raise ProtocolError(f"a plan has columns of {len(table)} and {len(column)} entries")
        table[name] = column
    return table


@dataclass(frozen=True)
class Plan:
    """What was read for an answer, and how it entered it.

    runs     a structured array: rows that follow each other and were read together. `query` of the call;
             `head`, `heads`: query heads head … head + heads - 1; `group`: place in `groups`; `kind`: what
             the ids `first` … `first` + `count` - 1 are (PLAN_KINDS: positions in the layer, or entries of
             the method's state); `placed`: where the key of `first` was rotated, the others behind it;
             `query_placed`: where the query was. UNPLACED: not rotated. `share`: of the answer, mean over
             its heads; NaN: it cannot be told.
    groups   a structured array: `merge` (PLAN_MERGES: one softmax with everything else, the softmax of the
             group alone times `weight`, an answer of its own), and of which `query` and `head` it is
    cut      more was read than is told here
    """

    runs: np.ndarray
    groups: np.ndarray
    cut: bool

    def tokens(self, query: int = 0, head: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The stored tokens that a query head read, ascending, and where each of their keys was rotated
        (-1: not at all); both int64. A token that entered two groups is there twice."""
        return self._ids(query, head, "tokens")

    def slots(self, query: int = 0, head: int = 0) -> np.ndarray:
        """The entries of the method's state that a query head read, ascending."""
        return self._ids(query, head, "slots")[0]

    def _ids(self, query: int, head: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        runs = self.runs
        here = runs[(runs["query"] == query) & (runs["head"] <= head)
                    & (head < runs["head"] + runs["heads"]) & (runs["kind"] == PLAN_KINDS.index(kind))]
        counts = here["count"].astype(np.int64)
        begins = np.cumsum(counts) - counts  # of each run, in all ids
        steps = np.arange(counts.sum()) - np.repeat(begins, counts)
        ids = np.repeat(here["first"].astype(np.int64), counts) + steps
        unplaced = np.repeat(here["placed"] == np.uint64(UNPLACED), counts)
        places = np.where(unplaced, -1, np.repeat(here["placed"].astype(np.int64), counts) + steps)
        order = np.argsort(ids, kind="stable")
        return ids[order], places[order]

    @classmethod
    def _read(cls, wire) -> "Plan":
        plan = cls(_columns(wire.runs, _RUN), _columns(wire.groups, _GROUP), wire.cut)
        if len(plan.runs) and plan.runs["group"].max() >= len(plan.groups):
            raise ProtocolError(f"a plan has a run of group {plan.runs['group'].max()}, of "
                                f"{len(plan.groups)}")
        return plan


@dataclass(frozen=True)
class Answer:
    """Attention over the remembered tokens: o (n, H, D) and lse (n, H), float32; lse is the natural log
    of the softmax denominator, -inf (with o = 0) where nothing was visible. plan: with `explain`."""

    o: np.ndarray
    lse: np.ndarray
    quality: Quality
    plan: Plan | None = None


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
    """k, v (m, G, D) as appended; token_ids (m) uint32 where the layer has them for all rows. Where the
    context keeps states: states (m, W), and neither k nor v."""

    k: np.ndarray | None
    v: np.ndarray | None
    token_ids: np.ndarray | None
    states: np.ndarray | None = None

    def __iter__(self) -> Iterator[np.ndarray | None]:
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
    built_segments: int     # of sealed_segments, those whose planes are made
    indexed_tokens: int     # tokens in the index of every layer in use, where there is one
    derived_bytes: int      # of stored_bytes, what is made from the rows and can be again
    state_width: int        # W where the method keeps states, 0: it keeps keys and values

    @classmethod
    def _read(cls, wire) -> "ContextInfo":
        values = {name: getattr(wire, name) for name in cls.__dataclass_fields__}
        values["model"] = Model._read(wire.model)
        values["parameters"] = {item.name: item.value for item in wire.parameters}
        values["layer_tokens"] = list(wire.layer_tokens)
        return cls(**values)


@dataclass(frozen=True)
class Option:
    """A number or a name that a memory method takes as a parameter of `Client.open`."""

    name: str
    help: str
    fallback: float | str  # in force where it is not given: one of `choices` where there are any
    least: float           # what may be given
    most: float
    whole: bool            # whole numbers only
    choices: tuple[str, ...] = ()  # not empty: one of these instead of a number

    @classmethod
    def _read(cls, wire) -> "Option":
        choices = tuple(wire.choices)
        fallback = choices[int(wire.fallback)] if choices else wire.fallback
        return cls(wire.name, wire.help, fallback, wire.least, wire.most, wire.whole, choices)


class MethodTensor(NamedTuple):
    """A tensor that a client uploads for a method. shape: a letter for each axis: G, H, D of the model, W of a
    state, h = any, but the same in all tensors that name it."""

    shape: str
    help: str


@dataclass(frozen=True)
class Method:
    """What depends on options is said of those that are in force where none are given."""

    name: str
    help: str
    options: dict[str, Option]
    is_default: bool       # of contexts that are made without naming one
    tensors: dict[str, MethodTensor]
    takes_mass: bool       # attention mass of tokens: `scores` of `Context.append`
    compresses: bool       # a prompt, once
    wants_queries: bool    # with every append
    samples_queries: bool  # with the first append of a layer, and some later ones
    wants_marks: bool      # with appends
    folds: bool            # keeps a state of its own
    state_width: int       # W where it keeps states instead of keys and values, 0: it keeps rows

    @classmethod
    def _read(cls, wire) -> "Method":
        values = {name: getattr(wire, name) for name in cls.__dataclass_fields__}
        values["options"] = {option.name: Option._read(option) for option in wire.options}
        values["tensors"] = {tensor.name: MethodTensor(tensor.shape, tensor.help)
                             for tensor in wire.tensors}
        return cls(**values)


@dataclass(frozen=True)
class Explained:
    """One of the latest queries of a layer again, over everything stored, and what was read for it."""

    queries: int            # that are kept; 0: nothing below means anything
    position: int           # of the query
    tokens: int             # of the layer
    lse: np.ndarray         # (1, H) of the answer
    plan: Plan
    quality: Quality

    @classmethod
    def _read(cls, wire) -> "Explained":
        lse = np.array([wire.lse], np.float32)
        return cls(wire.queries, wire.position, wire.tokens, lse, Plan._read(wire.plan),
                   Quality._read(wire.quality, lse.shape))


@dataclass(frozen=True)
class Summary:
    """Of one number over many answers."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True)
class Recall:
    """The latest queries of one layer, answered again by the context's method and exactly."""

    layer: int
    method: str
    target_error: float       # that was asked for; NaN where the method takes none
    queries: int              # kept ones that were answered; 0: nothing below means anything
    answers: int              # queries times query heads
    tokens: int               # of the layer
    error: Summary            # true relative L2 error of o, over the answers
    lse_error_max: float
    predicted: int            # answers whose error the method predicted; over those alone:
    predicted_mean: float
    ratio_median: float       # predicted by true error
    within_twice: float       # share of all answers whose true error is at most twice the target
    level_mass: np.ndarray    # (4) mean share of the softmax mass by LEVELS
    level_bytes: np.ndarray   # (4) of bytes_read
    bytes_read: int           # for all queries
    bytes_exact: int

    @classmethod
    def _read(cls, layer: int, wire) -> "Recall":
        values = {name: getattr(wire, name) for name in cls.__dataclass_fields__ if name != "layer"}
        values["error"] = fill(Summary, wire.error)
        for name, dtype in (("level_mass", np.float64), ("level_bytes", np.uint64)):
            values[name] = np.array(values[name] or [0] * len(LEVELS), dtype)
        return cls(layer=layer, **values)


@dataclass(frozen=True)
class Built:
    """How far the data is that a method derives from the rows of a context."""

    segments: int        # sealed segments that want planes
    built_segments: int  # that have them
    indexes: int         # layers that want an index
    built_indexes: int   # whose index is as new as it is to be
    failures: int        # of building it, since the context is in memory
    failure: str         # why the last attempt failed; "" = it did not

    @property
    def done(self) -> bool:
        return self.built_segments >= self.segments and self.built_indexes >= self.indexes


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
    shared_regions: int   # of memory that clients share
    shared_bytes: int
    shared_bytes_max: int
    damaged_drops: int    # dropped contexts whose bytes damage keeps in the store
    damaged_pages: int    # of the store, fenced off when it was opened


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
    unchecked: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Record:
    table: str
    key: str
    bytes: int
    summary: str


def read_answer(reply, wire, out) -> Answer | Error:
    """One answer of an attend; out: where the caller wants (o, lse), or None."""
    if wire.status:
        return error_from_code(wire.status, wire.error)
    o, lse = (_take(reply, tensor, array) for tensor, array in zip((wire.o, wire.lse), out or (None, None)))
    plan = Plan._read(wire.plan) if wire.HasField("plan") else None
    return Answer(o, lse, Quality._read(wire.quality, lse.shape), plan)


def _take(reply, tensor, out: np.ndarray | None) -> np.ndarray:
    if out is None:
        return reply.tensor(tensor)
    if not tensor.region:  # otherwise the daemon has written it there
        np.copyto(out, reply.tensor(tensor))
    return out
