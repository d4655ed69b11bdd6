# SPDX-License-Identifier: Apache-2.0
"""Every header compiles alone and twice in one file; the public ones also as C99 and as C++.

A header that only works after another one was included makes the order of includes part of the code. Run by
Meson: header.py ROOT BUILD C-COMPILER [C++-COMPILER]
"""
import pathlib
import subprocess
import sys

FOLDERS = ["base", "proto", "attention", "index", "memory", "daemon", "clients", "tests"]
PUBLIC = ["clients/include/memd.h", "clients/include/memd_methods.h", "clients/include/memd_operation.h",
          "clients/include/memd_region.h"]
C17 = ["-O1", "-std=c17", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion"]
C99 = ["-std=c99", "-pedantic-errors", "-Wall", "-Wextra"]
# Kernels written once for all instruction sets stand on the vector type of one: it is included before them.
TEMPLATES = ("exp.h", "tile.h", "*_tile.h")
CXX = ["-x", "c++", "-std=c++11", "-pedantic-errors", "-Wall", "-Wextra"]


def compile_twice(command, includes, header, before=""):
    """The compiler's complaint about a file that includes `header` twice; empty when there is none."""
    source = f'{before}#include "{header}"\n#include "{header}"\nextern int header_test;\n'
    language = [] if "-x" in command else ["-x", "c"]
    line = [*command, *language, "-Werror", "-fsyntax-only", *(f"-I{i}" for i in includes), "-"]
    done = subprocess.run(line, input=source, text=True, capture_output=True, check=False)
    return "" if done.returncode == 0 else done.stderr or f"exit {done.returncode}"


def main(root, build, c_compiler, cxx_compiler=""):
    root = pathlib.Path(root)
    includes = [root, pathlib.Path(build) / "proto", pathlib.Path(build) / "clients/include"]
    # NEON headers need an ARM compiler: ./check neon compiles them.
    headers = sorted(h for f in FOLDERS for h in (root / f).rglob("*.h") if "neon" not in h.stem)
    templates = {h for name in TEMPLATES for f in ("attention", "index")
                 for h in (root / f / "kernels").glob(name)}
    isa = {"avx2": ["-mavx2", "-mfma", "-mf16c"], "avx512": ["-mavx512f", "-mavx512bw"]}
    trials = []
    for header in headers:
        if header in templates:
            before = '#include "attention/kernels/vec_avx2.h"\n'
            trials.append((header, [c_compiler, *C17, "-Wno-unused-function", *isa["avx2"]], before))
            continue
        extra = next((flags for word, flags in isa.items() if word in header.stem), [])
        trials.append((header, [c_compiler, *C17, *extra], ""))
    for public in (root / name for name in PUBLIC):
        trials.append((public, [c_compiler, *C99], ""))
        if cxx_compiler:
            trials.append((public, [cxx_compiler, *CXX], ""))
    failed = 0
    for header, command, before in trials:
        complaint = compile_twice(command, includes, header, before)
        if complaint:
            failed += 1
            print(f"{header.relative_to(root)} with {' '.join(command)}:\n{complaint}")
    if not compile_twice([c_compiler, *C17], includes, "no/such/header.h"):
        failed += 1
        print("the test itself cannot fail: a missing header was accepted")
    print(f"{len(trials)} compilations of {len(headers)} headers, {failed} failed")
    return 1 if failed or not headers else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
