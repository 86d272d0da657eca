#!/usr/bin/env bash
# check_targets.sh <folder for results> <compiler> <flag>...
# Units of one program, each compiled for another processor, linked in every order: all must compute the right thing.
# A unit that this processor cannot run is left out of the programs; its symbols are looked at all the same.
set -euo pipefail
source=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
shift

declare -A processors=([baseline]=x86-64 [v3]=x86-64-v3 [v4]=x86-64-v4)
# Without optimisation a unit has every function, with it some: the linker takes what is missing of the one from others.
for unit in "${!processors[@]}"; do
  level=-O1
  [[ $unit == baseline ]] && level=-O0
  "$@" -std=c++20 $level -march="${processors[$unit]}" -DUNIT="$unit" -c "$source/unit.cpp" -o "$unit.o"
done
"$@" -std=c++20 -O0 -c "$source/main.cpp" -o main.o

# What depends on the target has a name that says so, and what has not does not call it.
for unit in "${!processors[@]}"; do
  objdump -dr --no-show-raw-insn "$unit.o" | awk -v unit="$unit" '
    /^[0-9a-f]+ <.*>:$/ { name = $2 }
    /R_X86_64_/ && /headaware/ && /target_/ && name ~ /^<_ZNK?9headaware/ && name !~ /target_/ { found[name] = $NF }
    END { for (name in found) { print unit ": " name " calls " found[name]; failed = 1 } exit failed }'
done
for pair in "baseline v3" "baseline v4" "v3 v4"; do
  read -r a b <<<"$pair"
  comm -12 <(nm "$a.o" | awk '$2 == "W" && /target_/ { print $3 }' | sort) \
    <(nm "$b.o" | awk '$2 == "W" && /target_/ { print $3 }' | sort) >shared.txt
  if [[ -s shared.txt ]]; then
    echo "$a and $b share:" && c++filt <shared.txt && exit 1
  fi
done

can_run() {  # can_run <flag of /proc/cpuinfo>...
  local flag
  for flag in "$@"; do grep -qw "$flag" /proc/cpuinfo || return 1; done
}
units=(baseline)
if can_run avx2 fma f16c bmi2; then units+=(v3); else echo "v3 is not run: this processor has no AVX2"; fi
if can_run avx512f avx512vl avx512bw avx512dq; then units+=(v4); else echo "v4 is not run: this processor has no AVX-512"; fi

failed=0
link() {  # link <units left> -- <units in order>
  local left=() order=()
  while [[ $1 != -- ]]; do left+=("$1"); shift; done
  shift
  order=("$@")
  if ((${#left[@]} == 0)); then
    "${compile[@]}" main.o "${order[@]/%/.o}" -o program
    ./program || { echo "wrong in the order ${order[*]}"; failed=1; }
    return
  fi
  local i
  for i in "${!left[@]}"; do
    link "${left[@]:0:i}" "${left[@]:i+1}" -- "${order[@]}" "${left[i]}"
  done
}
compile=("$@")
link "${units[@]}" --
exit "$failed"
