#!/usr/bin/env bash
# check_decode_loop.sh <decode_loop>: shapes at the edges, and what it says when a difference is too large.
set -euo pipefail
program=$1

agrees() {  # agrees <arguments>...
  local log
  log=$("$program" --steps 100 "$@" 2>&1) && grep -q "^every head of every step is within" <<<"$log" || {
    echo "$log" >&2
    echo "commands: decode_loop should succeed: $*" >&2
    exit 1
  }
}
fails() {  # fails <text> <arguments>...
  local text=$1 log status=0
  shift
  log=$("$program" --steps 100 "$@" 2>&1) || status=$?
  [[ $status -eq 1 ]] && grep -qE -- "$text" <<<"$log" || {
    echo "$log" >&2
    echo "commands: decode_loop should exit with 1 (not $status) and say '$text': $*" >&2
    exit 1
  }
}
agrees --prompt 1
agrees --prompt 300 --layers 1 --heads 1 --kv_heads 1 --head_dim 16
agrees --prompt 120 --layers 9 --heads 6 --kv_heads 1 --head_dim 5 --seed 7
agrees --prompt 64 --heads 8 --kv_heads 8 --threads 2
# Rounding alone is more than nothing.
fails "attention: expected dense masked attention within 0, .*step 0, layer 0, query head [0-9]" --tolerance 0
fails "query heads: expected a multiple of 3" --heads 8 --kv_heads 3
fails "machine's memory" --prompt 16000000 --head_dim 100000
refused() {  # refused <option> <value>: by name, before any work
  local log
  if log=$("$program" "$@" 2>&1) || ! grep -q -- "$1" <<<"$log"; then
    echo "commands: decode_loop should refuse $*: $log" >&2
    exit 1
  fi
}
refused --threads 1000000000
refused --steps 1000000000
refused --seed 99999999999999999999
echo "commands: decode_loop does what it should"
