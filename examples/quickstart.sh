#!/usr/bin/env bash
# Builds and runs examples/quickstart.cpp on the CPU; arguments go to it, --help lists them.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/quickstart

bash "$root/cmake/setup.sh"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
[[ -x $build/bin/quickstart ]] || echo "building $build/bin/quickstart ..." >&2
if ! {
  cd "$root" &&
    cmake --preset host -B "$build" -DHEADAWARE_BUILD_TESTS=OFF -DHEADAWARE_BUILD_BENCHMARKS=OFF &&
    cmake --build "$build" --target quickstart &&
    cd "$OLDPWD"
} >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi
"$build/bin/quickstart" "$@"
