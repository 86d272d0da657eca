# Runs PROGRAM under the CUDA emulator and checks what linear scores ask of memory: a launch each; rows are read once per
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
