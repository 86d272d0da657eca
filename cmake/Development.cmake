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

# The headers as the examples for the host instantiate them.
find_program(HEADAWARE_CLANG_TIDY NAMES clang-tidy-14 clang-tidy)
if(HEADAWARE_CLANG_TIDY AND HEADAWARE_BUILD_EXAMPLES)
  add_custom_target(tidy)
  file(GLOB headaware_tidy_sources CONFIGURE_DEPENDS examples/*.cpp examples/commands/*.cpp examples/analysis/*.cpp examples/report/*.cpp)
  # What is not built here has no compile command.
  if(HEADAWARE_HAS_LLAMA)
    file(GLOB headaware_llama_sources CONFIGURE_DEPENDS examples/llama/*.cpp)
    list(APPEND headaware_tidy_sources ${headaware_llama_sources})
  endif()
  if(NOT TARGET 07_mpi_observe)
    list(FILTER headaware_tidy_sources EXCLUDE REGEX "_mpi_")
  endif()
  foreach(source IN LISTS headaware_tidy_sources)
    cmake_path(GET source STEM name)
    add_custom_target(tidy-${name} COMMAND "${HEADAWARE_CLANG_TIDY}" --quiet -p "${PROJECT_BINARY_DIR}"
      --extra-arg=-Wno-unknown-warning-option "${source}" VERBATIM)
    add_dependencies(tidy tidy-${name})
  endforeach()
endif()
