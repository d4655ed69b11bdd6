#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build base, the kernels and their tests for AArch64 with a cross compiler and run them under qemu-user: the
# NEON twins are tested on every machine. Static, so that qemu needs no foreign libc. Exit 77: tools missing.
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
for op in turn score centroid above rank estimate soften weigh means row; do
    planes="$planes index/kernels/plane_$op.c index/kernels/plane_${op}_neon.c"
done
coding="index/encode_backend.c index/rotation.c index/kernels/encode.c index/kernels/encode_neon.c"
for test in partial score rotate plane clusters encode; do
    # shellcheck disable=SC2086
    "$cc" -std=c17 -D_GNU_SOURCE -O2 -Wall -Wextra -Wconversion -Werror -I. -static \
        $base $attention $planes $coding "tests/kernels/test_$test.c" -lm -o "$out/test_$test"
    echo "test_$test (AArch64):"
    "$emulator" "$out/test_$test"
done
