# SPDX-License-Identifier: Apache-2.0
"""Three layers of attention, each trained for one memory method and then asked through memd.

All have one shape: q, k, v = W h, attention, and a guess at one of VALUES. `learn` trains on texts that fit into the
process; `recall` answers questions about a text that does not fit into the window, whose rest is in a context of memd.
What each method needs of its model (a scale and a gate, landmarks and a grouped softmax, projections of states) is in
its class, and so are the calls that a user of that method makes.
"""
from __future__ import annotations

import numpy as np

import memd
from grad import Adam, Value, cross_entropy, exp, power, sigmoid, softmax, unit
from task import (BLOCK, HIDDEN, LANDMARK, PAIRS_OF_BLOCK, VALUES, Text, hidden, question, write)

H, D = 2, 64
ROTARY = 16   # of D dimensions, where keys are rotated
WINDOW = 32  # tokens that the model itself still sees
BATCH = 64


def heads(x: Value) -> Value:
    """(…, T, H·D) -> (…, H, T, D)"""
    return x.reshape(*x.data.shape[:-1], H, D).swap(-3, -2)


class Layer:
    """What the three have in common."""

    method, landmarks = "", False
    steps, rate, pairs, questions = 300, 1e-2, 24, 1  # of training
    rope = None

    def __init__(self, seed: int = 1):
        self.rng = np.random.default_rng(seed)
        shapes = {"q": (HIDDEN, H * D), "k": (self.keys_from(), H * D), "v": (self.keys_from(), H * D),
                  "out": (H * D, VALUES)}
        self.weights = {name: Value(self.rng.standard_normal(shape) / np.sqrt(shape[0]))
                        for name, shape in shapes.items()}
        self.weights.update(self.more_weights())

    def keys_from(self) -> int:
        return HIDDEN

    def more_weights(self) -> dict[str, Value]:
        return {}

    def learn(self) -> list[float]:
        """Losses, step by step."""
        adam, losses = Adam(self.weights), []
        for step in range(self.steps):
            texts = [write(self.rng, self.pairs, self.questions, self.landmarks) for _ in range(BATCH)]
            asked = np.stack([question(text.asked) for text in texts])           # (B, n, HIDDEN)
            seen = np.stack([hidden(text.tokens) for text in texts])             # (B, T, HIDDEN)
            logits = self.attend(asked, seen) @ self.weights["out"]
            loss = cross_entropy(logits.reshape(-1, VALUES), np.concatenate([text.answers for text in texts]))
            loss.backward()
            adam.step(self.rate * (1 - step / self.steps))
            losses.append(float(loss.data.item()))
        return losses

    def attend(self, asked: np.ndarray, seen: np.ndarray) -> Value:
        """What attention gives for each question: (B, n, H·D)."""
        raise NotImplementedError

    def array(self, name: str) -> np.ndarray:
        return self.weights[name].data

    def project(self, name: str, h: np.ndarray) -> np.ndarray:
        """(T, HIDDEN) -> (T, H, D)"""
        return (h @ self.array(name)).reshape(len(h), H, D)

    def guess(self, o: np.ndarray) -> np.ndarray:
        """(n, H, D) -> (n)"""
        return (o.reshape(len(o), H * D) @ self.array("out")).argmax(1)

    def open(self, client: memd.Client, name: str, **parameters) -> memd.Context:
        model = memd.Model(layers=1, query_heads=H, kv_heads=H, head_dim=D, dtype="float32", rope=self.rope)
        return client.open(name, model, method=self.method, parameters=parameters, create=True)

    def window(self, q: np.ndarray, h: np.ndarray) -> memd.Partial:
        """Attention of every question over the last tokens, which the model holds itself."""
        k, v = self.project("k", h), self.project("v", h)
        scores = np.einsum("nhd,thd->nht", q, k) / np.sqrt(D)
        top = scores.max(-1, keepdims=True)
        weights = np.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        return memd.Partial(np.einsum("nht,thd->nhd", weights / total, v), (top + np.log(total))[..., 0])


class Memorizing(Layer):
    """Keys and queries at length 1, a learned scale; memory and window are joined by a learned gate."""

    method = "memorizing"
    questions = 8

    def more_weights(self):
        return {"scale": Value(np.full((H, 1, 1), 8.0)), "gate": Value(np.zeros((H, 1, 1)))}

    def attend(self, asked, seen):
        recent, old = seen[:, -WINDOW // 2:], seen[:, :-WINDOW // 2]  # half of each text is out of sight
        q = unit(heads(Value(asked) @ self.weights["q"]))

        def part(h):
            k, v = (heads(Value(h) @ self.weights[name]) for name in "kv")
            return softmax(q @ unit(k).swap(-1, -2) * self.weights["scale"]) @ v
        share = sigmoid(self.weights["gate"])
        o = part(old) * share + part(recent) * (-share + 1)
        return o.swap(-3, -2).reshape(*asked.shape[:2], H * D)

    def window(self, q, h):
        scale = np.abs(self.array("scale").ravel())[:, None]
        k, v = self.project("k", h), self.project("v", h)
        q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
        scores = np.einsum("nhd,thd->nht", q, k) * scale
        weights = np.exp(scores)
        total = weights.sum(-1, keepdims=True)
        return memd.Partial(np.einsum("nht,thd->nhd", weights / total, v).astype(np.float32),
                            np.log(total)[..., 0].astype(np.float32))

    def recall(self, client, name: str, text: Text):
        past = self.open(client, name, memory=4096, k=16)
        past.put_params({"scale": self.array("scale").ravel(), "gate": self.array("gate").ravel()})
        h, q = hidden(text.tokens), self.project("q", question(text.asked))
        past.append(0, 0, self.project("k", h), self.project("v", h))
        own, limit = self.window(q, h[-WINDOW:]), len(h) - WINDOW
        n = len(q)
        both = past.attend(0, q, [len(h) + 1] * n, [limit] * n, local=own)  # memd applies the gate
        return self.guess(own.o), self.guess(both.o)


class Landmark(Layer):
    """Blocks end with a landmark, whose weight gates them: the grouped softmax. Keys are rotated (RoPE) by memd."""

    method, landmarks = "landmark", True
    steps, rate, pairs, questions = 300, 2e-2, 40, 8
    rope = memd.Rope(theta=10000.0, pairing="half", rotary_dims=ROTARY)

    def rotate(self, x, positions):
        """x (…, T, D) at positions (T): dimension pairs (i, i + ROTARY/2)."""
        angles = np.asarray(positions)[:, None] * 10000.0 ** (-np.arange(0, ROTARY, 2) / ROTARY)
        rest = np.zeros((len(angles), D - ROTARY))
        cos = np.cos(np.concatenate([angles, angles, rest], 1)).astype(np.float32)
        sin = np.sin(np.concatenate([-angles, angles, rest], 1)).astype(np.float32)
        order = np.r_[ROTARY // 2:ROTARY, :ROTARY // 2, ROTARY:D]
        return x * cos + x[..., order] * sin

    def attend(self, asked, seen):
        n, T, blocks = asked.shape[1], seen.shape[1], seen.shape[1] // BLOCK
        q = self.rotate(heads(Value(asked) @ self.weights["q"]), [T + 1])
        k, v = (heads(Value(seen) @ self.weights[name]) for name in "kv")
        scores = q @ self.rotate(k, np.arange(T)).swap(-1, -2) * (1 / np.sqrt(D))
        shape = (len(asked), H, n, blocks, BLOCK)
        gates = softmax(scores.reshape(*shape)[..., -1])  # the question's own block has nothing to compete
        inside = softmax(scores.reshape(*shape), np.arange(BLOCK) == BLOCK - 1)
        weights = (inside * gates.reshape(*shape[:-1], 1)).reshape(len(asked), H, n, T)
        return (weights @ v).swap(-3, -2).reshape(len(asked), n, H * D)

    def window(self, q, h):
        """The newest blocks, read as the grouped softmax reads them."""
        T = len(h)
        k = self.rotate(self.project("k", h).swapaxes(0, 1), np.arange(T)).swapaxes(0, 1)
        q = self.rotate(q, np.full(len(q), T + 1)[:1])
        scores = np.einsum("nhd,thd->nht", q, k).reshape(len(q), H, T // BLOCK, BLOCK) / np.sqrt(D)
        inside = np.exp(scores[..., :-1])
        inside /= inside.sum(-1, keepdims=True)
        gates = np.exp(scores[..., -1:])
        values = self.project("v", h).reshape(T // BLOCK, BLOCK, H, D)[:, :-1]
        o = np.einsum("nhbt,bthd->nhd", inside * gates / gates.sum(-2, keepdims=True), values)
        return memd.Partial(o.astype(np.float32), np.log(gates.sum((-1, -2))).astype(np.float32))

    def recall(self, client, name: str, text: Text):
        past = self.open(client, name, k=4)
        h, q = hidden(text.tokens), self.project("q", question(text.asked))
        marks = np.where(text.tokens == LANDMARK, memd.MARK_LANDMARK, 0)
        past.append(0, 0, self.project("k", h), self.project("v", h), marks=marks)  # not rotated: memd does that
        kept = WINDOW // BLOCK * BLOCK
        own, limit, n = self.window(q, h[-kept:]), len(h) - kept, len(q)
        answer = past.attend(0, q, [len(h) + 1] * n, [limit] * n)
        return self.guess(own.o), self.guess(memd.merge([own, answer]).o)


class Neurocache(Layer):
    """States instead of keys and values; what is found, and the state behind it, is attended to by itself and added."""

    method, width, k = "neurocache", 64, 4

    def __init__(self, seed: int = 1):
        rng = np.random.default_rng(seed)
        self.encoder = (rng.standard_normal((self.width, HIDDEN)) / np.sqrt(HIDDEN)).astype(np.float32)
        super().__init__(seed)

    def keys_from(self):
        return self.width

    def more_weights(self):
        return {name: Value(self.rng.standard_normal((HIDDEN, H * D)) / np.sqrt(HIDDEN)) for name in ("wk", "wv")}

    def encode(self, h):
        c = h @ self.encoder.T
        c = c - c.mean(-1, keepdims=True)
        return c / np.sqrt((c * c).mean(-1, keepdims=True) + 1e-6)

    def attend(self, asked, seen):
        states, query = self.encode(seen), self.encode(asked)  # (B, T, W), (B, 1, W)
        distances = 2 * query @ states.swapaxes(-1, -2) - (states * states).sum(-1)[:, None]
        hits = np.argsort(-distances[:, 0], axis=-1)[:, :self.k]
        hits = np.minimum(np.stack([hits, hits + 1], -1).reshape(len(asked), -1), seen.shape[1] - 1)
        found = Value(states[np.arange(len(asked))[:, None], hits])  # retrieval has no gradient, as published
        q = heads(Value(asked) @ self.weights["q"])
        cache = self.part(q, heads(found @ self.weights["k"]), heads(found @ self.weights["v"]))
        recent = Value(seen[:, -WINDOW // 2:])
        own = self.part(q, heads(recent @ self.weights["wk"]), heads(recent @ self.weights["wv"]))
        return (cache + own).swap(-3, -2).reshape(len(asked), 1, H * D)

    @staticmethod
    def part(q, k, v):
        return softmax(q @ k.swap(-1, -2) * (1 / np.sqrt(D))) @ v

    def recall(self, client, name: str, text: Text):
        past = self.open(client, name, width=self.width, memory=4096, k=self.k, neighbours=2, window=1,
                         head_layout="transposed")
        past.put_params({"encode": self.encoder,
                         "key": self.array("k").T.reshape(H, D, self.width),
                         "value": self.array("v").T.reshape(H, D, self.width)})
        h, asked = hidden(text.tokens), question(text.asked)
        past.append(0, 0, states=h)  # hidden states: memd encodes them
        q, limit, n = self.project("q", asked), len(h) - WINDOW, len(asked)
        k, v = (self.project(w, h[-WINDOW:]) for w in ("wk", "wv"))
        scores = np.einsum("nhd,thd->nht", q, k) / np.sqrt(D)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        own = np.einsum("nht,thd->nhd", weights / weights.sum(-1, keepdims=True), v)
        answer = past.attend(0, q, [len(h) + 1] * n, [limit] * n, states=asked)
        return self.guess(own), self.guess(own + answer.o)


LAYERS = {layer.method: layer for layer in (Memorizing, Landmark, Neurocache)}
