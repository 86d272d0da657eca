# Runs PROGRAM under the CUDA emulator and checks what scores and selection ask of memory. Linear scores: a launch each; rows are read once per
# four KV heads, of which there are eight, and weights once per four tokens; beyond these are parameters, such as strides,
# which threads read again from the same few sectors.
#   cmake -DPROGRAM=... -DREPORT=... -P score_traffic.cmake
include("${CMAKE_CURRENT_LIST_DIR}/emulator_report.cmake")
run_emulated(PROGRAM ${PROGRAM})
string(REGEX MATCHALL "tokens [0-9]+, row_bytes [0-9]+, weight_bytes [0-9]+" calls "${output}")
list(LENGTH calls count)
if(NOT launches EQUAL count)
  message(FATAL_ERROR "scores are one launch each: ${count} of them took ${launches}")
endif()
math(EXPR last "${launches} - 1")
set(wasteful FALSE)
foreach(i RANGE ${last})
  list(GET calls ${i} call)
  string(REGEX MATCH "tokens ([0-9]+), row_bytes ([0-9]+), weight_bytes ([0-9]+)" _ "${call}")
  set(tokens ${CMAKE_MATCH_1})
  set(rows ${CMAKE_MATCH_2})
  set(weights ${CMAKE_MATCH_3})
  global_traffic(${i})
  string(JSON warp_instructions GET ${report} launches ${i} instructions warp)
  # Of a block with fewer than four tokens the last one is read again for those that lack.
  math(EXPR blocks "(${tokens} + 3) / 4")
  math(EXPR expected "2 * (${rows} / ${tokens}) * 4 * ${blocks} + ${weights} * ${blocks}")
  ratio(read_ratio "${load_bytes}" "${expected}")
  math(EXPR per_token "${warp_instructions} / ${tokens}")
  message(STATUS "${tokens} tokens: read ${load_bytes} bytes, ${read_ratio} thousandths of ${expected} "
                 "(rows ${rows}, weights ${weights}); distinct sectors ${distinct_sectors_read}; written ${store_bytes}; "
                 "${per_token} warp instructions a token")
  if(read_ratio GREATER 1250)
    set(wasteful TRUE)
  endif()
endforeach()
if(wasteful)
  message(FATAL_ERROR "scores read more than rows once per four KV heads and weights once per four tokens")
endif()

# Scores of kept rows: two launches. The first reads the keys once per 64 query rows, of which every KV head has 256, the
# second the keys once and the query rows of a KV head once per 64 of its 1,024 rows.
run_emulated(PROGRAM ${PROGRAM} keys)
string(REGEX MATCH "key_bytes ([0-9]+), query_bytes ([0-9]+)" unused "${output}")
set(keys ${CMAKE_MATCH_1})
set(queries ${CMAKE_MATCH_2})
total_traffic()
total_instructions()
math(EXPR expected "5 * ${keys} + 17 * ${queries}")
ratio(read_ratio "${total_load_bytes}" "${expected}")
math(EXPR per_row "${total_instructions} / (8 * 1024)")
message(STATUS "keys: launches ${launches}, read ${total_load_bytes} bytes, ${read_ratio} thousandths of ${expected}; written "
               "${total_store_bytes}; ${per_row} warp instructions a row of 256 query rows")
if(NOT launches EQUAL 2 OR read_ratio GREATER 1200)
  message(FATAL_ERROR "scores of kept rows: expected two launches and at most 1200 thousandths of keys and queries")
endif()

# Selection from 4,096 tokens: by budgets of heads one launch that reads the scores five times, by one threshold six launches
# that read them up to ten times and, a block each, up to three histograms of 8 KB. Lengths and the like come beside.
foreach(case "budgets;1;6800" "shared;6;22000")
  list(POP_BACK case most)
  list(POP_BACK case expected_launches)
  run_emulated(PROGRAM ${PROGRAM} ${case})
  string(REGEX MATCH "score_bytes ([0-9]+)" unused "${output}")
  set(scores ${CMAKE_MATCH_1})
  total_traffic()
  total_instructions()
  ratio(read_ratio "${total_load_bytes}" "${scores}")
  ratio(written_ratio "${total_store_bytes}" "${scores}")
  math(EXPR per_thousand "${total_instructions} * 4000 / ${scores}")
  message(STATUS "${case}: launches ${launches}, read ${read_ratio} thousandths of the scores, written ${written_ratio}; "
                 "${per_thousand} warp instructions for a thousand scores")
  if(NOT launches EQUAL expected_launches OR read_ratio GREATER most)
    message(FATAL_ERROR "selection: expected ${expected_launches} launches that read at most ${most} thousandths of the scores")
  endif()
endforeach()
