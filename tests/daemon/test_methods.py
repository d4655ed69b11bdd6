# SPDX-License-Identifier: Apache-2.0
"""docs/METHODS.md says what the daemon says: a section for each method, and the table of its parameters.

    test_methods.py          compare (MEMD names the daemon)
    test_methods.py --fix    write the daemon's tables into the document

A section may be missing from the daemon only where a build may lack the method (FAISS).
"""
import re
import sys
from pathlib import Path

from wire import Daemon

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/METHODS.md"
HEAD = ["| parameter | type | default | allowed | meaning |", "|---|---|---|---|---|"]
SECTION = re.compile(r"^## `([a-z0-9-]+)`$", re.M)
ANY = 2**53 - 1  # the end of a range that only keeps numbers whole is no limit that anybody meets


def number(value):
    return "any" if abs(value) >= ANY else f"{value:.9g}"


def row(option):
    choices = option["choices"]
    if choices:
        kind, default = "name", choices[int(option["fallback"])]
        allowed = ", ".join(f"`{choice}`" for choice in choices)
    else:
        kind, default = "whole" if option["whole"] else "real", number(option["fallback"])
        allowed = f"{number(option['least'])} … {number(option['most'])}"
    return f"| `{option['name']}` | {kind} | {default} | {allowed} | {option['help']} |"


def sections(text):
    """{method: (begin, end) of its text}"""
    found = list(SECTION.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return {match[1]: (match.end(), end) for match, end in zip(found, ends)}


def table_of(section):
    return [line for line in section.splitlines() if line.startswith("|")]


def expected_table(method):
    return HEAD + [row(option) for option in method["options"]] if method["options"] else []


def compare(text, methods):
    """What is wrong, one sentence each."""
    places = sections(text)
    for name in places:
        if name not in methods and not name.startswith("faiss-"):
            yield f"{name} is in the document and not in the daemon"
    for name, method in methods.items():
        if name not in places:
            yield f"no section for {name}"
            continue
        section = text[slice(*places[name])]
        got, wanted = table_of(section), expected_table(method)
        yield from (f"{name}: missing or wrong: {line}" for line in wanted if line not in got)
        yield from (f"{name}: not what the daemon says: {line}" for line in got if line not in wanted)
        if "**Source.**" not in section or "**Ours.**" not in section:
            yield f"{name}: the section does not say its source and what is ours"


def fixed(text, methods):
    for name, (begin, end) in reversed(sections(text).items()):
        if name not in methods:
            continue
        prose = [line for line in text[begin:end].splitlines() if not line.startswith("|")]
        body = "\n".join(prose).strip("\n")
        table = "\n".join(expected_table(methods[name])) or ""
        text = text[:begin] + "\n\n" + body + "\n\n" + (table + "\n\n" if table else "") + text[end:]
    return text.rstrip("\n") + "\n"


def main():
    with Daemon() as daemon:
        methods = {method["name"]: method for method in daemon.client().ask("methods")["methods"]}
    text = DOCUMENT.read_text()
    if sys.argv[1:] == ["--fix"]:
        DOCUMENT.write_text(fixed(text, methods))
        return
    wrong = list(compare(text, methods))
    assert not wrong, "docs/METHODS.md:\n" + "\n".join(wrong)
    # the comparison itself: a number and a section that drift are seen
    assert list(compare(text.replace("| 4 | 0 … 65536 |", "| 5 | 0 … 65536 |"), methods))
    assert list(compare(text.replace("## `full`", "## `fool`"), methods))


if __name__ == "__main__":
    main()
