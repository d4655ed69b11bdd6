# SPDX-License-Identifier: Apache-2.0
"""The task: a long text of pairs, key value key value …, and then questions: ? key. The answer is the value that
stood behind that key, far outside of the model's window.

Every text draws new keys and new values, so nothing can be learned by heart: a model without the pair in front of it
can only guess one of VALUES.

What the layer of attention sees (the layer below it is made, not trained): the embedding of a token and, fainter, that
of the token before it; a landmark sees the mean of its block instead.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

KEYS, VALUES = 600, 16
ASK, LANDMARK = KEYS + VALUES, KEYS + VALUES + 1
EMBEDDING = 96
HIDDEN = 2 * EMBEDDING  # h of a token
FAINT = 0.5             # of the token before
PAIRS_OF_BLOCK = 2      # with landmarks: 4 tokens and the landmark
BLOCK = 2 * PAIRS_OF_BLOCK + 1

_rng = np.random.default_rng(7)
EMBEDDINGS = (_rng.standard_normal((KEYS + VALUES + 2, EMBEDDING)) / np.sqrt(EMBEDDING)).astype(np.float32)


class Text(NamedTuple):
    tokens: np.ndarray   # (T) pairs, with landmarks if wanted
    asked: np.ndarray    # (n) keys
    answers: np.ndarray  # (n) their values, 0 … VALUES-1


def write(rng: np.random.Generator, pairs: int, questions: int, landmarks: bool = False, newest: int = 0) -> Text:
    """Questions are about any pair but the `newest`."""
    keys = rng.permutation(KEYS)[:pairs]
    values = rng.integers(0, VALUES, pairs)
    tokens = np.stack([keys, KEYS + values], 1)
    if landmarks:
        assert pairs % PAIRS_OF_BLOCK == 0
        blocks = tokens.reshape(-1, 2 * PAIRS_OF_BLOCK)
        tokens = np.concatenate([blocks, np.full((len(blocks), 1), LANDMARK)], 1)
    which = rng.integers(0, pairs - newest, questions)
    return Text(tokens.ravel(), keys[which], values[which])


def hidden(tokens: np.ndarray) -> np.ndarray:
    """What attention sees of a text that begins here: (T, HIDDEN)."""
    now = EMBEDDINGS[tokens]
    before = np.concatenate([np.zeros((1, EMBEDDING), np.float32), now[:-1]])
    for at in np.flatnonzero(tokens == LANDMARK):
        before[at] = now[at - BLOCK + 1:at].mean(0) / FAINT
    return np.concatenate([now, FAINT * before], 1)


def question(asked: np.ndarray) -> np.ndarray:
    """What attention sees of the key in "? key": (n, HIDDEN)."""
    return np.concatenate([EMBEDDINGS[asked], np.broadcast_to(FAINT * EMBEDDINGS[ASK], (len(asked), EMBEDDING))], 1)
