#!/usr/bin/env bash
# check_validate.sh <validate_head_classification> <folder with head_statistics.json> <folder>: exit codes and files.
set -euo pipefail
program=$1
data=$2
folder=$3
rm -rf "$folder"
mkdir -p "$folder"
cp "$data/head_statistics.json" "$folder"

expect() {  # expect <exit code> <text> <arguments>...
  local code=$1 text=$2 got=0
  shift 2
  "$program" --results_dir "$folder" "$@" >"$folder/log" 2>&1 || got=$?
  if [[ $got != "$code" ]] || ! grep -qF -- "$text" "$folder/log"; then
    cat "$folder/log" >&2
    echo "report: expected exit code $code and '$text', got $got: $*" >&2
    exit 1
  fi
}

expect 1 "head_classifications.json"  # there is none yet
expect 0 "the rules do not give  :    0 of 270 heads" --reclassify --strict
[[ -s $folder/validation/validation_report.txt ]]
cp "$folder/validation/refined_classifications.json" "$folder/head_classifications.json"
expect 0 "the rules do not give  :    0 of 270 heads" --strict
cmp "$folder/validation/refined_classifications.json" "$folder/head_classifications.json"

# Other thresholds, given either way, make other classes.
expect 2 "head_type: expected" --strict --low_entropy 1.2
expect 2 "head_type: expected" --strict --thresholds low_entropy=1.2,high_sink=0.25
expect 0 "head_type: expected" --low_entropy 1.2
expect 0 "reclassified, type by type" --reclassify --strict --low_entropy 1.2
expect 1 "one of low_entropy" --thresholds lowest_entropy=1
expect 1 "low_entropy=NUMBER" --thresholds low_entropy=much
expect 1 "at most high_entropy" --low_entropy 4

sed -i '0,/"sink_mixed"/s//"gathering"/' "$folder/head_classifications.json"
expect 2 "expected sink_mixed, got gathering" --strict

# A failed run leaves the files of the one before.
cp "$folder/validation/validation_report.txt" "$folder/before.txt"
head -c 100000 "$data/head_statistics.json" >"$folder/head_statistics.json"
expect 1 "malformed JSON"
cmp "$folder/validation/validation_report.txt" "$folder/before.txt"
echo "report: exit codes and files of validate_head_classification as they should be"
