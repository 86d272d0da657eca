# Runs PROGRAM under the CUDA emulator and tells what a decoding step's attention costs by our kernels and by FlashInfer's,
# over the same scattered pages of single KV heads: warp-instructions per row of keys with values that is held, bytes read.
#   cmake -DPROGRAM=... -DREPORT=... [-DGROUPS=1,4,8] -P flashinfer_traffic.cmake
include("${CMAKE_CURRENT_LIST_DIR}/emulator_report.cmake")
if(NOT GROUPS)
  set(GROUPS 1,4,8)
endif()
string(REPLACE "," ";" groups "${GROUPS}")
set(row_bytes 512)
set(unequal "")

# tenths(<variable> <numerator> <denominator>): the ratio with one digit after the point.
macro(tenths variable numerator denominator)
  math(EXPR ${variable} "(10 * (${numerator}) + (${denominator}) / 2) / (${denominator})")
  string(REGEX REPLACE "^(.*)(.)$" "\\1.\\2" ${variable} "${${variable}}")
endmacro()

foreach(group IN LISTS groups)
  foreach(kernels "" flashinfer_cuda flashinfer_cuda_rules flashinfer_tensor flashinfer_tensor_rules)
    run_emulated(PROGRAM ${PROGRAM} paged ${group} ${kernels})
    string(REGEX MATCH "held_bytes ([0-9]+)" unused "${output}")
    set(held ${CMAKE_MATCH_1})
    total_traffic()
    total_instructions()
    tenths(instructions "${total_instructions} * ${row_bytes}" "${held}")
    tenths(integers "${total_integers} * ${row_bytes}" "${held}")
    ratio(read_ratio "${total_load_bytes}" "${held}")
    if(NOT kernels)
      set(kernels "headaware::device::attend")
    endif()
    message(STATUS "${group} query heads a KV head, ${kernels}: launches ${launches}; per row of ${row_bytes} bytes "
                   "${instructions} warp-instructions without moves, of which ${integers} on integers; bytes read, in "
                   "thousandths of those held: ${read_ratio}")
    if(read_ratio LESS 1000 OR read_ratio GREATER 1400)
      list(APPEND unequal "${kernels}, ${group}")
    endif()
  endforeach()
endforeach()
if(unequal)
  message(FATAL_ERROR "expected every kernel to read what is held, and at most 1400 thousandths of it: ${unequal}")
endif()
