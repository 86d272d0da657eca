# Runs PROGRAM under the CUDA emulator and checks what compaction asks of memory.
#   cmake -DPROGRAM=... -DMODEL=uniform|planned|mixed -DREPORT=... -P traffic.cmake
include("${CMAKE_CURRENT_LIST_DIR}/emulator_report.cmake")
run_emulated(PROGRAM ${PROGRAM} ${MODEL})
string(REGEX MATCH "kept_bytes ([0-9]+)" unused "${output}")
set(kept ${CMAKE_MATCH_1})

total_traffic()
total_instructions()

ratio(read_ratio "${total_load_bytes}" "${kept}")
ratio(written_ratio "${total_store_bytes}" "${kept}")
ratio(dram_ratio "32 * ${total_distinct_sectors_read}" "${kept}")
ratio(load_efficiency "${total_load_bytes}" "32 * ${total_load_sectors}")
ratio(store_efficiency "${total_store_bytes}" "32 * ${total_store_sectors}")
# Of a warp that reads 16 bytes a thread.
ratio(instructions "${total_instructions} * 512" "${kept}")
message(STATUS "warp-instructions without moves, in thousandths, per 512 bytes kept: ${instructions}")
message(STATUS "launches ${launches}; kept ${kept} bytes; asked to read ${total_load_bytes}, to write ${total_store_bytes}")
message(STATUS "of the kept bytes, in thousandths: read ${read_ratio}, written ${written_ratio}, distinct sectors read ${dram_ratio}")
message(STATUS "bytes asked for / bytes of the sectors touched, in thousandths: loads ${load_efficiency}, stores ${store_efficiency}")
# Blocks read what they need of the kinds of layers, where layers differ.
set(most_read 1050)
if(MODEL STREQUAL mixed)
  set(most_read 1100)
endif()
set(most_launches 2)
if(MODEL STREQUAL planned)
  set(most_launches 1)
endif()
if(launches GREATER most_launches OR read_ratio GREATER ${most_read} OR written_ratio GREATER 1050 OR load_efficiency LESS 950
   OR store_efficiency LESS 950)
  message(FATAL_ERROR "compaction asks more of memory than it should: at most ${most_launches} launches, ${most_read} read, 1050 written, "
                      "at least 950 of every sector")
endif()
