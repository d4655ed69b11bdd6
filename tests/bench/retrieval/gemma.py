# SPDX-License-Identifier: Apache-2.0
"""The forward pass of Gemma 3 in NumPy: what differs from the Llama of examples/long_document.

Queries and keys are normalised per head, block outputs once more before they are added, the gate is GELU,
embeddings are scaled, and of six layers five see a window only (with a RoPE of their own) and the sixth
everything. It is here because its six global layers of a 32K text are the hardest real keys that a laptop can
capture: one KV head of 256 dimensions with outlier channels.
"""
from __future__ import annotations

import numpy as np
import regex
from llama import Llama

GLOBAL_EVERY = 6
LOCAL_THETA = 10000.0


class Gemma(Llama):
    architecture = "gemma3"
    pairs_side_by_side = False

    def __init__(self, path: str):
        super().__init__(path)
        self.global_layers = [layer for layer in range(self.layers) if (layer + 1) % GLOBAL_EVERY == 0]

    def _head_dim(self, field) -> int:
        self.window: int = field("{arch}.attention.sliding_window")
        return field("{arch}.attention.key_length")

    def _make_tokenizer(self, field):
        return ScoredTokenizer(field("tokenizer.ggml.tokens"), field("tokenizer.ggml.scores"),
                               field("tokenizer.ggml.token_type"), field("tokenizer.ggml.bos_token_id"))

    def _embed(self, ids: np.ndarray) -> np.ndarray:
        return self._embedding[ids] * np.float32(self._embedding.shape[1] ** 0.5)

    def _before_attention(self, layer: int, x: np.ndarray, positions: np.ndarray):
        h = self._norm(x, self._weight(layer, "attn_norm"))
        q = (h @ self._weight(layer, "attn_q").T).reshape(-1, self.H, self.D)
        k = (h @ self._weight(layer, "attn_k").T).reshape(-1, self.G, self.D)
        v = (h @ self._weight(layer, "attn_v").T).reshape(-1, self.G, self.D)
        q = self._norm(q, self._weight(layer, "attn_q_norm"))
        k = self._norm(k, self._weight(layer, "attn_k_norm"))
        theta = self.theta if layer in self.global_layers else LOCAL_THETA
        return self._rope(q, positions, theta), self._rope(k, positions, theta), v

    def _after_attention(self, layer: int, x: np.ndarray, o: np.ndarray) -> np.ndarray:
        y = o.reshape(len(o), -1) @ self._weight(layer, "attn_output").T
        x = x + self._norm(y, self._weight(layer, "post_attention_norm"))
        h = self._norm(x, self._weight(layer, "ffn_norm"))
        gate = h @ self._weight(layer, "ffn_gate").T
        inner = np.float32((2 / np.pi) ** 0.5) * (gate + np.float32(0.044715) * gate ** 3)
        gate *= np.float32(0.5) * (1 + np.tanh(inner))  # GELU
        gate *= h @ self._weight(layer, "ffn_up").T
        y = gate @ self._weight(layer, "ffn_down").T
        return x + self._norm(y, self._weight(layer, "post_ffw_norm"))


class ScoredTokenizer:
    """SentencePiece BPE: of all neighbours that form a token, the pair whose token has the best score is
    joined, again and again; characters without a token become bytes. Spaces are U+2581."""

    def __init__(self, tokens: list[str], scores: list[float], kinds: list[int], bos: int):
        self._ids: dict[str, int] = {}
        for i, token in enumerate(tokens):
            self._ids.setdefault(token, i)
        self._score = {token: scores[i] for token, i in self._ids.items() if kinds[i] == 1}
        self._bos = bos
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        ids = [self._bos]
        for word in regex.findall("\u2581?[^\u2581]+|\u2581", text.replace(" ", "\u2581")):
            if word not in self._cache:
                self._cache[word] = self._encode_word(word)
            ids += self._cache[word]
        return ids

    def _encode_word(self, word: str) -> list[int]:
        parts, worst = list(word), float("-inf")
        while len(parts) > 1:
            scores = [self._score.get(a + b, worst) for a, b in zip(parts, parts[1:])]
            best = max(range(len(scores)), key=scores.__getitem__)
            if scores[best] == worst:
                break
            parts[best:best + 2] = [parts[best] + parts[best + 1]]
        ids: list[int] = []
        for part in parts:
            ids += [self._ids[part]] if part in self._ids else \
                   [self._ids[f"<0x{byte:02X}>"] for byte in part.encode()]
        return ids
