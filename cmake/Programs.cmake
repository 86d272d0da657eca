# How the project's own programs (tests, benchmarks, examples) are built and run. Nothing here reaches a user.

add_library(headaware_development INTERFACE)
headaware_require(nlohmann_json)
target_link_libraries(headaware_development INTERFACE nlohmann_json::nlohmann_json)
target_compile_options(headaware_development INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wconversion -Wshadow>
  # False alarms of GCC 12 on "literal" + std::string (its bug 105651).
  $<$<AND:$<COMPILE_LANG_AND_ID:CXX,GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-restrict>
  # Source lines in reports of compute-sanitizer; the host compiler sees what nvcc generates, so fewer warnings.
  $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo -Xcompiler=-Wall,-Wextra>)
if(HEADAWARE_WERROR)
  target_compile_options(headaware_development INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Werror> "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Werror all-warnings -Xcompiler=-Werror>")
endif()
# The statistics use vectors as wide as the compiler may; these programs run where they are built.
if(HEADAWARE_NATIVE AND CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang" AND NOT CMAKE_CROSSCOMPILING)
  target_compile_options(headaware_development INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=native>)
endif()

# Without a device, a CUDA runtime that interprets PTX on the CPU can stand in for it.
set(headaware_emulator "")
if(EXISTS "${PROJECT_SOURCE_DIR}/../shared/cuda-emulator/CMakeLists.txt" AND NOT EXISTS /dev/nvidiactl)
  cmake_path(SET headaware_emulator NORMALIZE "${PROJECT_SOURCE_DIR}/../shared/cuda-emulator")
endif()
set(HEADAWARE_CUDA_EMULATOR "${headaware_emulator}" CACHE PATH
    "Source of a CUDA runtime that emulates a device: its CMake project has the target cudart_emulator")
set(headaware_device_environment "")
if(HEADAWARE_HAS_CUDA AND HEADAWARE_CUDA_EMULATOR)
  set(CUDA_EMULATOR_TESTS OFF)
  list(GET CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES 0 CUDA_EMULATOR_INCLUDE)
  add_subdirectory("${HEADAWARE_CUDA_EMULATOR}" "${PROJECT_BINARY_DIR}/cuda-emulator" EXCLUDE_FROM_ALL)
  set(headaware_device_environment
    "LD_LIBRARY_PATH=path_list_prepend:$<TARGET_FILE_DIR:cudart_emulator>"
    CUDA_EMU_INITCHECK=set:1 CUDA_EMU_RACECHECK=set:1 CUDA_EMU_GLOBALRACECHECK=set:1 CUDA_EMU_LEAKCHECK=set:1)
endif()
# FlashInfer's kernels have races that change nothing (warps that write the same values), which the checks would report.
set(headaware_flashinfer_environment "${headaware_device_environment}")
list(FILTER headaware_flashinfer_environment EXCLUDE REGEX "RACECHECK")

set(headaware_data "")
if(EXISTS "${PROJECT_SOURCE_DIR}/../shared/data")
  cmake_path(SET headaware_data NORMALIZE "${PROJECT_SOURCE_DIR}/../shared/data")
endif()
set(HEADAWARE_SHARED_DATA "${headaware_data}" CACHE PATH
    "Folder of captures and statistics too large for the repository; tests that need it skip without it")

# headaware_unite(<variable> <name> <source>...): where HEADAWARE_UNITY says so, <variable> becomes a few units that include
# the sources of tests, up to 24 of a folder together, so that what they share is parsed and instantiated once. Each
# keeps its names to itself: after the headers of all of them it comes within a namespace of its own. What asks whether
# a header is there, or replaces operator new, stays alone. (CMake's unity builds know neither this nor, before 3.31, CUDA.)
function(headaware_unite variable name)
  if(NOT HEADAWARE_UNITY)
    set(${variable} "${ARGN}" PARENT_SCOPE)
    return()
  endif()
  set(sources "")
  set(units "")
  foreach(source IN LISTS ARGN)
    cmake_path(ABSOLUTE_PATH source)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${source}")
    file(STRINGS "${source}" alone LIMIT_COUNT 1 REGEX "__has_include|operator new")
    if(alone)
      list(APPEND sources "${source}")
      continue()
    endif()
    cmake_path(GET source PARENT_PATH folder)
    cmake_path(GET folder FILENAME folder)
    cmake_path(GET source STEM stem)
    cmake_path(GET source EXTENSION LAST_ONLY extension)
    list(APPEND members_${folder} ${stem})
    list(LENGTH members_${folder} count)
    math(EXPR part "(${count} - 1) / 24")
    set(unit "${name}_${folder}_${part}${extension}")
    list(APPEND units "${unit}")
    string(MAKE_C_IDENTIFIER "${unit}" id)
    file(STRINGS "${source}" headers REGEX "^#include ")
    list(APPEND headers_${id} ${headers})
    string(APPEND bodies_${id} "\nnamespace unit_${stem} {\n#include \"${source}\"  // NOLINT\n}")
  endforeach()
  list(REMOVE_DUPLICATES units)
  foreach(unit IN LISTS units)
    string(MAKE_C_IDENTIFIER "${unit}" id)
    set(path "${CMAKE_CURRENT_BINARY_DIR}/unity/${unit}")
    list(REMOVE_DUPLICATES headers_${id})
    list(JOIN headers_${id} "\n" headers)
    file(CONFIGURE OUTPUT "${path}" CONTENT "${headers}${bodies_${id}}\n" @ONLY)
    list(APPEND sources "${path}")
  endforeach()
  set(${variable} "${sources}" PARENT_SCOPE)
endfunction()

# headaware_add_program(<name> <source>...): an executable; its .cu files see headaware::cuda.
function(headaware_add_program name)
  add_executable(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE headaware::headaware headaware_development)
  list(FILTER ARGN INCLUDE REGEX "\\.cu$")
  if(ARGN)
    target_link_libraries(${name} PRIVATE headaware::cuda)
    # RUNPATH, not RPATH, so that LD_LIBRARY_PATH can put another runtime before the toolkit's.
    set_target_properties(${name} PROPERTIES
      CUDA_RUNTIME_LIBRARY Shared BUILD_RPATH $<TARGET_FILE_DIR:CUDA::cudart>)
    target_link_options(${name} PRIVATE LINKER:--enable-new-dtags)
    if(TARGET cudart_emulator)
      add_dependencies(${name} cudart_emulator)
    endif()
  endif()
endfunction()

# headaware_compile_quickly(<level> <source>...): kernels of .cu sources that are compiled quickly (nvcc's -Ofc=<level>: min, mid
# or max) and run less quickly.
function(headaware_compile_quickly level)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
    list(FILTER ARGN INCLUDE REGEX "\\.cu$")
    set_property(SOURCE ${ARGN} APPEND PROPERTY COMPILE_OPTIONS -Ofc=${level})
  endif()
endfunction()

# headaware_sanitize(<name>): what the program does wrong ends it, where HEADAWARE_SANITIZE says so.
function(headaware_sanitize name)
  if(HEADAWARE_SANITIZE)
    # Null pointers are found by their access; these checks of every member and pointer take a third of the time to compile
    # (misaligned ones are looked for where fuzz targets run).
    target_compile_options(${name} PRIVATE "-fsanitize=${HEADAWARE_SANITIZE}"
      -fno-sanitize=null,alignment,vptr,object-size,pointer-overflow -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -UNDEBUG)
    target_compile_definitions(${name} PRIVATE _GLIBCXX_ASSERTIONS)
    target_link_options(${name} PRIVATE "-fsanitize=${HEADAWARE_SANITIZE}")
  endif()
endfunction()

# headaware_add_test(<name> [DEVICE] COMMAND <command>...): with the environment that tests rely on.
function(headaware_add_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg DEVICE "" COMMAND)
  add_test(NAME ${name} COMMAND ${arg_COMMAND})
  # Tests run side by side: threads that spin while they wait would take the others' cores.
  set_property(TEST ${name} APPEND PROPERTY ENVIRONMENT OMP_WAIT_POLICY=passive)
  if(HEADAWARE_SHARED_DATA)
    set_property(TEST ${name} APPEND PROPERTY ENVIRONMENT "HEADAWARE_SHARED_DATA=${HEADAWARE_SHARED_DATA}")
  endif()
  if(arg_DEVICE)
    set_tests_properties(${name} PROPERTIES
      LABELS device ENVIRONMENT_MODIFICATION "${headaware_device_environment}")
  endif()
endfunction()
