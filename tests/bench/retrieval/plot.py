#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Pictures of retrieval.py's results: error against bytes read and against time, per trace.

    plot.py measured/retrieval.json --out docs/img

One PNG per trace with two panels, both axes logarithmic, lower left is better. Needs matplotlib.
"""
import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Ours in colour, the rest in greys and with other marks; families are joined by a line.
STYLE = {"progressive": ("o-", "#c1272d"), "retroinfer": ("s", "#0b6e99"),
         "retrieval-attention": ("D", "#6a3d9a"), "oracle-topk": ("*--", "#333333"),
         "streaming": ("X", "#777777"), "faiss-flat": ("v", "#8c6d31"), "faiss-ivf": ("^-", "#b5952f"),
         "faiss-hnsw": ("<-", "#d9b44a"), "faiss-cpu IVF": ("^:", "#4daf4a"),
         "faiss-cpu HNSW": ("<:", "#377d22"), "faiss-cpu flat": ("v", "#377d22"),
         "hnswlib": (">:", "#7fbf7b"), "usearch": ("p:", "#1b7837")}


def family(row: dict) -> str | None:
    if row["method"] != "peer":
        return row["method"] if row["method"] in STYLE and "bytes of" not in row["label"] else None
    return max((name for name in STYLE if row["label"].startswith(name)), key=len, default=None)


def panel(axes, run: dict, key: str, title: str, scale: float) -> None:
    families: dict[str, list] = {}
    for row in run["rows"]:
        name = family(row)
        if name and row.get(key) and row["error_mean"] > 0:
            families.setdefault(name, []).append((row[key] * scale, row["error_mean"] * 100))
    for name, points in families.items():
        mark, colour = STYLE[name]
        axes.plot(*zip(*sorted(points)), mark, color=colour, label=name, markersize=6, linewidth=1.2)
    exact = next((row for row in run["rows"] if row["label"] == "full"), None)
    if exact:
        axes.axvline(exact[key] * scale, color="#999999", linestyle="--", linewidth=1)
        axes.annotate("exact", (exact[key] * scale, 0.99), xycoords=("data", "axes fraction"),
                      rotation=90, va="top", ha="right", fontsize=8, color="#666666")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(title)
    axes.set_ylabel("mean relative L2 error of the output, %")
    axes.grid(True, which="major", linewidth=0.4, alpha=0.6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results")
    parser.add_argument("--out", default="docs/img", metavar="FOLDER")
    args = parser.parse_args()
    results = json.loads(Path(args.results).read_text())
    Path(args.out).mkdir(parents=True, exist_ok=True)
    for run in results["runs"]:
        if not run["real"]:
            continue
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), sharey=True)
        panel(left, run, "bytes", "bytes read, % of exact fp16 attention", 100)
        panel(right, run, "cold_us", "µs per query group, one core, cold caches", 1)
        right.set_ylabel("")
        left.legend(fontsize=7, loc="lower left")
        model = run["facts"].get("model", run["trace"])
        figure.suptitle(f"{model}, {run['tokens']:,} tokens of {run['facts'].get('text', '')}", fontsize=10)
        figure.tight_layout()
        path = Path(args.out) / f"retrieval_{run['trace']}.png"
        figure.savefig(path, dpi=80)
        plt.close(figure)
        print(path)


if __name__ == "__main__":
    main()
