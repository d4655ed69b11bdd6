# SPDX-License-Identifier: Apache-2.0
"""What comes with tokens and queries besides, and the reading plan: first against a server that is told what to
say, then against the real daemon."""
import os
import sys
import unittest
import unittest.mock

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "..", "clients", "python")]

import numpy as np

import memd
from fake_server import FakeServer, new, reply
from live import Live, needs_daemon
from test_client import MODEL, Script, attend_reply, opened

RUNS = [(0, 0, 2, 0, 0, 10, 3, 4, 50), (0, 1, 3, 0, 0, 2, 2, 2**64 - 1, 2**64 - 1), (0, 3, 1, 1, 0, 11, 1, 8, 50),
        (0, 0, 4, 1, 1, 7, 2, 0, 50), (1, 0, 4, 0, 0, 90, 1, 90, 51)]
COLUMNS = ("query", "head", "heads", "group", "kind", "first", "count", "placed", "query_placed")
GROUPS = [(0, 0, 0, 1.0), (0, 3, 1, 0.25)]


def write_plan(wire):
    for name, column in zip(COLUMNS, zip(*RUNS)):
        getattr(wire.runs, name).extend(column)
    for name, column in zip(("query", "head", "merge", "weight"), zip(*GROUPS)):
        getattr(wire.groups, name).extend(column)
    wire.cut = True


def sent(payload, tensor, dtype):
    shape = tuple(tensor.shape)
    return np.frombuffer(payload, dtype, int(np.prod(shape)), tensor.offset).reshape(shape)


class Wire(unittest.TestCase):
    def test_marks_and_scores_travel_with_their_rows(self):
        def answer(server, method, request_id, message, payload):
            return reply(method, request_id, new("append"))
        k = np.arange(3 * 2 * 8, dtype=np.float16).reshape(3, 2, 8)
        scores = np.arange(12, dtype=np.float64).reshape(3, 4)
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)
            context.append(1, 5, k, -k, marks=[0, memd.MARK_LANDMARK, memd.MARK_SPECIAL], scores=scores)
            context.append_layers(8, [memd.Tokens(0, k, k, marks=np.ones(3, bool)), (1, k, k, None, [1, 0, 3])])
            with self.assertRaises(ValueError):
                context.append(1, 5, k, -k, marks=[0, 1, 256])
            with mock_bytes(4 * (2 * 16 + 4 + 1)):  # of one token
                context.append(1, 11, k, k, marks=[3, 2, 1], scores=scores)
            first, many, *parts = [(seen[2].layers, seen[3]) for seen in server.seen[1:]]
        item, payload = first[0][0], first[1]
        self.assertEqual(item.marks, b"\0\1\2")
        np.testing.assert_array_equal(sent(payload, item.scores, "<f4"), scores)
        self.assertEqual([layer.marks for layer in many[0]], [b"\1\1\1", b"\1\0\3"])
        self.assertEqual([layers[0].marks for layers, _ in parts], [b"\3", b"\2", b"\1"])
        got = [sent(payload, layers[0].scores, "<f4") for layers, payload in parts]
        np.testing.assert_array_equal(np.concatenate(got), scores)

    def test_states_instead_of_rows(self):
        def answer(server, method, request_id, message, payload):
            done = new(method)
            if method == "attend":
                return reply(method, request_id, *attend_reply(message))
            if method == "fetch":
                done.states.dtype, payload = 2, np.arange(32, dtype="<f2").tobytes()
                done.states.shape.extend((2, 16))
                return reply(method, request_id, done, payload)
            return reply(method, request_id, done)

        def with_states(server, method, request_id, message, payload):
            if method != "open":
                return answer(server, method, request_id, message, payload)
            done = opened(message.model)
            done.state_width = 16
            return reply(method, request_id, done)
        states = np.arange(48.0).reshape(3, 16)
        with FakeServer(with_states) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)
            context.append(0, 0, states=states)
            context.attend(0, np.zeros((3, 4, 8), np.float32), [3] * 3, states=states.astype(np.float16))
            rows = context.fetch(0, [4, 5])
            append, attend = server.seen[1], server.seen[2]
        self.assertEqual(context.state_width, 16)
        layer, item = append[2].layers[0], attend[2].items[0]
        self.assertFalse(layer.HasField("k") or layer.HasField("v"))
        np.testing.assert_array_equal(sent(append[3], layer.states, "<f2"), states)
        np.testing.assert_array_equal(sent(attend[3], item.states, "<f2"), states)
        self.assertEqual((rows.k, rows.v), (None, None))
        np.testing.assert_array_equal(rows.states, np.arange(32).reshape(2, 16))

    def test_mass_and_prompts(self):
        def answer(server, method, request_id, message, payload):
            done = new(method)
            if method == "compress":
                done.kept.extend(100 + item.layer for item in message.layers)
            else:
                done.tokens = 12
            return reply(method, request_id, done)
        mass, q = np.arange(8.0).reshape(2, 4), np.ones((5, 4, 8), np.float16)
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)
            self.assertEqual(context.observe(1, 7, mass), 12)
            self.assertEqual(context.compress(), {0: 100, 1: 101})
            self.assertEqual(context.compress(tokens=30, q={1: q}), {1: 101})
            self.assertEqual(context.compress([1, 0], q={0: q}), {1: 101, 0: 100})
            (_, _, observed, payload), *prompts = server.seen[1:]
        self.assertEqual((observed.layer, observed.position), (1, 7))
        np.testing.assert_array_equal(sent(payload, observed.mass, "<f4"), mass)
        self.assertEqual([[(item.layer, item.tokens, item.HasField("q")) for item in seen[2].layers]
                          for seen in prompts], [[(0, 0, False), (1, 0, False)], [(1, 30, True)],
                                                 [(1, 0, False), (0, 0, True)]])
        np.testing.assert_array_equal(sent(prompts[1][3], prompts[1][2].layers[0].q, "<f2"), q)

    def test_a_plan_comes_as_arrays(self):
        def answer(server, method, request_id, message, payload):
            answers, payload = attend_reply(message)
            for item, to in zip(message.items, answers.answers):
                if item.explain:
                    write_plan(to.plan)
            return reply(method, request_id, answers, payload)
        q = np.zeros((2, 4, 8), np.float32)
        local = (np.ones((2, 4, 8)), np.full((2, 4), -np.inf))
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)
            plain = memd.Query(context, 0, q, [5, 6])
            asked = memd.Query(context, 1, q, [5, 6], explain=True, local=local, window="none")
            with self.assertRaisesRegex(ValueError, "window is 'cuda', must be one of any, resident, none"):
                context.attend(0, q, [5, 6], window="cuda")
            answers = client.attend_many([plain, asked, asked, plain, plain])
            items = [list(seen[2].items) for seen in server.seen[1:]]
            payload = server.seen[2][3]
        self.assertEqual([len(part) for part in items], [1, 1, 1, 2])
        self.assertEqual([part[0].window for part in items], [0, 2, 2, 0])
        np.testing.assert_array_equal(sent(payload, items[1][0].local_o, "<f4"), local[0])
        np.testing.assert_array_equal(sent(payload, items[1][0].local_lse, "<f4"), local[1])
        self.assertEqual([a.plan is None for a in answers], [True, False, False, True, True])
        plan = answers[1].plan
        self.assertTrue(plan.cut)
        self.assertEqual([run[:-1] for run in plan.runs.tolist()], RUNS)
        self.assertTrue(np.isnan(plan.runs["share"]).all())  # a daemon that does not tell
        self.assertEqual(plan.groups.tolist(), GROUPS)
        for head, ids, places in ((0, [10, 11, 12], [4, 5, 6]), (1, [2, 3, 10, 11, 12], [-1, -1, 4, 5, 6]),
                                  (3, [2, 3, 11], [-1, -1, 8])):
            got = plan.tokens(0, head)
            np.testing.assert_array_equal(got[0], ids)
            np.testing.assert_array_equal(got[1], places)
        np.testing.assert_array_equal(plan.slots(0, 2), [7, 8])
        np.testing.assert_array_equal(plan.tokens(1, 2)[0], [90])
        self.assertEqual([len(part) for part in plan.tokens(2, 0)], [0, 0])

    def test_plans_that_do_not_fit_are_refused(self):
        def spoiled(spoil):
            def answer(server, method, request_id, message, payload):
                answers, payload = attend_reply(message)
                write_plan(answers.answers[0].plan)
                spoil(answers.answers[0].plan)
                return reply(method, request_id, answers, payload)
            with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
                client.open("book", MODEL, create=True).attend(0, np.zeros((1, 4, 8), np.float32), [5])
        for name in COLUMNS[1:]:
            with self.assertRaisesRegex(memd.ProtocolError, "columns", msg=name):
                spoiled(lambda plan, name=name: getattr(plan.runs, name).pop())
        with self.assertRaisesRegex(memd.ProtocolError, "columns"):
            spoiled(lambda plan: plan.groups.weight.pop())
        with self.assertRaisesRegex(memd.ProtocolError, "of group 9"):
            spoiled(lambda plan: plan.runs.group.__setitem__(0, 9))


def mock_bytes(count):
    return unittest.mock.patch("memd.client._APPEND_BYTES_MAX", count)


@needs_daemon
class Daemon(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.live = Live()
        cls.model = memd.Model(layers=1, query_heads=4, kv_heads=2, head_dim=16, dtype="float32")
        cls.rng = np.random.default_rng(5)

    @classmethod
    def tearDownClass(cls):
        cls.live.close()

    def opened(self, name, method, tokens=600, **parameters):
        context = self.live.client.open(name, self.model, method=method, parameters=parameters, create=True)
        shape = (tokens, 2, 16)
        context.append(0, 0, *(self.rng.standard_normal(shape, dtype=np.float32) for _ in range(2)))
        return context

    def test_a_plan_names_what_search_finds(self):
        context = self.opened("topk", "oracle-topk", k=7, sinks=2, window=9)
        q = self.rng.standard_normal((2, 4, 16), dtype=np.float32)
        answer = context.attend(0, q, [600, 600], limits=[600, 300], explain=True)
        for query, limit in enumerate((600, 300)):
            ids = context.search(0, q[query:query + 1], 600, limits=[limit], positions=[600]).ids[0]
            for head in range(4):
                middle = [t for t in ids[head].tolist() if 2 <= t < limit - 9][:7]
                got, places = answer.plan.tokens(query, head)
                self.assertEqual(got.tolist(), sorted([0, 1, *range(limit - 9, limit), *middle]))
                np.testing.assert_array_equal(places, got)
        runs = answer.plan.runs
        self.assertEqual(set(runs["query_placed"]), {600})
        again = context.explain(0, query=1)  # the older of the two; a batch is remembered in order
        self.assertEqual((again.queries, again.position, again.tokens), (2, 600, 600))
        np.testing.assert_allclose(again.lse[0], answer.lse[0], atol=2e-2)  # kept as float16
        for head in range(4):
            mine = runs[(runs["query"] == 0) & (runs["head"] <= head) & (head < runs["head"] + runs["heads"])]
            of_head = mine[mine["heads"] == 1]["share"].sum()
            self.assertTrue(0 < of_head < 1)
            self.assertEqual(again.plan.tokens(0, head)[0].tolist(), answer.plan.tokens(0, head)[0].tolist())
        self.assertAlmostEqual(float((runs["share"] * runs["heads"])[runs["query"] == 0].sum()), 4, places=3)
        with self.assertRaises(memd.NoRowError):
            context.explain(0, query=9)
        self.assertEqual(answer.plan.groups.tolist(), [(0, 0, 0, 1.0)])
        self.assertIsNone(context.attend(0, q, [600, 600]).plan)
        self.assertFalse(self.live.client.methods["oracle-topk"].wants_marks)
        self.assertTrue(self.live.client.methods["retrieval-attention"].samples_queries)

    def test_everything_is_told_where_everything_is_read(self):
        for method in ("full", "progressive"):
            context = self.opened(method, method, tokens=1500)
            context.built(wait=True)
            q = self.rng.standard_normal((1, 4, 16), dtype=np.float32)
            plan = context.attend(0, q, [1500], limits=[1400], explain=True).plan
            for head in range(4):
                np.testing.assert_array_equal(plan.tokens(0, head)[0], np.arange(1400))

    def test_the_callers_window_joins_the_answer(self):
        context = self.opened("local", "full")
        q = self.rng.standard_normal((3, 4, 16), dtype=np.float32)
        limits = [100, 200, 600]
        past = context.attend(0, q, [600] * 3, limits=limits)
        window = memd.Partial(self.rng.standard_normal((3, 4, 16), dtype=np.float32),
                              self.rng.standard_normal((3, 4), dtype=np.float32) + 5)
        both = context.attend(0, q, [600] * 3, limits=limits, local=window)
        want = memd.merge([window, past])
        np.testing.assert_allclose(both.o, want[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(both.lse, want[1], rtol=1e-6)
        self.assertEqual(both.quality.rows, past.quality.rows)
        nobody = (np.zeros((3, 4, 16)), np.full((3, 4), -np.inf))
        np.testing.assert_array_equal(context.attend(0, q, [600] * 3, limits, local=nobody).o, past.o)
        with self.assertRaises(memd.NonFiniteError):
            context.attend(0, q, [600] * 3, local=(window.o, np.full((3, 4), np.nan)))
        with self.assertRaises(memd.ShapeError):
            context.attend(0, q, [600] * 3, local=(window.o[:, :2], window.lse))

    def test_marks_are_kept_and_states_are_told(self):
        context = self.opened("marked", "extended-mind", tokens=1)
        k = self.rng.standard_normal((400, 2, 16), dtype=np.float32)
        self.assertEqual(context.append(0, 1, k, k, marks=[memd.MARK_SPECIAL] * 400).tokens, 401)
        state = context.state(0)
        self.assertTrue(0 < state["tokens"] <= 401 and state["bytes"] > 0, state)
        self.assertEqual(context.states(), {0: state})
        self.assertEqual(self.opened("plain", "full").states(), {})
        self.assertEqual(context.state(5), {})

    def test_mass_is_taken_by_a_method_that_uses_it(self):
        context = self.opened("mass", "infllm", tokens=30)
        k = self.rng.standard_normal((10, 2, 16), dtype=np.float32)
        context.append(0, 30, k, k, scores=np.ones((10, 4)))
        self.assertEqual(context.observe(0, 35, np.full((5, 4), 0.5)), 40)
        with self.assertRaises(memd.PositionError):
            context.observe(0, 36, np.ones((5, 4)))
        with self.assertRaises(memd.NonFiniteError):
            context.append(0, 40, k, k, scores=np.full((10, 4), np.inf))
        with self.assertRaises(memd.UnsupportedError):
            context.compress()
        self.assertEqual(context.stat().tokens, 40)

    def test_tensors_of_a_context_and_of_a_set(self):
        client = self.live.client
        self.assertEqual(client.methods["landmark"].tensors["gate"].shape, "GD")
        own = client.open("own", self.model, method="landmark", create=True)
        gate = self.rng.standard_normal((2, 16))
        own.put_params({"gate": gate})
        own.put_params({"gate": gate.astype(np.float16)}, layer=0)
        with self.assertRaises(memd.ShapeError):
            own.put_params({"gate": gate.T})
        with self.assertRaises(memd.InvalidError):
            own.put_params({"gates": gate})
        with self.assertRaises(memd.NonFiniteError):
            own.put_params({"gate": np.full((2, 16), np.nan)})
        client.put_params("gates", {"gate": gate}, self.model, "landmark", {"k": 2})
        sharing = client.open("sharing", self.model, method="landmark", parameters={"k": 2, "params": "gates"},
                              create=True)
        with self.assertRaises(memd.UnsupportedError):
            sharing.put_params({"gate": gate})
        with self.assertRaises(memd.BusyError):
            client.drop_params("gates")
        sharing.drop()
        self.assertGreater(client.drop_params("gates"), gate.size * 4)
        with self.assertRaises(memd.InvalidError):
            client.drop_params("gates")

    def test_what_a_context_does_not_keep_is_refused(self):
        context = self.opened("rows", "full")
        self.assertEqual(context.state_width, 0)
        with self.assertRaises(memd.UnsupportedError):
            context.append(0, 600, states=np.zeros((1, 16)))
        with self.assertRaises(memd.UnsupportedError):
            context.attend(0, np.zeros((1, 4, 16)), [600], states=np.zeros((1, 16)))
        k = np.zeros((2, 2, 16))
        with self.assertRaises(memd.InvalidError):
            context.append(0, 600, k, k, marks=[1, 4])
        with self.assertRaises(memd.ShapeError):
            context.append(0, 600, k, k, marks=[1])
        with self.assertRaises(memd.UnsupportedError):
            context.append(0, 600, k, k, marks=[1, 2])
        self.assertEqual(context.append(0, 600, k, k).tokens, 602)


if __name__ == "__main__":
    unittest.main()
