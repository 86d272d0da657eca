# Sourced by the scripts that check programs, which set `name` (what messages begin with) and `folder`.
set -euo pipefail

fresh_folder() {
  rm -rf "$folder"
  mkdir -p "$folder"
}
fail() {
  echo "$name: $*" >&2
  exit 1
}
# check_exit <exit code, or "error" for any but 0> <text> <command>...: runs a command, which must print the text.
check_exit() {
  local expected=$1 text=$2 code=0
  shift 2
  "$@" >"$folder/log" 2>&1 || code=$?
  if [[ ($expected == error && $code != 0) || $code == "$expected" ]] && grep -qF -- "$text" "$folder/log"; then
    return 0
  fi
  cat "$folder/log" >&2
  fail "expected exit code $expected and '$text', got $code: $*"
}
# need_model <folder of models>: sets `model`, or ends the script where it is not there.
need_model() {
  model=$1/SmolLM2-135M-Instruct.Q4_1.gguf
  [[ -e $model ]] && return 0
  echo "$name: skipped: no model $model"
  exit 0
}
