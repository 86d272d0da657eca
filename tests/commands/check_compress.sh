#!/usr/bin/env bash
# check_compress.sh <compress_cache> <analyze_attention> <capture> <folder>: every form, from arrays and without.
set -euo pipefail
program=$1
capture=$3
folder=$4
rm -rf "$folder"
"$2" --model "$capture" --output_dir "$folder" --no_retention >/dev/null 2>&1

run() {  # run <text> <arguments>...
  local text=$1
  shift
  "$program" --results_dir "$folder" "$@" >"$folder/log" 2>&1 && grep -qF -- "$text" "$folder/log" || {
    cat "$folder/log" >&2
    echo "commands: expected success and '$text': $*" >&2
    exit 1
  }
  for form in ragged "padded left" "padded right" grouped paged "in place"; do
    grep -q "^  $form .* rows checked" "$folder/log" || { echo "commands: $form was not checked: $*" >&2; exit 1; }
  done
}
run "4 layers, 9 query heads, 3 KV heads, head_dim 64" --capture "$capture"
run "the model's layers 0 10 18 29" --capture "$capture" --mixed aggressive --skip_layers 0,3
run "a numbered cache" --tokens 300 --kv_heads 3 --head_dim 40
# Classes of another model than the capture's.
if command -v python3 >/dev/null; then
  python3 - "$folder" <<'PY'
import json, sys
path = sys.argv[1]
data = json.load(open(path + "/head_classifications.json"))
data["classifications"] = [c for c in data["classifications"] if c["head_idx"] < 6]
json.dump(data, open(path + "/narrow.json", "w"))
PY
  if "$program" --classifications "$folder/narrow.json" --capture "$capture" >"$folder/log" 2>&1; then exit 1; fi
  grep -q "query heads of the capture" "$folder/log"
fi
if "$program" --results_dir "$folder/none" >"$folder/log" 2>&1; then exit 1; fi
grep -q "classifications" "$folder/log"
refused() {  # refused <text> <arguments>...
  local text=$1
  shift
  if "$program" --results_dir "$folder" "$@" >"$folder/log" 2>&1 || ! grep -qF -- "$text" "$folder/log"; then
    cat "$folder/log" >&2
    echo "commands: expected an error and '$text': $*" >&2
    exit 1
  fi
}
refused "--tokens" --tokens 2000000000
refused "at most the machine's memory" --tokens 16000000 --kv_heads 9 --head_dim 100000
refused "a plan (" --plan "$folder/head_classifications.json"
refused "classes of heads" --classifications "$folder/analysis.json"
echo "commands: compress_cache does what it should"
