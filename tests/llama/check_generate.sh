#!/usr/bin/env bash
# check_generate.sh <generate> <folder of models> <folder>: options that are refused, and a cache that holds nothing.
name=generate
source "$(dirname "$0")/../support/check.sh"
program=$1
model=$2/SmolLM2-135M-Instruct.Q4_1.gguf
folder=$3
fresh_folder
# refused <text> <arguments>: before a model is read, so none is needed.
refused() { check_exit error "$1" "$program" --model "$folder/none.gguf" "${@:2}"; }
echo "Some words." >"$folder/text"
echo "{}" >"$folder/plan.json"
refused "not in range" --threads 1000000
refused "not in range" --threads 0
refused "excludes --policy" --plan "$folder/plan.json" --policy full
refused "at least 2" --perplexity "$folder/text" --max_tokens 1
grep -q "31 slots more" <<<"$("$program" --help)" || fail "does not say what slots a head owns"

if [[ ! -e $model ]]; then
  echo "generate: skipped: no model $model"
  exit 0
fi
"$program" --model "$model" --sink 0 --window 0 -n 2 >"$folder/log" 2>&1 || fail "no window: $(cat "$folder/log")"
grep -q "0.0 of them kept" "$folder/log" || fail "no window: $(cat "$folder/log")"
# 97 GiB of keys and as much of values, in 8 GB of addresses.
if (ulimit -v 8000000 && "$program" --model "$model" --policy full -n 9000000) >"$folder/log" 2>&1; then
  fail "has memory for everything"
fi
grep -q "GiB, which cannot be allocated" "$folder/log" || fail "too many tokens: $(cat "$folder/log")"
