#!/usr/bin/env bash
# FlashInfer's headers (Apache-2.0), for the example and the tests that run its kernels, from the package that a Python package
# index serves. Nothing of them is kept in the project.
#
#   get_flashinfer.sh [--optional] FOLDER   --optional: where they cannot be had, say so and end well
set -euo pipefail

version=0.7.2.post1
wheel=flashinfer_python-$version-py3-none-any.whl
sha256=bfdc18b9e1e4d8d0730fe4343dc0e284cd0c160086de80f99888bc4867922d49

optional=0
if [[ ${1-} == --optional ]]; then
  optional=1
  shift
fi
if (($# != 1)); then
  echo "usage: get_flashinfer.sh [--optional] FOLDER" >&2
  exit 2
fi
stamp=$1/version.txt
if [[ -e $stamp && $(<"$stamp") == "$version" ]]; then
  exit 0
fi
give_up() {
  echo "get_flashinfer: $1" >&2
  exit $((optional ? 0 : 1))
}
# Only a folder that this made is ever replaced.
if [[ -e $1 && ! -e $stamp ]]; then
  give_up "$1: expected nothing or FlashInfer's headers, got something else"
fi
command -v python3 >/dev/null || give_up "no python3, whose pip downloads them"
mkdir -p "$(dirname "$1")"
work=$(mktemp -d "$(dirname "$1")/.flashinfer-XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "get_flashinfer: FlashInfer $version"
python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$work" "flashinfer-python==$version" ||
  give_up "pip cannot download flashinfer-python $version"
[[ -e $work/$wheel ]] || give_up "pip downloaded something else than $wheel"
got=$(sha256sum "$work/$wheel" | cut -d ' ' -f 1)
[[ $got == "$sha256" ]] || give_up "$wheel: SHA256 $got, expected $sha256"
python3 - "$work" "$wheel" "$version" <<'PYTHON' || give_up "$wheel: no headers in it"
import pathlib, sys, zipfile
work, wheel, version = sys.argv[1:]
archive = zipfile.ZipFile(pathlib.Path(work, wheel))
folders = {"flashinfer/data/include/flashinfer/": "include/flashinfer/",
           "flashinfer/data/cccl/libcudacxx/include/": "cccl/libcudacxx/include/",
           f"flashinfer_python-{version}.dist-info/licenses/": "licenses/"}
for source, target in folders.items():
    names = [name for name in archive.namelist() if name.startswith(source) and not name.endswith("/")]
    if not names:
        sys.exit(1)
    for name in names:
        path = pathlib.Path(work, "headers", target + name[len(source):])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive.read(name))
pathlib.Path(work, "headers", "version.txt").write_text(version + "\n")
PYTHON
rm -rf "$1"
mv "$work/headers" "$1"
