#!/usr/bin/env bash
# check_planning.sh <analyze_attention> <plan_policies> <folder of models> <text> <folder> [<benchmark>]:
# analyze_attention --plan, its files, what reads them, and options that it refuses.
name=planning
source "$(dirname "$0")/../support/check.sh"
program=$1
plan_policies=$2
text=$4
folder=$5
benchmark=${6:-}
need_model "$3"
fresh_folder

costly=(--plan --model "$model" --text "$text" --context 256 --pieces 1,1,1,1 --query_stride 4
  --output_dir "$folder/plan")
small=("${costly[@]}" --sensitivity none)
"$program" "${small[@]}" --budget 25% --page_size 16 --sinks 0,4,32 >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
for file in plan.json plan_guard.json text/retention_statistics.json \
  probe/retention_statistics.json; do
  [[ -s $folder/plan/$file ]] || fail "no $file"
done
grep -q "everything kept" "$folder/log" || fail "no table of what was tried: $(cat "$folder/log")"
grep -qF '"page_size": 16' "$folder/plan/plan.json" || fail "pages of another size"
grep -qF "\"model\": \"$(basename "$model")\"" "$folder/plan/plan_guard.json" || fail "not told of which model it is"
grep -qF '"sinks":[0,4,32]' <<<"$(tr -d ' \n' <"$folder/plan/text/retention_statistics.json")" || fail "other sinks"

# Another budget measures no statistics anew; bytes count two an element.
touch -d '2001-01-01' "$folder/plan/text/attention_sums.json"
"$program" "${small[@]}" --sinks 0,4,32 --budget 1440KiB >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
grep -q "budget 1474560 bytes" "$folder/log" || fail "bytes: $(cat "$folder/log")"
grep -q "uniform packed" "$folder/log" || fail "no uniform windows in formats: $(cat "$folder/log")"
grep -qF '"packed' "$folder/plan/plan.json" || fail "no formats in the plan: $(cat "$folder/plan/plan.json")"
[[ ! -e $folder/plan/plan_classifications.json ]] || fail "classes, which know no formats"
[[ $folder/plan/text/attention_sums.json -ot $folder/plan/plan.json ]] || fail "measured again"

# Costs of the last two layers, measured alone and again at the plan, and the best plan refined by trying it: one cut, 4
# times. (Which plan is the best depends on the processor, by less than a text of this size can tell; all of them have
# costs.)
"$program" "${costly[@]}" --formats 16 --sinks 0,4,32 --budget 25% --skip_layers "$(seq -s, 0 27)" --replan 1 --refine 1 \
  --refine_pieces 1,1 --refine_steps 2 >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
[[ -s $folder/plan/plan_classifications.json ]] || fail "no classes of a plan in 16 bits"
grep -q "again 1 by 0.5" "$folder/log" || fail "nothing planned anew: $(cat "$folder/log")"
grep -q "refined  *6" "$folder/log" || fail "nothing refined: $(cat "$folder/log")"
for costs in replanned_64/text replanned_64/probe refined_64/text; do
  [[ -s $folder/plan/$costs/sensitivities.json ]] || fail "no sensitivities $costs"
done

# What it measured serves plan_policies too; the folder's top is not the place.
"$plan_policies" --results_dir "$folder/plan/text" --probe_dir "$folder/plan/probe" --budget 12% \
  --output_dir "$folder/other" >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
[[ -s $folder/other/plan.json ]] || fail "no plan from what was measured"
if "$plan_policies" --results_dir "$folder/plan" --budget 12% >"$folder/log" 2>&1; then fail "no text, yet a plan"; fi
grep -qF "$folder/plan/text" "$folder/log" || fail "does not say where the text is: $(cat "$folder/log")"

# Scores of rows, by themselves; measured once.
scores=(--scores --model "$model" --text "$text" --score_pieces 1,1 --score_tokens 48 --output_dir "$folder/scores")
"$program" "${scores[@]}" >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
grep -q "fitted to 1 pieces of 48 tokens" "$folder/log" || fail "no summary: $(cat "$folder/log")"
[[ -s $folder/scores/scores.json && -s $folder/scores/scores.npy ]] || fail "no scores"
touch -d '2001-01-01' "$folder/scores/scores.npy"
"$program" "${scores[@]}" >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
grep -q "fitted to 1 pieces of 48 tokens" "$folder/log" || fail "no summary of what was measured before"
[[ $(date -r "$folder/scores/scores.npy" +%Y) == 2001 && ! -d $folder/scores/scores_state ]] || fail "measured again"

# A plan from statistics with scored slots, by those scores.
scored=(--results_dir "$folder/plan/text" --budget 25% --scores "$folder/scores" --output_dir "$folder/scored")
"$plan_policies" "${scored[@]}" >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
grep -q "with scored slots, 0.5 of the budget for windows" "$folder/log" || fail "no slots: $(cat "$folder/log")"
grep -qF '"sink_window_scored"' "$folder/scored/plan.json" || fail "no scored slots in the plan"
grep -qF "\"scores\": \"$(sed -n 's/.*"hash": *"\([0-9a-f]*\)".*/\1/p' "$folder/scores/scores.json")\"" \
  "$folder/scored/plan.json" || fail "does not name its scores"
[[ ! -e $folder/scored/plan_classifications.json ]] || fail "classes, which know no scored slots"
refused() {  # refused <text> <arguments>...: of a plan with scored slots
  if "$plan_policies" "${scored[@]}" "${@:2}" >"$folder/log" 2>&1; then fail "no error: ${*:2}"; fi
  grep -qF -- "$1" "$folder/log" || fail "expected '$1': $(cat "$folder/log")"
}
refused "expected a number in (0, 1), got 1" --window_share 1
refused "expected no --ranks and --layer_shares" --ranks 3

# Windows and scored slots chosen together and tried, evicting; statistics then hold the errors of slots, and serve
# plan_policies, for ranks too.
"$program" "${small[@]}" --sinks 0,4,32 --formats 16 --budget 25% --scores_from "$folder/scores" >"$folder/log" 2>&1 ||
  fail "$(cat "$folder/log")"
grep -q "slots, probe 3  *64.0" "$folder/log" || fail "no plan with slots was tried: $(cat "$folder/log")"
"$plan_policies" "${scored[@]}" --probe_dir "$folder/plan/probe" --ranks 3 >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
grep -q "with scored slots, chosen together with windows, 0\.[0-9]* of what windows alone" "$folder/log" ||
  fail "not chosen together: $(cat "$folder/log")"
"$plan_policies" "${scored[@]}" --window_share 0.5 >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
grep -q "0.5 of the budget for windows" "$folder/log" || fail "not by reconstruction budgets: $(cat "$folder/log")"

# Evicted once by those scores.
if [[ -n $benchmark ]]; then
  "$benchmark" --model "$model" --text "$text" --evict_once --prefix 64 --continuation 64 --sizes 32 --passages 1 --copies 0 \
    --lookups 0 --scores "$folder/scores" --method full,learned,learned_shared,expected_attention,budget_windows \
    --output_dir "$folder/once" >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
  for method in learned learned_shared expected_attention budget_windows; do
    grep -qF "| $method | 32 | 32.0 |" "$folder/log" || fail "no row of $method: $(cat "$folder/log")"
  done
fi

expect() {  # expect <text> <arguments>...
  local text=$1
  shift
  if "$program" "$@" >"$folder/log" 2>&1; then fail "no error: $*"; fi
  grep -qF -- "$text" "$folder/log" || { cat "$folder/log" >&2; fail "expected '$text': $*"; }
}
expect "--chunk_size excludes --plan" "${small[@]}" --budget 25% --chunk_size 128
expect "--max_tokens excludes --plan" "${small[@]}" --budget 25% --max_tokens 128
expect "--budget requires --plan" --model "$model" --budget 25%
expect "--chunk_size excludes --scores" "${scores[@]}" --chunk_size 128
expect "--score_pieces requires --scores" --model "$model" --score_pieces 2
expect "tokens of the text: expected at least 45000" --scores --model "$model" --text "$text" --score_tokens 5000 \
  --output_dir "$folder/none"
expect "--page_size requires --plan" --model "$model" --page_size 16
expect "--refine_pieces requires --refine" "${small[@]}" --budget 25% --refine_pieces 1,1
expect "--replan_pieces requires --replan" "${small[@]}" --budget 25% --replan_pieces 1
expect "pieces to refine on, text: expected 1 to 1" "${small[@]}" --budget 25% --refine 1 --refine_pieces 2,1
expect "budget" "${small[@]}" --formats 16 --budget 1
expect "--formats requires --plan" --model "$model" --formats 16
expect "'bits9'" "${small[@]}" --budget 25% --formats bits9
expect "step" "${small[@]}" --budget 25% --refine 1 --refine_steps 99
expect "--budget too" "${small[@]}"
expect "at most the whole cache, 23040 tokens (256 per KV head), got 23130" "${small[@]}" --budget 257
expect "expected a number > 0, got 0" "${small[@]}" --budget 25% --pieces 0,1,1,1
expect "25% (of the context)" "${small[@]}" --budget much
echo "planning: ok"
