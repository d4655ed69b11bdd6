#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build base, the kernels and their tests for AArch64 with a cross compiler and run them under qemu-user: the
# NEON twins are tested on every machine. Static, so that qemu needs no foreign libc. Exit 77: tools missing.
# Each source is compiled once for all tests, and compilers and tests run on all processors.
set -eu
cd "$(dirname "$0")/../.."
cc=${AARCH64_CC:-aarch64-linux-gnu-gcc}
emulator=${AARCH64_EMULATOR:-qemu-aarch64}
for tool in "$cc" "$emulator"; do
    command -v "$tool" >/dev/null || { echo "neon.sh: no $tool, skipped"; exit 77; }
done
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
base="base/cpu.c base/error.c base/half.c base/text.c"
attention="attention/backend.c attention/rope.c attention/softmax.c
    attention/kernels/partial.c attention/kernels/partial_neon.c
    attention/kernels/rotate.c attention/kernels/rotate_neon.c
    attention/kernels/score.c attention/kernels/score_neon.c"
planes="index/backend.c"
for op in turn score centroid dot above rank estimate soften weigh means miss row; do
    planes="$planes index/kernels/plane_$op.c index/kernels/plane_${op}_neon.c"
done
coding="index/encode_backend.c index/rotation.c index/kernels/encode.c index/kernels/encode_neon.c"

at_once() {  # at_once SCRIPT: for each line of the input, with $1 the line, on all processors
    export cc emulator out
    xargs -P "$(nproc)" -n 1 sh -eu -c "$1" sh
}

# shellcheck disable=SC2086,SC2016
printf '%s\n' $base $attention $planes $coding | at_once '
    "$cc" -std=c17 -D_GNU_SOURCE -O2 -Wall -Wextra -Wconversion -Werror -I. -c "$1" \
        -o "$out/$(echo "$1" | tr / _).o"'
# shellcheck disable=SC2016
printf '%s\n' partial score rotate plane clusters dot miss encode | at_once '
    "$cc" -std=c17 -D_GNU_SOURCE -O2 -Wall -Wextra -Wconversion -Werror -I. -static \
        "tests/kernels/test_$1.c" "$out"/*.o -lm -o "$out/test_$1"
    "$emulator" "$out/test_$1" >"$out/log_$1" 2>&1 || { cat "$out/log_$1"; exit 1; }
    echo "test_$1 (AArch64): $(tail -n 1 "$out/log_$1")"'
