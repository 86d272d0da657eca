#!/usr/bin/env bash
# check_analysis.sh <analyze_attention> <capture> <folder>: results, interruption, going on, and errors.
name=commands
source "$(dirname "$0")/../support/check.sh"
program=$1
capture=$2
folder=$3
fresh_folder
files=(head_statistics.json retention_statistics.json head_classifications.json)

pieces=(--model "$capture" --chunk_size 16 --num_distances 16)
"$program" "${pieces[@]}" --output_dir "$folder/whole" >"$folder/whole.log" 2>&1
for file in "${files[@]}" analysis.json attention_sums.json report.html; do
  [[ -s $folder/whole/$file ]] || fail "no $file"
done
grep -q '"complete": true' "$folder/whole/analysis.json" || fail "a whole analysis does not say so"
grep -q "CLASSIFICATION SUMMARY" "$folder/whole.log" || fail "no summary"

# Pieces are different parts of the text: the heads' entropies vary from one to the next.
(($(grep -cE '"std_entropy": 0\.0?[1-9][0-9]*,' "$folder/whole/head_statistics.json") == 36)) || fail "pieces are alike"

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

# Nor does anything else that a later one does not make anew: retention, its picture, a plan made of it, reports.
mkdir -p "$folder/whole/validation/pictures"
stale=(retention_statistics.json plan.json plan_classifications.json pictures/retention.gp pictures/retention.tsv
  pictures/retention.svg pictures/retention.png validation/refined_classifications.json validation/validation_report.txt
  validation/report.html validation/pictures/types.svg)
for file in "${stale[@]}"; do echo old >"$folder/whole/$file"; done
echo mine >"$folder/whole/notes.txt"
"$program" "${pieces[@]}" --output_dir "$folder/whole" --no_retention >"$folder/whole.log" 2>&1
for file in "${stale[@]}"; do [[ ! -e $folder/whole/$file ]] || fail "an earlier analysis' $file stayed"; done
[[ -s $folder/whole/notes.txt && -s $folder/whole/pictures/types.gp ]] || fail "more than an earlier analysis went"
# A measured plan is no result of the analysis.
for file in plan.json plan_guard.json; do echo old >"$folder/whole/$file"; done
"$program" "${pieces[@]}" --output_dir "$folder/whole" >"$folder/whole.log" 2>&1
[[ -s $folder/whole/plan.json && -s $folder/whole/retention_statistics.json ]] || fail "a measured plan went"
# One that plan_policies wrote over it is.
guard='"context": 64, "budget_tokens": 128, "chosen": "uniform", "tried": [{"name": "uniform", "predicted_error": 0.5}]'
echo "{$guard}" >"$folder/whole/plan_guard.json"
for error in 0.5 0.25; do
  echo "{\"context\": 64, \"budget_tokens\": 128, \"predicted_error\": $error}" >"$folder/whole/plan.json"
  "$program" "${pieces[@]}" --output_dir "$folder/whole" >"$folder/whole.log" 2>&1
  [[ $error != 0.5 || -e $folder/whole/plan.json ]] || fail "the plan that was chosen went"
done
[[ ! -e $folder/whole/plan.json ]] || fail "a plan written over a measured one stayed"
rm "$folder/whole"/plan*.json

# Bytes that are not UTF-8 in paths cost no results, and resuming knows them.
odd=$folder/$(printf 'm\xe4rchen')
cp -r "$capture" "$odd"
sed -i "s/Smollm2/$(printf 'Sm\xf6l')/" "$odd/capture.json"
"$program" --model "$odd" --output_dir "$odd/results" >"$folder/log" 2>&1 || fail "odd bytes: $(cat "$folder/log")"
grep -q $'Sm\xef\xbf\xbdl' "$odd/results/analysis.json" || fail "odd bytes are not marked"
"$program" --model "$odd" --output_dir "$odd/results" --resume >"$folder/log" 2>&1 || fail "odd bytes: $(cat "$folder/log")"

# A value that is no number: the rows that see it are left out, and the results say so.
mkdir "$folder/spoiled"
cp "$capture"/* "$folder/spoiled"
printf '\x00\x7e' | dd of="$folder/spoiled/chunk0_v.npy" bs=1 seek=60000 conv=notrunc status=none
"$program" --model "$folder/spoiled" --output_dir "$folder/spoiled_results" >"$folder/log" 2>&1 || fail "a NaN ended the analysis"
grep -q "rows of attention held NaN" "$folder/log" || fail "a NaN was not counted"

expect() { check_exit error "$1" "$program" "${@:2}"; }  # expect <text> <arguments>...
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
# What stands in the way of results is found before any work.
for name in validation pictures; do
  mkdir "$folder/blocked_$name"
  touch "$folder/blocked_$name/$name"
  expect "expected a folder, or nothing yet" --model "$capture" --output_dir "$folder/blocked_$name"
  [[ $(ls "$folder/blocked_$name") == "$name" ]] || fail "worked although it could not write $name"
done
mkdir -p "$folder/blocked_file/head_statistics.json"
expect "expected a file, or nothing yet" --model "$capture" --output_dir "$folder/blocked_file"
expect "--threads" --model "$capture" --threads 1000000000 --output_dir "$folder/none"
expect "--num_distances" --model "$capture" --num_distances 2000000000 --output_dir "$folder/none"
expect "--max_tokens: expected at most 2^53" --model "$capture" --max_tokens 99999999999999999999 --output_dir "$folder/none"
# A capture that was interrupted is none.
cp -r "$capture" "$folder/unfinished"
touch "$folder/unfinished/capture.unfinished"
expect "capture_attention makes it again" --model "$folder/unfinished" --output_dir "$folder/none"
cp -r "$capture" "$folder/wrapped"
sed -i 's/"num_layers": 30/"num_layers": 4294967326/' "$folder/wrapped/capture.json"
expect "/model/num_layers" --model "$folder/wrapped" --output_dir "$folder/none"
expect "windows" --model "$capture" --windows 8,4 --output_dir "$folder/none"
expect "NAME_q.npy" --model "$folder" --output_dir "$folder/none"
[[ -z $(ls -A "$folder/none") ]] || fail "a refused analysis left something behind"
mkdir "$folder/broken"
cp "$capture"/* "$folder/broken"
truncate -s 100000 "$folder/broken/chunk0_q.npy"
expect "chunk0_q.npy" --model "$folder/broken" --output_dir "$folder/none"
echo "commands: analyze_attention does what it should"
