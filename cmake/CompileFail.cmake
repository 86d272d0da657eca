# headaware_add_compile_fail(<name> <source> <message_regex>)
#
# Tests compile_fail.<name>.<compiler>: the source must not compile, and what the compiler says must match.
# Run with the build's C++ compiler, with clang++ or g++ beside it where there is one, and with nvcc.

if(CMAKE_SCRIPT_MODE_FILE)
  # The test itself: cmake -DCOMMAND=... -DMESSAGE=... -P CompileFail.cmake
  execute_process(COMMAND ${COMMAND} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(result EQUAL 0)
    message(FATAL_ERROR "This compiles, but must not:\n${COMMAND}")
  elseif(NOT output MATCHES "${MESSAGE}")
    message(FATAL_ERROR "The compiler does not say '${MESSAGE}':\n${output}")
  endif()
  string(REGEX MATCHALL "[^\n]*error:?[^\n]*headaware:[^\n]*" errors "${output}")
  list(JOIN errors "\n" errors)
  message("${errors}")
  return()
endif()

set(headaware_include_flags "-I${PROJECT_SOURCE_DIR}/include")
set(headaware_check_compilers "${CMAKE_CXX_COMPILER}")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  find_program(HEADAWARE_OTHER_COMPILER clang++)
else()
  find_program(HEADAWARE_OTHER_COMPILER g++)
endif()
mark_as_advanced(HEADAWARE_OTHER_COMPILER)
if(HEADAWARE_OTHER_COMPILER)
  list(APPEND headaware_check_compilers "${HEADAWARE_OTHER_COMPILER}")
endif()

# headaware_compile_commands(<variable> <source>): one "name|command|argument|..." a compiler.
function(headaware_compile_commands variable source)
  set(commands "")
  foreach(compiler IN LISTS headaware_check_compilers)
    cmake_path(GET compiler FILENAME name)
    list(APPEND commands "${name}|${compiler}|-std=c++20|-fsyntax-only")
  endforeach()
  if(HEADAWARE_HAS_CUDA)
    list(APPEND commands "nvcc|${CMAKE_CUDA_COMPILER}|-std=c++20|-x|cu|-ptx|-arch=compute_80|-o|/dev/null")
  endif()
  list(TRANSFORM commands APPEND "|${source}")
  set(${variable} "${commands}" PARENT_SCOPE)
endfunction()

function(headaware_add_compile_fail name source message_regex)
  headaware_compile_commands(commands "${source}")
  foreach(command IN LISTS commands)
    string(REPLACE "|" ";" command "${command}")
    list(POP_FRONT command compiler)
    add_test(NAME compile_fail.${name}.${compiler}
      COMMAND "${CMAKE_COMMAND}" "-DCOMMAND=${command};${headaware_include_flags}" "-DMESSAGE=${message_regex}"
              -P "${PROJECT_SOURCE_DIR}/cmake/CompileFail.cmake")
  endforeach()
endfunction()

# headaware_add_compile_pass(<name> <source>): the counterpart, which shows that the flags are right.
function(headaware_add_compile_pass name source)
  headaware_compile_commands(commands "${source}")
  foreach(command IN LISTS commands)
    string(REPLACE "|" ";" command "${command}")
    list(POP_FRONT command compiler)
    add_test(NAME compile_pass.${name}.${compiler} COMMAND ${command} ${headaware_include_flags} COMMAND_EXPAND_LISTS)
  endforeach()
endfunction()
