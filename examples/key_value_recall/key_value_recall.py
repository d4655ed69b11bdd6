# SPDX-License-Identifier: Apache-2.0
"""Models trained for a memory, in NumPy, in a minute: what memorizing, landmark and neurocache are for.

    key_value_recall.py --memd build/daemon/memd [--pairs 240] [--method landmark]

Each layer is trained on short texts of pairs (task.py) and asked about texts many times longer than its window, with
the rest of the text in memd. Printed: how many answers are right with the window alone and with memd; guessing is
right once in 16 times.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "long_document"),
                str(Path(__file__).resolve().parents[2] / "clients" / "python")]

import cores  # noqa: F401, E402  (before NumPy: one BLAS thread)
import numpy as np  # noqa: E402

import memd  # noqa: E402
from daemon import Daemon  # noqa: E402
from models import LAYERS, WINDOW  # noqa: E402
from task import VALUES, write  # noqa: E402


def measure(client: memd.Client, layer, pairs: int, texts: int, questions: int) -> tuple[float, float]:
    """Shares of right answers: the window alone, and with memd."""
    rng, right = np.random.default_rng(99), []
    for number in range(texts):
        text = write(rng, pairs, questions, layer.landmarks, newest=WINDOW // 2)
        alone, together = layer.recall(client, f"{layer.method} {number}", text)
        right.append([np.mean(alone == text.answers), np.mean(together == text.answers)])
    return tuple(np.mean(right, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memd", required=True, metavar="FILE", help="the daemon's binary")
    parser.add_argument("--method", choices=LAYERS, action="append", help="only this one; may be repeated")
    parser.add_argument("--pairs", type=int, default=240, help="of a text, an even number (default 240)")
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--questions", type=int, default=64, help="of each text")
    options = parser.parse_args()
    daemon = Daemon(options.memd)
    try:
        with memd.connect(daemon.address) as client:
            print(f"{options.texts} texts of {options.pairs} pairs, a window of {WINDOW} tokens; "
                  f"guessing: {1 / VALUES:.1%} right\n")
            print(f"{'method':12} {'window':>8} {'with memd':>10} {'CPU time of training':>22}")
            for name in options.method or LAYERS:
                began = time.process_time()
                layer = LAYERS[name]()
                layer.learn()
                took = time.process_time() - began
                alone, together = measure(client, layer, options.pairs, options.texts, options.questions)
                print(f"{name:12} {alone:8.1%} {together:10.1%} {took:20.0f} s", flush=True)
    finally:
        daemon.stop()


if __name__ == "__main__":
    main()
