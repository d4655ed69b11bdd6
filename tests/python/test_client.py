# SPDX-License-Identifier: Apache-2.0
"""The client against a server that is told what to say: framing, tensors, errors, retries, pipelining."""
import os
import select
import socket
import sys
import tempfile
import threading
import unittest
from unittest import mock

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "..", "clients", "python")]

import numpy as np

import memd
from fake_server import IN_FLIGHT_MAX, FakeServer, Half, error, new, reply

MODEL = memd.Model(layers=2, query_heads=4, kv_heads=2, head_dim=8, dtype="float16",
                   rope=memd.Rope(theta=1e4, scaling="yarn", factor=4.0), fingerprint="m")


def opened(model_wire):
    message = new("open")
    message.context_id, message.created, message.method = 7, True, "full"
    message.model.CopyFrom(model_wire)
    return message


class Script:
    """Answers opens by itself and everything else by the function of the test."""

    def __init__(self, rest):
        self._rest = rest

    def __call__(self, server, method, request_id, message, payload):
        if method == "open":
            return reply(method, request_id, opened(message.model))
        return self._rest(server, method, request_id, message, payload)


def attend_reply(message, shape=(3, 4, 8)):
    """o[i] = i everywhere, lse = context id: for checking which answer is whose."""
    answers, payload = new("attend"), bytearray()
    for item in message.items:
        answer = answers.answers.add()
        n = item.q.shape[0]
        o = np.broadcast_to(np.arange(n, dtype="<f4")[:, None, None], (n, *shape[1:]))
        for wire, array in ((answer.o, o), (answer.lse, np.full(o.shape[:2], item.layer, "<f4"))):
            payload += bytes(-len(payload) % 64)
            wire.dtype, wire.offset = 1, len(payload)
            wire.shape.extend(array.shape)
            payload += array.tobytes()
        answer.quality.method, answer.quality.exact = "full", True
    return answers, bytes(payload)


class Framing(unittest.TestCase):
    def test_open_sends_the_model_and_reads_it_back(self):
        with FakeServer(Script(None)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, parameters={"top": 5}, create=True)
            self.assertEqual(context.model, MODEL)
            self.assertEqual((context.id, context.created, client.role), (7, True, "admin"))
            message = server.seen[0][2]
            self.assertEqual((message.name, message.create, message.parameters[0].value),
                             ("book", True, "5"))

    def test_append_places_tensors_at_multiples_of_64(self):
        def answer(server, method, request_id, message, payload):
            done = new("append")
            done.tokens, done.committed_tokens, done.synced_tokens = 3, 2, 1
            return reply(method, request_id, done)
        k = np.arange(3 * 2 * 8, dtype=np.float64).reshape(3, 2, 8)
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)
            result = context.append(1, 5, k, -k, q=np.ones((3, 4, 8)), token_ids=[1, 2, 3])
            self.assertEqual((result.tokens, result.committed, result.synced), (3, 2, 1))
            _, _, message, payload = server.seen[-1]
        item = message.layers[0]
        self.assertEqual((item.layer, item.position, list(item.token_ids)), (1, 5, [1, 2, 3]))
        for tensor, array, dtype in ((item.k, k, "<f2"), (item.v, -k, "<f2"),
                                     (item.q, np.ones((3, 4, 8)), "<f4")):
            self.assertEqual(tensor.offset % 64, 0, tensor.offset)
            self.assertEqual(tuple(tensor.shape), array.shape)
            got = np.frombuffer(payload, dtype, array.size, tensor.offset).reshape(array.shape)
            np.testing.assert_array_equal(got, array)

    def test_strided_input_is_sent_in_order(self):
        def answer(server, method, request_id, message, payload):
            return reply(method, request_id, new("append"))
        k = np.random.default_rng(1).standard_normal((2, 6, 8)).astype(np.float16)
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            view = k.swapaxes(0, 1)[::2]  # (3, 2, 8), neither contiguous nor whole
            client.open("book", MODEL, create=True).append(0, 0, view, view)
            message, payload = server.seen[-1][2:]
        got = np.frombuffer(payload, "<f2", view.size, message.layers[0].v.offset)
        np.testing.assert_array_equal(got.reshape(view.shape), view)

    def test_large_append_goes_in_several_frames(self):
        def answer(server, method, request_id, message, payload):
            done = new("append")
            item = message.layers[0]
            done.tokens = item.position + item.k.shape[0]
            return reply(method, request_id, done)
        k = np.arange(100 * 16, dtype=np.float16).reshape(100, 2, 8)
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)
            with mock.patch("memd.client._APPEND_BYTES_MAX", 30 * 8 * 16 + 5):
                self.assertEqual(context.append(0, 7, k, -k, token_ids=range(100)).tokens, 107)
            sent = [(seen[2].layers[0], seen[3]) for seen in server.seen if seen[0] == "append"]
        self.assertEqual([item.position for item, _ in sent], [7, 37, 67, 97])
        self.assertEqual([i for item, _ in sent for i in item.token_ids], list(range(100)))
        got = [np.frombuffer(payload, "<f2", item.k.shape[0] * 16, item.k.offset)
               for item, payload in sent]
        np.testing.assert_array_equal(np.concatenate(got), k.reshape(-1))

    def test_answer_carries_arrays_and_defaults_of_quality(self):
        def answer(server, method, request_id, message, payload):
            return reply(method, request_id, *attend_reply(message))
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)
            got = context.attend(1, np.zeros((3, 4, 8), np.float32), [5, 6, 7], limits=[1, 2, 3])
            item = server.seen[-1][2].items[0]
        self.assertEqual((list(item.positions), list(item.limits)), ([5, 6, 7], [1, 2, 3]))
        self.assertEqual((got.o.shape, got.lse.shape, got.o.dtype), ((3, 4, 8), (3, 4), np.float32))
        self.assertEqual(got.o[2, 1, 3], 2.0)
        self.assertTrue(got.quality.exact)
        np.testing.assert_array_equal(got.quality.mass, np.ones((3, 4)))
        np.testing.assert_array_equal(got.quality.limited, np.zeros((3, 4), bool))

    def levels_of(self, change=None):
        """An attend whose quality has levels; `change` may spoil the message before it is sent."""
        def answer(server, method, request_id, message, payload):
            answers, payload = attend_reply(message)
            quality = answers.answers[0].quality
            quality.method, quality.exact, quality.rows, quality.bytes_read = "progressive", False, 30, 300
            quality.predicted_error.extend([0.01] * 3 + [float("nan")])
            quality.mass.extend([0.25, 0.5, 0.75, 1.0])
            quality.level_mass.extend([0.125, 0.5, 0.0, 0.25] * 3 + [0, 0, 0, 1])
            quality.level_rows.extend([5, 15, 0, 10])
            quality.level_bytes.extend([50, 150, 0, 100])
            quality.window_tokens = 9
            quality.limited.extend([False, True, False, False])
            if change is not None:
                change(quality)
            return reply(method, request_id, answers, payload)
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            return client.open("book", MODEL, create=True).attend(
                1, np.zeros((1, 4, 8), np.float32), [5]).quality

    def test_levels_of_an_answer(self):
        self.assertEqual(memd.LEVELS, ("clusters", "hi", "lo", "exact"))
        quality = self.levels_of()
        self.assertEqual((quality.predicted_error.shape, quality.level_mass.shape), ((1, 4), (1, 4, 4)))
        self.assertTrue(np.isnan(quality.predicted_error[0, 3]))
        np.testing.assert_array_equal(quality.level_mass[0, 0], [0.125, 0.5, 0, 0.25])
        np.testing.assert_array_equal(quality.level_rows, [5, 15, 0, 10])
        np.testing.assert_array_equal(quality.level_bytes, [50, 150, 0, 100])
        np.testing.assert_array_equal(quality.limited, [[False, True, False, False]])
        self.assertEqual(quality.window_tokens, 9)

    def test_an_answer_without_levels_is_exact(self):
        def plain(quality):
            for name in ("predicted_error", "mass", "level_mass", "level_rows", "level_bytes", "limited"):
                quality.ClearField(name)
        quality = self.levels_of(plain)
        np.testing.assert_array_equal(quality.level_mass, np.tile([0, 0, 0, 1], (1, 4, 1)))
        np.testing.assert_array_equal(quality.level_rows, [0, 0, 0, 30])
        np.testing.assert_array_equal(quality.level_bytes, [0, 0, 0, 300])
        np.testing.assert_array_equal(quality.predicted_error, np.zeros((1, 4)))

    def test_levels_that_do_not_fit_are_refused(self):
        for name in ("predicted_error", "mass", "level_mass", "level_rows", "level_bytes", "limited"):
            with self.assertRaisesRegex(memd.ProtocolError, "wrong length", msg=name):
                self.levels_of(lambda quality, name=name: getattr(quality, name).pop())

    def test_a_wish_is_sent_only_when_there_is_one(self):
        def answer(server, method, request_id, message, payload):
            if method == "recall":
                return reply(method, request_id, new("recall"))
            return reply(method, request_id, *attend_reply(message))
        q = np.zeros((1, 4, 8), np.float32)
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)
            context.attend(1, q, [5])
            context.attend(1, q, [5], target_error=0, max_bytes=0)
            context.attend(1, q, [5], target_error=0.05, max_bytes=1 << 20)
            context.recall([1], target_error=0)
            sent = [seen[2] for seen in server.seen[1:]]
        items = [message.items[0] for message in sent[:3]] + [sent[3]]
        self.assertEqual([(item.HasField("target_error"), item.target_error) for item in items],
                         [(False, 0), (True, 0), (True, 0.05), (True, 0)])
        self.assertEqual([(item.HasField("max_bytes"), item.max_bytes) for item in items],
                         [(False, 0), (True, 0), (True, 1 << 20), (False, 0)])

    def test_recall_rebuild_methods(self):
        looks = []

        def answer(server, method, request_id, message, payload):
            out = new(method)
            if method == "methods":
                options = out.methods.add(name="a", help="first", is_default=True).options
                options.add(name="k", fallback=5, least=1, most=9, whole=True)
                options.add(name="place", fallback=1, most=1, whole=True, choices=["near", "far"])
            elif method == "recall" and message.layer == 1:
                out.queries, out.answers, out.method = 3, 12, "a"
                out.error.p99 = 0.04
                out.level_mass.extend([0, 0.5, 0, 0.5])
            elif method == "rebuild":
                looks.append(message.ask)
                out.context_id, out.segments, out.deleted_segments = 7, 4, 0 if message.ask else 4
                out.built_segments = min(4, 2 * sum(looks))
                out.cursor = b"more" if not message.ask and len(looks) == 1 else b""
            return reply(method, request_id, out)
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            methods = client.methods
            self.assertEqual(list(methods), ["a"])
            self.assertEqual(methods["a"].options["k"], memd.Option("k", "", 5, 1, 9, True))
            place = methods["a"].options["place"]
            self.assertEqual((place.fallback, place.choices), ("far", ("near", "far")))
            context = client.open("book", MODEL, create=True)
            first, second = context.recall()
            self.assertEqual((first.layer, first.queries, list(first.level_mass)), (0, 0, [0] * 4))
            self.assertEqual((second.answers, second.error.p99, second.level_mass[1]), (12, 0.04, 0.5))
            seen = []
            with mock.patch("memd.client._BUILD_PAUSE_S", 0):
                built = context.rebuild(progress=lambda name, built: seen.append((name, built.built_segments)))
            self.assertEqual((built.done, built.failure, seen), (True, "", [("book", 2), ("book", 4)]))
            self.assertEqual(looks, [False, False, True, True])
            self.assertEqual(server.seen[-3][2].cursor, b"more")

    def test_waiting_ends_when_building_fails(self):
        def answer(server, method, request_id, message, payload):
            out = new(method)
            out.context_id, out.segments, out.failures, out.failure = 7, 4, 1, "no space left"
            return reply(method, request_id, out)
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            built = client.open("book", MODEL, create=True).built(wait=True)
        self.assertEqual((built.done, built.failure), (False, "no space left"))

    def test_tensor_outside_the_payload_is_refused(self):
        def answer(server, method, request_id, message, payload):
            answers, payload = attend_reply(message)
            return reply(method, request_id, answers, payload[:-4])
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)
            with self.assertRaisesRegex(memd.ProtocolError, "does not lie in the payload"):
                context.attend(1, np.zeros((3, 4, 8), np.float32), [5, 6, 7])

    def test_bad_header_is_a_protocol_error(self):
        for spoil, kind in ((lambda b: b"X" + b[1:], memd.ProtocolError),
                            (lambda b: b[:4] + b"\x02" + b[5:], memd.VersionError),
                            (lambda b: b[:28] + b"\x01" + b[29:], memd.ProtocolError),
                            (lambda b: b[:32] + b"\xff" * 8 + b[40:], memd.ProtocolError),
                            (lambda b: b[:8] + b"\xee" + b[9:], memd.ProtocolError)):
            def answer(server, method, request_id, message, payload):
                return spoil(reply(method, request_id, new(method)))
            with FakeServer(answer) as server, memd.connect(server.address) as client:
                with self.assertRaises(kind):
                    client.health()

    def test_too_large_request_is_refused_before_sending(self):
        with FakeServer(Script(None)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)
            with self.assertRaises(memd.LimitError):
                context.fetch(0, np.full(3 << 20, 2**40, np.uint64))
            self.assertEqual(len(server.seen), 1)


class Errors(unittest.TestCase):
    def test_status_becomes_the_exception_of_its_code(self):
        codes = [kind.code for kind in memd.Error.__subclasses__()] + [-9999]

        def answer(server, method, request_id, message, payload):
            return error(method, request_id, codes[len(server.seen) - 1], "the text")
        with FakeServer(answer) as server, memd.connect(server.address) as client:
            for code in codes:
                with self.assertRaisesRegex(memd.Error, "the text") as caught:
                    client.health()
                self.assertEqual(caught.exception.code, code)
            self.assertEqual(server.connections, 1)

    def test_failed_item_does_not_touch_the_others(self):
        def answer(server, method, request_id, message, payload):
            answers, payload = attend_reply(message)
            answers.answers[1].status, answers.answers[1].error = -5, "no context 9"
            return reply(method, request_id, answers, payload)
        q = np.zeros((3, 4, 8), np.float32)
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)
            queries = [memd.Query(context, layer, q, [0, 0, 0]) for layer in range(3)]
            got = client.attend_many(queries, return_errors=True)
            self.assertIsInstance(got[1], memd.NoContextError)
            self.assertEqual([got[0].lse[0, 0], got[2].lse[0, 0]], [0, 2])
            with self.assertRaisesRegex(memd.NoContextError, "no context 9"):
                client.attend_many(queries)

    def test_nobody_listens(self):
        with self.assertRaisesRegex(memd.ClosedError, "cannot connect"):
            memd.connect("unix:/nonexistent/memd.sock")
        with self.assertRaisesRegex(ValueError, "neither"):
            memd.connect("/run/memd.sock")
        with self.assertRaisesRegex(ValueError, "neither"):
            memd.connect("tcp:127.0.0.1:65536")


class Retries(unittest.TestCase):
    def test_append_is_repeated_on_a_new_connection(self):
        def answer(server, method, request_id, message, payload):
            if len(server.seen) == 2:  # open, then this
                return None
            done = new("append")
            done.tokens = 3
            return reply(method, request_id, done)
        k = np.ones((3, 2, 8), np.float16)
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            self.assertEqual(client.open("book", MODEL, create=True).append(0, 0, k, k).tokens, 3)
            first, second = server.seen[1], server.seen[2]
            self.assertEqual((first[2], first[3]), (second[2], second[3]))
            self.assertEqual(client.reconnects, 1)

    def test_reply_cut_in_the_middle_is_repeated(self):
        def half(server, method, request_id, message, payload):
            whole = reply(method, request_id, *attend_reply(message))
            return Half(whole) if server.connections == 1 else whole
        with FakeServer(Script(half)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)
            got = context.attend(1, np.zeros((3, 4, 8), np.float32), [5, 6, 7])
            self.assertEqual((got.o[2, 0, 0], server.connections), (2.0, 2))

    def test_what_must_not_be_repeated_is_not(self):
        with FakeServer(Script(lambda *_: None)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)
            for call in (context.drop, lambda: context.fork("x"), lambda: context.truncate(1)):
                before = len(server.seen)
                with self.assertRaisesRegex(memd.ClosedError, "may or may not"):
                    call()
                self.assertEqual(len(server.seen), before + 1)

    def test_who_does_not_connect_keeps_no_socket(self):
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.join(folder, "s"))
            listener.listen()
            try:
                memd.connect(f"unix:{folder}/s", timeout=0.05)
                self.fail("nobody said hello")
            except memd.DeadlineError:  # which has the frames of connect while it is there
                sock, _ = listener.accept()
                with sock:
                    sock.settimeout(30)
                    while sock.recv(4096):
                        pass

    def test_deadline(self):
        release = threading.Event()

        def answer(server, method, request_id, message, payload):
            release.wait(10)
            return None
        with FakeServer(answer) as server:
            with memd.connect(server.address) as client:
                client._connection.timeout = 0.2  # not before: on a busy machine a hello may take as long
                with self.assertRaisesRegex(memd.DeadlineError, "0.2 s"):
                    client.health()
            release.set()


class Pipelining(unittest.TestCase):
    def test_many_batches_come_back_in_order(self):
        """Three frames of up to 1,024 items: requests and replies are larger than socket buffers, so a client
        that sent them all before it read would hang."""
        def answer(server, method, request_id, message, payload):
            return reply(method, request_id, *attend_reply(message, (0, 4, 8)))
        q = np.zeros((64, 4, 8), np.float32)
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)
            got = client.attend_many(memd.Query(context, i, q, range(64)) for i in range(2100))
            self.assertEqual([int(item.lse[0, 0]) for item in got], list(range(2100)))
            # Not more items than a request may have, nor more query heads than fit in a message.
            self.assertEqual(sum(seen[0] == "attend" for seen in server.seen), 7)
            sizes = [sum(item.q.shape[0] * 4 for item in seen[2].items)
                     for seen in server.seen if seen[0] == "attend"]
            self.assertLessEqual(25 * max(sizes), 4 << 20)

    def test_replies_out_of_order_and_no_more_in_flight_than_allowed(self):
        held, too_many = [], []

        def answer(server, method, request_id, message, payload):
            held.append(reply(method, request_id, *attend_reply(message)))
            if len(held) < IN_FLIGHT_MAX:
                return b""
            too_many.extend(select.select([server.socket], [], [], 0.05)[0])
            out = b"".join(reversed(held))
            held.clear()
            return out
        q = np.zeros((1, 4, 8), np.float32)
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)
            with mock.patch("memd.client._ATTEND_ITEMS_MAX", 1):
                got = client.attend_many(memd.Query(context, i, q, [0]) for i in range(12))
        self.assertEqual([int(item.lse[0, 0]) for item in got], list(range(12)))
        self.assertEqual(too_many, [])

    def test_threads_share_a_connection(self):
        def answer(server, method, request_id, message, payload):
            return reply(method, request_id, *attend_reply(message))
        wrong = []
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            context = client.open("book", MODEL, create=True)

            def work(layer):
                for _ in range(50):
                    got = context.attend(layer, np.zeros((2, 4, 8), np.float32), [0, 1])
                    wrong.extend([layer] if got.lse[1, 3] != layer else [])
            threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual((wrong, server.connections), ([], 1))


if __name__ == "__main__":
    unittest.main()
