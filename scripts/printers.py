# SPDX-License-Identifier: Apache-2.0
"""Pretty-printers for gdb (scripts/debug loads them): one line for what is otherwise twelve.

They read fields by name and show the raw struct when a field is missing, so that a change of a struct makes
them poorer, never wrong.
"""
import gdb
import gdb.printing

DTYPES = {0: "none", 1: "fp32", 2: "fp16", 3: "bf16", 4: "u64", 5: "u32"}


def size(count):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.4g} {unit}"
        count /= 1024


def tensor(value):
    shape = [int(value["shape"][i]) for i in range(int(value["dims"]))]
    return f"tensor {DTYPES.get(int(value['dtype']), '?')} {tuple(shape)} at {value['data']}"


def view(value):
    first, tokens = int(value["position"]), int(value["tokens"])
    dtype = DTYPES.get(int(value["dtype"]), "?")
    return f"view {dtype} tokens {first} … {first + tokens - 1}, k {value['k']} v {value['v']}"


def arena(value):
    used, limit = int(value["used_bytes"]), int(value["limit_bytes"])
    blocks, block = 0, value["blocks"]
    while block and blocks < 10000:
        blocks, block = blocks + 1, block["next"]
    return f"arena {size(used)} of {size(limit)} in {blocks} blocks"


def error(value):
    if not int(value["code"]):
        return "error none"
    return f"error {int(value['code'])}: {value['text'].string(errors='replace')}"


def partial(value):
    rows = int(value["rows"])
    lse = ", ".join(f"{float(value['lse'][i]):.4g}" for i in range(min(rows, 4)))
    return f"partial ({rows}, {int(value['head_dim'])}) lse [{lse}{', …' if rows > 4 else ''}]"


def bytes_reader(value):
    bad = ", bad" if value["bad"] else ""
    return f"bytes {int(value['offset'])} of {int(value['size_bytes'])}{bad}"


class OneLine:
    """Adapts a function of a value to what gdb wants."""

    def __init__(self, function):
        self.function = function

    def __call__(self, value):
        self.value = value
        return self

    def to_string(self):
        try:
            return self.function(self.value)
        except (gdb.error, ValueError) as problem:
            return f"{self.value.type} (printer: {problem})"


def register():
    printers = gdb.printing.RegexpCollectionPrettyPrinter("memd")
    for name, function in {"tensor": tensor, "view": view, "arena": arena, "error": error,
                           "partial": partial, "bytes_reader": bytes_reader,
                           "bytes_writer": bytes_reader}.items():
        printers.add_printer(name, f"^{name}$", lambda v, f=function: OneLine(f)(v))
    gdb.printing.register_pretty_printer(gdb.current_objfile(), printers, replace=True)


register()
