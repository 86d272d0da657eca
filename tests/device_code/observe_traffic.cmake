# Runs PROGRAM under the CUDA emulator and checks what the attention statistics ask of memory, beside the forward
# pass of flash attention at the same tiles.
#   cmake -DPROGRAM=... -DREPORT=... -P observe_traffic.cmake
execute_process(COMMAND ${CMAKE_COMMAND} -E env CUDA_EMU_REPORT=${REPORT} ${PROGRAM}
                OUTPUT_VARIABLE output RESULT_VARIABLE result)
message(STATUS "${output}")
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${PROGRAM} failed: ${result}")
endif()
if(output MATCHES "skipped" OR NOT EXISTS ${REPORT})
  message(STATUS "skipped: no emulator to count with")
  return()
endif()
string(REGEX MATCHALL "flash_bytes [0-9]+" flash "${output}")
list(LENGTH flash observations)

file(READ ${REPORT} report)
string(JSON launches LENGTH ${report} launches)
if(NOT launches EQUAL observations)
  message(FATAL_ERROR "statistics are one launch each: ${observations} of them took ${launches}")
endif()
math(EXPR last "${launches} - 1")
set(wasteful FALSE)
foreach(i RANGE ${last})
  list(GET flash ${i} needed)
  string(REGEX REPLACE "[^0-9]" "" needed "${needed}")
  string(JSON global GET ${report} launches ${i} global)
  string(JSON load_bytes GET ${global} load bytes)
  string(JSON store_bytes GET ${global} store bytes)
  string(JSON distinct GET ${global} distinct_sectors_read)
  string(JSON warp_instructions GET ${report} launches ${i} instructions warp)
  string(JSON tensor_instructions GET ${report} launches ${i} instructions by_class tensor warp)
  # In thousandths, as CMake counts in integers.
  math(EXPR read_ratio "1000 * ${load_bytes} / ${needed}")
  message(STATUS "launch ${i}: flash attention reads ${needed} bytes, this ${load_bytes}: ${read_ratio} thousandths "
                 "(sectors told apart: ${distinct}); written ${store_bytes}; warp instructions ${warp_instructions}, "
                 "of them matrix products ${tensor_instructions}")
  if(read_ratio GREATER 1200)
    set(wasteful TRUE)
  endif()
endforeach()
if(wasteful)
  message(FATAL_ERROR "statistics read more than 1200 thousandths of what flash attention reads")
endif()
