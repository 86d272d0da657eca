#!/usr/bin/env bash
# The whole test suite on a fresh machine: dependencies, build, tests (those of the host with sanitizers), formatting,
# analysis.
# Steps whose tool is missing (nvcc, clang) are left out, and the last lines say so.
set -euo pipefail
cd "$(dirname "$0")/.."

jobs=${JOBS:-$(nproc)}
left_out=()
step() {
  printf '\n== %s (%d s)\n' "$*" "$SECONDS"
}

step "Dependencies"
bash cmake/setup.sh all
if command -v nvcc >/dev/null || [[ -e /usr/local/cuda/bin/nvcc ]]; then
  bash cmake/get_flashinfer.sh --optional build/flashinfer
  [[ -e build/flashinfer ]] || left_out+=("FlashInfer's kernels on our pages: its headers cannot be had")
fi

step "Build, preset ci"
cmake --preset ci -DHEADAWARE_LLAMA=AUTO
cmake --build --preset ci --parallel "$jobs"

step "Tests"
ctest --preset ci --parallel "$jobs"
cp build/ci/Testing/Temporary/LastTest.log build/ci/tests.log

if compgen -G "tests/fuzz/fuzz_*.cpp" >/dev/null; then
  if command -v clang++ >/dev/null; then
    step "Fuzzing, ten seconds a target"
    cmake --preset fuzz >/dev/null
    cmake --build --preset fuzz --parallel "$jobs" --target fuzz_tests
    ctest --preset fuzz --parallel "$jobs"
  else
    left_out+=("fuzzing: no clang++")
  fi
fi

targets=$(cmake --build build/ci --target help)
# check <target> <tool>: a target of Development.cmake, which exists where its tool was found.
check() {
  if grep -q "^$1:" <<<"$targets"; then
    step "Target $1"
    cmake --build build/ci --target "$1" --parallel "$jobs"
  else
    left_out+=("$1: no $2")
  fi
}
check format-check "clang-format 14"
check tidy clang-tidy
check docs doxygen

if command -v codespell >/dev/null; then
  step "Spelling"
  codespell --skip ./build,./.git,./results,./examples/data/text
else
  left_out+=("spelling: no codespell")
fi

step "Result"
if ((${#left_out[@]} > 0)); then
  printf 'left out: %s\n' "${left_out[@]}"
fi
where=""
grep -q '^HEADAWARE_CUDA_EMULATOR:PATH=.' build/ci/CMakeCache.txt && where=" on the emulator"
# The test programs end with lines such as "device: 12 passed, 0 failed, 3 skipped (no CUDA device)".
awk -v where="$where" '
  /^(host|device|llama): [0-9]+ passed, [0-9]+ failed, [0-9]+ skipped/ {
    kind = $1; sub(":", "", kind)
    passed[kind] += $2; failed[kind] += $4; skipped[kind] += $6
    if (match($0, /\(.*\)/)) reason[kind] = " " substr($0, RSTART, RLENGTH)
  }
  END {
    for (kind in passed) {
      ran = passed[kind] + failed[kind]
      place = (kind == "device" && ran > 0) ? where : ""
      printf "%s test cases: %d ran%s, %d skipped%s\n", kind, ran, place, skipped[kind], reason[kind]
      p += passed[kind]; f += failed[kind]; s += skipped[kind]
    }
    printf "%d passed, %d failed, %d skipped\n", p, f, s
  }' build/ci/tests.log
