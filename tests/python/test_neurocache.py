# SPDX-License-Identifier: Apache-2.0
"""`neurocache` on states made of a real model's keys and values (replay.py), against float64 NumPy written from the
published description: a ring that is written slot by slot, a search, projections that are viewed as heads."""
import signal
import unittest

import numpy as np

from live import Live, memd, needs_daemon
from replay import TOKENS, TOLERANCE, load

LAYERS, CACHE, ATTENTION = 4, 1, 3  # of the model; where states are, and who attends to them
H, G, D, W = 4, 2, 16, 128
K, NEIGHBOURS, WINDOW = 6, 2, 2
NONE = 2**64 - 1


def model(dtype):
    return memd.Model(layers=LAYERS, query_heads=H, kv_heads=G, head_dim=D, dtype=dtype)


def ring(written, memory):
    """The tokens in the slots of a ring that was written to in order; -1: nothing."""
    slots = np.full(memory, -1)
    for token in range(written):
        slots[token % memory] = token
    return slots


class Lru:
    """A ring from which the least recently used leave, as the published code writes and reads one."""

    def __init__(self, memory):
        self.memory, self.written = memory, 0
        self.tokens, self.used = np.zeros(0, int), np.zeros(0, int)
        self.evictions = set()  # (written, token) of those that a ring of the newest would have kept

    def copy(self):
        new = Lru(self.memory)
        new.written, new.tokens, new.used = self.written, self.tokens.copy(), self.used.copy()
        return new

    def write(self, until):
        fresh = np.arange(self.written, until)[-self.memory:]
        drop = max(len(self.tokens) + len(fresh) - self.memory, 0)
        keep = np.sort(np.argsort(self.used, kind="stable")[drop:])
        gone = np.setdiff1d(self.tokens, self.tokens[keep])
        self.evictions |= {(until, token) for token in gone if token >= until - self.memory}
        self.tokens = np.concatenate([self.tokens[keep], fresh])
        self.used = np.concatenate([self.used[keep], fresh])
        self.written = until

    def use(self, tokens):
        self.used[np.isin(self.tokens, tokens)] = self.written

    def slots(self, limit):
        seen = self.tokens[self.tokens < limit]
        return np.concatenate([seen, np.full(self.memory - len(seen), -1)])


def find(states, slots, query, exact):
    """The tokens that one query finds, by rank and offset; -1 for zeros."""
    memory = len(slots)
    rows = np.where(slots[:, None] < 0, 0.0, states[slots])
    scores = np.where(slots < 0, -1e8, 2 * rows @ query - (rows * rows).sum(1))
    candidates = np.arange(memory)
    if not exact:
        buckets = min(max(K, 512), memory)
        columns = scores.reshape(-1, buckets)
        candidates = columns.argmax(0) * buckets + np.arange(buckets)
        candidates.sort()
    ranked = candidates[np.argsort(-scores[candidates], kind="stable")[:K]]
    around = ranked[:, None] + np.arange(-(NEIGHBOURS // 2) + 1, NEIGHBOURS // 2 + 1)
    return slots[np.clip(around, 0, memory - 1)].ravel()


def attend(states, sets, q, key, value, raw_view):
    """o (H, D) of one query over the sets of its window, as the published code sees them."""
    keys, values = [], []
    for tokens in sets:
        rows = np.where(tokens[:, None] < 0, 0.0, states[tokens])
        for project, into in ((key, keys), (value, values)):
            flat = rows @ project.reshape(G * D, W).T  # (n, G·D)
            into.append(flat.reshape(G, len(rows), D) if raw_view
                        else flat.reshape(len(rows), G, D).swapaxes(0, 1))
    keys, values = np.concatenate(keys, 1), np.concatenate(values, 1)
    o = np.zeros((H, D))
    for head in range(H):
        scores = keys[head // (H // G)] @ q[head] / np.sqrt(D)
        weights = np.exp(scores - scores.max())
        o[head] = weights @ values[head // (H // G)] / weights.sum()
    return o


@needs_daemon
class Neurocache(unittest.TestCase):
    def setUp(self):
        self.live = Live()
        self.addCleanup(self.live.close)
        capture = load()
        self.states = np.concatenate([capture.k[:, 0], capture.v[:, 0]], 1)
        rng = np.random.default_rng(5)
        self.q = rng.standard_normal((40, H, D)).astype(np.float32)
        self.key, self.value = (rng.standard_normal((G, D, W)).astype(np.float32) / 8 for _ in range(2))
        self.found = set()

    def open(self, name, dtype, **parameters):
        given = {"width": W, "k": K, "neighbours": NEIGHBOURS, "window": WINDOW, "cache_layer": CACHE, **parameters}
        past = self.live.client.open(name, model(dtype), method="neurocache", parameters=given, create=True)
        past.put_params({"key": self.key, "value": self.value}, layer=ATTENTION)
        return past

    def append(self, past, begin, end):
        past.append(CACHE, begin, states=self.states[begin:end].astype(past.model.dtype))

    def check(self, past, tokens, limit, lru=None, written=None):
        """Queries of some tokens, one request: what each finds, and attention over it."""
        memory, exact = int(past.parameters["memory"]), past.parameters.get("search") != "bucketed"
        stored = self.states.astype(past.model.dtype).astype(float)
        asked = stored[tokens].astype(np.float32)
        q = self.q[:len(tokens)]
        answer = past.attend(ATTENTION, q, tokens, [limit] * len(tokens), states=asked, explain=True)
        hits = past.search(ATTENTION, q, k=K * NEIGHBOURS, limits=[limit] * len(tokens), positions=tokens, states=asked)
        if lru is not None:
            lru.write(len(self.states) if written is None else written)
        slots = ring(limit, memory) if lru is None else lru.slots(limit)
        sets = [find(stored, slots, query.astype(float), exact) for query in asked]
        if lru is not None:
            lru.use(np.concatenate(sets))
        raw_view = past.parameters.get("head_layout") != "transposed"
        for i in range(len(tokens)):
            wanted = sets[i][sets[i] >= 0]
            for head in range(H):
                got = hits.ids[i, head]
                np.testing.assert_array_equal(got[:len(wanted)], wanted)
                self.assertTrue((got[len(wanted):] == NONE).all())
            window = [sets[max(i - back, 0)] for back in reversed(range(WINDOW))]
            read = np.sort(np.concatenate(window))
            np.testing.assert_array_equal(answer.plan.tokens(i, 0)[0], read[read >= 0])
            if limit == 0:
                self.assertTrue((answer.lse[i] == -np.inf).all() and (answer.o[i] == 0).all())
                continue
            o = attend(stored, window, q[i].astype(float), self.key.astype(float), self.value.astype(float), raw_view)
            np.testing.assert_allclose(answer.o[i], o, rtol=0, atol=TOLERANCE[past.model.dtype])
            self.found.add(tuple(wanted))
        return answer.o

    def replay(self, dtype, **parameters):
        past, at = self.open("past", dtype, **parameters), 0
        while at < TOKENS:
            end = min(at + 37, TOKENS)
            tokens = list(range(max(end - 5, 0), end))
            self.append(past, at, end)
            self.check(past, tokens, at)  # as a segment asks: of what was there before it
            self.check(past, tokens[-1:], end)
            at = end
            if at == 17 * 37:
                self.live.restart(signal.SIGKILL)
                past = self.live.client.open("past")
        last = list(range(TOKENS - 3, TOKENS))
        before = self.check(past, last, TOKENS)
        fork = past.fork("fork")
        fork.truncate(700)
        self.check(fork, [695, 696], 700)
        self.check(fork, [695, 696], 650)
        self.live.restart()
        past = self.live.client.open("past")
        np.testing.assert_array_equal(self.check(past, last, TOKENS), before)
        once = self.open("once", dtype, **parameters)
        self.append(once, 0, TOKENS)
        np.testing.assert_array_equal(self.check(once, last, TOKENS), before)
        self.assertGreater(len(self.found), 60)

    def test_fp32(self):
        self.replay("float32", memory=256, search="exact")

    def test_fp16(self):
        self.replay("float16", memory=256, head_layout="transposed")

    def test_buckets(self):
        self.replay("float32", memory=1024, search="bucketed")

    def replay_lru(self, dtype, **parameters):
        """Segments ask before they are appended, now and then one asks again for what is old."""
        past, at = self.open("past", dtype, eviction="lru", **parameters), 0
        lru = Lru(int(parameters["memory"]))
        while at < TOKENS:
            end = min(at + 37, TOKENS)
            tokens = list(range(end - 5, end))
            self.check(past, tokens, at, lru, at)
            if at % 3 == 1:
                self.check(past, [at // 2], at, lru, at)
                self.check(past, [at // 2], at - 10, lru, at)  # as of earlier: nothing comes back
            for cut in range(at, end, 11):
                self.append(past, cut, min(cut + 11, end))
            at = end
            if at == 17 * 37:
                self.live.restart(signal.SIGKILL)
                past = self.live.client.open("past")
            if at == 22 * 37:
                self.live.restart()
                past = self.live.client.open("past")
        self.assertGreater(len(lru.evictions), 30)
        last = list(range(TOKENS - 3, TOKENS))
        self.check(past, last, TOKENS, lru, TOKENS)
        fork, of_fork = past.fork("fork"), lru.copy()
        self.check(fork, [700], TOKENS, of_fork, TOKENS)
        self.check(past, [300], TOKENS, lru, TOKENS)
        with self.assertRaisesRegex(memd.UnsupportedError, "come back"):
            past.truncate(TOKENS - 1)
        facts = past.state(CACHE)
        self.assertEqual((facts["ring_states"], facts["ring_evicted"]), (lru.memory, TOKENS - lru.memory))
        self.live.restart()
        past, fork = self.live.client.open("past"), self.live.client.open("fork")
        before = self.check(past, last, TOKENS, lru, TOKENS)
        self.check(fork, last, TOKENS, of_fork, TOKENS)
        fifo = past.fork("fifo", method="neurocache", parameters={**past.parameters, "eviction": "fifo"})
        fifo.put_params({"key": self.key, "value": self.value}, layer=ATTENTION)
        self.assertTrue(np.abs(self.check(fifo, last, TOKENS) - before).max() > 1e-3)
        fifo.truncate(700)

    def test_lru_fp32(self):
        self.replay_lru("float32", memory=256, search="exact")

    def test_lru_fp16(self):
        self.replay_lru("float16", memory=128, head_layout="transposed")

    def test_lru_buckets(self):
        self.replay_lru("float32", memory=1024, search="bucketed")

    def test_lru_that_never_fills(self):
        """Is FIFO: the same answers, and truncate."""
        pasts = [self.open(name, "float32", eviction=name, memory=1536, search="exact") for name in ("lru", "fifo")]
        for at in range(0, TOKENS, 260):
            for past in pasts:
                self.append(past, at, at + 260)
            np.testing.assert_array_equal(*(self.check(past, [at + 7, at + 200], at + 260) for past in pasts))
        for past in pasts:
            past.truncate(300)
        np.testing.assert_array_equal(*(self.check(past, [250], 300) for past in pasts))

    def test_states_come_back(self):
        past = self.open("past", "float32", memory=512)
        self.append(past, 0, 100)
        rows = past.fetch(CACHE, [0, 99, 5])
        np.testing.assert_array_equal(rows.states, self.states[[0, 99, 5]].astype(np.float32))

    def test_hidden_states(self):
        """What is sent as hidden states is stored, and asked for, as what the uploads make of it."""
        rng = np.random.default_rng(6)
        hidden = rng.standard_normal((60, 256)).astype(np.float32)
        encode = rng.standard_normal((W, 256)).astype(np.float32) / 16
        weight, bias = rng.standard_normal(W).astype(np.float32), rng.standard_normal(W).astype(np.float32)
        states = hidden.astype(float) @ encode.T.astype(float)
        states = (states - states.mean(1, keepdims=True)) / np.sqrt(states.var(1, keepdims=True) + 1e-6)
        states = states * weight + bias
        past = self.open("past", "float32", memory=512)
        with self.assertRaises(memd.ShapeError):
            past.append(CACHE, 0, states=hidden)
        past.put_params({"encode": encode, "norm_weight": weight, "norm_bias": bias})
        past.append(CACHE, 0, states=hidden[:40])
        past.append(CACHE, 30, states=hidden[30:])  # the ten in the middle are a repeat
        np.testing.assert_allclose(past.fetch(CACHE, range(60)).states, states, rtol=0, atol=2e-5)
        by_hidden = past.search(ATTENTION, self.q[:3], k=8, positions=[60] * 3, states=hidden[:3])
        by_state = past.search(ATTENTION, self.q[:3], k=8, positions=[60] * 3, states=states[:3].astype(np.float32))
        np.testing.assert_array_equal(by_hidden.ids, by_state.ids)
        self.assertEqual(by_hidden.ids[1, 0, 0], 1)  # a state finds itself

    def test_refused(self):
        for wrong in ({"memory": 131072, "search": "exact"}, {"memory": 1024, "search": "sketched", "sketch": 64}):
            with self.assertRaisesRegex(memd.InvalidError, "lru"):
                self.open("lru", "float32", eviction="lru", **wrong)
        past = self.live.client.open("bare", model("float32"), method="neurocache", create=True,
                                     parameters={"width": W, "memory": 512})
        self.append(past, 0, 9)
        with self.assertRaisesRegex(memd.UnsupportedError, "search and fetch"):
            past.attend(CACHE, self.q[:1], [9], states=self.states[:1].astype(np.float32))
        past.put_params({"key": self.key, "value": self.value})
        with self.assertRaisesRegex(memd.InvalidError, "state"):
            past.attend(CACHE, self.q[:1], [9])


if __name__ == "__main__":
    unittest.main()
