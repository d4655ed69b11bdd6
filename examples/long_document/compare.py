# SPDX-License-Identifier: Apache-2.0
"""All memory methods on one text: what does it cost a model that its past is answered approximately?

The text up to the last tokens is read exactly, once, and given to a context of each method: keys, values and
queries of every layer. When the daemon has built what the method wants, the last tokens are read with
*everything* answered by memd, the newest tokens included: the model keeps nothing. Queries are asked one by
one, and `exact_below` is 0, because a method may answer many queries or a short context exactly where that
is quicker. So the perplexity of these tokens is that of a model which has only what the method gives it.

A method whose rule moves keys gets them as they were before RoPE, and memd rotates them. One that keeps a part
of a prompt compresses the text there; one that chooses by attention mass is told what the tokens of each chunk paid
to each other. Beside them stands a window in the process, which has the same first part, and nothing else.
"""
from __future__ import annotations

import sys
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable

import numpy as np

import memd
from attention import FullAttention, MemdAlone, WindowAttention, column_mass
from reading import Progress, describe

if TYPE_CHECKING:
    from llama import Llama


@dataclass(frozen=True)
class Case:
    method: str
    parameters: dict = field(default_factory=dict)
    rotated: bool = True   # False: memd rotates keys and queries

    @property
    def name(self) -> str:
        text = ", ".join(f"{key} {value}" for key, value in self.parameters.items() if key != "exact_below")
        return f"{self.method} {text}".rstrip() + ("" if self.rotated else ", moved")


def _progressive(target: float) -> Case:
    return Case("progressive", {"target_error": target, "exact_below": 0})


CASES = [
    Case("full"),
    Case("progressive"),
    *(_progressive(target) for target in (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.35)),
    Case("retroinfer"),
    Case("retrieval-attention"),
    Case("streaming"),
    Case("streaming", rotated=False),
    Case("extended-mind", {"window": 512}, rotated=False),
    Case("longheads", rotated=False),
    Case("infllm", rotated=False),
    Case("infllm", {"local": 512}, rotated=False),
    Case("loki"),
    Case("camelot", {"window": 512}),
    Case("camelot", {"window": 512}, rotated=False),
    Case("snapkv", {"capacity": 1024}),
    Case("pyramidkv", {"capacity": 1024}),
    Case("l2norm"),
    Case("oracle-topk", {"k": 100}),
    Case("oracle-topk", {"k": 1000}),
    Case("faiss-flat"),
    Case("faiss-ivf"),
    Case("faiss-hnsw"),
]


WINDOW = (4, 512)    # sinks, and newest tokens, of the window that stands beside the methods
PROMPT_QUERIES = 32  # of the end of a prompt that is compressed


class RememberingAttention(FullAttention):
    """Full attention that keeps the queries, too, and the attention that the tokens of a chunk pay to each other."""

    def __init__(self, model: Llama, tokens: int):
        super().__init__(model.layers, tokens, model.G, model.D)
        self._rope = model.rope
        self._q = np.zeros((model.layers, tokens, model.H, model.D), np.float16)
        self._mass = np.zeros((model.layers, tokens, model.H), np.float32)

    def attend(self, layer, start, q, k, v):
        self._q[layer, start:start + len(q)] = q
        self._mass[layer, start:start + len(q)] = column_mass(q, k)
        return super().attend(layer, start, q, k, v)

    def _rows(self, layer: int, tokens: int, rotated: bool) -> tuple:
        k, v = (x[layer, :, :tokens].swapaxes(0, 1) for x in (self._k, self._v))
        q = self._q[layer, :tokens]
        if rotated:
            return q, k, v
        back = -np.arange(tokens)
        return self._rope(q.astype(np.float32), back), self._rope(k, back), v

    def give(self, past: memd.Context, tokens: int, method: memd.Method) -> None:
        """Append the first tokens of every layer, with what the method wants of them."""
        for layer in range(len(self._k)):
            q, k, v = self._rows(layer, tokens, past.model.rotated)
            past.append(layer, 0, k, v, q=q, ack="memory",
                        scores=self._mass[layer, :tokens] if method.takes_mass else None)
            if method.compresses:
                past.compress(q={layer: q[-PROMPT_QUERIES:]})

    def window(self, tokens: int, sinks: int, window: int) -> WindowAttention:
        """A window in the process that has seen the same first tokens."""
        seen = WindowAttention(len(self._k), sinks, window)
        for layer in range(len(self._k)):
            _, k, v = self._rows(layer, tokens, True)
            seen.start(layer, k, v)
        return seen


class Text:
    """Read exactly up to `first`; the tokens from there on are read again for each method."""

    def __init__(self, model: Llama, ids: np.ndarray, last: int, chunk: int):
        self.model, self.ids, self.first = model, ids, len(ids) - last
        self.exact = RememberingAttention(model, len(ids))
        progress = Progress("reading exactly", self.first)
        for start in range(0, self.first, chunk):
            end = min(start + chunk, self.first)
            hidden = model.forward(ids[start:end], start, self.exact)
            progress.show(end)
        self._first_loss = model.losses(hidden[-1:], ids[self.first:self.first + 1])

    def losses(self, attention, block: int, what: str) -> np.ndarray:
        """-log p of each token from `first` on."""
        progress, losses = Progress(what, len(self.ids) - self.first), [self._first_loss]
        for start in range(self.first, len(self.ids), block):
            end = min(start + block, len(self.ids))
            hidden = self.model.forward(self.ids[start:end], start, attention)
            known = np.arange(start, min(end, len(self.ids) - 1))
            losses.append(self.model.losses(hidden[known - start], self.ids[known + 1]))
            progress.show(end - self.first)
        return np.concatenate(losses)


def wait_until_built(past: memd.Context) -> float:
    """Until the daemon has derived what the method wants. Seconds."""
    print(f"  {past.method}: the daemon derives what it needs", file=sys.stderr, flush=True)
    began = time.monotonic()
    built = past.built(wait=True)
    if built.failure:
        raise SystemExit(f"{past.method}: {built.failure}")
    return time.monotonic() - began


def _kept(past: memd.Context) -> int:
    """Bytes: what is stored, and the states that the method has in memory."""
    return past.stat().stored_bytes + int(sum(facts["bytes"] for facts in past.states().values()))


def _run(text: Text, case: Case, client: memd.Client, block: int, method: memd.Method) -> tuple:
    past = client.open(f"compare-{uuid.uuid4()}", describe(text.model, "float16", case.rotated),
                       method=case.method, parameters=case.parameters, must_create=True)
    try:
        text.exact.give(past, text.first, method)
        waited = wait_until_built(past)
        began = time.monotonic()
        attention = MemdAlone(past, None if case.rotated else text.model.rope, method.takes_mass)
        losses = text.losses(attention, block, case.name)
        return losses, {**attention.quality.summary(), "build_seconds": round(waited, 1),
                        "seconds": round(time.monotonic() - began, 1),
                        "memd_seconds": round(attention.seconds, 2), "kept_bytes": _kept(past)}
    finally:
        past.drop()


def _change(losses: np.ndarray, reference: np.ndarray) -> dict:
    """Against full attention, token by token. uncertain: the standard error of the relative change of perplexity, as
    far as tokens are a sample of a text; less than twice that is noise."""
    change = losses - reference
    return {"perplexity": float(np.exp(losses.mean())), "loss": float(np.expm1(change.mean())),
            "uncertain": float(np.exp(change.mean()) * change.std() / np.sqrt(len(change))),
            "mean_change": float(np.abs(change).mean())}


class Comparison:
    """Rows by name, in the order in which they were measured; `show` is given each as soon as it is there."""

    def __init__(self, text: Text, block: int, show: Callable[[str], None]):
        self.text, self.block, self._show = text, block, show
        self.rows: dict[str, dict] = {}
        self.missing: list[str] = []
        self._tokens = len(text.ids) - text.first
        self._reference: np.ndarray | None = None

    def _add(self, name: str, losses: np.ndarray, result: dict) -> None:
        self.rows[name] = {**result, **_change(losses, self._reference)}
        self._show(row(name, self.rows[name], self._tokens))

    def in_process(self) -> None:
        """What a model has without memd: everything, or a window."""
        for name, attention in (("full attention in the process", self.text.exact),
                                ("window only", self.text.exact.window(self.text.first, *WINDOW))):
            began = time.monotonic()
            losses = self.text.losses(attention, self.block, name)
            if self._reference is None:
                self._reference = losses
            self._add(name, losses, {"seconds": round(time.monotonic() - began, 1)})

    def through_memd(self, client: memd.Client, wanted: list[str]) -> None:
        """`wanted` names methods, or is ["all"]."""
        methods = client.methods
        for case in CASES:
            if wanted != ["all"] and case.method not in wanted:
                continue
            if case.method not in methods:
                self.missing.append(case.name)
                continue
            self._add(case.name, *_run(self.text, case, client, self.block, methods[case.method]))

    def _at_equal_bytes(self) -> list[str]:
        """A sentence: progressive with what retroinfer reads, or less."""
        theirs = self.rows.get("retroinfer")
        ours = {name: found for name, found in self.rows.items()
                if theirs and name.startswith("progressive") and found["bytes"] <= theirs["bytes"]}
        if not ours:
            return []
        name = max(ours, key=lambda name: ours[name]["bytes"])
        said = [f"{what} reads {found['bytes']:.1%} and changes log p by {found['mean_change']:.4f}"
                for what, found in (("retroinfer", theirs), (name, ours[name]))]
        return ["", "; ".join(said) + "."]

    def table(self) -> str:
        lines = [HEADER, *(row(name, found, self._tokens) for name, found in self.rows.items())]
        lines += self._at_equal_bytes()
        if self.missing:
            lines += ["", "Not in this build: " + ", ".join(self.missing)]
        return "\n".join(lines)

    def results(self) -> dict:
        return {"methods": self.rows, "missing": self.missing, "exact_tokens": self.text.first}


COLUMNS = ["method", "perplexity", "against full", "kept", "read per token", "of exact", "ms per token",
           "of them memd", "mean change of log p", "predicted error", "mass from clusters, hi, lo, exact"]
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def row(name: str, found: dict, tokens: int) -> str:
    """A line of the table; what a row in the process does not have stays empty."""
    read, said, asked = [""] * 3, [""] * 2, ""
    if "bytes" in found:
        read = [f"{found['kept_bytes'] / 2**20:,.0f} MiB", f"{found['bytes_read'] / tokens / 2**20:,.2f} MiB",
                f"{found['bytes']:.1%}"]
        asked = f"{found['memd_seconds'] * 1000 / tokens:,.0f}"
        predicted, mass = found["predicted_error"], found["level_mass"]
        said = ["–" if predicted is None else f"{predicted:.2%}",
                "–" if mass is None else " ".join(f"{x:.1%}" for x in mass)]
    cells = [name, f"{found['perplexity']:.4f}", f"{found['loss']:+.2%} ± {found['uncertain']:.2%}", *read,
             f"{found['seconds'] * 1000 / tokens:,.0f}", asked, f"{found['mean_change']:.4f}", *said]
    return f"| {' | '.join(cells)} |"
