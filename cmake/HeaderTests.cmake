# Every public header alone: each .hpp by the C++ compiler, each .cuh by nvcc, for the device, which takes a third of the
# time of both sides. nvcc sees all headers together, too, for both sides, since each was shown to stand alone. And all
# .hpp together, as users compile them: without OpenMP, with more warnings than the project's own, by other compilers
# where there are any.

function(headaware_add_header_tests)
  set(root "${PROJECT_SOURCE_DIR}/include")
  set(output "${CMAKE_CURRENT_BINARY_DIR}/headers")
  file(GLOB_RECURSE headers RELATIVE "${root}" CONFIGURE_DEPENDS "${root}/*.hpp" "${root}/*.cuh")
  list(FILTER headers EXCLUDE REGEX "/detail/")
  include(CheckIncludeFileCXX)
  set(CMAKE_REQUIRED_QUIET ON)
  check_include_file_cxx(dlpack/dlpack.h HEADAWARE_HAS_DLPACK)
  if(NOT HEADAWARE_HAS_DLPACK)
    list(REMOVE_ITEM headers headaware/layout/dlpack.hpp)
  endif()

  set(host_sources "")
  set(device_sources "")
  set(all_headers "")
  foreach(header IN LISTS headers)
    string(REGEX REPLACE "[/.]" "_" name "${header}")
    # Twice, for the include guard.
    set(text "#include <${header}>\n#include <${header}>\n")
    string(APPEND all_headers "#include <${header}>\n")
    if(header MATCHES "\\.hpp$")
      file(CONFIGURE OUTPUT "${output}/${name}.cpp" CONTENT "${text}" @ONLY)
      list(APPEND host_sources "${output}/${name}.cpp")
    else()
      file(CONFIGURE OUTPUT "${output}/${name}.cu" CONTENT "${text}" @ONLY)
      list(APPEND device_sources "${output}/${name}.cu")
    endif()
  endforeach()

  list(FILTER headers INCLUDE REGEX "\\.hpp$")
  list(TRANSFORM headers REPLACE "(.+)" "#include <\\1>\n")
  # A unit that instantiates the code for vectors, too.
  list(JOIN headers "" text)
  file(CONFIGURE OUTPUT "${output}/all.cpp" @ONLY
    CONTENT "${text}#define UNIT unit\n#include \"${CMAKE_CURRENT_SOURCE_DIR}/targets/unit.cpp\"\n")
  find_program(HEADAWARE_OLDEST_COMPILER g++-11)
  mark_as_advanced(HEADAWARE_OLDEST_COMPILER)
  foreach(compiler "${CMAKE_CXX_COMPILER}" "${HEADAWARE_OTHER_COMPILER}" "${HEADAWARE_OLDEST_COMPILER}")
    if(compiler)
      cmake_path(GET compiler FILENAME name)
      add_test(NAME headers.warnings.${name} COMMAND "${compiler}" -std=c++20 -fsyntax-only
        -Wall -Wextra -Wconversion -Wsign-conversion -Wshadow -Werror
        ${headaware_include_flags} "${output}/all.cpp" COMMAND_EXPAND_LISTS)
    endif()
  endforeach()

  add_library(header_tests_host OBJECT ${host_sources})
  target_link_libraries(header_tests_host PRIVATE headaware::headaware headaware_development)
  target_compile_options(header_tests_host PRIVATE -O0)
  add_custom_target(header_tests DEPENDS header_tests_host)
  if(HEADAWARE_HAS_CUDA)
    file(CONFIGURE OUTPUT "${output}/all.cu" CONTENT "${all_headers}" @ONLY)
    add_library(header_tests_device OBJECT ${device_sources})
    set_target_properties(header_tests_device PROPERTIES CUDA_PTX_COMPILATION ON CUDA_ARCHITECTURES 80-virtual)
    add_library(header_tests_together OBJECT "${output}/all.cu")
    foreach(library header_tests_device header_tests_together)
      target_link_libraries(${library} PRIVATE headaware::cuda headaware_development)
      add_dependencies(header_tests ${library})
    endforeach()
  endif()
  # Built with everything else; here a run of ctest says so.
  add_test(NAME headers COMMAND "${CMAKE_COMMAND}" --build "${PROJECT_BINARY_DIR}" --target header_tests --config $<CONFIG>)
  set_tests_properties(headers PROPERTIES RUN_SERIAL ON)
endfunction()
