# Runs PROGRAM under the CUDA emulator and checks what a decoding step's attention asks of memory.
#   cmake -DPROGRAM=... -DREPORT=... -P attend_traffic.cmake
include("${CMAKE_CURRENT_LIST_DIR}/emulator_report.cmake")
# Prefill chunks: warp-instructions per pair of a query row and a key of 128 channels, of which the row sees the key. A
# flash-attention-2-like inner loop takes 0.45 (benchmarks/README.md); 1.5 times as many are allowed, queries, results and joins
# of partial ones included. One query head a KV head has few rows for each of these, and windows have tiles of which each row
# sees other keys.
foreach(case "chunk;1;700" "chunk;4;680" "chunk;8;680" "chunk_rolling;4;830")
  list(POP_BACK case most_instructions)
  run_emulated(PROGRAM ${PROGRAM} ${case})
  string(REGEX MATCH "pairs ([0-9]+)" unused "${output}")
  set(pairs ${CMAKE_MATCH_1})
  total_instructions()
  ratio(pair_instructions "${total_instructions}" "${pairs}")
  list(JOIN case ", " name)
  message(STATUS "${name} query heads a KV head: launches ${launches}, instructions per thousand query rows and keys "
                 "${pair_instructions}")
  if(NOT launches EQUAL 1 OR pair_instructions GREATER ${most_instructions})
    message(FATAL_ERROR "attention of a chunk takes more instructions than it should: ${most_instructions}")
  endif()
endforeach()

foreach(case "ragged;1" "ragged;4" "ragged;8" "ragged;16" "paged;1" "paged;4" "paged;8" "paged;16" "rolling;4" "rolling;8"
             "wide;1" "wide;4" "wide;16" "latent;16" "latent;128"
             "coded;1" "coded;4" "coded;8" "coded;16")
  run_emulated(PROGRAM ${PROGRAM} ${case})
  string(REGEX MATCH "held_bytes ([0-9]+)" unused "${output}")
  set(held ${CMAKE_MATCH_1})

  total_traffic()
  total_instructions()

  ratio(read_ratio "${total_load_bytes}" "${held}")
  ratio(sector_ratio "32 * ${total_load_sectors}" "${held}")
  ratio(dram_ratio "32 * ${total_distinct_sectors_read}" "${held}")
  ratio(written_ratio "${total_store_bytes}" "${held}")
  ratio(efficiency "${total_load_bytes}" "32 * ${total_load_sectors}")
  # Of rows of 128 channels in 2 bytes, keys and values. FlashInfer's decoding on tensor cores takes 30 to 34. Of encoded
  # rows: per row, of all heads.
  math(EXPR row_instructions "${total_instructions} * 512 / ${held}")
  list(GET case 0 form)
  if(form STREQUAL "coded")
    math(EXPR row_instructions "${total_instructions} / 15360")
  endif()
  list(JOIN case ", " name)
  message(STATUS "${name} query heads a KV head: launches ${launches}, held ${held} bytes; in thousandths of them: read "
                 "${read_ratio}, sectors of all requests ${sector_ratio}, distinct sectors ${dram_ratio}, written "
                 "${written_ratio}; bytes asked for / bytes of the sectors touched ${efficiency}; instructions per 512 bytes, "
                 "or per encoded row, ${row_instructions}")
  # A block has up to 16 query rows: of 128, eight blocks ask for a row that comes from memory once.
  list(GET case -1 group)
  math(EXPR query_tiles "(${group} + 15) / 16")
  math(EXPR most "${query_tiles} * 1080")
  math(EXPR most_instructions "${query_tiles} * 34")
  if(name MATCHES "^coded")
    set(most 1080)
    set(most_instructions 53)
    if(group GREATER 8)
      set(most_instructions 58)
    endif()
  elseif(name MATCHES "^(ragged|paged|rolling)")
    if(group GREATER 8)
      set(most 1100)
      set(most_instructions 35)
    else()
      set(most 1060)
      set(most_instructions 26)
    endif()
  endif()
  if(NOT launches EQUAL 1 OR read_ratio GREATER ${most} OR read_ratio LESS 1000 OR efficiency LESS 900
     OR dram_ratio GREATER 1300 OR row_instructions GREATER most_instructions)
    message(FATAL_ERROR "attention asks more of memory than it should: 1 launch, ${most} read, 1300 of all sectors, at least "
                        "900 of every sector; ${most_instructions} instructions")
  endif()
endforeach()
