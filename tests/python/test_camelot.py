# SPDX-License-Identifier: Apache-2.0
"""`camelot` replayed on a real model's keys (replay.py), against float64 NumPy written from the paper's description:
a slot is the list of its tokens, its mean is made anew from them, an age is counted up. Few slots and a short window,
so that 1,300 tokens are merged, and replace each other, hundreds of times.

A choice that is closer than fp32 can tell would prove nothing: the least distance of all of them is asserted."""
import unittest

import numpy as np

from live import Live, memd, needs_daemon
from replay import DIM, GROUP, HEADS, NONE, TOKENS, TOLERANCE, Replay, model, rotate

SLOTS, NOVELTY, WINDOW, STEP = 24, 0.95, 60, 16
PARAMETERS = {"slots": SLOTS, "novelty": NOVELTY, "sinks": 0, "window": WINDOW, "step": STEP}


def consolidated(stored):
    return max(0, stored - WINDOW) // STEP * STEP


def cosines(keys, key):
    lengths = np.linalg.norm(keys, axis=-1) * np.linalg.norm(key)
    return keys @ key / np.where(lengths > 0, lengths, 1)


class Memory:
    """Of one KV head; k, v (T, D). The first `sinks` tokens go to no slot."""

    def __init__(self, k, v, sinks):
        self.k, self.v, self.sinks = k, v, sinks
        self.members = [[] for _ in range(SLOTS)]
        self.means = np.zeros((SLOTS, DIM))  # of the keys; zeros where there are none
        self.age = np.zeros(SLOTS, int)
        self.written = self.merged = self.replaced = self.lost = 0
        self.margin = np.inf

    def nearest(self, token):
        """The slot, and its cosine. Slots are used from the first on."""
        used = sum(bool(tokens) for tokens in self.members)
        if used == 0:
            return None, -np.inf
        found = cosines(self.means[:used], self.k[token])
        if used > 1:
            self.margin = min(self.margin, np.diff(np.sort(found)[-2:])[0])
        return int(np.argmax(found)), found.max()

    def write_to(self, end):
        for token in range(max(self.written, self.sinks), end):
            slot, cosine = self.nearest(token)
            self.margin = min(self.margin, abs(cosine - NOVELTY))
            if cosine > NOVELTY:
                self.merged += 1
            else:
                empty = [other for other in range(SLOTS) if not self.members[other]]
                slot = empty[0] if empty else int(np.argmax(self.age))
                self.replaced += not empty
                self.lost += len(self.members[slot])
                self.members[slot] = []
            self.members[slot].append(token)
            self.means[slot] = self.mean(self.k, slot)
            self.age += 1
            self.age[slot] = 0
        self.written = max(self.written, end)

    def mean(self, rows, slot):
        return rows[self.members[slot]].mean(0)


def attend(q, keys, values):
    scores = keys @ q / np.sqrt(DIM)
    weights = np.exp(scores - scores.max())
    return weights @ values / weights.sum()


@needs_daemon
class Camelot(Replay):
    method, parameters = "camelot", PARAMETERS
    behind = (0, -1, 3)
    causal, rule = False, "prefix"

    def setUp(self):
        super().setUp()
        self.reads, self.memories, self.found = set(), {}, {}

    def memory(self, capture, head, end):
        """What was consolidated of the first `end` tokens."""
        key = float(capture.k[5, 0, 0]), head
        if key not in self.memories or self.memories[key].written > end:
            self.memories[key] = Memory(capture.k[:, head], capture.v[:, head], self.parameters["sinks"])
        self.memories[key].write_to(end)
        return self.memories[key]

    def slots(self, memory, begin, end):
        """Those that are nearest to the tokens begin … end-1, each once."""
        key = id(memory), begin
        if key not in self.found:
            self.found = {other: of for other, of in self.found.items() if other[0] != key[0]} | {key: {}}
        asking = range(begin, end if begin > memory.sinks else 0)
        for token in asking:
            if token not in self.found[key]:
                self.found[key][token] = memory.nearest(token)[0]
        return sorted({self.found[key][token] for token in asking})

    def places(self, slots, sinks, tokens, position, begin):
        """Where sinks, slots and tokens are, and the query for sinks and slots and for tokens."""
        before, since = len(sinks) + len(slots), position - begin
        if self.rule == "prefix":
            return sinks, len(sinks) + np.arange(len(slots)), tokens - begin + before, before + since, before + since
        return np.zeros(len(sinks), int), np.zeros(len(slots), int), tokens - begin, since, since

    def answer(self, memory, q, slots, sinks, tokens, position, begin):
        first, at, behind, place, window_place = self.places(slots, sinks, tokens, position, begin)
        means = np.array([memory.mean(memory.k, slot) for slot in slots]).reshape(-1, DIM)
        values = np.array([memory.mean(memory.v, slot) for slot in slots]).reshape(-1, DIM)
        rows = rotate(memory.k[tokens], behind)
        means, at = np.concatenate([memory.k[sinks], means]), np.concatenate([first, at])
        if self.rule == "none":  # scores are of the query as it is; the window has its own rotation
            scores = np.concatenate([means @ q, rows @ rotate(q, window_place)])
        else:
            scores = np.concatenate([rotate(means, at) @ rotate(q, place), rows @ rotate(q, window_place)])
        weights = np.exp((scores - scores.max()) / np.sqrt(DIM))
        return weights @ np.concatenate([memory.v[sinks], values, memory.v[tokens]]) / weights.sum()

    def expect_slots(self, answer, i, head, slots):
        np.testing.assert_array_equal(answer.plan.slots(i, head), slots)
        for run in answer.plan.runs:
            if run["query"] != i or not run["head"] <= head < run["head"] + run["heads"]:
                continue
            if memd.PLAN_KINDS[run["kind"]] != "slots":
                continue
            sinks = self.parameters["sinks"]
            first = {"prefix": sinks + slots.index(run["first"]), "zero": 0, "none": memd.UNPLACED}[self.rule]
            self.assertEqual(int(run["placed"]), first)

    def check(self, past, q, positions, limits):
        capture = self.capture.stored(past.model.dtype)
        stored = past.stat().tokens
        begin = consolidated(stored)
        answer = past.attend(0, q, positions, limits, explain=True)
        hits = past.search(0, q, k=TOKENS, limits=limits, positions=positions).ids
        known = [min(position + 1, stored) for position in positions]
        for i in range(len(q)):
            end = known[i] if self.causal else max(known)
            sinks, tokens = np.arange(min(self.parameters["sinks"], begin)), np.arange(begin, limits[i])
            read = np.concatenate([sinks, tokens])
            for head in range(HEADS):
                memory = self.memory(capture, head // GROUP, begin)
                slots = self.slots(memory, begin, end)
                self.reads.add((head, tuple(slots)))
                self.expect_slots(answer, i, head, slots)
                first, _, behind, *_ = self.places(slots, sinks, tokens, positions[i], begin)
                if self.rule == "none":
                    first = np.full(len(sinks), memd.UNPLACED, np.uint64)
                np.testing.assert_array_equal(answer.plan.tokens(i, head)[0], read)
                np.testing.assert_array_equal(answer.plan.tokens(i, head)[1],
                                              np.concatenate([first, behind.astype(np.uint64)]))
                np.testing.assert_array_equal(np.sort(hits[i, head][hits[i, head] != NONE]), read)
                if len(read) + len(slots) == 0:
                    continue
                o = self.answer(memory, q[i, head].astype(float), slots, sinks, tokens, positions[i], begin)
                np.testing.assert_allclose(answer.o[i, head], o, rtol=0, atol=TOLERANCE[past.model.dtype])
        return answer.o

    def expect_facts(self, past):
        """The whole of the state in numbers."""
        state, capture = past.state(0), self.capture.stored(past.model.dtype)
        begin = consolidated(past.stat().tokens)
        memories = [self.memory(capture, head, begin) for head in range(2)]
        self.assertEqual(state["tokens"], begin)
        self.assertEqual(state["slots"], 2 * SLOTS)
        for name, of in (("merged_total", "merged"), ("replaced_total", "replaced"), ("lost_total", "lost")):
            self.assertEqual(state[name], sum(getattr(memory, of) for memory in memories), name)
        ages = np.concatenate([memory.age[[bool(m) for m in memory.members]] for memory in memories])
        self.assertEqual(state["slots_used"], len(ages))
        self.assertEqual(state["age_below_128"], (ages < 128).sum())
        self.assertEqual(state["age_below_1024"], ((ages >= 128) & (ages < 1024)).sum())
        self.assertGreater(min(memory.merged for memory in memories), 3)
        self.assertGreater(min(memory.replaced for memory in memories), 3)
        self.assertGreater(min(memory.margin for memory in self.memories.values()), 1e-7)

    def test_fp32(self):
        self.expect_facts(self.replay("float32"))
        self.assertGreater(len(self.reads), 100, "what is read hardly changes")


class Prefix(Camelot, unittest.TestCase):
    def test_fp16(self):
        self.expect_facts(self.replay("float16"))

    def test_a_window(self):
        """Queries of a request share the slots of the last one."""
        past = self.open("past", "float32")
        self.append(past, 0, TOKENS)
        positions = np.arange(TOKENS - 50, TOKENS - 50 + 5)
        self.check(past, self.capture.q[:5], positions, positions)

    def test_limits(self):
        past = self.open("past", "float32")
        self.append(past, 0, 700)
        with self.assertRaisesRegex(memd.PositionError, "has consolidated 640"):
            past.attend(0, self.capture.q[:1], [700], [639])

    def test_other_rows_after_a_cut(self):
        """What was found out about tokens of the window does not outlive them, though the slots do."""
        past, k, v = self.open("past", "float32"), *(x.astype(np.float32) for x in (self.capture.k, self.capture.v))
        self.append(past, 0, 710)
        memory, begin = self.memory(self.capture.stored("float32"), 0, consolidated(710)), consolidated(710)
        slots = self.slots(memory, begin, 710)
        unread = next(slot for slot in range(SLOTS) if slot not in slots)
        position, q, member = [710], self.capture.q[-1:], memory.members[unread][-1]
        past.truncate(702)
        past.append(0, 702, k[[member] * 8], v[[member] * 8])
        self.assertIn(unread, past.attend(0, q, position, position, explain=True).plan.slots(0, 0))
        past.truncate(702)
        self.append(past, 702, 710)
        self.check(past, q, position, position)

    def test_nothing_consolidated(self):
        """As long as the window holds everything, attention is exact."""
        past = self.open("past", "float32", parameters=PARAMETERS | {"window": TOKENS})
        full = self.open("full", "float32", method="full", parameters={})
        for context in (past, full):
            self.append(context, 0, TOKENS)
        last = len(self.capture.positions) - 1
        q, position = self.capture.q[last:], [TOKENS]
        answer = past.attend(0, q, position, position)
        np.testing.assert_allclose(answer.o, full.attend(0, q, position, position).o, rtol=0, atol=1e-6)
        self.assertTrue(answer.quality.exact)

    def test_a_token_store(self):
        """R above 1 merges nothing: slots are tokens, and what is read of them is exact."""
        past = self.open("past", "float32", parameters=PARAMETERS | {"slots": 2 * TOKENS, "novelty": 2})
        self.append(past, 0, 400)
        begin = consolidated(400)
        answer = past.attend(0, self.capture.q[:1], [400], [400], explain=True)
        state, k, v = past.state(0), self.capture.k, self.capture.v
        self.assertEqual((state["slots_used"], state["merged_total"], state["lost_total"]), (2 * begin, 0, 0))
        for head in range(HEADS):
            g, window = head // GROUP, np.arange(begin, 400)
            slots = np.unique([np.argmax(cosines(k[:begin, g], k[token, g])) for token in window])
            np.testing.assert_array_equal(answer.plan.slots(0, head), slots)
            n, q = len(slots), self.capture.q[0, head].astype(float)
            keys = np.concatenate([rotate(k[slots, g], np.arange(n)), rotate(k[window, g], window - begin + n)])
            o = attend(rotate(q, n + 400 - begin), keys, v[np.concatenate([slots, window]), g])
            np.testing.assert_allclose(answer.o[0, head], o, rtol=0, atol=1e-5)


class Causal(Camelot, unittest.TestCase):
    parameters = PARAMETERS | {"sees": "causal"}
    causal = True

    def test_a_window(self):
        """Each query of a request has the slots of what it may know of."""
        past = self.open("past", "float32")
        self.append(past, 0, TOKENS)
        positions = np.arange(TOKENS - 50, TOKENS - 50 + 5)
        self.check(past, self.capture.q[:5], positions, positions)
        self.assertGreater(len(self.reads), HEADS)


class Sinks(Camelot, unittest.TestCase):
    parameters = PARAMETERS | {"sinks": 5}

    def test_nothing_but_sinks(self):
        """As long as no token is beyond the sinks, all that is consolidated is read."""
        past = self.open("past", "float32", parameters=self.parameters | {"sinks": 2 * STEP})
        self.append(past, 0, WINDOW + 2 * STEP)
        position = [WINDOW + 2 * STEP]
        answer = past.attend(0, self.capture.q[:1], position, position, explain=True)
        self.assertTrue(answer.quality.exact)
        self.assertEqual(past.state(0)["slots_used"], 0)
        np.testing.assert_array_equal(answer.plan.tokens(0, 0)[0], np.arange(position[0]))
        o = self.answer(Memory(self.capture.k[:, 0], self.capture.v[:, 0], 0), self.capture.q[0, 0].astype(float), [],
                        np.arange(2 * STEP), np.arange(2 * STEP, position[0]), position[0], 2 * STEP)
        np.testing.assert_allclose(answer.o[0, 0], o, rtol=0, atol=1e-5)


class SinksAtZero(Camelot, unittest.TestCase):
    parameters = PARAMETERS | {"sinks": 40, "positions": "zero"}
    rule = "zero"


class Zero(Camelot, unittest.TestCase):
    parameters = PARAMETERS | {"positions": "zero"}
    rule = "zero"


class Unrotated(Camelot, unittest.TestCase):
    parameters = PARAMETERS | {"positions": "none"}
    rule = "none"


@needs_daemon
class Example(unittest.TestCase):
    """Worked out by hand: M = 2, R = .9, tokens (k; v) with keys of two dimensions, the others zero.

        (1, 0; 1)        novel, slot 0
        (0, 1; 2)        novel, slot 1
        (.96, .28; 3)    cosine .96 with slot 0, which becomes (.98, .14; 2)
        (-1, 0; 4)       novel, takes the place of slot 1, the older
        (.98, .14; 5)    cosine 1 with slot 0, which becomes (.98, .14; 3)
    """

    ROWS = [((1, 0), 1), ((0, 1), 2), ((.96, .28), 3), ((-1, 0), 4), ((.98, .14), 5)]

    def setUp(self):
        self.live = Live()
        self.addCleanup(self.live.close)
        shape = memd.Model(layers=1, query_heads=1, kv_heads=1, head_dim=8, dtype="float32")
        self.past = self.live.client.open("past", shape, method="camelot", create=True, parameters={
            "slots": 2, "novelty": 0.9, "sinks": 0, "window": 1, "step": 1})
        for key, value in [*self.ROWS, ((0, 0), 0)]:
            k, v = np.zeros((2, 1, 1, 8), np.float32)
            k[0, 0, :2], v[0, 0, 0] = key, value
            self.past.append(0, self.past.stat().tokens, k, v)

    def read(self, key, position):
        """v of what the slot says that is nearest to a key at `position`; the tokens are not read."""
        k, v = np.zeros((2, 1, 1, 8), np.float32)
        k[0, 0, :2] = key
        self.past.truncate(5)
        self.past.append(0, 5, k, v)
        answer = self.past.attend(0, np.zeros((1, 1, 8), np.float32), [position], [5], explain=True)
        return answer.plan.slots(0, 0).tolist(), round(float(answer.o[0, 0, 0]), 6)

    def test_example(self):
        state = self.past.state(0)
        self.assertEqual([state[name] for name in ("tokens", "slots_used", "merged_total", "replaced_total",
                                                   "lost_total")], [5, 2, 2, 1, 1])
        self.assertEqual(self.read((.5, .01), 5), ([0], 3.0))
        self.assertEqual(self.read((-1, .2), 5), ([1], 4.0))


del Camelot, Replay


if __name__ == "__main__":
    unittest.main()
