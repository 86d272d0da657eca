# Runs PROGRAM under the CUDA emulator and checks what a decoding step's attention asks of memory.
#   cmake -DPROGRAM=... -DREPORT=... -P attend_traffic.cmake
foreach(case "ragged;1" "ragged;4" "ragged;8" "ragged;16" "paged;4" "paged;8")
  execute_process(COMMAND ${CMAKE_COMMAND} -E env CUDA_EMU_REPORT=${REPORT} ${PROGRAM} ${case}
                  OUTPUT_VARIABLE output RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${PROGRAM} failed: ${result}\n${output}")
  endif()
  if(output MATCHES "skipped" OR NOT EXISTS ${REPORT})
    message(STATUS "skipped: no emulator to count with")
    return()
  endif()
  string(REGEX MATCH "held_bytes ([0-9]+)" unused "${output}")
  set(held ${CMAKE_MATCH_1})

  file(READ ${REPORT} report)
  string(JSON launches LENGTH ${report} launches)
  set(read 0)
  set(written 0)
  set(distinct_sectors 0)
  set(sectors 0)
  math(EXPR last "${launches} - 1")
  foreach(i RANGE ${last})
    string(JSON global GET ${report} launches ${i} global)
    string(JSON load_bytes GET ${global} load bytes)
    string(JSON load_sectors GET ${global} load sectors)
    string(JSON store_bytes GET ${global} store bytes)
    string(JSON distinct GET ${global} distinct_sectors_read)
    math(EXPR read "${read} + ${load_bytes}")
    math(EXPR sectors "${sectors} + ${load_sectors}")
    math(EXPR written "${written} + ${store_bytes}")
    math(EXPR distinct_sectors "${distinct_sectors} + ${distinct}")
  endforeach()

  # In thousandths, as CMake counts in integers.
  math(EXPR read_ratio "1000 * ${read} / ${held}")
  math(EXPR sector_ratio "1000 * 32 * ${sectors} / ${held}")
  math(EXPR dram_ratio "1000 * 32 * ${distinct_sectors} / ${held}")
  math(EXPR written_ratio "1000 * ${written} / ${held}")
  math(EXPR efficiency "1000 * ${read} / (32 * ${sectors})")
  list(JOIN case ", " name)
  message(STATUS "${name} query heads a KV head: launches ${launches}, held ${held} bytes; in thousandths of them: read "
                 "${read_ratio}, sectors of all requests ${sector_ratio}, distinct sectors ${dram_ratio}, written "
                 "${written_ratio}; bytes asked for / bytes of the sectors touched ${efficiency}")
  if(launches GREATER 2 OR read_ratio GREATER 1100 OR read_ratio LESS 1000 OR efficiency LESS 900)
    message(FATAL_ERROR "attention asks more of memory than it should: at most 2 launches, 1100 read, at least 900 of "
                        "every sector")
  endif()
endforeach()
