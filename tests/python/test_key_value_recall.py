# SPDX-License-Identifier: Apache-2.0
"""The example of trained models: its gradients against differences, and, with less training and shorter texts than it
uses itself, that each method answers what the window alone cannot."""
import os
import sys
import unittest

from live import BINARY, HERE, needs_daemon

sys.path[:0] = [os.path.join(HERE, "..", "..", "examples", name) for name in ("long_document", "key_value_recall")]

import numpy as np

import memd
from daemon import Daemon
from grad import Value, cross_entropy, exp, power, sigmoid, softmax, unit
from key_value_recall import measure
from models import LAYERS

EXPRESSIONS = {
    "matmul": lambda a, b: a @ b.swap(-1, -2),
    "softmax": lambda a, b: softmax(a * b, np.arange(4) == 2),
    "unit": lambda a, b: unit(a) - unit(b),
    "division": lambda a, b: a / (exp(b) + 1),
    "gate": lambda a, b: sigmoid(a.sum(-1)) * b,
    "power": lambda a, b: power(exp(a), -0.5) + b[..., np.r_[1, 0, 2, 3]],
    "broadcast": lambda a, b: a[:1] * b.reshape(3, 4) + a[0, 1],
}


class Gradients(unittest.TestCase):
    def test_against_differences(self):
        rng = np.random.default_rng(3)
        for name, expression in EXPRESSIONS.items():
            a, b, weight = (rng.standard_normal((3, 4)) for _ in range(3))

            def loss(a, b):
                result = expression(a, b)
                return (result * weight[:, :result.data.shape[-1]]).sum(-1).sum(0)
            values = Value(a), Value(b)
            loss(*values).backward()
            for which, value in enumerate(values):
                for at in np.ndindex(3, 4):
                    step = np.zeros((3, 4))
                    step[at] = 1e-2
                    moved = [[a, b] for _ in range(2)]
                    moved[0][which], moved[1][which] = moved[0][which] + step, moved[1][which] - step
                    up, down = (loss(*map(Value, pair)).data.item() for pair in moved)
                    self.assertAlmostEqual(value.gradient[at], (up - down) / 2e-2, delta=2e-3,
                                           msg=f"{name} {which} {at}")

    def test_cross_entropy(self):
        logits = Value([[0, 0], [np.log(3), 0]])
        loss = cross_entropy(logits, np.array([1, 0]))
        loss.backward()
        self.assertAlmostEqual(loss.data.item(), (np.log(2) + np.log(4 / 3)) / 2, places=6)
        np.testing.assert_allclose(logits.gradient, [[.25, -.25], [-.125, .125]], atol=1e-6)


@needs_daemon
class Recall(unittest.TestCase):
    def test_each_method_helps(self):
        daemon = Daemon(BINARY)
        self.addCleanup(daemon.stop)
        with memd.connect(daemon.address, timeout=60) as client:
            for name, steps, least in (("memorizing", 80, 0.95), ("landmark", 160, 0.75), ("neurocache", 250, 0.85)):
                layer = LAYERS[name]()
                layer.steps, layer.pairs = steps, 24
                losses = layer.learn()
                alone, together = measure(client, layer, 60, 2, 64)
                said = f"{name}: loss {losses[0]:.2f} to {losses[-1]:.2f}, right {alone:.2f} and {together:.2f}"
                self.assertLess(alone, 0.2, said)
                self.assertGreater(together, least, said)


if __name__ == "__main__":
    unittest.main()
