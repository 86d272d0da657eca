#!/usr/bin/env bash
# The whole workflow on real input: observe a model's heads, classify them, check the classes, plan what each KV head
# keeps of a quarter of the cache, compress a cache by the plan, show what the heads do on one page, and plan windows and
# bits together for a sixteenth of the bytes.
#
#   bash examples/quickstart.sh                                on the capture that the project ships
#   bash examples/quickstart.sh --model FILE.gguf              on a model, run by llama.cpp over --text FILE
#   bash examples/quickstart.sh --model FOLDER                 on another capture
#
# Further arguments go to analyze_attention (--help lists them).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/quickstart
model=$root/examples/data/smollm2-135m
text=$root/examples/data/text/alice.txt
results=results/quickstart
arguments=()
while (($# > 0)); do
  case $1 in
    --help | -h) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --model | --model_id | --text | --output_dir)
      (($# > 1)) || { echo "quickstart: $1 needs a value" >&2; exit 1; }
      case $1 in
        --text) text=$2 ;;
        --output_dir) results=$2 ;;
        *) model=$2 ;;
      esac
      shift 2 ;;
    *) arguments+=("$1"); shift ;;
  esac
done
if [[ ! -e $model ]]; then
  echo "quickstart: --model $model: expected a GGUF file or a folder of captured arrays, found nothing there" >&2
  exit 1
fi

programs=(analyze_attention validate_head_classification plan_policies compress_cache)
llama=OFF
if [[ ! -d $model ]]; then
  llama=ON
  programs+=(capture_attention)
fi
bash "$root/cmake/setup.sh"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
[[ -x $build/bin/analyze_attention ]] || echo "building into $build ..." >&2
[[ $llama == OFF || -d $root/build/llama ]] || echo "building llama.cpp once, some minutes ..." >&2
if ! (
  cd "$root"
  options=(-DHEADAWARE_BUILD_TESTS=OFF -DHEADAWARE_BUILD_BENCHMARKS=OFF)
  [[ $llama == OFF ]] || options+=(-DHEADAWARE_LLAMA=ON)
  cmake --preset host -B "$build" "${options[@]}"
  cmake --build "$build" --target "${programs[@]}"
) >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi

step() { printf '\n== %s\n' "$*"; }
step "What the heads look at ($model)"
"$build/bin/analyze_attention" --model "$model" --text "$text" --output_dir "$results" \
  ${arguments[@]+"${arguments[@]}"}

step "Whether the classes fit the statistics"
"$build/bin/validate_head_classification" --results_dir "$results" --reclassify

policies=()
if [[ -e $results/retention_statistics.json ]]; then  # not with --no_retention
  step "Which tokens each KV head keeps, so that the least is lost at 25 % of the cache"
  "$build/bin/plan_policies" --results_dir "$results" --budget 25% | tee "$log"
  policies=(--plan "$results/plan.json")
  verdict=$(grep '^at .* the plan is predicted to lose' "$log" || true)
fi

capture=$model
if [[ $llama == ON ]]; then
  step "Queries, keys and values of the model, for a cache to compress"
  capture=$results/capture
  rm -rf "$capture"
  "$build/bin/capture_attention" --model "$model" --text "$text" --max_tokens 512 --output_dir "$capture"
fi
step "A cache compressed head by head, every kept row compared with its source"
"$build/bin/compress_cache" --results_dir "$results" ${policies[@]+"${policies[@]}"} --capture "$capture"

by_bytes=
if ((${#policies[@]} > 0)); then
  step "Which tokens each KV head keeps, and in how many bits, so that the least is lost at 6.25 % of the bytes"
  head_dim=$(sed -n '/"head_dim"/{s/[^0-9]//gp;q}' "$results/analysis.json")
  if "$build/bin/plan_policies" --results_dir "$results" --formats measured --head_dim "$head_dim" --budget 6.25% \
    --output_dir "$results/bytes" | tee "$log"; then
    by_bytes=$(grep '^at .* the plan is predicted to lose' "$log" || true)
    step "A cache compressed by that plan, every encoded row compared with its source"
    "$build/bin/compress_cache" --results_dir "$results" --plan "$results/bytes/plan.json" --capture "$capture"
  else
    echo "no plan at 6.25 % of the bytes: so short a context leaves too few" >&2
  fi
fi

step "Results"
echo "open $results/report.html in a browser; the JSON files and pictures are beside it"
if ((${#policies[@]} > 0)); then
  echo "the plan is $results/plan.json; $verdict"
fi
if [[ -n $by_bytes ]]; then
  echo "the plan by bytes is $results/bytes/plan.json; $by_bytes"
fi
