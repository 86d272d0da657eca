#!/usr/bin/env bash
# check_snippets.sh <document>...: a ```cpp block after `<!-- snippet: path#name -->` has the lines that stand between
# `// [name]` and `// [/name]` in the file, white space aside. Paths start at the folder above this one.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
count=0
for document in "$@"; do
  while IFS='#' read -r path name; do
    source=$(awk -v begin="// [$name]" -v end="// [/$name]" '
      { line = $0; sub(/^[ \t]+/, "", line); sub(/[ \t]+$/, "", line) }
      line == end { inside = 0 } inside { print } line == begin { inside = 1 }' "$root/$path")
    block=$(awk -v marker="<!-- snippet: $path#$name -->" '
      /^```/ && inside { exit } inside { print } index($0, marker) { seen = 1 } /^```cpp/ && seen { inside = 1 }' "$document")
    if [[ -z $source || ${source//[[:space:]]/} != "${block//[[:space:]]/}" ]]; then
      echo "$document: the block after 'snippet: $path#$name' is not what stands there" >&2
      diff -w <(echo "$source") <(echo "$block") >&2 || true
      exit 1
    fi
    count=$((count + 1))
  done < <(sed -n 's/^<!-- snippet: \(.*\) -->$/\1/p' "$document")
done
((count > 0)) || { echo "no snippet in: $*" >&2; exit 1; }
echo "snippets: $count are as in their sources"
