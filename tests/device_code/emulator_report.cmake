# What the scripts that count memory traffic share.

# run_emulated(PROGRAM <program> <argument>... [ENVIRONMENT <name>=<value>...] [ON_FAILURE <hint>]): runs a program under the CUDA emulator. Sets `output`
# to what it printed and `report` to the emulator's, `launches` to how many there are; returns from the script that
# includes this where there is no emulator to count with.
macro(run_emulated)
  cmake_parse_arguments(emulated "" "ON_FAILURE" "PROGRAM;ENVIRONMENT" ${ARGN})
  execute_process(COMMAND ${CMAKE_COMMAND} -E env CUDA_EMU_REPORT=${REPORT} ${emulated_ENVIRONMENT} ${emulated_PROGRAM}
                  OUTPUT_VARIABLE output ERROR_VARIABLE errors RESULT_VARIABLE result)
  message(STATUS "${output}")
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${emulated_PROGRAM} failed: ${result} ${emulated_ON_FAILURE}\n${errors}")
  endif()
  if(output MATCHES "skipped" OR NOT EXISTS ${REPORT})
    message(STATUS "skipped: no emulator to count with")
    return()
  endif()
  file(READ ${REPORT} report)
  string(JSON launches LENGTH ${report} launches)
endmacro()

# global_traffic(<launch>): load_bytes, load_sectors, store_bytes, store_sectors and distinct_sectors_read of a launch.
macro(global_traffic launch)
  string(JSON global GET ${report} launches ${launch} global)
  foreach(kind load store)
    string(JSON ${kind}_bytes GET ${global} ${kind} bytes)
    string(JSON ${kind}_sectors GET ${global} ${kind} sectors)
  endforeach()
  string(JSON distinct_sectors_read GET ${global} distinct_sectors_read)
endmacro()

# ratio(<variable> <numerator> <denominator>): in thousandths, as CMake counts in integers; both are expressions.
macro(ratio variable numerator denominator)
  math(EXPR ${variable} "1000 * (${numerator}) / (${denominator})")
endmacro()

# total_traffic(): the same over all launches, as total_load_bytes and so on.
macro(total_traffic)
  set(counts load_bytes load_sectors store_bytes store_sectors distinct_sectors_read)
  foreach(count IN LISTS counts)
    set(total_${count} 0)
  endforeach()
  math(EXPR last "${launches} - 1")
  foreach(launch RANGE ${last})
    global_traffic(${launch})
    foreach(count IN LISTS counts)
      math(EXPR total_${count} "${total_${count}} + ${${count}}")
    endforeach()
  endforeach()
endmacro()

# total_instructions(): instructions issued per warp, all launches, moves aside, as total_instructions.
macro(total_instructions)
  set(total_instructions 0)
  math(EXPR last "${launches} - 1")
  foreach(launch RANGE ${last})
    string(JSON all GET ${report} launches ${launch} instructions warp)
    string(JSON moves GET ${report} launches ${launch} instructions by_class move warp)
    math(EXPR total_instructions "${total_instructions} + ${all} - ${moves}")
  endforeach()
endmacro()
