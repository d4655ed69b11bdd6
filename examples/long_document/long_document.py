#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A small language model reads a long text and keeps its past in memd.

The model (SmolLM2-135M) keeps 4 attention sinks and a window of 512 tokens itself; the keys and values of
everything older live in memd, which answers attention over them. The same text is read three times: with
the window only, with window and memd, with full attention in the process. If memd is exact, the second
predicts the text as well as the third. In the middle of the second the daemon is killed (SIGKILL) and
started again, and the model goes on with the same context.

    long_document.py --memd build/daemon/memd
    long_document.py --connect unix:/run/memd/memd.sock --text book.txt
    long_document.py --method all             what each memory method costs in perplexity (compare.py)

Start with attention.py (how the answers are merged), then llama.py (the model).
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Callable

import cores  # noqa: F401  (before NumPy)
import numpy as np

import memd
from attention import FullAttention, MemdAttention, WindowAttention
from compare import HEADER, Comparison, Text
from daemon import Daemon
from llama import Llama
from options import parse
from reading import Progress, describe, find_model


def read_text(model: Llama, ids: np.ndarray, attention, args: argparse.Namespace, what: str,
              halfway: Callable[[int], None] | None = None) -> dict:
    """Read all tokens through `attention`; perplexity of the last ones, and speed.

    `halfway(tokens read)` is called once, between two chunks."""
    progress = Progress(what, len(ids))
    first = len(ids) - args.last  # the first token whose prediction counts
    losses: list[np.ndarray] = []
    began = time.monotonic()
    for start in range(0, len(ids), args.chunk):
        end = min(start + args.chunk, len(ids))
        hidden = model.forward(ids[start:end], start, attention)
        # The hidden state of token i predicts token i + 1.
        known = np.arange(max(start, first - 1), min(end, len(ids) - 1))
        losses.append(model.losses(hidden[known - start], ids[known + 1]))
        progress.show(end)
        if halfway is not None and end >= len(ids) // 2:
            halfway(end)
            halfway = None
    loss = np.concatenate(losses)
    assert len(loss) == args.last
    seconds = time.monotonic() - began
    return {"perplexity": float(np.exp(loss.mean())), "seconds": round(seconds, 1),
            "tokens_per_second": round(len(ids) / seconds, 1)}


def read_with_memd(model: Llama, ids: np.ndarray, client: memd.Client, daemon: Daemon | None,
                   args: argparse.Namespace) -> dict:
    """The run with memd, in a context of its own, which is dropped at the end."""
    past = client.open(f"long_document-{uuid.uuid4()}", describe(model, args.dtype),
                       method=args.method, must_create=True)
    crash: dict = {}

    def kill_and_restart(tokens: int) -> None:
        daemon.kill()
        crash["restart_seconds"] = round(daemon.start(), 3)
        crash["at_token"] = tokens
        kept = past.stat().tokens  # the client has connected again by itself
        print(f"\n  killed memd (SIGKILL) after {tokens:,} tokens; it answers again after "
              f"{crash['restart_seconds']} s and holds {kept:,}\n", file=sys.stderr)
        if kept != tokens - args.sinks:
            raise SystemExit(f"memd lost tokens: {kept} of {tokens - args.sinks} are left")

    try:
        sent, received = client.bytes_sent, client.bytes_received
        attention = MemdAttention(past, args.sinks, args.window)
        result = read_text(model, ids, attention, args, f"memd, {past.method}",
                           kill_and_restart if daemon else None)
        info = past.stat()
        result.update(method=past.method, quality=attention.quality.summary(), bytes_sent=client.bytes_sent - sent,
                      bytes_received=client.bytes_received - received,
                      bytes_stored=info.stored_bytes, tokens_stored=info.tokens, **crash)
        return result
    finally:
        past.drop()


def report(results: dict, args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(results, indent=2))
        return
    past = results["memd"]
    print(f"\nPerplexity of the last {args.last:,} of {results['tokens']:,} tokens "
          f"({results['text']}):\n")
    rows = [(f"window only ({args.sinks} sinks + {args.window} tokens)", results["window"]),
            (f"window + memd ({past['method']})", past),
            ("full attention in the process", results["full"])]
    for name, result in rows:
        print(f"  {name:36} {result['perplexity']:9.4f} {result['tokens_per_second']:9,.0f} tokens/s")
    mib, predicted = 1 << 20, ""
    if past["quality"]["predicted_error"] is not None:
        predicted = f"; it expects its answers to be off by {past['quality']['predicted_error']:.2%}"
    print(f"\n  sent to memd {past['bytes_sent'] / mib:,.0f} MiB (keys, values, queries), "
          f"received {past['bytes_received'] / mib:,.0f} MiB (answers)\n"
          f"  memd read {past['quality']['bytes']:.0%} of what exact attention reads"
          f"{predicted}\n"
          f"  stored {past['bytes_stored'] / mib:,.0f} MiB for {past['tokens_stored']:,} tokens")
    if "at_token" in past:
        print(f"  memd was killed after {past['at_token']:,} tokens, answered again after "
              f"{past['restart_seconds']} s, and the model went on with the same context")


def compare_methods(model: Llama, ids: np.ndarray, daemon: Daemon | None,
                    args: argparse.Namespace) -> None:
    """--method all: see compare.py. Rows appear on stderr as they are measured, the table on stdout at the end, and
    also when the run is stopped: what was measured until then took long enough."""
    def show(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
    text = Text(model, ids, args.last, args.chunk)
    comparison = Comparison(text, args.block, show)
    try:
        show(HEADER)
        comparison.in_process()
        with memd.connect(args.connect or daemon.address, args.token, timeout=600) as client:
            comparison.through_memd(client, args.method.split(","))
    finally:
        if daemon is not None:
            daemon.stop()
        about = {"model": model.name, "text": args.text, "tokens": len(ids), "last": args.last, "block": args.block}
        if args.json:
            print(json.dumps({**comparison.results(), **about}, indent=2))
        else:
            print(f"\nPerplexity of the last {args.last:,} of {len(ids):,} tokens ({args.text}), read {args.block} "
                  f"at a time; the first {text.first:,} were read exactly.\n\n{comparison.table()}")


def main() -> None:
    args = parse(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = Path(args.text).read_text(errors="replace")
    print("Loading the model …", file=sys.stderr)
    model = Llama(args.model or find_model())
    ids = np.array(model.tokenizer.encode(text))
    tokens = min(len(ids), model.context_length, args.tokens or len(ids))
    if tokens < len(ids):
        print(f"{args.text} has {len(ids):,} tokens, reading the first {tokens:,}", file=sys.stderr)
    ids = ids[:tokens]
    if not 0 < args.last < tokens:
        raise SystemExit(f"--last {args.last} needs a text of more tokens than the {tokens} here")

    daemon = None if args.connect else Daemon(os.path.abspath(args.memd))
    if args.method is not None and (args.method == "all" or "," in args.method):
        compare_methods(model, ids, daemon, args)
        return
    try:
        with memd.connect(args.connect or daemon.address, args.token, timeout=120) as client:
            results = {"model": model.name, "text": args.text, "tokens": tokens, "last": args.last,
                       "memd": read_with_memd(model, ids, client, daemon, args)}
    finally:
        if daemon is not None:
            daemon.stop()
    window = WindowAttention(model.layers, args.sinks, args.window)
    results["window"] = read_text(model, ids, window, args, "window only")
    full = FullAttention(model.layers, tokens, model.G, model.D)
    results["full"] = read_text(model, ids, full, args, "full attention")
    report(results, args)


if __name__ == "__main__":
    try:
        main()
    except memd.Error as error:  # its text says what is wrong: an address, a method, a token
        raise SystemExit(f"memd: {error}") from None
