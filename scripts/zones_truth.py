#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""zones_truth.py — RetroInfer's zones in plain NumPy float64: prints what tests/unit/test_zones.c expects.

One KV head, two query heads, 200 random tokens of 8 dimensions from splitmix64, as tests/random.h draws them.
Written from the published description (index/zones.h), not from index/zones*.c: k-means of keys minus their mean,
9 passes to normalised centroids, a tenth that leaves plain means; centroids rounded to fp16, mean values to bf16.
"""
import numpy as np

TOKENS, DIMS, HEADS, SINKS, LOCAL, PASSES = 200, 8, 2, 4, 8, 10
RETRIEVAL, ESTIMATION = 0.20, 0.30
MASK = (1 << 64) - 1


def draws(count, state):
    """random_float of tests/random.h: -1 … 1 in steps of 2^-23."""
    out = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        z ^= z >> 31
        out.append((z >> 40) / (1 << 23) - 1.0)
    return np.array(out), state


def bf16(values):
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return (bits << 16).astype(np.uint32).view(np.float32).astype(np.float64)


def cluster(keys):
    count = len(keys) // 16
    rows = keys - keys.mean(axis=0)
    centroids = rows[(2 * np.arange(count) + 1) * len(keys) // (2 * count)].copy()
    for turn in range(PASSES):
        labels = (rows @ centroids.T).argmax(axis=1)
        for c in range(count):
            if turn < PASSES - 1 and (labels == c).any():
                mean = rows[labels == c].mean(axis=0)
                centroids[c] = mean / np.linalg.norm(mean)
    return labels, count


def main():
    k, state = draws(TOKENS * DIMS, 7)
    v, state = draws(TOKENS * DIMS, state)
    q, state = draws(HEADS * DIMS, state)
    k, v, q = 2 * k.reshape(-1, DIMS), 2 * v.reshape(-1, DIMS), 2 * q.reshape(-1, DIMS)
    labels, count = cluster(k[SINKS:])
    labels = np.concatenate([np.full(SINKS, -1), labels])
    middle = np.arange(SINKS, TOKENS - LOCAL)
    sizes = np.array([(labels[middle] == c).sum() for c in range(count)])
    whole = [labels == c for c in range(count)]
    centroids = np.array([k[w].mean(axis=0) for w in whole]).astype(np.float16).astype(np.float64)
    means = bf16(np.array([v[w].mean(axis=0) for w in whole]))
    scale = 1 / np.sqrt(DIMS)
    scores = scale * q @ centroids.T
    weights = np.exp(scores)
    order = np.argsort(-(weights / weights.sum(axis=1, keepdims=True)).sum(axis=0), kind="stable")
    read, estimated = np.ceil(RETRIEVAL * count).astype(int), np.ceil((RETRIEVAL + ESTIMATION) * count).astype(int)
    exact = np.concatenate([np.arange(SINKS), np.arange(TOKENS - LOCAL, TOKENS)] +
                           [middle[labels[middle] == c] for c in order[:read]])
    print("labels", "".join("-abcdefghijklmnop"[c + 1] for c in labels))
    for h in range(HEADS):
        mass = np.concatenate([np.exp(scale * k[exact] @ q[h]), (sizes * weights[h])[order[read:estimated]]])
        values = np.concatenate([v[exact], means[order[read:estimated]]])
        print("lse %.9f" % np.log(mass.sum()), "o", ", ".join("%.8f" % x for x in mass @ values / mass.sum()))


main()
