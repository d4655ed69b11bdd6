# SPDX-License-Identifier: Apache-2.0
"""The byte-level BPE tokenizer of a GGUF file (SmolLM2, GPT-2 style).

Text is split into words by a regular expression; each word's bytes become printable characters; then the
pair of neighbours that was merged first in training is joined, again and again.
"""
from __future__ import annotations

import regex

# GPT-2's word pattern; SmolLM2 also cuts every digit off by itself.
_WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
_DIGIT = regex.compile(r"(\p{N})")


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself where printable, else one from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable},
            **{byte: chr(256 + i) for i, byte in enumerate(others)}}


class Tokenizer:
    def __init__(self, tokens: list[str], merges: list[str]):
        self._ids = {token: i for i, token in enumerate(tokens)}
        self._rank = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
        self._alphabet = _byte_alphabet()
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for fragment in _DIGIT.split(text):
            for word in _WORD.findall(fragment):
                if word not in self._cache:
                    self._cache[word] = self._encode_word(word)
                ids += self._cache[word]
        return ids

    def _encode_word(self, word: str) -> list[int]:
        parts = [self._alphabet[byte] for byte in word.encode()]
        while len(parts) > 1:
            ranks = [self._rank.get(pair, len(self._rank)) for pair in zip(parts, parts[1:])]
            best = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[best] == len(self._rank):
                break
            parts[best:best + 2] = [parts[best] + parts[best + 1]]
        return [self._ids[part] for part in parts]
