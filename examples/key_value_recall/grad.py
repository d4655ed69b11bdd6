# SPDX-License-Identifier: Apache-2.0
"""Gradients of NumPy expressions: enough to train a layer of attention, short enough to read.

A Value holds an array and how to pass a gradient on to what it was made from; `backward` walks that graph once, from
the loss to the weights. Broadcasting works as in NumPy.
"""
from __future__ import annotations

import numpy as np


def _unbroadcast(gradient: np.ndarray, shape: tuple) -> np.ndarray:
    """Sum over the axes that broadcasting added or stretched."""
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    stretched = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return gradient.sum(axis=stretched, keepdims=True) if stretched else gradient


class Value:
    def __init__(self, data, parents: tuple = ()):
        self.data = np.asarray(data, np.float32)
        self.gradient = None
        self._parents = parents  # (Value, how its gradient follows from this one's)

    def backward(self) -> None:
        order, seen, stack = [], set(), [(self, False)]
        while stack:
            value, done = stack.pop()
            if done:
                order.append(value)
            elif id(value) not in seen:
                seen.add(id(value))
                stack.append((value, True))
                stack.extend((parent, False) for parent, _ in value._parents)
        self.gradient = np.ones_like(self.data)
        for value in reversed(order):
            for parent, pull in value._parents:
                gradient = _unbroadcast(pull(value.gradient), parent.data.shape)
                parent.gradient = gradient if parent.gradient is None else parent.gradient + gradient
            if value._parents:
                value.gradient = None

    def __add__(self, other):
        other = lift(other)
        return Value(self.data + other.data, ((self, lambda g: g), (other, lambda g: g)))

    def __mul__(self, other):
        other = lift(other)
        return Value(self.data * other.data, ((self, lambda g: g * other.data), (other, lambda g: g * self.data)))

    def __truediv__(self, other):
        return self * power(lift(other), -1)

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -lift(other)

    def __matmul__(self, other):
        return Value(self.data @ other.data, ((self, lambda g: g @ other.data.swapaxes(-1, -2)),
                                              (other, lambda g: self.data.swapaxes(-1, -2) @ g)))

    def __getitem__(self, key):
        def pull(g):
            back = np.zeros_like(self.data)
            np.add.at(back, key, g)
            return back
        return Value(self.data[key], ((self, pull),))

    def reshape(self, *shape):
        return Value(self.data.reshape(shape), ((self, lambda g: g.reshape(self.data.shape)),))

    def swap(self, a: int, b: int):
        return Value(self.data.swapaxes(a, b), ((self, lambda g: g.swapaxes(a, b)),))

    def sum(self, axis: int):
        return Value(self.data.sum(axis, keepdims=True), ((self, lambda g: np.broadcast_to(g, self.data.shape)),))


def lift(x) -> Value:
    return x if isinstance(x, Value) else Value(x)


def power(x: Value, exponent: float) -> Value:
    return Value(x.data ** exponent, ((x, lambda g: g * exponent * x.data ** (exponent - 1)),))


def exp(x: Value) -> Value:
    result = np.exp(x.data)
    return Value(result, ((x, lambda g: g * result),))


def sigmoid(x: Value) -> Value:
    return power(exp(-x) + 1, -1)


def softmax(x: Value, hidden: np.ndarray | None = None) -> Value:
    """Over the last axis; `hidden` entries get no weight."""
    if hidden is not None:
        x = x + np.where(hidden, np.float32(-1e9), np.float32(0))
    weights = exp(x - x.data.max(-1, keepdims=True))
    return weights / weights.sum(-1)


def unit(x: Value) -> Value:
    """Vectors of the last axis at length 1."""
    return x * power((x * x).sum(-1) + 1e-9, -0.5)


def cross_entropy(logits: Value, targets: np.ndarray) -> Value:
    """Mean of -log p of the targets (n); logits (n, C)."""
    shifted = logits - logits.data.max(-1, keepdims=True)
    rows = np.arange(len(targets))
    total = exp(shifted).sum(-1)
    log_total = Value(np.log(total.data), ((total, lambda g: g / total.data),))
    losses = log_total.reshape(-1) - shifted[rows, targets]
    return losses.sum(0) * (1 / len(targets))


class Adam:
    """Kingma, Ba, arXiv 1412.6980, algorithm 1."""

    def __init__(self, weights: dict[str, Value]):
        self.weights, self.steps = weights, 0
        self._first = {name: np.zeros_like(value.data) for name, value in weights.items()}
        self._second = {name: np.zeros_like(value.data) for name, value in weights.items()}

    def step(self, rate: float) -> None:
        self.steps += 1
        for name, value in self.weights.items():
            if value.gradient is None:
                continue
            first, second = self._first[name], self._second[name]
            first += 0.1 * (value.gradient - first)
            second += 0.001 * (value.gradient ** 2 - second)
            size = np.sqrt(second / (1 - 0.999 ** self.steps)) + 1e-8
            value.data -= rate * first / (1 - 0.9 ** self.steps) / size
            value.gradient = None
