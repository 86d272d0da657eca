#!/usr/bin/env bash
# check_compress.sh <compress_cache> <analyze_attention> <capture> <folder>: every form, from arrays and without.
name=commands
source "$(dirname "$0")/../support/check.sh"
program=$1
capture=$3
folder=$4
rm -rf "$folder"
"$2" --model "$capture" --output_dir "$folder" --no_retention >/dev/null 2>&1

run() {  # run <text> <arguments>...
  check_exit 0 "$1" "$program" --results_dir "$folder" "${@:2}"
  for form in ragged "padded left" "padded right" grouped paged "in place"; do
    grep -q "^  $form .* rows checked" "$folder/log" || fail "$form was not checked: $*"
  done
}
run "4 layers, 9 query heads, 3 KV heads, head_dim 64" --capture "$capture"
run "the model's layers 0 10 18 29" --capture "$capture" --mixed aggressive --skip_layers 0,3
run "a numbered cache" --tokens 300 --kv_heads 3 --head_dim 40
# Encoded rows of one pair of formats over any policies; skipped layers stay in 16 bits.
packed() {  # packed <text> <arguments>...
  check_exit 0 "$1" "$program" --results_dir "$folder" "${@:2}"
  for form in ragged "padded left" "padded right" grouped; do
    grep -q "^  $form .* rows checked against their source, encoded$" "$folder/log" || fail "$form was not checked: $*"
  done
}
packed "  packed5/packed4           12" --capture "$capture" --formats packed5/packed4
grep -Eq "^rounding loses 0[.][0-9]+% of the kept keys' squares, 0[.][0-9]+% of the values'$" "$folder/log" ||
  fail "no word on rounding: $(cat "$folder/log")"
packed "  fp16/fp16                  6" --capture "$capture" --formats int8 --skip_layers 0,3
grep -q "^  int8/int8                  6$" "$folder/log" || fail "other formats: $(cat "$folder/log")"
# 300 rows of 3 heads, 80 bytes each: blocks of 64 channels, 44 and 36 bytes.
packed "       0        300        300        300.0            72000" --tokens 300 --kv_heads 3 --head_dim 40 \
  --formats packed5/packed4
grep -q "rounding loses" "$folder/log" && fail "numbers that are no model's lose something"
run "4 layers" --capture "$capture" --formats 16
# Classes of another model than the capture's.
if command -v python3 >/dev/null; then
  python3 - "$folder" <<'PY'
import json, sys
path = sys.argv[1]
data = json.load(open(path + "/head_classifications.json"))
data["classifications"] = [c for c in data["classifications"] if c["head_idx"] < 6]
json.dump(data, open(path + "/narrow.json", "w"))
PY
  check_exit error "query heads of the capture" "$program" --classifications "$folder/narrow.json" --capture "$capture"
fi
check_exit error "classifications" "$program" --results_dir "$folder/none"
refused() { check_exit error "$1" "$program" --results_dir "$folder" "${@:2}"; }  # refused <text> <arguments>...
refused "--tokens" --tokens 2000000000
refused "at most the machine's memory" --tokens 16000000 --kv_heads 9 --head_dim 100000
refused "a plan (" --plan "$folder/head_classifications.json"
refused "expected one of fp16, bf16" --formats packed9
refused "one pair" --formats measured
refused "classes of heads" --classifications "$folder/analysis.json"
echo "commands: compress_cache does what it should"
