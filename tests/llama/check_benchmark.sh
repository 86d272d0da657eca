#!/usr/bin/env bash
# check_benchmark.sh <benchmark> <folder of models> <folder>: a run that is interrupted and goes on, files, errors.
name=benchmark
source "$(dirname "$0")/../support/check.sh"
program=$1
folder=$3
need_model "$2"
fresh_folder

# The first text is read, then the command is told to stop.
small=(--model "$model" --context 256 --passages 2 --copies 0 --decode_tokens 3 --budget 64 --max_tokens 4000)
"$program" "${small[@]}" --output_dir "$folder/run" >"$folder/log" 2>&1 &
process=$!
for ((i = 0; i < 600; i++)); do
  [[ -z $(find "$folder/run/evicted" -name '*.json' 2>/dev/null) ]] || break
  kill -0 $process 2>/dev/null || break
  sleep 0.1
done
kill -TERM $process 2>/dev/null || fail "ended before it was interrupted: $(cat "$folder/log")"
code=0
wait $process || code=$?
[[ $code == 130 ]] || fail "interrupted, it ended with $code: $(cat "$folder/log")"
grep -q "goes on from there" "$folder/log" || fail "does not say that it goes on"
[[ ! -e $folder/run/benchmark.json ]] || fail "results of an interrupted run"

"$program" "${small[@]}" --output_dir "$folder/run" >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
grep -qE "[1-3] of 4 texts were read in an earlier run" "$folder/log" || fail "begins anew: $(cat "$folder/log")"
grep -q "prefill/s" "$folder/log" || fail "no table"
for file in benchmark.json benchmark.csv pictures/perplexity.gp pictures/perplexity.tsv; do
  [[ -s $folder/run/$file ]] || fail "no $file"
done
[[ ! -e $folder/run/pictures/copying.gp ]] || fail "a picture of copying, of which nothing was measured"
[[ $(wc -l <"$folder/run/benchmark.csv") == 3 ]] || fail "not a line per run"
figures() { grep -v compaction_s "$1"; }
cp "$folder/run/benchmark.json" "$folder/first.json"
"$program" "${small[@]}" --output_dir "$folder/run" >"$folder/log" 2>&1
cmp <(figures "$folder/first.json") <(figures "$folder/run/benchmark.json") || fail "another result without measuring"

# A text with room for fewer passages; a damaged file of an earlier run.
few=(--model "$model" --masked --context 256 --copies 0 --budget 64 --max_tokens 600 --output_dir "$folder/few")
"$program" "${few[@]}" >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
grep -qF "2 of 16 passages" "$folder/log" || fail "passages twice: $(cat "$folder/log")"
grep -q '"tokens": 510' "$folder/few/benchmark.json" || fail "tokens counted twice: $(cat "$folder/few/benchmark.json")"
for file in "$folder"/few/losses/*.npy; do truncate -s 20 "$file"; done
if "$program" "${few[@]}" >"$folder/log" 2>&1; then fail "damaged losses were read"; fi
grep -qF "remove the file" "$folder/log" || fail "does not say what to do: $(cat "$folder/log")"

# Formats: windows in one pair beside those in 16 bits, at equal bytes, and the engine's own quantised cache.
formats=(--model "$model" --context 256 --passages 1 --copies 0 --decode_tokens 1 --budget 64 --max_tokens 2000
  --method full,streaming_llm,engine_q8_0 --uniform_formats packed5/packed4)
"$program" "${formats[@]}" --output_dir "$folder/formats" >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
awk -F , 'NR > 1 && $1 == "engine_q8_0" && $4 == 0.53125 { engine = 1 }
  NR > 1 && $1 ~ /packed5/ && $3 > 128 && $4 <= 0.25 && $4 > 0.24 { pair = 1 }
  END { exit !(engine && pair && NR == 5) }' "$folder/formats/benchmark.csv" || fail "$(cat "$folder/formats/benchmark.csv")"

# Evicted once.
once=(--model "$model" --evict_once --prefix 64 --continuation 64 --sizes 16 --passages 1 --copies 1 --lookups 1 --questions 2
  --max_tokens 2000 --method full,streaming_llm,kvzip)
"$program" "${once[@]}" --output_dir "$folder/once" >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
grep -qF "| kvzip | 16 | 16.0 |" "$folder/log" || fail "no table: $(cat "$folder/log")"
[[ $(wc -l <"$folder/once/evict_once.csv") == 4 ]] || fail "not a line per method and size"
for kind in passage copy lookup; do
  grep -qF "\"kind\":\"$kind\"" "$folder/once/evict_once_pieces.json" || fail "no tokens of a $kind for other programs"
done
for picture in once_perplexity once_copying once_lookup; do
  [[ -s $folder/once/pictures/$picture.gp ]] || fail "no picture $picture"
done
cp "$folder/once/evict_once.json" "$folder/first.json"
"$program" "${once[@]}" --output_dir "$folder/once" >"$folder/log" 2>&1 || fail "$(cat "$folder/log")"
grep -qF "9 of 9 continuations were read in an earlier run" "$folder/log" || fail "begins anew: $(cat "$folder/log")"
cmp "$folder/first.json" "$folder/once/evict_once.json" || fail "another result without measuring"

expect() {  # expect <text> <arguments>...
  local text=$1
  shift
  if "$program" "$@" --output_dir "$folder/none" >"$folder/log" 2>&1; then fail "no error: $*"; fi
  grep -qF -- "$text" "$folder/log" || { cat "$folder/log" >&2; fail "expected '$text': $*"; }
}
expect "--evict_once too" --model "$model" --method snapkv
expect "--scores too" "${once[@]}" --method learned
expect "at most --prefix, 64" "${once[@]}" --sizes 65
expect "room for 40 pairs" --model "$model" --evict_once --prefix 64 --continuation 64 --passages 1 --copies 0 --lookups 1 \
  --questions 40 --method full --max_tokens 2000
expect "excludes" "${once[@]}" --masked
expect "--duo_gates too" --model "$model" --method duo
expect "--plan too" --model "$model" --method planned
printf '[]' >"$folder/classes.json"
expect "--classifications_path)" --model "$model" --method planned --plan "$folder/classes.json"
expect "--classifications_path too" --model "$model" --method head_aware
expect "window_only" --model "$model" --method rules
expect "at least --context, 2048" --model "$model" --max_tokens 1000
expect "start of a passage" "${small[@]}" --starts 3900
expect "more than 4 tokens" "${small[@]}" --budget 3
expect "at most the whole cache" "${small[@]}" --budget 257
expect "in (0, 1]" "${small[@]}" --budget 101%
expect "25% (of the context)" "${small[@]}" --budget much
expect "not in range" "${small[@]}" --passages -1
expect "no such file" --model "$folder/none.gguf"
expect "--threads" "${small[@]}" --threads 1000000000
expect "expected at most 2^53" "${small[@]}" --starts 99999999999999999999
expect "--duo_share: expected --method duo too" "${small[@]}" --duo_share 0.5
printf '0.1\t0.9\n' >"$folder/gates.tsv"
expect "layers of the gates" --model "$model" --method duo --duo_gates "$folder/gates.tsv"
[[ ! -e $folder/none/benchmark.json ]] || fail "a refused run left results"
grep -q time_to_first_token_s <<<"$("$program" --help)" || fail "--help does not say what is measured"
echo "benchmark: does what it should"
