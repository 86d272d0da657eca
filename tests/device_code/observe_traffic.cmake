# Runs PROGRAM under the CUDA emulator and checks what the attention statistics ask of memory, beside the forward
# pass of flash attention at the same tiles.
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
  if(read_ratio GREATER 1200)
    set(wasteful TRUE)
  endif()
endforeach()
if(wasteful)
  message(FATAL_ERROR "statistics read more than 1200 thousandths of what flash attention reads")
endif()
