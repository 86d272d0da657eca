# llama.cpp, unmodified, for the programs that read a model's attention (examples/tools/llama). Found, or built once from
# source into HEADAWARE_LLAMA_ROOT, which all build folders share.

set(HEADAWARE_LLAMA OFF CACHE STRING "Programs that run llama.cpp: AUTO (where it can be had), ON or OFF")
set_property(CACHE HEADAWARE_LLAMA PROPERTY STRINGS AUTO ON OFF)
set(HEADAWARE_LLAMA_ROOT "${PROJECT_SOURCE_DIR}/build/llama" CACHE PATH
    "Where llama.cpp is installed, or will be once it is built")
set(HEADAWARE_LLAMA_SOURCE "" CACHE PATH "llama.cpp's source, to build instead of the pinned one")

# The pinned source: what this Python package carries along. A package index is all that is needed to get it.
set(headaware_llama_package llama-cpp-python)
set(headaware_llama_version 0.3.36)
set(headaware_llama_archive llama_cpp_python-${headaware_llama_version})
set(headaware_llama_sha256 832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e)

# Processors whose AMX tiles the system lets no program use (some virtual machines) look to llama.cpp like any others, and
# its first product of quantised weights ends with an illegal instruction.
set(headaware_llama_without_amx -DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__)

# Says what HEADAWARE_LLAMA_ROOT was built from, and that it may be built anew.
set(headaware_llama_stamp built-from.txt)

# headaware_llama_run(<error> <log> <what> COMMAND...): runs it; on failure <error> says what failed and why.
function(headaware_llama_run error log what)
  set(${error} "" PARENT_SCOPE)
  execute_process(${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  file(APPEND "${log}" "${output}\n")
  if(NOT result EQUAL 0)
    string(LENGTH "${output}" length)
    set(begin 0)
    if(length GREATER 1000)
      math(EXPR begin "${length} - 1000")
    endif()
    string(SUBSTRING "${output}" ${begin} -1 tail)
    set(${error} "${what} failed (${result}); all of its output is in ${log}, which ends:\n${tail}" PARENT_SCOPE)
  endif()
endfunction()

# headaware_llama_download(<error> <folder> <log>): the pinned source into <folder>/vendor/llama.cpp.
function(headaware_llama_download error folder log)
  find_program(HEADAWARE_PYTHON NAMES python3 python)
  mark_as_advanced(HEADAWARE_PYTHON)
  if(NOT HEADAWARE_PYTHON)
    set(${error} "no python3, whose pip downloads the source" PARENT_SCOPE)
    return()
  endif()
  # pip asks a source package about itself before it keeps it, which takes seconds and builds nothing.
  message(STATUS "llama.cpp: downloading its source (76 MB)")
  headaware_llama_run(failure "${log}" "pip download" COMMAND "${HEADAWARE_PYTHON}" -m pip download --quiet --no-deps
    --no-binary ${headaware_llama_package} --dest "${folder}" ${headaware_llama_package}==${headaware_llama_version})
  set(archive "${folder}/${headaware_llama_archive}.tar.gz")
  if(NOT failure AND NOT EXISTS "${archive}")
    set(failure "pip downloaded something else than ${headaware_llama_archive}.tar.gz")
  endif()
  if(NOT failure)
    file(SHA256 "${archive}" sha256)
    if(NOT sha256 STREQUAL headaware_llama_sha256)
      set(failure "${archive}: SHA256 ${sha256}, expected ${headaware_llama_sha256}")
    endif()
  endif()
  if(NOT failure)
    file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${folder}"
         PATTERNS "${headaware_llama_archive}/vendor/llama.cpp/*")
    file(RENAME "${folder}/${headaware_llama_archive}/vendor" "${folder}/vendor")
  endif()
  set(${error} "${failure}" PARENT_SCOPE)
endfunction()

# headaware_llama_build(<error> <origin>): installs llama.cpp into HEADAWARE_LLAMA_ROOT, whole or not at all.
function(headaware_llama_build error origin)
  # Only a folder that this made is ever replaced.
  if(EXISTS "${HEADAWARE_LLAMA_ROOT}" AND NOT EXISTS "${HEADAWARE_LLAMA_ROOT}/${headaware_llama_stamp}")
    set(${error} "${HEADAWARE_LLAMA_ROOT} is there and holds no llama.cpp; name a new folder to build it into"
      PARENT_SCOPE)
    return()
  endif()
  set(work "${HEADAWARE_LLAMA_ROOT}.work")
  set(log "${HEADAWARE_LLAMA_ROOT}.log")
  file(REMOVE_RECURSE "${work}")
  file(MAKE_DIRECTORY "${work}")
  file(WRITE "${log}" "")
  set(source "${HEADAWARE_LLAMA_SOURCE}")
  set(failure "")
  if(NOT source)
    headaware_llama_download(failure "${work}" "${log}")
    set(source "${work}/vendor/llama.cpp")
  endif()
  if(NOT failure)
    message(STATUS "llama.cpp: building it once into ${HEADAWARE_LLAMA_ROOT}, a few minutes")
    # Its compilers are the system's own, so that presets with different ones can share it.
    headaware_llama_run(failure "${log}" "configuring llama.cpp" COMMAND "${CMAKE_COMMAND}"
      -S "${source}" -B "${work}/build" -G "${CMAKE_GENERATOR}" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF
      -DCMAKE_POSITION_INDEPENDENT_CODE=ON -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF
      -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF
      -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DGGML_CCACHE=OFF ${headaware_llama_without_amx})
  endif()
  if(NOT failure)
    cmake_host_system_information(RESULT jobs QUERY NUMBER_OF_LOGICAL_CORES)
    if(DEFINED ENV{CMAKE_BUILD_PARALLEL_LEVEL})
      set(jobs "$ENV{CMAKE_BUILD_PARALLEL_LEVEL}")
    endif()
    headaware_llama_run(failure "${log}" "building llama.cpp" COMMAND "${CMAKE_COMMAND}" --build "${work}/build"
      --config Release --parallel ${jobs})
  endif()
  if(NOT failure)
    headaware_llama_run(failure "${log}" "installing llama.cpp" COMMAND "${CMAKE_COMMAND}" --install "${work}/build"
      --config Release --prefix "${work}/install")
  endif()
  if(NOT failure)
    file(WRITE "${work}/install/${headaware_llama_stamp}" "${origin}\n")
    file(REMOVE_RECURSE "${HEADAWARE_LLAMA_ROOT}")
    file(RENAME "${work}/install" "${HEADAWARE_LLAMA_ROOT}")
    file(REMOVE_RECURSE "${work}")
  endif()
  set(${error} "${failure}" PARENT_SCOPE)
endfunction()

# headaware_find_llama(): sets HEADAWARE_HAS_LLAMA; if ON, there is the imported target llama, whose headers are
# system headers. HEADAWARE_LLAMA=AUTO goes without where it cannot be had, ON ends with an error.
function(headaware_find_llama)
  set(HEADAWARE_HAS_LLAMA OFF PARENT_SCOPE)
  if(NOT HEADAWARE_LLAMA)
    return()
  endif()
  set(failure "")
  set(origin "${headaware_llama_package} ${headaware_llama_version}")
  if(HEADAWARE_LLAMA_SOURCE)
    set(origin "${HEADAWARE_LLAMA_SOURCE}")
  endif()
  string(APPEND origin ", without AMX")
  # Another build folder may be building it.
  cmake_path(GET HEADAWARE_LLAMA_ROOT PARENT_PATH parent)
  file(MAKE_DIRECTORY "${parent}")
  file(LOCK "${HEADAWARE_LLAMA_ROOT}.lock" GUARD FUNCTION TIMEOUT 1800 RESULT_VARIABLE ignored)

  set(stamp "${HEADAWARE_LLAMA_ROOT}/${headaware_llama_stamp}")
  set(outdated OFF)
  if(EXISTS "${stamp}")
    file(STRINGS "${stamp}" built_from LIMIT_COUNT 1)
    if(NOT built_from STREQUAL origin)
      set(outdated ON)
    endif()
  endif()
  if(outdated)
    unset(llama_DIR CACHE)
  else()
    find_package(llama QUIET CONFIG PATHS "${HEADAWARE_LLAMA_ROOT}")
  endif()
  if(NOT llama_FOUND)
    headaware_llama_build(failure "${origin}")
    if(NOT failure)
      find_package(llama QUIET CONFIG PATHS "${HEADAWARE_LLAMA_ROOT}" NO_DEFAULT_PATH)
    endif()
  endif()
  if(llama_FOUND)
    message(STATUS "llama.cpp: ${llama_DIR}")
    set(HEADAWARE_HAS_LLAMA ON PARENT_SCOPE)
  elseif(HEADAWARE_LLAMA STREQUAL "AUTO")
    message(STATUS "llama.cpp: none, so no programs that run models: ${failure}")
  else()
    message(FATAL_ERROR "headaware: HEADAWARE_LLAMA is ${HEADAWARE_LLAMA}, but llama.cpp cannot be had: ${failure}\n"
      "HEADAWARE_LLAMA_ROOT may name an installed one, HEADAWARE_LLAMA_SOURCE its source.")
  endif()
endfunction()
