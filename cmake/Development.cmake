# Targets for developers: docs, format, format-check, tidy.

# The API reference; a warning of Doxygen's is an error.
find_program(HEADAWARE_DOXYGEN doxygen)
if(HEADAWARE_DOXYGEN)
  configure_file(cmake/Doxyfile.in Doxyfile @ONLY)
  add_custom_target(docs COMMAND "${HEADAWARE_DOXYGEN}" -q "${PROJECT_BINARY_DIR}/Doxyfile"
    COMMENT "API reference in ${PROJECT_BINARY_DIR}/docs/html" VERBATIM)
endif()

# Versions of clang-format break lines differently; .pre-commit-config.yaml pins the same one.
find_program(HEADAWARE_CLANG_FORMAT NAMES clang-format-14 clang-format)
if(HEADAWARE_CLANG_FORMAT)
  execute_process(COMMAND "${HEADAWARE_CLANG_FORMAT}" --version OUTPUT_VARIABLE headaware_clang_format_version)
endif()
if(headaware_clang_format_version MATCHES "version 14\\.")
  set(headaware_sources "")
  foreach(folder include tests benchmarks examples)
    file(GLOB_RECURSE files CONFIGURE_DEPENDS ${folder}/*.hpp ${folder}/*.cuh ${folder}/*.inl ${folder}/*.cpp ${folder}/*.cu)
    list(APPEND headaware_sources ${files})
  endforeach()
  list(JOIN headaware_sources "\n" headaware_sources)
  file(CONFIGURE OUTPUT format_sources.txt CONTENT "${headaware_sources}\n" @ONLY)
  set(headaware_format xargs -a "${PROJECT_BINARY_DIR}/format_sources.txt" "${HEADAWARE_CLANG_FORMAT}")
  add_custom_target(format COMMAND ${headaware_format} -i COMMENT "clang-format" VERBATIM)
  add_custom_target(format-check COMMAND ${headaware_format} --dry-run -Werror --ferror-limit=2
    COMMENT "clang-format, as a check" VERBATIM)
endif()

# The headers as the examples for the host instantiate them. Most of the time goes into headers, so the sources of a
# folder are read together; tidy_units is never built, but gives clang-tidy their compile commands.
find_program(HEADAWARE_CLANG_TIDY NAMES clang-tidy-14 clang-tidy)
if(HEADAWARE_CLANG_TIDY AND HEADAWARE_BUILD_EXAMPLES)
  set(HEADAWARE_UNITY ON)
  file(GLOB headaware_tidy_programs CONFIGURE_DEPENDS examples/*.cpp examples/tools/commands/*.cpp)
  if(NOT TARGET 07_mpi_observe)
    list(FILTER headaware_tidy_programs EXCLUDE REGEX "_mpi_")
  endif()
  set(headaware_tidy_libraries tools_report tools_analysis)
  # What is not built here has no compile command.
  if(HEADAWARE_HAS_LLAMA)
    list(APPEND headaware_tidy_libraries headaware_llama_adapter headaware_llama_planning headaware_ridge)
    foreach(program capture_attention generate)
      list(APPEND headaware_tidy_programs "${PROJECT_SOURCE_DIR}/examples/tools/llama/${program}.cpp")
    endforeach()
    if(TARGET headaware_llama_measuring)
      list(APPEND headaware_tidy_libraries headaware_llama_measuring)
      foreach(program benchmark run_ablation_study)
        list(APPEND headaware_tidy_programs "${PROJECT_SOURCE_DIR}/benchmarks/llama/${program}.cpp")
      endforeach()
    endif()
  endif()
  headaware_unite(headaware_tidy_units tidy ${headaware_tidy_programs})
  foreach(library IN LISTS headaware_tidy_libraries)
    get_target_property(sources ${library} SOURCES)
    get_target_property(folder ${library} SOURCE_DIR)
    set(text "")
    foreach(source IN LISTS sources)
      cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY "${folder}")
      string(APPEND text "#include \"${source}\"  // NOLINT\n")
    endforeach()
    set(unit "${PROJECT_BINARY_DIR}/unity/${library}.cpp")
    file(CONFIGURE OUTPUT "${unit}" CONTENT "${text}" @ONLY)
    list(APPEND headaware_tidy_units "${unit}")
  endforeach()

  add_library(tidy_units OBJECT EXCLUDE_FROM_ALL ${headaware_tidy_units})
  target_link_libraries(tidy_units PRIVATE tools_analysis CLI11::CLI11 headaware_development
    $<TARGET_NAME_IF_EXISTS:headaware_llama_planning> $<TARGET_NAME_IF_EXISTS:Eigen3::Eigen>
    $<TARGET_NAME_IF_EXISTS:headaware_llama_measuring> $<TARGET_NAME_IF_EXISTS:MPI::MPI_CXX>)
  target_compile_definitions(tidy_units PRIVATE
    $<$<BOOL:${HEADAWARE_HAS_LLAMA}>:HEADAWARE_HAS_LLAMA>)
  add_custom_target(tidy)
  # Within a namespace main is a function like others.
  foreach(unit IN LISTS headaware_tidy_units)
    cmake_path(GET unit STEM name)
    add_custom_target(tidy-${name} COMMAND "${HEADAWARE_CLANG_TIDY}" --quiet -p "${PROJECT_BINARY_DIR}"
      --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-return-type "${unit}" VERBATIM)
    add_dependencies(tidy tidy-${name})
  endforeach()
endif()
