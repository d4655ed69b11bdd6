#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The rules of docs/STYLE.md that a machine can hold; run by ./check, needs only Python's standard library.

    tests/tidy.py               every rule over the files that git knows (or, outside git, all files)
    tests/tidy.py --self-test   every rule over a small bad tree that it must object to, and a good one

A rule is a function decorated with @rule("what it demands", …bad trees…): it takes a Tree and yields
(path, line, sentence). Next to each rule stand the snippets that it must catch, because a check that cannot
fail is a defect. Exceptions are lists in this file, each with its reason.
"""
import pathlib
import re
import subprocess
import sys

from ctokens import calls, functions, tokenize

FOLDERS = ["base", "proto", "attention", "index", "memory", "daemon"]  # each sees what stands before it
CODE = (".c", ".h", ".cu", ".cpp")
LINE_COLUMNS, FILE_LINES, FUNCTION_LINES, CUDA_LINES = 100, 600, 70, 120
PARAMETERS, NESTING, FILE_KBYTES = 6, 4, 64
DATA = ("tests/golden/", "tests/fuzz/corpus/")  # small binary files live here and nowhere else
DATA_KBYTES = 1400
PUBLIC = "clients/include/"

# Third-party header → the only files that may include it (patterns of a whole path).
HOMES = {
    r"lmdb\.h": r"memory/store\w*\.[ch]",
    r"uv\.h": r"daemon/\w+\.[ch]",
    r"protobuf-c/.*": r"proto/message\.[ch]",
    r"systemd/.*": r"daemon/notify\w*\.[ch]",
    r"faiss/.*": r"index/faiss\.c|tests/faiss_smoke\.c",
    r"xxhash\.h": r"memory/(format|checksum)\.[ch]",
    r"cuda(_\w+)?\.h|cublas.*": r"attention/cuda/\w+\.(c|h|cu|cuh)|attention/kernels/\w+\.cu",
    r"cmocka\.h": r"tests/.*",
}
BANNED = {
    "strcpy": "snprintf", "strcat": "snprintf", "sprintf": "snprintf", "vsprintf": "vsnprintf",
    "gets": "fgets", "strncpy": "memcpy with a length", "strtok": "a loop", "atoi": "strtol",
    "alloca": "the arena", "system": "nothing", "popen": "nothing", "tmpnam": "mkstemp",
    "rand": "a seeded generator", "abort": "assert or error_set", "exit": "return", "_exit": "return",
}
MAY_EXIT = r"daemon/main\.c|clients/memctl/.*|examples/.*|tests/.*"
MAY_PRINT = r"base/log\.c|daemon/(main|options)\.c|clients/memctl/.*|examples/.*|tests/.*"
PRINTS = {"printf", "fprintf", "vprintf", "vfprintf", "puts", "fputs", "putchar", "perror", "dprintf"}
SLEEPS = {"sleep", "usleep", "nanosleep", "clock_nanosleep"}
# Codes no test can raise, and why.
NOT_RAISED = {"EDEVICE": "raised by accelerator code only, which needs the device"}

RULES = []


class Tree:
    """Paths and their bytes; text and tokens are made once."""

    def __init__(self, files):
        self.files = files
        self._functions = {}

    def text(self, path):
        return self.files.get(path, b"").decode("utf-8", "replace")

    def paths(self, *endings):
        return [p for p in sorted(self.files) if p.endswith(endings) and not p.startswith(DATA)]

    def functions(self, path):
        if path not in self._functions:
            self._functions[path] = functions(self.text(path))
        return self._functions[path]

    def lines(self, *endings):
        for path in self.paths(*endings):
            for number, line in enumerate(self.text(path).splitlines(), 1):
                yield path, number, line

    def includes(self, path):
        for number, line in enumerate(self.text(path).splitlines(), 1):
            if match := re.match(r'\s*#\s*include\s*([<"])([^>"]+)', line):
                yield number, match[1], match[2]


def rule(demand, *bad):
    """bad: trees {path: text} that the rule must object to."""

    def register(function):
        RULES.append((function.__name__, demand, function, bad))
        return function

    return register


def is_library(path):
    return path.split("/")[0] in FOLDERS or path.startswith("clients/libmemd/")


# ---- shape of the text ----


@rule(f"lines ≤ {LINE_COLUMNS} columns, no tabs, no trailing blanks", {"a.c": "x" * 101},
      {"a.py": "a \n"}, {"a.c": "\tint a;\n"})
def line_shape(tree):
    for path, number, line in tree.lines(*CODE, ".py", ".proto", ".flow"):
        if len(line) > LINE_COLUMNS + 20 * path.endswith(".py"):
            yield path, number, f"{len(line)} columns, at most {LINE_COLUMNS}"
        if line != line.rstrip():
            yield path, number, "blanks at the end of the line"
        if "\t" in line:
            yield path, number, "tab"


@rule(f"files ≤ {FILE_LINES} lines", {"a.c": "int a;\n" * 601})
def file_length(tree):
    for path in tree.paths(*CODE, ".py"):
        count = tree.text(path).count("\n")
        if count > FILE_LINES:
            yield path, FILE_LINES, f"{count} lines, at most {FILE_LINES}"


@rule("SPDX on the first line", {"a.c": "/* a.c — x */\n"}, {"scripts/x": "#!/bin/sh\ntrue\n"})
def licence_line(tree):
    for path in tree.paths(*CODE, ".py") + [p for p in tree.files if is_script(tree, p)]:
        lines = tree.text(path).splitlines()
        head = lines[1] if lines and lines[0].startswith("#!") and len(lines) > 1 else (lines + [""])[0]
        if lines and "SPDX-License-Identifier: Apache-2.0" not in head:
            yield path, 1, "no SPDX-License-Identifier: Apache-2.0"


def is_script(tree, path):
    return "." not in path.rsplit("/", 1)[-1] and tree.text(path).startswith("#!")


@rule("files open with a comment that says why they are so",
      {"b/a.c": "/* SPDX */\n#include <x.h>\n"}, {"b/a.h": "/* SPDX */\n/* b.h — wrong name */\n"})
def opening_essay(tree):
    for path in tree.paths(*CODE):
        name = path.rsplit("/", 1)[-1]
        comments = [t for t in tokenize(tree.text(path))[:2] if t.kind == "comment"]
        if len(comments) < 2 or not comments[1].text.startswith(f"/* {name} — "):
            yield path, 2, f'the second comment must begin with "/* {name} — " and say why'


# ---- functions ----


@rule("functions ≤ 70 lines, ≤ 6 parameters, nesting ≤ 4",
      {"a.c": "int f(void)\n{\n" + "    g();\n" * 70 + "}\n"},
      {"a.c": "int f(int a, int b, int c, int d, int e, int (*f)(int, int), int g) { return 0; }"},
      {"a.c": "void f(void) { if (a) { for (;;) { do { if (b) { if (c) { g(); } } } while (1); } } }"},
      {"t.h": 'extern "C" {\nint f(int a, int b, int c, int d, int e, int g, int h) { return 0; }\n}'})
def function_size(tree):
    for path in tree.paths(*CODE):
        limit = CUDA_LINES if path.endswith(".cu") else FUNCTION_LINES
        for f in tree.functions(path):
            if f.lines > limit:
                yield path, f.line, f"{f.name} has {f.lines} lines, at most {limit}"
            if f.parameters > PARAMETERS and not path.endswith(".cu"):
                yield path, f.line, f"{f.name} has {f.parameters} parameters, at most {PARAMETERS}"
            if f.nesting > NESTING:
                yield path, f.line, f"{f.name} nests {f.nesting} blocks deep, at most {NESTING}"


@rule("no #if inside functions", {"a.c": "int f(void)\n{\n#ifdef X\n    g();\n#endif\n}\n"})
def conditional_in_function(tree):
    for path in tree.paths(*CODE):
        for f in tree.functions(path):
            for line, text in f.directives:
                if re.match(r"#\s*(if|el|endif)", text):
                    yield path, line, f"{text.split()[0]} inside {f.name}"


@rule("no goto, but one forward `out:` in clients/libmemd",
      {"memory/a.c": "int f(void) { goto out; out: return 0; }"},
      {"clients/libmemd/a.c": "int f(void) { goto again; again: return 0; }"})
def no_goto(tree):
    for path in tree.paths(*CODE):
        for f in tree.functions(path):
            for token, after in zip(f.body, f.body[1:]):
                allowed = path.startswith("clients/libmemd/") and after.text == "out"
                if token.text == "goto" and not allowed:
                    yield path, token.line, f"goto {after.text} in {f.name}"


@rule("banned calls", {"memory/a.c": "void f(void) { strcpy(a, b); }"},
      {"memory/a.c": "void f(void) { exit(1); }"}, {"tests/a.c": "void f(void) { system(x); }"})
def banned_calls(tree):
    for path in tree.paths(*CODE):
        for f in tree.functions(path):
            for name, line in calls(f.body):
                allowed = name in ("exit", "_exit", "abort") and re.fullmatch(MAY_EXIT, path)
                if name in BANNED and not allowed and not (name == "rand" and path.startswith("examples/")):
                    yield path, line, f"{name}() in {f.name}: use {BANNED[name]}"


@rule("libraries do not print", {"memory/a.c": 'void f(void) { printf("x"); }'},
      {"base/a.c": "void f(void) { fputs(x, stderr); }"})
def library_prints(tree):
    for path in tree.paths(*CODE):
        if re.fullmatch(MAY_PRINT, path):
            continue
        for f in tree.functions(path):
            for name, line in calls(f.body):
                if name in PRINTS:
                    yield path, line, f"{name}() in {f.name}: libraries return errors, daemon/ logs"


@rule("nothing sleeps, tests least of all (asking another process again after ≤ 50 ms is no sleep)",
      {"tests/a.c": "void f(void) { usleep(10); }"}, {"tests/a.py": "time.sleep(1)\n"},
      {"tests/a.py": "time.sleep(seconds)\n"}, {"daemon/a.c": "void f(void) { nanosleep(&t, NULL); }"})
def sleeping(tree):
    for path in tree.paths(*CODE):
        for f in tree.functions(path):
            for name, line in calls(f.body):
                if name in SLEEPS:
                    yield path, line, f"{name}() in {f.name}: wait for the event itself"
    for path, number, line in tree.lines(".py"):
        if path.startswith("tests/") and path != "tests/tidy.py":
            if re.search(r"\btime\.sleep\((?!0\.0[0-5]\d*\))|^from time import.*\bsleep\b", line):
                yield path, number, "time.sleep in a test: wait for the event itself"


# ---- who may know whom ----


@rule("includes go from the root, exist, and only to the left",
      {"base/a.c": '#include "memory/b.h"\n', "memory/b.h": ""},
      {"clients/libmemd/a.c": '#include "attention/b.h"\n', "attention/b.h": ""},
      {"memory/a.c": '#include "b.h"\n', "memory/b.h": ""}, {"base/a.c": '#include "base/gone.h"\n'})
def folder_order(tree):
    for path in tree.paths(*CODE):
        top = path.split("/")[0]
        for number, mark, name in tree.includes(path):
            target = name.split("/")[0]
            if mark != '"' or name == "memd.pb-c.h":
                continue
            if path.startswith(PUBLIC) and PUBLIC + name in tree.files:
                continue  # installed headers find each other in their folder
            if name not in tree.files:
                yield path, number, f'"{name}" is not a file of the repository (includes go from the root)'
            elif not may_include(top, target):
                yield path, number, f"{top}/ may not include {target}/ (order: {' '.join(FOLDERS)})"


def may_include(top, target):
    if top == target or top == "tests":
        return True
    if top == "clients":
        return target in ("base", "proto")
    if top == "examples":
        return target == "clients"
    return target in FOLDERS and top in FOLDERS and FOLDERS.index(target) <= FOLDERS.index(top)


@rule("headers include each other without a cycle",
      {"base/a.h": '#include "base/b.h"\n', "base/b.h": '#include "base/a.h"\n'})
def include_cycle(tree):
    graph = {p: [n for _, m, n in tree.includes(p) if m == '"' and n in tree.files]
             for p in tree.paths(".h", ".cuh")}
    done = set()

    def visit(path, trail):
        if path in trail:
            return trail[trail.index(path):] + [path]
        if path in done:
            return None
        done.add(path)
        return next(filter(None, (visit(n, trail + [path]) for n in graph.get(path, []))), None)

    for path in graph:
        if cycle := visit(path, []):
            yield path, 1, "cycle: " + " → ".join(cycle)


@rule("each third-party library has one home", {"memory/context.c": "#include <lmdb.h>\n"},
      {"memory/a.c": "#include <uv.h>\n"}, {"daemon/a.c": "#include <protobuf-c/protobuf-c.h>\n"},
      {"memory/format.c": "#include <xxhash.h>\n", "memory/checksum.c": "#include <xxhash.h>\n"},
      {"daemon/a.c": "void f(void) { memd__open_request__unpack(a, b, c); }"},
      {"memory/a.c": '#include "memd.pb-c.h"\n'})
def library_homes(tree):
    hashers = []
    for path in tree.paths(*CODE):
        for number, _, name in tree.includes(path):
            for header, home in HOMES.items():
                if re.fullmatch(header, name) and not re.fullmatch(home, path):
                    yield path, number, f"<{name}> belongs to {home}"
            if name == "xxhash.h":
                hashers.append((path, number))
            if name == "memd.pb-c.h" and path.split("/")[0] not in ("proto", "daemon", "clients", "tests"):
                yield path, number, "messages are unknown here"
        if not re.match(r"proto/message\.c|tests/", path):
            for f in tree.functions(path):
                for name, line in calls(f.body):
                    if re.match(r"protobuf_c_|memd__\w+__(un)?pack|memd__\w+__get_packed|memd__\w+__free", name):
                        yield path, line, f"{name}() outside proto/message.c"
    for path, number in hashers[1:]:
        yield path, number, f"<xxhash.h> is at home in {hashers[0][0]} already"


@rule("magic numbers differ",
      {"a.h": "#define A_MAGIC UINT32_C(0x41414141)\n", "b.h": "#define B_MAGIC 0x41414141u\n"},
      {"a.c": "enum { A_MAGIC = 0x1 };\n", "b.c": "enum { B_MAGIC = 0x1 };\n"})
def unique_magics(tree):
    seen = {}
    for path, number, line in tree.lines(".c", ".h"):
        for match in re.finditer(r"\b(\w*MAGIC\w*)\s*=?\s*(?:UINT32_C|UINT64_C)?\(?(0[xX][0-9a-fA-F]+)", line):
            if path.startswith("tests/"):
                continue
            value = int(match[2], 16)
            if value in seen and seen[value] != match[1]:
                yield path, number, f"{match[1]} has the value of {seen[value]}"
            seen.setdefault(value, match[1])


# ---- what lies around ----


def is_picture(path, data):
    """What a document shows; tests/bench/retrieval/plot.py makes it."""
    return re.fullmatch(r"docs/img/\w+\.png", path) and data.startswith(b"\x89PNG\r\n")


@rule(f"no binary, generated or large files (> {FILE_KBYTES} KB)", {"a.c": "x" * 66000},
      {"a.o": "\0\0"}, {"docs/img/a.png": "\0\0"}, {"a.c": "/* Generated by x. DO NOT EDIT */\n"})
def foreign_files(tree):
    for path, data in sorted(tree.files.items()):
        limit = DATA_KBYTES if path.startswith(DATA) else FILE_KBYTES
        if len(data) > limit * 1024:
            yield path, 1, f"{len(data) // 1024} KB, at most {limit}"
        if b"\0" in data and not path.startswith(DATA) and not is_picture(path, data):
            yield path, 1, "binary file"
        if re.search(rb"(?i)do not " + b"edit|generated " + b"by", data[:400]):
            yield path, 1, "generated file"


@rule("every source is built, every header is included, every meson.build is entered",
      {"memory/a.c": "", "memory/meson.build": "static_library('b.c')"},
      {"memory/a.h": "", "memory/meson.build": ""}, {"tests/daemon/test_a.py": "", "meson.build": "'b'"},
      {"meson.build": "subdir('base')", "base/x/meson.build": ""})
def dead_files(tree):
    builds = {p: tree.text(p) for p in tree.files if p.endswith("meson.build")}
    text = "\n".join(builds.values())
    included = {n for p in tree.paths(*CODE) for _, m, n in tree.includes(p)}
    for path in tree.paths(".c", ".cu", ".cpp", ".py"):
        name = path.rsplit("/", 1)[-1]
        if name.endswith(".py") and not re.match(r"tests/.*/test_", path):
            continue
        if not re.search(rf"(?<![\w]){re.escape(name)}\b", text) and not built_by_name(path, text):
            yield path, 1, "in no meson.build"
    for path in tree.paths(".h", ".cuh"):
        if path not in included and not path.startswith("clients/include/"):
            yield path, 1, "included by nobody"
    for path in builds:
        folder = path.removesuffix("meson.build").rstrip("/")
        if folder and not any(entered(folder, p, t) for p, t in builds.items()):
            yield path, 1, "no meson.build enters this folder"


def built_by_name(path, text):
    """Built by a loop over names: `'test_' + name + '.c'` with 'name' in a list."""
    stem = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    for prefix in ("test_", "fuzz_", "fault_", "op_", "cmd_", "recall_", "bench_"):
        if stem.startswith(prefix) and f"'{prefix}' + " in text:
            return re.search(rf"'{re.escape(stem.removeprefix(prefix))}'", text) is not None
    return False


def entered(folder, path, text):
    parent = path.removesuffix("meson.build").rstrip("/")
    if parent == folder or not (folder + "/").startswith(parent + "/" if parent else ""):
        return False
    relative = folder[len(parent):].lstrip("/")
    return re.search(rf"subdir\(\s*'{re.escape(relative)}/?'", text) is not None


@rule("no private paths, no open ends", {"a.md": "see /wor" + "k/main/x\n"}, {"a.c": "/* TO" + "DO: x */\n"},
      {"a.py": "# FIX" + "ME later\n"}, {"a.h": "#if 0\nint a;\n#endif\n"})
def open_ends(tree):
    marks = r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b(?!\(#\d+\))"
    for path, data in sorted(tree.files.items()):
        if path.startswith(DATA) or b"\0" in data or path == "LICENSE":
            continue
        for number, line in enumerate(tree.text(path).splitlines(), 1):
            if re.search(r"/wor" + r"k/|/ro" + r"ot/|/ho" + r"me/\w", line):
                yield path, number, "path of one machine"
            if re.search(marks, line):
                yield path, number, "open end without an issue number: TO" + "DO(#12)"
            if path.endswith(CODE) and re.match(r"#\s*if\s+0\b", line):
                yield path, number, "code that is switched off"


@rule("files that the text mentions exist", {"a.c": "/* tests/unit/test_gone.c */\n"},
      {"README.md": "see `docs/GONE.md`\n"})
def mentioned_files(tree):
    pattern = (r"(?<![\w/.$*-])((?:base|proto|attention|index|memory|daemon|clients|tests|docs|scripts|man|"
               r"examples)/[\w/-]+\.(?:c|h|cu|md|py|proto|sh|build|\d))(?![\w*])")
    for path, data in sorted(tree.files.items()):
        if path.startswith((*DATA, "docs/decisions/", "tests/tidy.py")) or b"\0" in data:
            continue
        for number, line in enumerate(tree.text(path).splitlines(), 1):
            for name in re.findall(pattern, line):
                stem = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
                if name not in tree.files and not re.search(r"(?:^|_)(?:x|NAME|isa|m)$", stem):
                    yield path, number, f"{name} does not exist"


# ---- documents agree with the code ----


def x_map(text, name):
    """Rows of an X-macro list: [[argument, …], …]."""
    match = re.search(rf"#define {name}\(X\)((?:.*\\\n)*.*)", text)
    rows = re.findall(r'X\(((?:[^()"]|"[^"]*")*)\)', match[1]) if match else []
    return [[a.strip().strip('"') for a in re.split(r',\s*(?=(?:[^"]*"[^"]*")*[^"]*$)', r)] for r in rows]


def table_rows(text):
    """Cells of every Markdown table row, without markup."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [re.sub(r"[`*]", "", cell).strip() for cell in line.strip().strip("|").split("|")]


@rule("every error code is in docs/PROTOCOL.md with its number, and raised in some test",
      {"base/error.h": '#define ERROR_MAP(X) \\\n    X(EINVAL, -1, "no")\n', "docs/PROTOCOL.md": ""},
      {"base/error.h": '#define ERROR_MAP(X) \\\n    X(EINVAL, -1, "no")\n',
       "docs/PROTOCOL.md": "| -1 | MEMD_EINVAL |\n", "tests/unit/test_error.c": "MEMD_EINVAL"})
def error_codes(tree):
    rows = list(table_rows(tree.text("docs/PROTOCOL.md")))
    tests = "\n".join(tree.text(p) for p in tree.files
                      if p.startswith("tests/") and p not in ("tests/unit/test_error.c", "tests/tidy.py"))
    for name, value, *_ in x_map(tree.text("base/error.h"), "ERROR_MAP"):
        if not any(value in (c.replace("−", "-") for c in row) and f"MEMD_{name}" in row for row in rows):
            yield "docs/PROTOCOL.md", 1, f"no table row with {value} and MEMD_{name}"
        if name not in NOT_RAISED and not re.search(rf"\b(MEMD_)?{name}\b", tests):
            yield "base/error.h", 1, f"MEMD_{name} is raised in no test"


@rule("every request kind is in docs/PROTOCOL.md with its number",
      {"proto/method.h": "#define METHOD_MAP(X) \\\n    X(HELLO, 1, hello, Hello, ROLE_NONE)\n"})
def method_table(tree):
    rows = [[c.lower() for c in row] for row in table_rows(tree.text("docs/PROTOCOL.md"))]
    for _, number, name, *_ in x_map(tree.text("proto/method.h"), "METHOD_MAP"):
        if not any(number in row and name in row for row in rows):
            yield "docs/PROTOCOL.md", 1, f"no table row with {number} and {name}"


def constants(text):
    """Values of `#define NAME integer expression` and of enumerators with one."""
    found = {}
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    pairs = re.findall(r"^#define (\w+) ([^\n]+)$", text, re.M)
    pairs += re.findall(r"\b([A-Z]\w+)\s*=\s*([^,}\n]+)", text)
    for name, value in pairs:
        value = re.sub(r"U?INT(?:32|64)_C\((\w+)\)", r"\1", value)
        value = re.sub(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]*\b", r"\1", value)
        if re.fullmatch(r"[\d\s()a-fA-FxX<>*+/-]+", value):
            try:
                found[name] = int(eval(value.replace("/", "//"), {"__builtins__": {}}))
            except (SyntaxError, NameError, TypeError):
                continue
    return found


def numbers(cells):
    """Integers that the cells of a table row spell: 64, 4,194,304, 0x41, 4 MiB, 2^32, 2³²."""
    units = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
    for cell in cells:
        for text, unit in re.findall(r"(0x[0-9a-fA-F]+|\d[\d,]*)\s*(KiB|MiB|GiB|TiB)?", cell):
            yield int(text.replace(",", ""), 0) * units.get(unit.lower(), 1)
        yield from (2 ** int(e) for e in re.findall(r"2\^(\d+)", cell))
        yield from (2 ** int(e.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")))
                    for e in re.findall(r"2([⁰¹²³⁴⁵⁶⁷⁸⁹]+)", cell))


def compare_table(tree, header, document, strip):
    """Each constant of the header stands in a table row of the document, with or without its prefix."""
    known = {n: v for n, v in constants(tree.text(header)).items() if n.startswith(strip)}
    rows = list(table_rows(tree.text(document)))
    for name, value in known.items():
        named = [row for row in rows if name in row or name.removeprefix(strip) in row]
        if not named:
            yield document, 1, f"{name} = {value} ({header}) is in no table"
        if named and not any(value in numbers(row) for row in named):
            yield document, 1, f"{name} is {value} in {header}, the table says {named[0]}"


@rule("the limits in docs/PROTOCOL.md are those of proto/limits.h",
      {"proto/limits.h": "#define LIMIT_A (UINT32_C(4) << 20)\n", "docs/PROTOCOL.md": "| LIMIT_A | 4 KiB |\n"},
      {"proto/limits.h": "#define LIMIT_A 64u /* x */\n"})
def limits_table(tree):
    yield from compare_table(tree, "proto/limits.h", "docs/PROTOCOL.md", "LIMIT_")


@rule("the constants in docs/FORMAT.md are those of memory/format.h",
      {"memory/format.h": "#define FORMAT_VERSION 2\n", "docs/FORMAT.md": "| FORMAT_VERSION | 1 |\n"},
      {"memory/format.h": "enum { FORMAT_KIND_A = 3 };\n", "docs/FORMAT.md": ""})
def format_table(tree):
    yield from compare_table(tree, "memory/format.h", "docs/FORMAT.md", "FORMAT_")


@rule("every configuration key is in memd.conf.5, with its default",
      {"daemon/options.c": '    { "socket", OPTION_TEXT, FIELD(socket), "/run/x", 0 },\n', "man/memd.conf.5": ""},
      {"daemon/options.c": '    { "sync", OPTION_SYNC, FIELD(sync), "never", 0 },\n',
       "man/memd.conf.5": ".B sync\ndefault always\n"})
def configuration_keys(tree):
    manual = next((p for p in tree.files if re.search(r"memd\.conf\.5(\.in)?$", p)), "man/memd.conf.5")
    text = re.sub(r"\\f.|\\&", "", tree.text(manual).replace("\\-", "-"))
    for key, default in re.findall(r'\{ "(\w+)",\s*OPTION_\w+,\s*FIELD\(\w+\),\s*"([^"]*)"',
                                   tree.text("daemon/options.c")):
        if not re.search(rf"(?<!\w){re.escape(key)}(?!\w)", text):
            yield manual, 1, f"{key} (daemon/options.c) is not described"
        elif default not in text:
            yield manual, 1, f'the default of {key}, "{default}", is not named'


@rule("decisions have a number each, the same in name and title",
      {"docs/decisions/0001-a.md": "# 0001 — A\n", "docs/decisions/0001-b.md": "# 0001 — B\n"},
      {"docs/decisions/0002-a.md": "# 0001 — A\n"}, {"a.c": "/* decisions/0009 */\n"})
def decisions(tree):
    names = [p for p in sorted(tree.files) if p.startswith("docs/decisions/")]
    numbers_used = [p.rsplit("/", 1)[-1][:4] for p in names]
    for path, number in zip(names, numbers_used):
        if numbers_used.count(number) > 1 or not tree.text(path).startswith(f"# {number} — "):
            yield path, 1, f"{number} is taken twice, or the title has another number"
    for path, line, text in tree.lines(*CODE, ".md"):
        for number in re.findall(r"decisions/(\d{4})", text):
            if number not in numbers_used and path != "tests/tidy.py":
                yield path, line, f"there is no decision {number}"


# ---- running ----


def read_tree(root):
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z", "--cached", "--others",
                             "--exclude-standard"], capture_output=True, check=False)
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else [
        str(p.relative_to(root)) for p in root.rglob("*") if ".git" not in p.parts]
    return Tree({n: (root / n).read_bytes() for n in names if n and (root / n).is_file()})


def self_test():
    failures = 0
    good = {"base/a.c": "/* SPDX-License-Identifier: Apache-2.0 */\n/* a.c — why. */\n"
                        "static int f(int a)\n{\n    return a;\n}\n",
            "base/meson.build": "'a.c'", "meson.build": "subdir('base')"}
    for name, _, function, bad in RULES:
        for i, files in enumerate(bad):
            if not list(function(as_tree(files))):
                failures += 1
                print(f"{name}: bad example {i} was accepted")
        for path, line, text in function(as_tree(good)):
            failures += 1
            print(f"{name}: good example refused: {path}:{line}: {text}")
        if not bad:
            failures += 1
            print(f"{name}: has no bad example")
    examples = sum(len(bad) for *_, bad in RULES)
    print(f"{len(RULES)} rules, {examples} bad examples, {failures} failures")
    return 1 if failures else 0


def as_tree(files):
    return Tree({path: text.encode() for path, text in files.items()})


def main(arguments):
    if arguments == ["--self-test"]:
        return self_test()
    tree = read_tree(pathlib.Path(__file__).resolve().parent.parent)
    found = 0
    for name, demand, function, _ in RULES:
        findings = list(function(tree))
        found += len(findings)
        if findings:
            print(f"\n{name}: {demand}")
        for path, line, text in findings:
            print(f"  {path}:{line}: {text}")
    print(f"{len(RULES)} rules over {len(tree.files)} files, {found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
