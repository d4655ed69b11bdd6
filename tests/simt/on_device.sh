#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# on_device.sh — everything that wants a GPU, on the one that is here, in less than ten minutes.
#
#   tests/simt/on_device.sh BUILD [OUT]
#
# BUILD was configured with -Dcuda=enabled, without sanitizers (`meson setup BUILD -Dcuda=enabled && ninja -C BUILD`,
# here or on another machine). OUT, BUILD/on-device if not given, gets a log of each step and `summary`; the last line
# counts. Kernels by the tests of the emulated ones; the same under compute-sanitizer, where there is one: memory,
# hazards in shared memory, barriers; the daemon's own tests with the device, and its answers against the CPU's; then
# tests/bench/cuda, and PyTorch beside it if it is there. What finds no time or no tool is named, never counted as passed;
# without a usable device nothing is run. MEMD_DEVICE_PLUGIN=…/memd-fake.so tries the script itself.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
build=${1:?usage: on_device.sh BUILD [OUT]}
build=$(cd "$build" && pwd) || exit 1
out=${2:-$build/on-device}
plugin=${MEMD_DEVICE_PLUGIN:-$build/attention/cuda/memd-cuda.so}
budget=${MEMD_ON_DEVICE_SECONDS:-570}
passed=0 failed=0 left_out=0
mkdir -p "$out" && rm -f "$out"/*.log && : >"$out/summary"

tell() { printf '%s\n' "$*" | tee -a "$out/summary"; }

step() {  # step SECONDS NAME COMMAND…: at most so long, and never past the budget
    local most=$1 name=$2 begin=$SECONDS left=$((budget - SECONDS)) status
    shift 2
    if [ "$left" -lt 5 ]; then
        left_out=$((left_out + 1))
        tell "left out  $name: no time is left"
        return
    fi
    [ "$most" -gt "$left" ] && most=$left
    timeout -k 5 "$most" "$@" >"$out/$name.log" 2>&1 </dev/null
    status=$?
    if [ "$status" -eq 0 ]; then
        passed=$((passed + 1))
        tell "passed    $name, $((SECONDS - begin)) s"
        return
    fi
    failed=$((failed + 1))
    tell "FAILED    $name, $((SECONDS - begin)) s, status $status$([ "$status" -eq 124 ] && echo ": it ran out of time")"
    tail -n 8 "$out/$name.log" | sed 's/^/          | /' | tee -a "$out/summary"
}

leave_out() {
    left_out=$((left_out + 1))
    tell "left out  $1: $2"
}

export MEMD_DEVICE_PLUGIN=$plugin PYTHONDONTWRITEBYTECODE=1
kernels=(rope merge partial gather_partial planes)
[ -f "$plugin" ] || { echo "$plugin is not there: configure with -Dcuda=enabled and build" >&2; exit 2; }
command -v nvidia-smi >/dev/null &&
    tell "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | head -n 1)"
first=$(timeout 120 "$build/tests/simt/on_device_merge" 2>&1)
[ $? -ne 3 ] || { echo "nothing was run: $first" >&2; exit 2; }

for name in "${kernels[@]}"; do step 60 "kernel-$name" "$build/tests/simt/on_device_$name"; done

# The daemon, with the device in its hands.
daemon=(env "MEMD=$build/daemon/memd" MEMD_SYSTEMD=0)
if "$build/daemon/memd" --version >/dev/null 2>&1 && command -v python3 >/dev/null; then
    step 90 daemon-backend "${daemon[@]}" python3 tests/daemon/test_backend.py
    for name in smoke input methods signals builder; do
        step 90 "daemon-$name" "${daemon[@]}" "MEMD_FLAGS=--backend auto --accelerator $plugin --device-window 256" \
            python3 "tests/daemon/test_$name.py"
    done
else
    leave_out daemon "memd or python3 does not start here"
fi

step 120 bench "$build/tests/bench/cuda/bench_cuda" "$plugin"
cat "$out/bench.log" 2>/dev/null || true
if python3 -c 'import torch' 2>/dev/null; then
    step 60 bench-sdpa python3 tests/bench/cuda/sdpa.py
    cat "$out/bench-sdpa.log"
else
    leave_out bench-sdpa "there is no PyTorch"
fi

# Last, since it is what takes longest: memory for all, hazards and barriers where there are some.
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -n "$sanitizer" ]; then
    for name in "${kernels[@]}"; do
        step 60 "memcheck-$name" "$sanitizer" --tool memcheck --error-exitcode 9 "$build/tests/simt/on_device_$name"
    done
    for name in partial gather_partial planes; do
        for tool in racecheck synccheck; do
            step 60 "$tool-$name" "$sanitizer" --tool "$tool" --error-exitcode 9 "$build/tests/simt/on_device_$name"
        done
    done
else
    leave_out compute-sanitizer "it is not installed"
fi

tell "$passed passed, $failed failed, $left_out left out, $SECONDS s; logs in $out"
[ "$failed" -eq 0 ]
