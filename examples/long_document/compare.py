# SPDX-License-Identifier: Apache-2.0
"""All memory methods on one text: what does it cost a model that its past is answered approximately?

The text up to the last tokens is read exactly, once, and given to a context of each method: keys, values and
queries of every layer. When the daemon has built what the method wants, the last tokens are read with
*everything* answered by memd, the newest tokens included: the model keeps nothing. Queries are asked one by
one, and `exact_below` is 0, because a method may answer many queries or a short context exactly where that
is quicker. So the perplexity of these tokens is that of a model which has only what the method gives it.
"""
from __future__ import annotations

import sys
import time
import uuid
from dataclasses import dataclass, field

import numpy as np

import memd
from attention import FullAttention, MemdAlone
from llama import Llama
from reading import Progress, describe


@dataclass(frozen=True)
class Case:
    method: str
    parameters: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        text = ", ".join(f"{key} {value}" for key, value in self.parameters.items() if key != "exact_below")
        return f"{self.method} {text}".rstrip()


def _progressive(target: float) -> Case:
    return Case("progressive", {"target_error": target, "exact_below": 0})


CASES = [
    Case("full"),
    *(_progressive(target) for target in (0.01, 0.02, 0.05, 0.1, 0.2, 0.35)),
    Case("retroinfer"),
    Case("streaming"),
    Case("oracle-topk", {"k": 100}),
    Case("oracle-topk", {"k": 1000}),
    Case("retrieval-attention"),
    Case("faiss-flat"),
    Case("faiss-ivf"),
    Case("faiss-hnsw"),
]


class RememberingAttention(FullAttention):
    """Full attention that keeps the queries, too."""

    def __init__(self, model: Llama, tokens: int):
        super().__init__(model.layers, tokens, model.G, model.D)
        self._q = np.zeros((model.layers, tokens, model.H, model.D), np.float16)

    def attend(self, layer, start, q, k, v):
        self._q[layer, start:start + len(q)] = q
        return super().attend(layer, start, q, k, v)

    def give(self, past: memd.Context, tokens: int) -> None:
        """Append the first tokens of every layer."""
        for layer in range(len(self._k)):
            k, v = (x[layer, :, :tokens].swapaxes(0, 1) for x in (self._k, self._v))
            past.append(layer, 0, k, v, q=self._q[layer, :tokens], ack="memory")


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
    began = time.monotonic()
    built = past.built(wait=True)
    if built.failure:
        raise SystemExit(f"{past.method}: {built.failure}")
    return time.monotonic() - began


def _run(text: Text, case: Case, client: memd.Client, block: int) -> tuple:
    past = client.open(f"compare-{uuid.uuid4()}", describe(text.model, "float16"), method=case.method,
                       parameters=case.parameters, must_create=True)
    try:
        text.exact.give(past, text.first)
        waited = wait_until_built(past)
        began = time.monotonic()
        attention = MemdAlone(past)
        losses = text.losses(attention, block, case.name)
        return losses, {**attention.quality.summary(), "build_seconds": round(waited, 1),
                        "seconds": round(time.monotonic() - began, 1),
                        "stored_bytes": past.stat().stored_bytes}
    finally:
        past.drop()


def compare(text: Text, client: memd.Client, wanted: list[str], block: int) -> dict:
    """Perplexity per method; `wanted` names methods, or is ["all"]."""
    reference = text.losses(text.exact, block, "full attention")
    results = {"full attention in the process": {"perplexity": float(np.exp(reference.mean()))}}
    missing = []
    for case in CASES:
        if wanted != ["all"] and case.method not in wanted:
            continue
        try:
            losses, result = _run(text, case, client, block)
        except memd.UnsupportedError as error:
            print(f"  {case.name}: {error}", file=sys.stderr)
            missing.append(case.name)
            continue
        result.update(perplexity=float(np.exp(losses.mean())),
                      loss=float(np.exp(losses.mean() - reference.mean()) - 1),
                      mean_change=float(np.abs(losses - reference).mean()))
        results[case.name] = result
    return {"methods": results, "missing": missing, "exact_tokens": text.first}


def print_comparison(comparison: dict) -> None:
    print("| method | perplexity | against full | mean change of log p | bytes read | predicted error "
          "| mass from clusters, hi, lo, exact |\n|---|---|---|---|---|---|---|")
    for name, row in comparison["methods"].items():
        cells = [name, f"{row['perplexity']:.4f}"]
        if "bytes" in row:
            predicted, mass = row["predicted_error"], row["level_mass"]
            cells += [f"{row['loss']:+.3%}", f"{row['mean_change']:.4f}", f"{row['bytes']:.1%}",
                      "–" if predicted is None else f"{predicted:.2%}",
                      "–" if mass is None else " ".join(f"{x:.1%}" for x in mass)]
        print("| " + " | ".join(cells + [""] * (7 - len(cells))) + " |")
    if comparison["missing"]:
        print("\nNot in this build: " + ", ".join(comparison["missing"]))
