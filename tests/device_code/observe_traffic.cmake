# Runs PROGRAM under the CUDA emulator and checks what the attention statistics ask of memory, beside the forward
# pass of flash attention at the same tiles. Launches come in pairs: without values, which read no more than it does, and
# with values, which read keys and values a second time for the errors of windows, and those of short windows a third. So many
# instructions as they take now, and some more, are allowed.
#   cmake -DPROGRAM=... -DREPORT=... -P observe_traffic.cmake
include("${CMAKE_CURRENT_LIST_DIR}/emulator_report.cmake")
run_emulated(PROGRAM ${PROGRAM})
string(REGEX MATCHALL "flash_bytes [0-9]+" flash "${output}")
string(REGEX MATCHALL "flash_128_bytes [0-9]+" flash_128 "${output}")
list(LENGTH flash observations)
if(NOT launches EQUAL observations)
  message(FATAL_ERROR "statistics are one launch each: ${observations} of them took ${launches}")
endif()
math(EXPR last "${launches} - 1")
# Of two heads: without and with values, of queries that see all before them, then of such that see a window.
set(most_instructions 2700000 19300000 1420000 11500000)
set(wasteful FALSE)
foreach(i RANGE ${last})
  list(GET flash ${i} needed)
  string(REGEX REPLACE "[^0-9]" "" needed "${needed}")
  list(GET flash_128 ${i} needed_128)
  string(REGEX REPLACE "^.* " "" needed_128 "${needed_128}")
  global_traffic(${i})
  string(JSON warp_instructions GET ${report} launches ${i} instructions warp)
  string(JSON tensor_instructions GET ${report} launches ${i} instructions by_class tensor warp)
  ratio(read_ratio "${load_bytes}" "${needed}")
  ratio(read_ratio_128 "${load_bytes}" "${needed_128}")
  message(STATUS "launch ${i}: flash attention reads ${needed} bytes, this ${load_bytes}: ${read_ratio} thousandths "
                 "(of its own tiles of 128 rows, which read ${needed_128}: ${read_ratio_128}) "
                 "(sectors told apart: ${distinct_sectors_read}); written ${store_bytes}; warp instructions ${warp_instructions}, "
                 "of them matrix products ${tensor_instructions}")
  math(EXPR with_values "${i} % 2")
  set(limit 1200)
  if(with_values)
    set(limit 2700)
  endif()
  list(GET most_instructions ${i} most)
  if(read_ratio GREATER limit OR warp_instructions GREATER most)
    set(wasteful TRUE)
  endif()
endforeach()
if(wasteful)
  message(FATAL_ERROR "statistics read more than 1200 (with values 2700) thousandths of what flash attention reads, or take more "
                      "warp instructions than ${most_instructions}")
endif()
