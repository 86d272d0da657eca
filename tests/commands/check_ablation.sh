#!/usr/bin/env bash
# check_ablation.sh <run_ablation_study> <text> <folder>: what it lists, and what it refuses.
name=commands
source "$(dirname "$0")/../support/check.sh"
program=$1
text=$2
folder=$3
fresh_folder
"$program" --list >"$folder/list" 2>"$folder/log"
for line in "sink_size/sinks_0" "method/conservative_rules" "sensitivity/head" "re_rotation/planned_cache_positions"; do
  grep -qx "  $line" "$folder/list" || fail "$line is not listed"
done
head -c 1000 "$text" >"$folder/other.txt"
"$program" --list --other_text "$folder/other.txt" --ablation calibration_domain,blend >"$folder/list"
[[ $(grep -c '^[a-z]' "$folder/list") == 2 ]] || fail "other groups than those asked for are listed"
grep -qx "  calibration_domain/plan_of_both_on_other" "$folder/list" || fail "a second text has no group"

expect() { check_exit error "$1" "$program" --output_dir "$folder/none" "${@:2}"; }  # expect <text> <arguments>...
expect "--model" --ablation blend
expect "one of all, window_size" --list --ablation blends
expect "one of all, window_size" --list --ablation calibration_domain # there is no second text
expect "less than --context" --list --budget 100%
expect "at least 16 tokens" --list --budget 8
expect "25% (of the context)" --list --budget few
expect "GGUF" --model "$folder/none.gguf"
expect "GGUF" --model "$text"
expect "another file" --model "$text" --eval_text "$text"
expect "none.txt" --model "$text" --text "$folder/none.txt"
[[ ! -e $folder/none ]] || fail "a refused study left something behind"
echo "commands: run_ablation_study lists and refuses what it should"
