# SPDX-License-Identifier: Apache-2.0
"""The partial algebra: attention over a set of tokens, joined with attention over another set.

The same rules as attention/softmax.h: lse is the natural log of the softmax denominator, the empty set
is o = 0, lse = -inf, disjoint partials merge exactly and in any order.
"""
from __future__ import annotations

from typing import Iterable, NamedTuple

import numpy as np


class Partial(NamedTuple):
    """Attention over one set of tokens: o (n, H, D) and lse (n, H)."""

    o: np.ndarray
    lse: np.ndarray


def merge(parts: Iterable) -> Partial:
    """Join attention over disjoint sets of tokens into attention over their union.

        L = log sum_i exp(lse_i)        o = sum_i exp(lse_i - L) o_i

    parts   partials: anything with `.o` (…, D) and `.lse` (…), such as the answer of `Context.attend`,
            or a tuple (o, lse); all of one shape, at least one.
    Returns Partial(o, lse), in the widest dtype of the parts; the weights are computed in float64. An
    empty part (lse = -inf) changes nothing; where all parts are empty the result is empty.
    """
    pairs = [(part.o, part.lse) if hasattr(part, "lse") else tuple(part) for part in parts]
    if not pairs:
        raise ValueError("merge needs at least one part")
    lse = np.stack([np.asarray(pair[1], dtype=np.float64) for pair in pairs])  # (S, …)
    top = lse.max(axis=0)
    top = np.where(np.isneginf(top), 0.0, top)  # -inf - -inf would be NaN
    weights = np.exp(lse - top)
    total = weights.sum(axis=0)
    weights /= np.where(total == 0.0, 1.0, total)
    dtype = np.result_type(*(np.asarray(pair[0]).dtype for pair in pairs))
    o = np.zeros(np.asarray(pairs[0][0]).shape, dtype=dtype)
    for (part_o, _), weight in zip(pairs, weights):
        o += np.asarray(part_o) * weight[..., None].astype(dtype)
    with np.errstate(divide="ignore"):
        return Partial(o, (top + np.log(total)).astype(np.asarray(pairs[0][1]).dtype))
