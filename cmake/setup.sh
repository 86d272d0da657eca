#!/usr/bin/env bash
# Installs what building headaware and its tests needs and this machine lacks. Debian and Ubuntu; elsewhere it
# says what to install.
set -euo pipefail

missing=()
why=()
required=0
want() {  # want <package> <what it is for>
  missing+=("$1")
  why+=("  $1: $2")
}
need() {  # the same for what nothing works without
  want "$@"
  required=1
}
has_header() {
  if command -v g++ >/dev/null; then
    g++ -E -x c++ - <<<"#include <$1>" >/dev/null 2>&1
  else
    [[ -e /usr/include/$1 ]]
  fi
}

has_library() {
  g++ -shared -o /dev/null -x c++ /dev/null "-l$1" >/dev/null 2>&1
}

cmake_version=$(cmake --version 2>/dev/null | sed -n 's/^cmake version \([0-9.]*\).*/\1/p' || true)
if [[ -z $cmake_version ]]; then
  need cmake "3.25.1 or later"
elif [[ $(printf '%s\n' 3.25.1 "$cmake_version" | sort -V | head -n 1) != 3.25.1 ]]; then
  echo "setup: CMake $cmake_version is too old: 3.25.1 or later is needed, for example from 'pip install cmake'" >&2
  exit 1
fi
command -v ninja >/dev/null || need ninja-build "build tool of the presets"
command -v g++ >/dev/null || need g++ "C++20: version 12 or later"
has_header nlohmann/json.hpp || need nlohmann-json3-dev "JSON files of the commands and tests (nlohmann/json)"
has_header catch2/catch_all.hpp || has_header catch2/catch.hpp || need catch2 "tests (Catch2, version 2 or 3)"
has_header benchmark/benchmark.h || need libbenchmark-dev "benchmarks (Google Benchmark)"
has_header CLI/CLI.hpp || need libcli11-dev "command lines of the examples (CLI11)"
has_header eigen3/Eigen/Core || need libeigen3-dev "row scores of the llama.cpp examples (Eigen)"
has_header dlpack/dlpack.h || want libdlpack-dev "DLPack tensors, optional (DLPack)"
command -v gnuplot >/dev/null || want gnuplot-nox "pictures of a model's heads, optional (gnuplot)"
if [[ ${1-} == all ]]; then
  has_library openblas || want libopenblas-dev "benchmarks beside a BLAS, optional"
  command -v mpirun >/dev/null || want openmpi-bin "example of several processes, optional (Open MPI)"
  command -v mpicxx >/dev/null || want libopenmpi-dev "example of several processes, optional (Open MPI)"
  command -v g++-11 >/dev/null || ! grep -qE '^VERSION_ID="(12|22.04)"' /etc/os-release ||  # where it is packaged
    want g++-11 "test of the headers with the oldest compiler, optional (g++ 11)"
  python3 -m pip --version >/dev/null 2>&1 || want python3-pip "source of llama.cpp, FlashInfer's headers and small models, optional (pip)"
  command -v doxygen >/dev/null || want doxygen "API reference and its check, optional (Doxygen)"
  command -v codespell >/dev/null || want codespell "spelling check, optional (codespell)"
  command -v chromium >/dev/null || command -v google-chrome >/dev/null ||
    want chromium "test of the report as a browser shows it, optional (Chromium)"
fi

if ((${#missing[@]} == 0)); then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "setup: this machine lacks (names of Debian's packages):" >&2
  printf '%s\n' "${why[@]}" >&2
  echo "setup: install them with your package manager; the libraries are fetched by CMake where they are missing" >&2
  exit "$required"
fi

root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "setup: to be run as root: apt-get install ${missing[*]}" >&2
    exit "$required"
  fi
  root=(sudo)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "setup: installing ${missing[*]}"
install() {
  "${root[@]}" apt-get update -qq &&
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "${missing[@]}"
}
if ! install >"$log" 2>&1 </dev/null; then
  cat "$log" >&2
  exit "$required"
fi
