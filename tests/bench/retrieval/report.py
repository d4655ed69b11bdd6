# SPDX-License-Identifier: Apache-2.0
"""Results of retrieval.py as numbers per method, and as a table in Markdown."""
from __future__ import annotations

import numpy as np

COLUMNS = [  # title, key, format
    ("method", "label", "{}"),
    ("mean", "error_mean", "{:.2%}"), ("p50", "error_p50", "{:.2%}"), ("p90", "error_p90", "{:.2%}"),
    ("p99", "error_p99", "{:.2%}"), ("worst head", "error_worst_head", "{:.2%}"),
    ("lse", "lse_error", "{:.4f}"), ("recall@100", "recall", "{:.3f}"), ("mass", "mass", "{:.3f}"),
    ("bytes", "bytes", "{:.1%}"), ("µs", "cold_us", "{:,.0f}"), ("µs warm", "warm_us", "{:,.0f}"),
    ("build µs/token", "build_us", "{:.2f}"), ("stored B/token", "stored_bytes", "{:,.0f}"),
    ("predicted/true p10–p50–p90", "calibration", "{}"), ("within 2× of target", "within", "{:.1%}"),
]


def _percentiles(values: np.ndarray, *which: int) -> list[float]:
    return [float(x) for x in np.percentile(values, which)]


def _calibration(error: np.ndarray, predicted: np.ndarray) -> list[float] | None:
    known = np.isfinite(predicted) & (error > 1e-6) & (predicted > 0)
    return _percentiles(predicted[known] / error[known], 10, 50, 90) if known.any() else None


def _within(error: np.ndarray, target: float, times: float) -> float | None:
    return float((error <= times * target).mean()) if target >= 1e-3 else None


def _mean(values) -> float | None:
    values = np.concatenate([np.atleast_1d(x) for x in values])
    return float(values.mean()) if np.isfinite(values).all() else None


def summarise(label: str, case, results: list[dict], times: float) -> dict:
    """One row from the results of all layers."""
    error = np.concatenate([result["error"].ravel() for result in results])
    predicted = np.concatenate([result["predicted"] for result in results])
    p50, p90, p99 = _percentiles(error, 50, 90, 99)
    row = {"label": label, "method": case.method, "error_mean": float(error.mean()), "error_p50": p50,
           "error_p90": p90, "error_p99": p99,
           "error_worst_head": float(max(result["error"].mean(0).max() for result in results)),
           "calibration": _calibration(error, predicted), "within": _within(error, case.target, times),
           "layers": [{"error": float(result["error"].mean()), "bytes": float(np.mean(result["bytes"])),
                       "cold_us": float(np.median(result["cold_us"]))} for result in results]}
    for key in ("lse_error", "recall", "mass", "bytes", "build_us", "stored_bytes", "limited"):
        row[key] = _mean([result[key] for result in results])
    for key in ("cold_us", "warm_us"):
        row[key] = float(np.mean([np.median(result[key]) for result in results])) \
            if all(key in result for result in results) else None
    if all("read_gb_s" in result for result in results):
        row["read_gb_s"] = float(np.mean([result["read_gb_s"] for result in results]))
    return row


def summarise_late(label: str, case, results: list[dict], times: float) -> dict:
    error = np.concatenate([result["error"].ravel() for result in results])
    predicted = np.concatenate([result["predicted"] for result in results])
    return {"label": label, "error_mean": float(error.mean()), "error_p99": _percentiles(error, 99)[0],
            "calibration": _calibration(error, predicted), "within": _within(error, case.target, times)}


def _cell(row: dict, key: str, form: str) -> str:
    value = row.get(key)
    if value is None:
        return "–"
    if key == "calibration":
        return "–".join(f"{x:.2f}" for x in value)
    return form.format(value)


def _table(columns, rows: list[dict]) -> list[str]:
    return ["| " + " | ".join(title for title, _, _ in columns) + " |", "|" + "---|" * len(columns),
            *("| " + " | ".join(_cell(row, key, form) for _, key, form in columns) + " |" for row in rows)]


def best_at_equal_error(rows: list[dict]) -> list[str]:
    """For each index that drops the tail: how much sooner progressive is at its error or a smaller one."""
    ours = [row for row in rows if row["method"] == "progressive"]
    lines = []
    for row in rows:
        if row["method"] in ("progressive", "full", "streaming", "oracle-topk") or row["cold_us"] is None:
            continue
        good = [mine for mine in ours if mine["error_mean"] <= row["error_mean"]]
        if good:
            mine = min(good, key=lambda mine: mine["cold_us"])
            recall = "–" if row["recall"] is None else f"{row['recall']:.2f}"
            lines.append(f"| {row['label']} | {row['error_mean']:.2%} | {recall} | {row['cold_us']:,.0f} | "
                         f"{mine['label']} | "
                         f"{mine['error_mean']:.2%} | {mine['cold_us']:,.0f} | "
                         f"{row['cold_us'] / mine['cold_us']:.1f}× |")
    if lines:
        lines[:0] = ["| index | its error | its recall@100 | its µs | progressive at that error or less | error | µs "
                     "| sooner |",
                     "|---|---|---|---|---|---|---|---|"]
    return lines


def best_at_equal_bytes(rows: list[dict]) -> list[str]:
    """For each index: the most exact run of progressive that read no more."""
    ours = [row for row in rows if row["method"] == "progressive"]
    lines = []
    for row in rows:
        if row["method"] in ("progressive", "full", "oracle-topk") or row["bytes"] is None:
            continue
        good = [mine for mine in ours if mine["bytes"] <= row["bytes"]]
        if good:
            mine = min(good, key=lambda mine: mine["error_mean"])
            lines.append(f"| {row['label']} | {row['bytes']:.1%} | {row['error_mean']:.2%} | {mine['label']} | "
                         f"{mine['bytes']:.1%} | {mine['error_mean']:.2%} | "
                         f"{row['error_mean'] / mine['error_mean']:.1f}× |")
    if lines:
        lines[:0] = ["| index | its bytes | its error | progressive with that or less | bytes | error | smaller |",
                     "|---|---|---|---|---|---|---|---|"]
    return lines


def markdown(results: dict) -> str:
    cpu = results["machine"]
    lines = [f"Machine: {cpu['cpu']}, {cpu['simd']}, {cpu['cores']} cores of which one is used, load "
             f"{cpu['load']} before, NumPy {cpu['numpy']}.", ""]
    for run in results["runs"]:
        kind = "captured from a real model" if run["real"] else "**synthetic**: times and bytes only"
        lines += [f"### {run['trace']} ({run['tokens']:,} tokens, {len(run['layers'])} layers; {kind})", ""]
        facts = run["facts"]
        if facts:
            lines += [f"{facts['model']} reading {facts['text']}; perplexity {facts['perplexity']} over the last "
                      f"{facts['perplexity_tokens']} tokens.", ""]
        lines += _table(COLUMNS, run["rows"]) + [""]
        exact = next((row for row in run["rows"] if row["label"] == "full"), None)
        if exact and exact.get("read_gb_s"):
            lines += [f"`full` read {exact['read_gb_s']:.1f} GB/s.", ""]
        for title, equal in (("error", best_at_equal_error(run["rows"])),
                             ("bytes", best_at_equal_bytes(run["rows"]))):
            if equal:
                lines += [f"At equal {title}:", "", *equal, ""]
        if run["late"]:
            lines += ["Appending while queries are asked, indexes 200 tokens late:", "",
                      *_table([COLUMNS[0], COLUMNS[1], COLUMNS[4], *COLUMNS[-2:]], run["late"]), ""]
        if run["missing"]:
            lines += ["Not in this build: " + ", ".join(sorted(run["missing"])) + ".", ""]
        lines += [f"({run['seconds']:.0f} s)", ""]
    return "\n".join(lines)


def check_smoke(runs: list[dict]) -> None:
    """What must hold on any machine; for ./check."""
    for run in runs:
        rows = {row["label"]: row for row in run["rows"]}
        assert not run["missing"], run["missing"]
        assert rows["full"]["error_mean"] < 1e-5 and abs(rows["full"]["bytes"] - 1) < 1e-9, rows["full"]
        assert rows["full"]["recall"] == 1
        assert rows["progressive 0.02"]["error_mean"] < 0.04, rows["progressive 0.02"]
        assert rows["streaming"]["error_mean"] > rows["progressive 0.05"]["error_mean"]
        assert rows["streaming"]["bytes"] < 1
    print("smoke: ok")
