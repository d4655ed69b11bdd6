#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# analyse.sh BUILD — clang-tidy (.clang-tidy) over every source file that BUILD, made by clang, compiles.
#
# One analyser that must be silent; a second one soon demands the opposite of the first. Generated code is left
# out. Files are taken one by one, on all processors; each prints its own findings.
#
# Walking the paths of a function is nearly all of the time. Sources of tests are spared it: their paths are run,
# under sanitizers, which is more than guessing which ones there may be. Every other check reads them too.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1
no_paths=-clang-analyzer-*

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

# The analyser must be able to object at all: to a path, and without paths to what stands there.
bad=$(mktemp "${TMPDIR:-/tmp}/analyse.XXXXXX.c")
trap 'rm -f "$bad"' EXIT
must_object() {  # must_object TO OPTION…
    local to=$1
    shift
    if clang-tidy --quiet --config-file=.clang-tidy "$@" "$bad" -- -std=c17 >/dev/null 2>&1; then
        echo "clang-tidy accepts $to: it is not working"
        exit 1
    fi
}
echo 'int f(int n); int f(int n) { int x; if (n > 3) x = 1; return n > 2 ? x : 0; }' >"$bad"
must_object "a value that is not set on one path"
echo 'int f(int n); int f(int n) { if (n > 3); n++; return n; }' >"$bad"
must_object "a condition that decides nothing" --checks="$no_paths"

echo "${#files[@]} files"
# shellcheck disable=SC2016
printf '%s\0' "${files[@]}" |
    xargs -0 -n 1 -P "$(nproc)" sh -c '
        checks=""
        case $2 in tests/*) checks=$1 ;; esac
        clang-tidy --quiet --checks="$checks" -p "$0" "$2" 2>/dev/null || { echo "FAILED $2"; exit 1; }' \
        "$build" "$no_paths"
