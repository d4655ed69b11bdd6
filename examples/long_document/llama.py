# SPDX-License-Identifier: Apache-2.0
"""The forward pass of a Llama model in NumPy, read from a GGUF file.

Everything a Llama is, in the order it happens: RMS norm, queries/keys/values, RoPE, attention, output
projection, gated feed-forward, and round again. Attention itself is *not* here: `forward` asks the object
it is given, which is where this example swaps in memd. Written to be read; NumPy's BLAS does the work.

Shapes: n tokens of one chunk, E embedding, H query heads, G KV heads (H/G query heads share one), D head
dimension.
"""
from __future__ import annotations

from functools import partial
from typing import Protocol

from cores import by_rows, each

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from tokenizer import Tokenizer


class Attention(Protocol):
    """What a layer asks: attention of n queries, at positions start … start + n - 1, over everything up
    to and including themselves. k, v (n, G, D) are the keys and values of the same tokens, to be
    remembered. q (n, H, D) -> (n, H, D). All float32."""

    def attend(self, layer: int, start: int, q: np.ndarray, k: np.ndarray,
               v: np.ndarray) -> np.ndarray: ...


class Llama:
    architecture = "llama"
    # llama.cpp stores the rotary pairs of a Llama side by side, not as dimensions i and i + D/2.
    pairs_side_by_side = True

    def __init__(self, path: str):
        reader = GGUFReader(path)

        def field(name: str):
            return reader.fields[name.format(arch=self.architecture)].contents()

        found = field("general.architecture")
        assert found == self.architecture, f"{path} is a {found} model, not {self.architecture}"
        self.name: str = field("general.name")
        self.layers: int = field("{arch}.block_count")
        self.context_length: int = field("{arch}.context_length")
        self.H: int = field("{arch}.attention.head_count")
        self.G: int = field("{arch}.attention.head_count_kv")
        self.D: int = self._head_dim(field)
        self.eps = np.float32(field("{arch}.attention.layer_norm_rms_epsilon"))
        self.theta: float = field("{arch}.rope.freq_base")
        self.tokenizer = self._make_tokenizer(field)
        self._weights = {tensor.name: self._load(tensor) for tensor in reader.tensors}
        self._embedding = self._weights["token_embd.weight"]
        # Small models use the embedding once more to turn hidden states into token scores.
        self._head = self._weights.get("output.weight", self._embedding)

    def _head_dim(self, field) -> int:
        return field("{arch}.embedding_length") // self.H

    def _make_tokenizer(self, field):
        return Tokenizer(field("tokenizer.ggml.tokens"), field("tokenizer.ggml.merges"))

    def _load(self, tensor) -> np.ndarray:
        weight = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if self.pairs_side_by_side and tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            weight = weight.reshape(-1, self.D // 2, 2, weight.shape[-1]).swapaxes(1, 2)
            weight = np.ascontiguousarray(weight.reshape(-1, weight.shape[-1]))
        return weight

    def forward(self, ids: np.ndarray, start: int, attention: Attention) -> np.ndarray:
        """Read the tokens `ids` at positions start, start + 1, …; hidden states (n, E)."""
        x, positions = self._embed(ids), start + np.arange(len(ids))
        for layer in range(self.layers):
            q, k, v = by_rows(partial(self._before_attention, layer), x, positions)
            o = attention.attend(layer, start, q, k, v)
            x = by_rows(partial(self._after_attention, layer), x, o)
        return self._norm(x, self._weights["output_norm.weight"])

    def _embed(self, ids: np.ndarray) -> np.ndarray:
        return self._embedding[ids]

    def _before_attention(self, layer: int, x: np.ndarray, positions: np.ndarray):
        """x (n, E) -> q (n, H, D), k, v (n, G, D), queries and keys rotated to their positions."""
        h = self._norm(x, self._weight(layer, "attn_norm"))
        q = (h @ self._weight(layer, "attn_q").T).reshape(-1, self.H, self.D)
        k = (h @ self._weight(layer, "attn_k").T).reshape(-1, self.G, self.D)
        v = (h @ self._weight(layer, "attn_v").T).reshape(-1, self.G, self.D)
        return self.rope(q, positions), self.rope(k, positions), v

    def _after_attention(self, layer: int, x: np.ndarray, o: np.ndarray) -> np.ndarray:
        """Output projection of o (n, H, D) and the gated feed-forward, each added to x (n, E)."""
        x = x + o.reshape(len(o), -1) @ self._weight(layer, "attn_output").T
        h = self._norm(x, self._weight(layer, "ffn_norm"))
        gate = h @ self._weight(layer, "ffn_gate").T
        gate /= 1 + np.exp(-gate)  # SiLU
        gate *= h @ self._weight(layer, "ffn_up").T
        return x + gate @ self._weight(layer, "ffn_down").T

    def losses(self, hidden: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """-log p of the token that really came next: hidden (n, E), targets (n) -> (n) float64."""
        def loss(hidden, targets):
            scores = hidden @ self._head.T
            top = scores.max(axis=1)
            total = np.exp(scores - top[:, None]).sum(axis=1, dtype=np.float64)
            return np.log(total) + top - scores[np.arange(len(scores)), targets]
        blocks = np.arange(64, len(targets), 64)  # scores are (n, 49152): some rows at a time
        return np.concatenate(each(loss, np.split(hidden, blocks), np.split(targets, blocks)))

    def _weight(self, layer: int, name: str) -> np.ndarray:
        return self._weights[f"blk.{layer}.{name}.weight"]

    def _norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * weight

    def rope(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """x (n, heads, D) rotated to their positions; to -positions: back again."""
        return self._rope(x, positions, self.theta)

    def _rope(self, x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
        """Turn dimension pair (i, i + D/2) of the token at position p by p * theta**(-2i/D)."""
        half = self.D // 2
        angles = positions[:, None, None] * theta ** (-np.arange(half) / half)
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
