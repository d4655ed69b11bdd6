#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The table: every method on the same keys, error against bytes against time.

    retrieval.py --library build/tests/bench/retrieval/libretrieval.so traces/*.npz --out measured/retrieval
    retrieval.py --library … --synthetic 131072 --out …      times and bytes of long contexts
    retrieval.py --library … --smoke                         a few seconds, for ./check

Per trace (capture.py) and method: the relative L2 error of the attention output against float64 over all
tokens, everything the method reads as a share of what exact fp16 attention reads, and the time of one query
group (one token's query heads of one KV head) on one core, with cold caches. docs/RETRIEVAL.md says how
to read it. Indexes are built from what came before the test positions (traces.py). Written: OUT.md and
OUT.json; plot.py draws the latter.
"""
from __future__ import annotations

import os
for _library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
import argparse  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

import report  # noqa: E402
from bridge import AS_PARAMETERS, LAYER_INDEX, NEEDS_QUERIES, PLANES, SEGMENT, Bench, Missing  # noqa: E402
from traces import Layer, load, synthetic  # noqa: E402

TIMED = 12  # query positions with cold caches; the median counts
REPEATS = 5  # of each, of which the least counts: other work on the machine is not the method's
WITHIN = 2  # times the target
# Synthetic keys: sharpness of the queries (2 flat, 8 peaked), noise inside a topic (0.35 as in captured keys). The
# last kind has single tokens that stand out of clusters which say nothing of them; no captured keys are like that.
SYNTHETIC = (2.0, 0.35), (8.0, 0.35), (8.0, 0.7)


@dataclass
class Case:
    """A method with parameters, and what is asked of it."""
    method: str
    label: str
    parameters: dict = field(default_factory=dict)
    target: float = AS_PARAMETERS


# Short contexts are answered exactly where that is quicker; here the approximation is to be seen.
NEVER_EXACT = {"exact_below": 0}


def target_cases(*targets: float) -> list[Case]:
    return [Case("progressive", f"progressive {target:g}", NEVER_EXACT, target) for target in targets]


def swept(method: str, option: str, *values: int) -> list[Case]:
    return [Case(method, f"{method} {option}={value}", {option: value}) for value in values]


# In the order of the table. Methods that a build does not have are left out, and named below the table.
CASES = [
    Case("full", "full"),
    Case("streaming", "streaming"),
    *swept("oracle-topk", "k", 100, 1000),
    Case("retroinfer", "retroinfer"),
    Case("progressive", "progressive as it comes"),
    *target_cases(1, 0.9, 0.8, 0.7, 0.65, 0.6, 0.5, 0.35, 0.3, 0.29, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005),
    Case("retrieval-attention", "retrieval-attention"),
    *swept("faiss-ivf", "nprobe", 16, 64),
    *swept("faiss-hnsw", "ef_search", 100, 400),
    Case("faiss-flat", "faiss-flat"),
]
LATE = "progressive 0.02", "retroinfer", "retrieval-attention"  # the last on one layer: it builds for long
SMOKE = ("full", "streaming", "progressive 0.05", "progressive 0.02", "retroinfer")


class Measure:
    """One layer: what all methods are compared with, and the planes and indexes they share."""

    def __init__(self, layer: Layer, library: str, count: int):
        self.layer = layer
        self.rows = layer.asked(count)
        self.limits = layer.positions[self.rows] + 1
        self.exact = layer.exact(self.rows, self.limits)
        self.bench = Bench(library, layer.k, layer.v, layer.H)
        self.plane_seconds = None
        self.made = "", {}  # the method whose index the bench holds, and what it cost

    def encode(self) -> float:
        """Planes of all segments, each with the queries that had been seen when it was sealed."""
        if self.plane_seconds is None:
            self.plane_seconds = sum(
                self.bench.encode(segment, *self.layer.query_square((segment + 1) * SEGMENT))
                for segment in range(self.layer.built // SEGMENT))
        return self.plane_seconds

    def prepare(self, case: Case) -> dict:
        """What the method needs; what that cost per token and KV head."""
        layer, built = self.layer, self.layer.built
        needs = self.bench.method(case.method, **case.parameters)
        tokens = built * layer.k.shape[0]
        cost = {"build_us": 0.0, "stored_bytes": 0.0}
        if needs & PLANES:
            cost = {"build_us": self.encode() / tokens * 1e6,
                    "stored_bytes": sum(self.bench.plane_bytes()) / SEGMENT}
        if needs & LAYER_INDEX and self.made[0] == case.method:  # sweeps are of search-time parameters
            return dict(self.made[1])
        if needs & LAYER_INDEX:
            kept = layer.kept() if needs & NEEDS_QUERIES else np.zeros(0, int)
            seconds, size = self.bench.build(built, layer.q[kept], layer.positions[kept])
            cost = {"build_us": seconds / tokens * 1e6, "stored_bytes": size / tokens}
        self.made = case.method, cost
        return dict(cost)

    def answer(self, case: Case, **more):
        return self.bench.attend(self.layer.q[more.pop("rows", self.rows)],
                                 more.pop("limits", self.limits), more.pop("tokens", self.layer.tokens),
                                 more.pop("planed", self.layer.built // SEGMENT),
                                 target_error=case.target, **more)

    def run(self, case: Case, smoke: bool) -> dict:
        result = self.prepare(case)
        G, _, D = self.layer.k.shape
        answer = self.answer(case)
        read = answer.bytes.sum(-1)
        timed = np.linspace(0, len(self.rows) - 1, min(2 if smoke else TIMED, len(self.rows))).astype(int)
        cold = self.cold(case, timed, 1 if smoke else REPEATS)
        ids, _ = self.bench.search(self.layer.q[self.rows], np.full(len(self.rows), self.layer.built),
                                   self.layer.tokens, 100, self.layer.built // SEGMENT)
        result.update(
            self.errors(answer.o, answer.lse), recall=self.recall(ids.astype(np.int64)),
            mass=answer.mass.sum(-1).ravel(), predicted=answer.predicted.ravel(),
            bytes=read / (self.limits * (4.0 * D * G)), limited=float(answer.limited.mean()),
            cold_us=cold.seconds / G * 1e6, warm_us=answer.seconds / G * 1e6,
            read_gb_s=cold.bytes.sum() / cold.seconds.sum() * 1e-9)
        return result

    def cold(self, case: Case, timed: np.ndarray, repeats: int):
        """Answers with caches emptied before each, their seconds the least of some."""
        asked = [self.answer(case, rows=self.rows[timed], limits=self.limits[timed], evict=True)
                 for _ in range(repeats)]
        asked[0].seconds = np.min([answer.seconds for answer in asked], axis=0)
        return asked[0]

    def errors(self, o: np.ndarray, lse: np.ndarray) -> dict:
        norm = np.linalg.norm(self.exact.o, axis=-1)
        error = np.linalg.norm(o - self.exact.o, axis=-1) / np.where(norm == 0, 1, norm)
        return {"error": error, "lse_error": np.abs(lse - self.exact.lse).ravel()}

    def recall(self, ids: np.ndarray) -> np.ndarray:
        """Share of the true top 100 among the rows that the index covers."""
        pairs = zip(ids.reshape(-1, ids.shape[-1]), self.exact.top100.reshape(-1, 100))
        return np.array([len(np.intersect1d(found, true)) / 100 for found, true in pairs])

    def late(self, case: Case, late: int = 200) -> dict:
        """Rows are appended between queries, and what is derived from a segment comes `late` tokens after it
        was sealed: queries around the last seal, each over what was stored at its time."""
        layer, end = self.layer, self.layer.built
        self.made = "", {}
        needs = self.bench.method(case.method, **case.parameters)
        around = np.flatnonzero((layer.positions >= end - SEGMENT // 2) & (layer.positions < end + 512))
        around = around[np.linspace(0, len(around) - 1, len(self.rows)).astype(int)]
        limits = layer.positions[around] + 1
        exact = layer.exact(around, limits)
        if needs & PLANES:
            self.encode()
        o, built = np.empty_like(exact.o), 0
        predicted = np.empty(o.shape[:2])
        for i, limit in enumerate(limits):
            planed = int(max(limit - late, 0)) // SEGMENT
            if needs & LAYER_INDEX and planed != built:
                kept = layer.kept(planed * SEGMENT) if needs & NEEDS_QUERIES else np.zeros(0, int)
                self.bench.build(planed * SEGMENT, layer.q[kept], layer.positions[kept])
                built = planed
            answer = self.answer(case, rows=around[i:i + 1], limits=limits[i:i + 1], tokens=int(limit),
                                 planed=planed)
            o[i], predicted[i] = answer.o[0], answer.predicted[0]
        error = np.linalg.norm(o - exact.o, axis=-1) / np.linalg.norm(exact.o, axis=-1)
        return {"error": error, "predicted": predicted.ravel()}


def run_peers(measure: Measure, show, collect, per_row_us: float) -> None:
    """All knobs of all libraries on one layer."""
    import peers
    layer, rows = measure.layer, measure.rows
    G, _, D = layer.k.shape
    group = layer.H // G
    timed = np.linspace(0, len(rows) - 1, TIMED).astype(int)
    for kind in peers.installed():
        show(f"{kind.name}: build")
        indexes = [kind(layer.k[g, :layer.built].astype(np.float32)) for g in range(G)]
        for knob in kind.knobs:
            show(f"{kind.name} {knob}")
            ids = np.empty((len(rows), layer.H, 100), np.int64)
            compared, seconds = np.zeros(len(rows)), []
            for g, index in enumerate(indexes):
                heads = slice(g * group, (g + 1) * group)
                for i, row in enumerate(rows):
                    ids[i, heads] = index.search(layer.q[row, heads], 100, knob)
                    compared[i] += index.compared()
                for i in timed:
                    least = np.inf
                    for _ in range(REPEATS):
                        measure.bench.empty_caches()
                        began = time.process_time()
                        index.search(layer.q[rows[i], heads], 100, knob)
                        least = min(least, time.process_time() - began)
                    seconds.append(least)
            o, lse = peers.attend_to(layer, rows, measure.limits, ids)
            near = measure.limits - layer.built + peers.SINKS + 100 * group  # rows read exactly per KV head
            tokens = layer.built * G
            result = measure.errors(o, lse)
            result.update(
                recall=measure.recall(ids), mass=np.exp(np.minimum(lse - measure.exact.lse, 0)).ravel(),
                predicted=np.full(o[..., 0].size, np.nan), limited=0.0,
                bytes=(compared * 4 * D + near * G * 4 * D) / (measure.limits * (4.0 * D * G)),
                cold_us=np.array(seconds) * 1e6 + near.mean() * per_row_us,
                build_us=sum(index.build_seconds for index in indexes) / tokens * 1e6,
                stored_bytes=sum(index.bytes for index in indexes) / tokens)
            collect(Case("peer", f"{kind.name} {knob}" if knob else kind.name), result)


def machine() -> dict:
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line),
                 platform.machine())
    flags = next((line for line in open("/proc/cpuinfo") if line.startswith("flags")), "").split()
    simd = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "baseline"
    return {"cpu": model, "simd": os.environ.get("MEMD_SIMD", simd), "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1), "numpy": np.__version__}


def run_trace(name: str, facts: dict, layers: list[Layer], args: argparse.Namespace) -> dict:
    """All cases on all layers of a trace."""
    pooled: dict[str, list[dict]] = {}
    late: dict[str, list[dict]] = {}
    cases, missing, began = {}, {}, time.monotonic()
    wanted = [case for case in CASES if (case.label in SMOKE if args.smoke else
              args.only is None or case.method in args.only.split(","))]

    for number, layer in enumerate(layers):
        def show(what: str) -> None:
            print(f"\r{name}: layer {number + 1}/{len(layers)} ({layer.name}), {what}, "
                  f"{time.monotonic() - began:.0f} s\033[K", end="", file=sys.stderr, flush=True)

        def collect(case: Case, result: dict) -> None:
            cases[case.label] = case
            pooled.setdefault(case.label, []).append(result)

        show("exact answers in float64")
        measure = Measure(layer, args.library, args.queries)
        for case in wanted:
            show(case.label)
            try:
                collect(case, measure.run(case, args.smoke))
                if layer.real and case.label in LATE and (number == 0 or not case.method.endswith("attention")):
                    late.setdefault(case.label, []).append(measure.late(case))
            except Missing as error:
                missing[case.label] = str(error)
        if args.peers:
            full = pooled["full"][-1]
            run_peers(measure, show, collect, float(np.median(full["cold_us"])) / layer.tokens)
        measure.bench.close()
    print(file=sys.stderr)
    rows = [report.summarise(label, cases[label], results, WITHIN) for label, results in pooled.items()]
    return {"trace": name, "facts": facts, "real": layers[0].real,
            "tokens": layers[0].tokens, "layers": [layer.name for layer in layers], "rows": rows,
            "late": [report.summarise_late(label, cases[label], results, WITHIN)
                     for label, results in late.items()],
            "missing": missing, "seconds": round(time.monotonic() - began, 1)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", help=".npz files of capture.py")
    parser.add_argument("--library", required=True, help="libretrieval.so of the build (-Dbench=enabled)")
    parser.add_argument("--out", metavar="BASE", help="writes BASE.md and BASE.json")
    parser.add_argument("--synthetic", type=int, action="append", default=[], metavar="TOKENS")
    parser.add_argument("--group", type=int, action="append", metavar="N",
                        help="query heads of the synthetic KV head (default: 4)")
    parser.add_argument("--queries", type=int, default=64, help="test positions (of the last 256)")
    parser.add_argument("--layers", type=int, default=4, help="at most so many layers of a trace")
    parser.add_argument("--only", metavar="METHODS", help="names with commas")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--quick", action="store_true", help="2 layers, 24 positions")
    parser.add_argument("--smoke", action="store_true", help="4,096 synthetic tokens, few methods, no peers")
    args = parser.parse_args()
    if args.quick:
        args.queries, args.layers = 24, 2
    if args.smoke:
        args.queries, args.peers, args.synthetic = 4, False, [4096]
    return args


def main() -> None:
    args = arguments()
    runs = []
    for path in args.traces:
        facts, layers = load(path)
        chosen = np.linspace(0, len(layers) - 1, min(args.layers, len(layers))).astype(int)
        runs.append(run_trace(Path(path).stem, facts, [layers[i] for i in chosen], args))
    for tokens in args.synthetic:
        for group in args.group or [4]:
            for sharpness, noise in SYNTHETIC:
                layer = synthetic(tokens, group=group, sharpness=sharpness, noise=noise)
                some = argparse.Namespace(**{**vars(args), "queries": min(args.queries, 8)})
                runs.append(run_trace(layer.name, {}, [layer], some))
    results = {"machine": machine(), "runs": runs}
    text = report.markdown(results)
    print(text)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out + ".md").write_text(text)
        Path(args.out + ".json").write_text(json.dumps(results, indent=1) + "\n")
    if args.smoke:
        report.check_smoke(runs)


if __name__ == "__main__":
    main()
