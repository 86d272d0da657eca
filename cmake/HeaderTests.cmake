# Every public header alone: each .hpp by the C++ compiler, each .cuh by nvcc. nvcc sees each .hpp, too, all of them
# together, since the C++ compiler has shown that they stand alone. And all .hpp together, as users compile
# them: without OpenMP, with more warnings than the project's own, by other compilers where there are any.

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
  set(all_hpp "")
  foreach(header IN LISTS headers)
    string(REGEX REPLACE "[/.]" "_" name "${header}")
    # Twice, for the include guard.
    set(text "#include <${header}>\n#include <${header}>\n")
    if(header MATCHES "\\.hpp$")
      file(CONFIGURE OUTPUT "${output}/${name}.cpp" CONTENT "${text}" @ONLY)
      list(APPEND host_sources "${output}/${name}.cpp")
      string(APPEND all_hpp "#include <${header}>\n")
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
    file(CONFIGURE OUTPUT "${output}/all_hpp.cu" CONTENT "${all_hpp}" @ONLY)
    list(APPEND device_sources "${output}/all_hpp.cu")
    add_library(header_tests_device OBJECT ${device_sources})
    target_link_libraries(header_tests_device PRIVATE headaware::cuda headaware_development)
    add_dependencies(header_tests header_tests_device)
  endif()
  # Built with everything else; here a run of ctest says so.
  add_test(NAME headers COMMAND "${CMAKE_COMMAND}" --build "${PROJECT_BINARY_DIR}" --target header_tests --config $<CONFIG>)
  set_tests_properties(headers PROPERTIES RUN_SERIAL ON)
endfunction()
