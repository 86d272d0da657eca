#!/usr/bin/env bash
# check_analysis.sh <analyze_attention> <capture> <folder>: results, interruption, going on, and errors.
set -euo pipefail
program=$1
capture=$2
folder=$3
rm -rf "$folder"
mkdir -p "$folder"
fail() {
  echo "commands: $*" >&2
  exit 1
}
files=(head_statistics.json retention_statistics.json head_classifications.json)

pieces=(--model "$capture" --chunk_size 16 --num_distances 16)
"$program" "${pieces[@]}" --output_dir "$folder/whole" >"$folder/whole.log" 2>&1
for file in "${files[@]}" analysis.json attention_sums.json report.html; do
  [[ -s $folder/whole/$file ]] || fail "no $file"
done
grep -q '"complete": true' "$folder/whole/analysis.json" || fail "a whole analysis does not say so"
grep -q "CLASSIFICATION SUMMARY" "$folder/whole.log" || fail "no summary"

# Interrupted: partial results that say so, from which the rest follows, bit for bit.
interrupted=no
for wait in 0.02 0.03 0.05 0.08 0.13 0.01 0.005 0.2 0.3; do
  rm -rf "$folder/part"
  code=0
  "$program" "${pieces[@]}" --output_dir "$folder/part" >"$folder/part.log" 2>&1 &
  child=$!
  sleep "$wait"
  kill -INT "$child" 2>/dev/null || true
  wait "$child" || code=$?
  if [[ $code == 130 && -s $folder/part/analysis.json ]]; then
    interrupted=yes
    break
  fi
done
if [[ $interrupted == yes ]]; then
  grep -q '"complete": false' "$folder/part/analysis.json" || fail "partial results do not say so"
  grep -q PARTIAL "$folder/part.log" || fail "a partial analysis does not say so"
  "$program" "${pieces[@]}" --output_dir "$folder/part" --resume >"$folder/part.log" 2>&1
  for file in "${files[@]}"; do
    cmp "$folder/whole/$file" "$folder/part/$file" || fail "$file differs after going on"
  done
else
  echo "commands: no interruption came between two pieces of text; resumption was tried on whole results alone"
fi
"$program" "${pieces[@]}" --output_dir "$folder/whole" --resume >/dev/null 2>&1 || fail "nothing left to do is no error"

# Refined classes of an earlier analysis do not stay beside a later one's.
mkdir -p "$folder/whole/validation"
cp "$folder/whole/head_classifications.json" "$folder/whole/validation/refined_classifications.json"
"$program" "${pieces[@]}" --output_dir "$folder/whole" >"$folder/whole.log" 2>&1
[[ ! -e $folder/whole/validation/refined_classifications.json ]] || fail "old refined classes stayed"

# A value that is no number: the rows that see it are left out, and the results say so.
mkdir "$folder/spoiled"
cp "$capture"/* "$folder/spoiled"
printf '\x00\x7e' | dd of="$folder/spoiled/chunk0_v.npy" bs=1 seek=60000 conv=notrunc status=none
"$program" --model "$folder/spoiled" --output_dir "$folder/spoiled_results" >"$folder/log" 2>&1 || fail "a NaN ended the analysis"
grep -q "rows of attention held NaN" "$folder/log" || fail "a NaN was not counted"

expect() {  # expect <text> <arguments>...
  local text=$1
  shift
  if "$program" "$@" >"$folder/log" 2>&1; then fail "no error: $*"; fi
  grep -qF -- "$text" "$folder/log" || { cat "$folder/log" >&2; fail "expected '$text': $*"; }
}
expect "parameters to resume" "${pieces[@]}" --sink_size 2 --output_dir "$folder/whole" --resume
expect "observation to resume" --model "$capture" --chunk_size 32 --num_distances 16 --output_dir "$folder/whole" --resume
mkdir "$folder/changed"
cp "$capture"/* "$folder/changed"
"$program" --model "$folder/changed" --output_dir "$folder/changed_results" >/dev/null 2>&1
printf '\x01' | dd of="$folder/changed/chunk0_q.npy" bs=1 seek=5000 conv=notrunc status=none
expect "observation to resume" --model "$folder/changed" --output_dir "$folder/changed_results" --resume
expect "first_query" --model "$capture" --first_query 600 --output_dir "$folder/none"
expect "at least 10 tokens" --model "$capture" --max_tokens 5 --output_dir "$folder/none"
expect "GGUF file" --model org/name --output_dir "$folder/none"
expect "--plan" --model "$capture" --plan --budget 25% --output_dir "$folder/none"
expect "windows" --model "$capture" --windows 8,4 --output_dir "$folder/none"
expect "NAME_q.npy" --model "$folder" --output_dir "$folder/none"
[[ -z $(ls -A "$folder/none") ]] || fail "a refused analysis left something behind"
mkdir "$folder/broken"
cp "$capture"/* "$folder/broken"
truncate -s 100000 "$folder/broken/chunk0_q.npy"
expect "chunk0_q.npy" --model "$folder/broken" --output_dir "$folder/none"
echo "commands: analyze_attention does what it should"
