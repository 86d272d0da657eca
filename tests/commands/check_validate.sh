#!/usr/bin/env bash
# check_validate.sh <validate_head_classification> <analyze_attention> <capture> <folder>: exit codes and files.
name=commands
source "$(dirname "$0")/../support/check.sh"
program=$1
analyze=$2
folder=$4
rm -rf "$folder"
"$analyze" --model "$3" --output_dir "$folder/analysis" --no_retention >/dev/null 2>&1
cp "$folder/analysis/head_statistics.json" "$folder"

expect() { check_exit "$1" "$2" "$program" --results_dir "$folder" "${@:3}"; }  # expect <exit code> <text> <arguments>...

expect 1 "head_classifications.json"  # there is none yet
expect 0 "the rules do not give  :    0 of 36 heads" --reclassify --strict
[[ -s $folder/validation/validation_report.txt ]]
cp "$folder/validation/refined_classifications.json" "$folder/head_classifications.json"
expect 0 "the rules do not give  :    0 of 36 heads" --strict
cmp "$folder/validation/refined_classifications.json" "$folder/head_classifications.json"

# Other thresholds, given either way, make other classes.
expect 2 "head_type: expected" --strict --low_entropy 1.2
expect 2 "head_type: expected" --strict --thresholds low_entropy=1.2,high_sink=0.25
expect 0 "head_type: expected" --low_entropy 1.2
expect 0 "reclassified, type by type" --reclassify --strict --low_entropy 1.2
expect 1 "one of low_entropy" --thresholds lowest_entropy=1
expect 1 "low_entropy=NUMBER" --thresholds low_entropy=much
expect 1 "at most high_entropy" --low_entropy 4

sed -i '0,/"sink_positional"/s//"gathering"/' "$folder/head_classifications.json"
expect 2 "expected sink_positional, got gathering" --strict

# A report of an earlier check goes with it; one of the results themselves stays.
touch "$folder/validation/report.html" "$folder/report.html"
expect 2 "expected sink_positional, got gathering" --strict
[[ ! -e $folder/validation/report.html && -e $folder/report.html ]] || fail "an old report"
touch "$folder/blocked"
expect 1 "expected a folder, or nothing yet" --output_dir "$folder/blocked"

# A failed run leaves the files of the one before.
cp "$folder/validation/validation_report.txt" "$folder/before.txt"
head -c 30000 "$folder/analysis/head_statistics.json" >"$folder/head_statistics.json"
expect 1 "malformed JSON"
cmp "$folder/validation/validation_report.txt" "$folder/before.txt"
echo "commands: exit codes and files of validate_head_classification as they should be"
