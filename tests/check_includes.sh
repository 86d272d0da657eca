#!/usr/bin/env bash
# check_includes.sh <include/headaware>: no include runs up the order of the areas, or into another area's detail/.
set -euo pipefail
cd "$1"
grep -rHoE '^#include <headaware/[^>]+' --include='*.hpp' --include='*.cuh' . | sed 's|^\./||; s|:#include <headaware/| |' | awk '
  function area(path) {
    if (path ~ /^compressor\./) return "compressor"
    return path !~ /\// || path ~ /^detail\// ? "root" : substr(path, 1, index(path, "/") - 1)
  }
  BEGIN {
    rank["root"] = 0; rank["policy"] = rank["layout"] = rank["format"] = 1; rank["cache"] = 2; rank["attention"] = 3; rank["score"] = 3.5; rank["stats"] = 4
    rank["classify"] = 5; rank["plan"] = 6; rank["io"] = 7; rank["compressor"] = 8
  }
  {
    from = area($1); to = area($2)
    if (!(from in rank) || !(to in rank)) why = "an area that the order does not name"
    else if (rank[to] > rank[from] || (rank[to] == rank[from] && to != from)) why = from " must not include " to
    else if ($2 ~ /\/detail\// && to != from) why = "private to " to
    else next
    print $1 " includes " $2 ": " why; failed = 1
  }
  END { if (NR == 0) print "no includes found"; exit failed || NR == 0 }'
