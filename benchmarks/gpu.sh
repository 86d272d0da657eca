#!/usr/bin/env bash
# Measures headaware on this machine's GPU: builds for it, runs the device tests, times compaction, append, attention, whole
# steps, prefill chunks, latents and statistics beside device-to-device copies of as many bytes (and FlashInfer's kernels where
# its headers are), and writes one table. --help tells the options.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: benchmarks/gpu.sh [options]

  --output FOLDER     what is written, when all is done: table.md, and what it was made of (default results/gpu). A folder
                      that an earlier run wrote is replaced, another one is not
  --minutes N         how long the whole may take, at least 1 (default 8): what does not fit is left out, and the table says so;
                      only building what times takes as long as it takes
  --build_dir FOLDER  where to build (default build/gpu)
  --no_build          take the programs that are in --build_dir
  --reduced           tiny sizes, few tests: to see that everything runs, on the CUDA emulator too. Times mean nothing then

With several GPUs, CUDA_VISIBLE_DEVICES chooses. Clocks are read, never set. The exit status is 0 if all tests passed and all
programs ended well, 1 if not (the table is written all the same), 2 if nothing could be measured, 130 when interrupted
(nothing is written).
EOF
}

source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
output=""
build_dir=""
minutes=8
build=1
reduced=0
needs_value() { # needs_value <option> [<value>...]
  if (($# < 2)) || [[ -z $2 ]]; then
    echo "gpu.sh: $1: expected a value" >&2
    exit 2
  fi
}
while (($# > 0)); do
  case $1 in
    --output)
      needs_value "$@"
      output=$2
      shift
      ;;
    --build_dir)
      needs_value "$@"
      build_dir=$2
      shift
      ;;
    --minutes)
      needs_value "$@"
      minutes=$2
      shift
      ;;
    --no_build) build=0 ;;
    --reduced) reduced=1 ;;
    --help | -h)
      usage
      exit 0
      ;;
    *)
      echo "gpu.sh: unknown option $1" >&2
      usage >&2
      exit 2
      ;;
  esac
  shift
done
if ! [[ $minutes =~ ^[1-9][0-9]*$ ]]; then
  echo "gpu.sh: --minutes: expected a whole number, at least 1, got $minutes" >&2
  exit 2
fi
[[ -n $output ]] || output=$source_dir/results/gpu
[[ -n $build_dir ]] || build_dir=$source_dir/build/gpu
if [[ -e $output && ! -e $output/table.md ]]; then
  echo "gpu.sh: --output: expected nothing or a folder with table.md, got something else: $output" >&2
  exit 2
fi

programs=(compaction append attend step observe)
shares=(15 10 35 15 25) # of the time for timing, in per cent
deadline=$((60 * minutes))
timing_seconds=$((deadline * 35 / 100)) # kept free for it
testing_seconds=$((deadline * 15 / 100))
failures=()
notes=()
time_left() { echo $((deadline - SECONDS)); }
step() { printf '== [%d s, %d s left] %s\n' "$SECONDS" "$(time_left)" "$*"; }
give_up() {
  echo "gpu.sh: $*" >&2
  exit 2
}

mkdir -p "$(dirname "$output")"
work=$(mktemp -d "$(dirname "$output")/.gpu-XXXXXX")
child=""
sampler=""
stop() { # a process of ours, if it still runs
  if [[ -n $1 ]] && kill "$1" 2>/dev/null; then wait "$1" 2>/dev/null || true; fi
}
trap 'stop "$child"; stop "$sampler"; rm -rf "$work"' EXIT
trap 'echo "gpu.sh: interrupted, nothing written" >&2; exit 130' INT TERM HUP

# limited <seconds> <log> <command>...: runs it with its output in the log, tells every ten seconds how far it is; its exit
# status, 124 if it had to be ended.
limited() {
  local seconds=$1 log=$2 told=$SECONDS status=0
  shift 2
  timeout --kill-after=10 "$seconds" "$@" >"$log" 2>&1 &
  child=$!
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.5
    if ((SECONDS >= told + 10)); then
      told=$SECONDS
      printf '   [%d s, %d s left] %s\n' "$SECONDS" "$(time_left)" "$(tail -c 300 "$log" | tr '\r' '\n' | tail -n 1 | cut -c 1-100)"
    fi
  done
  wait "$child" || status=$?
  child=""
  return "$status"
}
at_least() { echo $(($1 > $2 ? $1 : $2)); }

# -- the GPU
export CUDA_DEVICE_ORDER=PCI_BUS_ID # as nvidia-smi counts
gpu=${CUDA_VISIBLE_DEVICES:-0}
gpu=${gpu%%,*}
has_gpu=0
if [[ -e /dev/nvidiactl || -e /dev/dxg ]]; then has_gpu=1; fi
query() { # query <fields>: of the GPU; nothing if it cannot be asked
  local answer
  if answer=$(nvidia-smi -i "$gpu" "--query-gpu=$1" --format=csv,noheader,nounits 2>/dev/null); then head -n 1 <<<"$answer"; fi
}
gpu_name=""
if command -v nvidia-smi >/dev/null; then gpu_name=$(query name); fi
capability=""
driver=""
limits=""
if [[ -n $gpu_name ]]; then
  has_gpu=1
  capability=$(query compute_cap)
  driver=$(query driver_version)
  limits=$(query clocks.max.sm,clocks.max.mem,power.limit)
else
  notes+=("nvidia-smi says nothing of GPU $gpu: no version of the driver, no clocks while timing")
fi

# -- build
find_nvcc() {
  local candidate
  for candidate in "${CUDACXX:-}" "$(command -v nvcc || true)" "${CUDA_HOME:-}/bin/nvcc" "${CUDA_PATH:-}/bin/nvcc" \
    /usr/local/cuda/bin/nvcc; do
    if [[ -n $candidate && -x $candidate ]]; then
      echo "$candidate"
      return
    fi
  done
}
# architectures <nvcc>: the GPU's own instructions. Where nvidia-smi does not say which those are, CMake asks the GPU; where
# this nvcc does not know them, the driver makes them of PTX.
architectures() {
  if ! [[ $capability =~ ^[0-9]+\.[0-9]$ ]]; then
    if ((has_gpu)); then echo native; else echo 80-virtual; fi
  elif "$1" --list-gpu-code 2>/dev/null | grep -x "sm_${capability/./}" >/dev/null; then
    echo "${capability/./}-real"
  else
    { "$1" --list-gpu-arch 2>/dev/null || true; } | sed -n 's/^compute_\([0-9]*\)$/\1/p' |
      awk -v most="${capability/./}" '$1 <= most + 0 && $1 + 0 > best { best = $1 } END { print (best ? best : 80) "-virtual" }'
  fi
}
bin=$build_dir/bin
targets=("${programs[@]/#/bench_}")
targets=("${targets[@]/%/_gpu}")
has_tests=1
nvcc_version=""
if ((build)); then
  command -v cmake >/dev/null || give_up "no cmake ('bash cmake/setup.sh' installs what is missing)"
  nvcc=$(find_nvcc)
  [[ -n $nvcc ]] || give_up "no nvcc: install the CUDA toolkit, or name it by CUDACXX"
  nvcc_version=$("$nvcc" --version | sed -n 's/.*release.* V\(.*\)$/\1/p')
  cores=$(nproc)
  unity=OFF
  if ((cores < 8)); then unity=ON; fi # in all it is less to compile
  generator=()
  if [[ ! -e $build_dir/CMakeCache.txt ]] && command -v ninja >/dev/null; then generator=(-G Ninja); fi
  target=$(architectures "$nvcc")
  step "Configuring $build_dir for ${gpu_name:-a device}, CUDA architecture $target"
  if ! limited 300 "$work/configure.log" cmake -S "$source_dir" -B "$build_dir" ${generator[@]+"${generator[@]}"} \
    -DCMAKE_BUILD_TYPE=Release -DHEADAWARE_CUDA=ON "-DCMAKE_CUDA_COMPILER=$nvcc" "-DCMAKE_CUDA_ARCHITECTURES=$target" \
    -DHEADAWARE_BUILD_TESTS=ON -DHEADAWARE_BUILD_BENCHMARKS=ON -DHEADAWARE_BUILD_EXAMPLES=OFF -DHEADAWARE_LLAMA=OFF \
    "-DHEADAWARE_UNITY=$unity"; then
    tail -n 20 "$work/configure.log" >&2
    give_up "CMake failed, as above ('bash cmake/setup.sh' installs what is missing)"
  fi
  sed -n 's/^-- \(FlashInfer.*\)/   \1/p' "$work/configure.log"
  step "Building what times and the device tests, $cores at a time"
  seconds=$(at_least 30 $(($(time_left) - timing_seconds - testing_seconds)))
  status=0
  limited "$seconds" "$work/build.log" cmake --build "$build_dir" --parallel "$cores" --target "${targets[@]}" device_tests ||
    status=$?
  if ((status != 0)); then
    has_tests=0
    if ((status == 124)); then
      notes+=("device tests left out: not built within $seconds s")
    else
      failures+=("device tests do not build")
      { grep -m 5 -i 'error' "$work/build.log" || tail -n 5 "$work/build.log"; } >&2
    fi
    step "Building what times alone"
    if ! limited 1200 "$work/build_timing.log" cmake --build "$build_dir" --parallel "$cores" --target "${targets[@]}"; then
      tail -n 30 "$work/build_timing.log" >&2
      give_up "the programs that time do not build, as above"
    fi
  fi
fi
if ((!has_gpu)) && [[ -e $build_dir/cuda-emulator/libcudart.so.13 ]]; then
  export LD_LIBRARY_PATH=$build_dir/cuda-emulator${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi

# -- device tests
tests=""
if ((has_tests)) && [[ ! -x $bin/device_tests ]]; then
  has_tests=0
  notes+=("device tests left out: there is no $bin/device_tests")
fi
if ((has_tests)); then
  seconds=$(at_least 30 $(($(time_left) - timing_seconds)))
  step "Running the device tests, $seconds s at most"
  filter=()
  if ((reduced)); then filter=("*what is refused and what is empty"); fi
  status=0
  limited "$seconds" "$work/device_tests.log" "$bin/device_tests" ${filter[@]+"${filter[@]}"} || status=$?
  tests=$(sed -n 's/^device: //p' "$work/device_tests.log" | tail -n 1)
  if ((status == 124)); then
    notes+=("device tests: not done within $seconds s")
  elif ((status != 0)); then
    tail -n 40 "$work/device_tests.log" >&2
    failures+=("device tests end with status $status: ${tests:-no count, so a case ended the program}")
  fi
  echo "   ${tests:-no result}"
fi

# -- timing
if [[ -n $gpu_name ]]; then
  nvidia-smi -i "$gpu" --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu --format=csv,noheader,nounits -l 1 \
    >"$work/clocks.csv" 2>/dev/null &
  sampler=$!
fi
results=()
left_of_shares=100
for i in "${!programs[@]}"; do
  program=$bin/${targets[i]}
  result=$work/${programs[i]}.json
  seconds=$(at_least 5 $(($(time_left) * shares[i] / left_of_shares)))
  left_of_shares=$((left_of_shares - shares[i]))
  if [[ ! -x $program ]]; then
    failures+=("there is no $program")
    continue
  fi
  step "Timing: ${targets[i]}, $seconds s at most"
  arguments=("--seconds=$seconds" "--benchmark_out=$result" --benchmark_out_format=json)
  if ((reduced)); then arguments+=(--reduced); fi
  status=0
  # A benchmark that has begun may end; one that hangs may not.
  limited $((seconds + 60)) "$work/${programs[i]}.log" "$program" "${arguments[@]}" || status=$?
  if ((status != 0)); then
    tail -n 5 "$work/${programs[i]}.log" >&2
    failures+=("${targets[i]} ends with status $status: $(tail -n 1 "$work/${programs[i]}.log" | cut -c 1-200)")
  elif grep -q '^skipped: no CUDA device' "$work/${programs[i]}.log"; then
    give_up "no CUDA device, and no emulator in $build_dir"
  fi
  if [[ -s $result ]]; then results+=("$result"); fi
done
stop "$sampler"
sampler=""
((${#results[@]} > 0)) || give_up "nothing was measured"

# -- the table
commit=$(git -C "$source_dir" rev-parse --short HEAD 2>/dev/null || echo unknown)
if [[ $commit != unknown && -n $(git -C "$source_dir" status --porcelain --untracked-files=no 2>/dev/null) ]]; then
  commit="$commit, changed"
fi
clocks=""
if [[ -s $work/clocks.csv ]]; then
  clocks=$(awk -F ', *' '
    $1 ~ /^[0-9.]+$/ && $2 ~ /^[0-9.]+$/ {
      if (!n++) { low = high = $1; low_memory = high_memory = $2 }
      if ($1 < low) low = $1
      if ($1 > high) high = $1
      if ($2 < low_memory) low_memory = $2
      if ($2 > high_memory) high_memory = $2
    }
    END { if (n) printf "%d to %d / %d to %d, %d samples", low, high, low_memory, high_memory, n }' "$work/clocks.csv")
fi
{
  awk -v driver="$driver" -v limits="$limits" -v clocks="$clocks" -v nvcc="$nvcc_version" -v commit="$commit" \
    -v when="$(date -u '+%Y-%m-%d %H:%M UTC')" -v seconds="$SECONDS" -v tests="${tests:-none ran}" \
    -f "$source_dir/benchmarks/gpu_table.awk" "${results[@]}"
  for failure in ${failures[@]+"${failures[@]}"}; do printf -- '- **Failed**: %s\n' "$failure"; done
  for note in ${notes[@]+"${notes[@]}"}; do printf -- '- %s\n' "$note"; done
} >"$work/table.md"
cat "$work/table.md"
chmod 755 "$work"
rm -rf "$output"
mv "$work" "$output"
step "Written: $output/table.md"
((${#failures[@]} == 0)) || exit 1
