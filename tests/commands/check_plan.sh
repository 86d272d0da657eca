#!/usr/bin/env bash
# check_plan.sh <plan_policies> <compress_cache> <analyze_attention> <capture> <folder>: plans, their files, errors.
name=commands
source "$(dirname "$0")/../support/check.sh"
program=$1
compress=$2
capture=$4
folder=$5
rm -rf "$folder"
"$3" --model "$capture" --output_dir "$folder/text" >/dev/null 2>&1
"$3" --model "$capture" --output_dir "$folder/probe" --chunk_size 256 >/dev/null 2>&1

expect() { check_exit "$1" "$2" "$program" --results_dir "$folder/text" "${@:3}"; }  # expect <exit code> <text> <arguments>...

expect 0 "planned 1536 (128.0 per KV head, 25.0% of its cache), left 0" --budget 25%
for file in plan.json plan_classifications.json; do
  [[ -s $folder/text/$file ]] || fail "no $file"
done
grep -q '^at 128.0 tokens per KV head (25.0% of the context) the plan is predicted to lose 0[.][0-9]* of what uniform' \
  "$folder/log" || fail "no word on what the plan loses: $(cat "$folder/log")"
# At every size of the table the plan is predicted to lose less than uniform windows.
awk '/plan\/uniform/ { table = 1; next } table && NF == 5 { if ($5 >= 1) exit 1; lines++ } END { exit lines < 5 }' \
  "$folder/log" || fail "a plan is no better than uniform windows: $(cat "$folder/log")"
# Whatever reads classifications compresses by the plan.
"$compress" --results_dir "$folder/text" --classifications "$folder/text/plan_classifications.json" \
  --capture "$capture" >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
grep -q "held: 0.2500 of the full cache" "$folder/log" || fail "$(cat "$folder/log")"
grep -q "rules of head types" "$folder/log" && fail "a plan is called rules"
"$compress" --plan "$folder/text/plan.json" --capture "$capture" >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
grep -q "held: 0.2500 of the full cache" "$folder/log" || fail "$(cat "$folder/log")"
grep -q "rules of head types" "$folder/log" && fail "a plan is called rules"

cp "$folder/text/plan.json" "$folder/first.json"
expect 0 "wrote plan.json" --budget 128 --context 512
cmp "$folder/first.json" "$folder/text/plan.json"
expect 0 "wrote plan.json" --budget 384KiB --head_dim 64
cmp <(sed 's/"budget_tokens.*//' "$folder/first.json") <(sed 's/"budget_tokens.*//' "$folder/text/plan.json")
expect 0 "floor 48, pages of 16" --budget 20% --page_size 16 --ranks 3 --floor 48 --layer_shares
expect 0 "measure mass, group maximum" --budget 20% --measure mass --fold max --output_dir "$folder/mass"
[[ -s $folder/mass/plan.json ]]
printf '%s' '{"format": "headaware.sensitivities", "version": 1, "num_layers": 4, "num_kv_heads": 0, "kind":
"loss_increase", "cut": {"sink": 4, "window": 60}, "values": [0.1, 0.02, 0.05, 0.3]}' >"$folder/losses.json"
expect 0 "wrote plan.json" --budget 20% --sensitivities "$folder/losses.json" --probe_dir "$folder/probe" \
  --probe_sensitivities "$folder/losses.json" --probe_weight 0.5 --output_dir "$folder/probed"
cmp -s "$folder/probed/plan.json" "$folder/text/plan.json" && fail "sensitivities change nothing"

cp "$folder/losses.json" "$folder/text/sensitivities.json"
expect 0 "has what layers cost" --budget 20%
rm "$folder/text/sensitivities.json"
expect 0 "12288 tokens: layers 1 3" --budget 25% --context 2048 --skip_layers 3,1 --output_dir "$folder/skipping"
grep -q '"skip_layers"' "$folder/skipping/plan.json"

# By bytes: windows and formats together, or one pair for all heads; a cache compressed by the plan holds what it says.
expect 0 "(6.25% of the cache in 16 bits" --formats measured --head_dim 64 --budget 6.25% --output_dir "$folder/bytes"
grep -q '^formats:   .*packed[456]/packed[456] [0-9]' "$folder/log" || fail "no formats: $(cat "$folder/log")"
grep -q '^of uniform windows in the best pair of formats for them, [a-z0-9_]*/[a-z0-9_]*, 0[.][0-9]*: ' "$folder/log" ||
  fail "the plan is not better than uniform windows in formats: $(cat "$folder/log")"
grep -Eq '^at .* \(6[.]2[45]% of the bytes of the cache in 16 bits\) the plan is predicted to lose 0[.][0-9]* of' \
  "$folder/log" || fail "no word on what the plan by bytes loses: $(cat "$folder/log")"
grep -q '^  16-bit tokens ' "$folder/log" || fail "sizes are not told as of 16 bits: $(cat "$folder/log")"
[[ ! -e $folder/bytes/plan_classifications.json ]] || fail "classes, which know no formats"
check_exit 0 "rounding loses 0." "$compress" --plan "$folder/bytes/plan.json" --capture "$capture"
for form in ragged "padded left" "padded right" grouped; do
  grep -q "^  $form .* rows checked against their source, encoded$" "$folder/log" || fail "$form was not checked"
done
grep -Eq '^held: 0[.]062[45] of the full cache$' "$folder/log" || fail "other bytes: $(cat "$folder/log")"
planned=$(sed -n 's/.*"planned_bytes": \([0-9]*\).*/\1/p' "$folder/bytes/plan.json")
awk -v planned="$planned" '/^after/ { after = 1 } after && $1 == "all" { exit $5 != planned }' "$folder/log" ||
  fail "the cache does not hold the $planned bytes planned: $(cat "$folder/log")"
expect 0 "formats:   packed5/packed4 12" --formats packed5/packed4 --head_dim 64 --budget 6.25% --output_dir "$folder/pair"
expect 0 "formats:   int8/int8 12" --formats int8 --head_dim 64 --budget 12.5% --output_dir "$folder/int8"
expect 0 "planned 384 (32.0 per KV head" --formats 16 --budget 6.25% --output_dir "$folder/sixteen"
expect error "expected one of fp16, bf16" --formats packed9 --head_dim 64 --budget 6.25%
expect error "expected one of fp16, bf16" --formats packed5/packed9 --head_dim 64 --budget 6.25%
expect error "measured or 16 alone, got 16 beside others" --formats int8,16 --head_dim 64 --budget 6.25%
expect 1 "(512 per KV head), got 262144 (64MiB)" --head_dim 64 --budget 64MiB
expect 1 "whose errors are known, got q8_0" --formats q8_0 --head_dim 64 --budget 6.25%
expect 1 "head_dim: expected > 0" --formats measured --budget 6.25%

# Where uniform windows are predicted to lose less they are written, unless they do not keep what was asked for.
expect 0 "plan.json holds the uniform windows instead" --budget 8 --output_dir "$folder/tight"
grep -q "have a lower predicted error" "$folder/log" || fail "no word on why"
grep -q "^policies:  sink_window 12$" "$folder/log" || fail "other policies: $(cat "$folder/log")"
[[ $(grep -c '"policy": "sink_window"' "$folder/tight/plan.json") == 12 ]] || fail "not the uniform windows in plan.json"
expect 0 "wrote plan.json" --budget 400KB --head_dim 64 --output_dir "$folder/kilobytes"
expect 1 "25% (of the context)" --budget much
expect 1 "25% (of the context)" --budget 1e300
expect 1 "each once" --budget 25% --skip_layers 1,1
expect 105 "not in range" --budget 25% --skip_layers -1
expect 105 "not in range" --budget 25% --skip_layers ""
expect 1 "skipped layer" --budget 25% --skip_layers 4
expect 1 "at least one" --budget 25% --skip_layers 0,1,2,3
expect 1 "25% (of the context)" --budget 3miles
expect 1 "in (0, 1]" --budget 120%
expect 1 "--head_dim" --budget 1MiB
expect 1 "at least" --budget 20 --floor 100
expect 1 "at most the whole cache, 6144 tokens (512 per KV head), got 6156" --budget 513
expect 0 "not known" --budget 25% --context 4096 --output_dir "$folder/longer"
expect 105 "expected a number >= 0, got -3" --budget 25% --floor -3
expect 105 "expected a number > 0, got 0" --budget 25% --page_size 0
expect 1 "output projection" --budget 25% --measure output_metric
expect 1 "3 KV heads" --budget 25% --ranks 2
expect 105 "not in range" --budget 25% --context 1000000000000
expect 105 "expected at most 2^53" --budget 25% --floor 99999999999999999999
mkdir -p "$folder/blocked/plan.json"
expect 1 "expected a file, or nothing yet" --budget 25% --output_dir "$folder/blocked"
grep -q "predicted error against" "$folder/log" && fail "planned what it cannot write"
expect 1 "none.json" --budget 25% --sensitivities "$folder/none.json"
sed -i 's/"num_layers": 4/"num_layers": 5/' "$folder/losses.json"
expect 1 "number of values" --budget 25% --sensitivities "$folder/losses.json"
# An analysis without retention leaves no plan of an earlier one's to be made.
"$3" --model "$capture" --output_dir "$folder/text" --no_retention >/dev/null 2>&1
expect 1 "retention_statistics.json" --budget 25%
[[ ! -e $folder/text/plan.json ]] || fail "a plan of earlier statistics stayed"
if "$program" --results_dir "$folder" --budget 25% >"$folder/log" 2>&1; then exit 1; fi
grep -q "retention_statistics.json" "$folder/log"
echo "commands: plan_policies does what it should"
