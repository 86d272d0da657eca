# Runs PROGRAM under the CUDA emulator and checks what one layer's part of a decoding step, new tokens included, launches
# and asks of memory.
#   cmake -DPROGRAM=... -DREPORT=... -P step_traffic.cmake
include("${CMAKE_CURRENT_LIST_DIR}/emulator_report.cmake")
foreach(calls two one rotated pages_two pages encoded_two encoded)
  run_emulated(PROGRAM ${PROGRAM} ${calls})
  string(REGEX MATCH "rows ([0-9]+)" unused "${output}")
  set(rows ${CMAKE_MATCH_1})
  string(REGEX MATCH "held_bytes ([0-9]+)" unused "${output}")
  set(held ${CMAKE_MATCH_1})
  total_traffic()
  total_instructions()
  ratio(read_ratio "${total_load_bytes}" "${held}")
  math(EXPR row_instructions "${total_instructions} / ${rows}")
  message(STATUS "${calls}: launches ${launches}; read, in thousandths of the ${held} bytes held: ${read_ratio}; "
                 "written ${total_store_bytes} bytes; instructions per row ${row_instructions}")
  set(most_launches 1)
  if(calls MATCHES "two$")
    set(most_launches 2)
  endif()
  set(most_instructions 26)
  if(calls STREQUAL rotated)
    set(most_instructions 40)
  endif()
  if(NOT launches EQUAL most_launches OR read_ratio GREATER 1100 OR row_instructions GREATER most_instructions)
    message(FATAL_ERROR "a step asks for more than it should: ${most_launches} launches, 1100 read, ${most_instructions} "
                        "instructions")
  endif()
endforeach()
