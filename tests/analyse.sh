#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# analyse.sh BUILD — clang-tidy (.clang-tidy) over every source file that BUILD, made by clang, compiles.
#
# One analyser that must be silent; a second one soon demands the opposite of the first. Generated code is left
# out. Files are taken one by one, on all processors; each prints its own findings.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1

command -v clang-tidy >/dev/null || { echo "no clang-tidy; scripts/bootstrap --for check"; exit 1; }
mapfile -t files < <(python3 - "$build/compile_commands.json" "$PWD" <<'PYTHON'
import json, os, sys

commands, root = json.load(open(sys.argv[1])), sys.argv[2]
paths = {os.path.normpath(os.path.join(c["directory"], c["file"])) for c in commands}
relative = {os.path.relpath(p, root) for p in paths if p.endswith(".c")}
print("\n".join(sorted(p for p in relative if not p.startswith(("build", "..")))))
PYTHON
)
[ "${#files[@]}" -gt 0 ] || { echo "$build compiles nothing"; exit 1; }

# The analyser must be able to object at all.
bad=$(mktemp "${TMPDIR:-/tmp}/analyse.XXXXXX.c")
trap 'rm -f "$bad"' EXIT
echo 'int *f(void); int *f(void) { int local = 1; return &local; }' >"$bad"
if clang-tidy --quiet --config-file=.clang-tidy "$bad" -- -std=c17 >/dev/null 2>&1; then
    echo "clang-tidy accepts the address of a dead variable: it is not working"
    exit 1
fi

echo "${#files[@]} files"
printf '%s\0' "${files[@]}" |
    xargs -0 -n 1 -P "$(nproc)" sh -c 'clang-tidy --quiet -p "$0" "$1" 2>/dev/null || { echo "FAILED $1"; exit 1; }' \
        "$build"
