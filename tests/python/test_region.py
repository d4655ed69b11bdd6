# SPDX-License-Identifier: Apache-2.0
"""Arrays in shared memory give the same bits as arrays that travel, over restarts of the daemon and from wherever
they lie."""
import os
import signal
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "..", "clients", "python")]

import numpy as np

import memd
from fake_server import FakeServer, reply
from live import Live, needs_daemon
from test_client import MODEL, Script, attend_reply

H, G, D, TOKENS, N = 4, 2, 8, 700, 9
SHAPE = memd.Model(layers=1, query_heads=H, kv_heads=G, head_dim=D, dtype="float16", rotated=True)


class Wire(unittest.TestCase):
    def test_a_daemon_without_it(self):
        def answer(server, method, request_id, message, payload):
            return reply(method, request_id, *attend_reply(message))
        with FakeServer(Script(answer)) as server, memd.connect(server.address) as client:
            with self.assertRaises(memd.UnsupportedError):
                client.share(4096)
            context = client.open("book", MODEL, create=True)
            q = np.zeros((2, 4, 8), np.float16)
            o, lse = np.ones((2, 4, 8), np.float32), np.ones((2, 4), np.float32)
            plain = context.attend(0, q, [0, 1])
            filled = context.attend(0, q, [0, 1], out=(o, None))
            self.assertIs(filled.o, o)
            np.testing.assert_array_equal(o, plain.o)
            self.assertTrue((lse == 1).all())
            for wrong in (o[:1], o.astype(np.float64), np.ones((8, 4, 2), np.float32).T):
                with self.assertRaises(ValueError):
                    context.attend(0, q, [0, 1], out=(wrong, None))


@needs_daemon
class Shared(unittest.TestCase):
    def setUp(self):
        self.live = Live()
        self.client = self.live.client
        self.random = np.random.default_rng(7)
        self.context = self.client.open("book", SHAPE, create=True)
        self.k, self.v = (self.random.standard_normal((TOKENS, G, D)).astype(np.float16) for _ in range(2))
        self.context.append(0, 0, self.k, self.v)
        self.q = self.random.standard_normal((N, H, D)).astype(np.float16)
        self.limits = self.random.integers(1, TOKENS, N)

    def tearDown(self):
        self.live.close()

    def arrays(self, region):
        q = region.array(self.q.shape, np.float16)
        q[:] = self.q
        return q, region.array(self.q.shape), region.array(self.q.shape[:-1])

    def test_the_same_bits(self):
        wanted = self.context.attend(0, self.q, self.limits, self.limits)
        with self.client.share(1 << 16) as region:
            q, o, lse = self.arrays(region)
            sent, received = self.client.bytes_sent, self.client.bytes_received
            answer = self.context.attend(0, q, self.limits, self.limits, out=(o, lse))
            self.assertLess(self.client.bytes_sent - sent, 200)
            self.assertLess(self.client.bytes_received - received, 200)
            self.assertIs(answer.o, o)
            self.assertTrue(o.tobytes() == wanted.o.tobytes() and lse.tobytes() == wanted.lse.tobytes())
            status = self.client.status()
            self.assertEqual((status.shared_regions, status.shared_bytes), (1, 1 << 16))
            counts = self.client.stats().counters
            self.assertEqual(counts["shared_read_bytes_total"], q.nbytes)
            self.assertEqual(counts["shared_written_bytes_total"], o.nbytes + lse.nbytes)
            # A part of it, from where it can be named, and from where it cannot.
            for part in (slice(4, 8), slice(1, 5)):
                o[:] = lse[:] = 0
                answer = self.context.attend(0, q[part], self.limits[part], self.limits[part], out=(o[part], None))
                self.assertTrue(answer.o.tobytes() == wanted.o[part].tobytes() == o[part].tobytes())
            many = self.client.attend_many([
                memd.Query(self.context, 0, q, self.limits, self.limits, out=(o, lse)),
                memd.Query(self.context, 0, self.q, self.limits, self.limits),
                memd.Query(self.context, 3, q, self.limits)], return_errors=True)
            self.assertIsInstance(many[2], memd.InvalidError)
            for answer in many[:2]:
                self.assertTrue(answer.o.tobytes() == wanted.o.tobytes())
            ids, _ = self.context.search(0, q, 5, self.limits, self.limits)
            same, _ = self.context.search(0, self.q, 5, self.limits, self.limits)
            np.testing.assert_array_equal(ids, same)
        self.assertEqual(self.client.status().shared_regions, 0)
        o[:] = 3  # the array is still there
        region.close()

    def test_rows(self):
        with self.client.share(1 << 16) as region:
            k, v = region.array((100, G, D), np.float16), region.array((100, G, D), np.float16)
            k[:], v[:] = self.k[:100], self.v[:100]
            other = self.client.open("other", SHAPE, create=True)
            sent = self.client.bytes_sent
            other.append(0, 0, k, v)
            self.assertLess(self.client.bytes_sent - sent, 200)
            k[:] = v[:] = 0
            rows = other.fetch(0, range(100))
            np.testing.assert_array_equal(rows.k, self.k[:100])
            np.testing.assert_array_equal(rows.v, self.v[:100])
            with self.assertRaises(MemoryError):
                region.array((1 << 16,))
            region.clear()
            self.assertEqual(region.array((1 << 14,)).nbytes, 1 << 16)

    def test_over_restarts(self):
        first, second = self.client.share(1 << 16), self.client.share(4096)
        gone = self.client.share(4096)
        q, o, _ = self.arrays(first)
        lse = second.array(self.q.shape[:-1])
        wanted = self.context.attend(0, self.q, self.limits, self.limits)
        gone.close()
        for how in (signal.SIGKILL, signal.SIGTERM):
            self.live.restart(how)
            o[:] = lse[:] = 0
            self.context.attend(0, q, self.limits, self.limits, out=(o, lse))
            self.assertTrue(o.tobytes() == wanted.o.tobytes() and lse.tobytes() == wanted.lse.tobytes())
            self.assertEqual(self.client.status().shared_regions, 2)
        self.assertEqual(self.client.reconnects, 2)
        self.live.restart(signal.SIGKILL)
        first.close()
        self.client.close()
        with memd.connect(self.live.address) as other:
            while other.status().shared_regions > 0:  # until the daemon has seen that the client is gone
                self.live.process_pause()
            with self.assertRaises(memd.LimitError):
                other.share(1 << 40)

    def test_what_is_not_taken_again(self):
        """A daemon with less memory for it: a call that named it hears why, later ones travel, until there is room."""
        region = self.client.share(1 << 20)
        q, o, lse = self.arrays(region)
        wanted = self.context.attend(0, self.q, self.limits, self.limits)
        self.live.restart(signal.SIGKILL, "--shared-memory", "64KiB")
        with self.assertRaises(memd.LimitError):
            self.context.attend(0, q, self.limits, self.limits, out=(o, lse))
        for there in (False, True):
            if there:
                self.live.restart(signal.SIGKILL)
                self.client.health()
            o[:] = lse[:] = 0
            sent = self.client.bytes_sent
            self.context.attend(0, q, self.limits, self.limits, out=(o, lse))
            self.assertEqual(self.client.bytes_sent - sent < q.nbytes, there)
            self.assertTrue(o.tobytes() == wanted.o.tobytes() and lse.tobytes() == wanted.lse.tobytes())
            self.assertEqual(self.client.status().shared_regions, there)
        region.close()


if __name__ == "__main__":
    unittest.main()
