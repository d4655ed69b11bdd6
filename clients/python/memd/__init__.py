# SPDX-License-Identifier: Apache-2.0
"""memd keeps a language model's past: append keys and values, attend over them later.

    import memd
    client = memd.connect("unix:/run/memd/memd.sock")
    model = memd.Model(layers=30, query_heads=9, kv_heads=3, head_dim=64, rope=memd.Rope(theta=1e5))
    book = client.open("book", model, create=True)
    book.append(layer, position, k, v)                    # k, v (n, G, D)
    past = book.attend(layer, q, positions, limits)       # q (n, H, D)
    o, lse = memd.merge([window, past])                   # one attention over both
"""
from .algebra import Partial, merge
from .answers import (LEVELS, PLAN_KINDS, PLAN_MERGES, UNPLACED, Answer, Appended, Built,
                      ContextInfo, Explained, Health, Histogram, Hits, Method, MethodTensor,
                      Option, Plan, Quality, Recall, Record, Rows, Stats, Status, Summary, VerifyReport)
from .dtypes import bfloat16_to_float32, float32_to_bfloat16
from .errors import *  # noqa: F401,F403  (one class per error code)
from .errors import __all__ as _errors
from .model import Model, Rope
from .region import Region
from .requests import MARK_LANDMARK, MARK_SPECIAL, Query, Tokens

__version__ = "0.1.0"

from .client import Client, Context, connect  # noqa: E402  (needs __version__)

__all__ = ["LEVELS", "MARK_LANDMARK", "MARK_SPECIAL", "PLAN_KINDS", "PLAN_MERGES", "UNPLACED",
           "Answer", "Appended", "Built", "Client", "Context", "ContextInfo", "Explained", "Health",
           "Histogram", "Hits", "Method", "MethodTensor", "Model", "Option", "Partial", "Plan",
           "Quality", "Query", "Recall",
           "Record", "Region", "Rope", "Rows", "Stats", "Status", "Summary", "Tokens", "VerifyReport",
           "bfloat16_to_float32", "connect", "float32_to_bfloat16", "merge"]
__all__ += _errors
