# Runs PROGRAM CACHE under the CUDA emulator and checks what a step of decoding asks of memory: nothing of old tokens.
#   cmake -DPROGRAM=... -DCACHE=rolling|paged|mixed|scored|scored_pages -DREPORT=... -P append_traffic.cmake
include("${CMAKE_CURRENT_LIST_DIR}/emulator_report.cmake")
run_emulated(PROGRAM ${PROGRAM} ${CACHE} ENVIRONMENT CUDA_EMU_INITCHECK=1
             ON_FAILURE "(the cache is not initialised: has an old token been read?)")
string(REGEX MATCH "new_bytes ([0-9]+)" unused "${output}")
set(new ${CMAKE_MATCH_1})

global_traffic(0)
string(JSON sectors_written GET ${global} distinct_sectors_written)

if(CACHE MATCHES scored)
  # A row moves in every other head; every head's records are read once, and a record, a score and a mark are written.
  string(REGEX MATCH "moved_bytes ([0-9]+)" unused "${output}")
  set(moved ${CMAKE_MATCH_1})
  string(REGEX MATCH "record_bytes ([0-9]+)" unused "${output}")
  set(records ${CMAKE_MATCH_1})
  math(EXPR tables "${load_bytes} - ${new} - ${moved} - ${records}")
  math(EXPR marks "${store_bytes} - ${new} - ${moved}")
  message(STATUS "launches ${launches}; new ${new} bytes, moved ${moved}, records ${records}; beside these read ${tables}, "
                 "written ${marks}")
  math(EXPR most_tables "${records} / 5")
  if(CACHE STREQUAL scored_pages)
    math(EXPR most_tables "${records} / 4") # and the numbers of pages, which every thread reads
  endif()
  math(EXPR most_marks "${moved} / 10")
  if(NOT launches EQUAL 1 OR tables LESS 0 OR tables GREATER ${most_tables} OR marks LESS 0 OR marks GREATER ${most_marks})
    message(FATAL_ERROR "a step with scores asks more of memory than it should: 1 launch, ${most_tables} bytes of tables, a "
                        "tenth of the moved bytes of records and scores")
  endif()
  return()
endif()

# Beyond the new bytes: tables read, counters written.
math(EXPR tables "${load_bytes} - ${new}")
math(EXPR counters "${store_bytes} - ${new}")
ratio(read_ratio "32 * ${distinct_sectors_read}" "${new}")
ratio(written_ratio "32 * ${sectors_written}" "${new}")
ratio(store_efficiency "${store_bytes}" "32 * ${store_sectors}")
message(STATUS "launches ${launches}; new ${new} bytes; asked to read ${load_bytes} (${tables} of tables), "
               "to write ${store_bytes} (${counters} of counters)")
message(STATUS "of the new bytes, in thousandths: distinct sectors read ${read_ratio}, written ${written_ratio}; "
               "used of the sectors written ${store_efficiency}")
set(most_read 1150)
if(CACHE STREQUAL paged)
  set(most_read 1180) # a record of 48 bytes for a head's 512 new ones
endif()
if(NOT launches EQUAL 1 OR tables LESS 0 OR counters LESS 0 OR counters GREATER 64 OR read_ratio GREATER most_read
   OR written_ratio GREATER 1010 OR store_efficiency LESS 950)
  message(FATAL_ERROR "a step asks more of memory than it should: 1 launch, no old token written, at most ${most_read} read, "
                      "1010 written, at least 950 of every sector")
endif()
