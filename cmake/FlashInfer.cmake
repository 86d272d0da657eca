# FlashInfer's headers, for the example, the test and the benchmark that run its kernels on pages of single KV heads. They
# are found, never kept here: cmake/get_flashinfer.sh fetches what is needed of them into build/flashinfer.

set(HEADAWARE_FLASHINFER_ROOT "" CACHE STRING
    "Folder data of the Python package flashinfer-python, 0.7.2 or later; empty: build/flashinfer, else python3's; OFF: none")

# headaware_find_flashinfer(): sets HEADAWARE_HAS_FLASHINFER; if ON, headaware_flashinfer_includes are its system folders.
# A folder that was named must have the headers; without a name the project goes without them, and says so.
function(headaware_find_flashinfer)
  set(HEADAWARE_HAS_FLASHINFER OFF PARENT_SCOPE)
  set(root "${HEADAWARE_FLASHINFER_ROOT}")
  if(NOT HEADAWARE_HAS_CUDA OR (NOT root AND NOT root STREQUAL ""))
    return()
  endif()
  if(NOT root)
    set(root "${PROJECT_SOURCE_DIR}/build/flashinfer")
    if(NOT EXISTS "${root}")
      # Where the package lies, without the seconds that importing it takes.
      execute_process(COMMAND python3 -c [[
import importlib.util
package = importlib.util.find_spec("flashinfer")
print(package.submodule_search_locations[0] + "/data" if package else "")]]
        WORKING_DIRECTORY "${PROJECT_BINARY_DIR}" OUTPUT_VARIABLE root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    endif()
  endif()
  set(failure "")
  if(NOT root)
    set(failure "python3 knows no package flashinfer, and there is no build/flashinfer")
  else()
    set(kernels "${root}/include/flashinfer/attention/prefill.cuh")
    set(cccl "${root}/cccl/libcudacxx/include")
    set(of_today "")
    if(EXISTS "${kernels}")
      file(STRINGS "${kernels}" of_today LIMIT_COUNT 1 REGEX "bool SAME_KV_STRIDES")
    endif()
    if(NOT of_today OR NOT EXISTS "${cccl}/cuda/cmath")
      set(failure "expected include/flashinfer and cccl of version 0.7.2 or later in ${root}")
    endif()
  endif()
  if(NOT failure)
    message(STATUS "FlashInfer: ${root}")
    set(headaware_flashinfer_includes "${root}/include" "${cccl}" PARENT_SCOPE)
    set(HEADAWARE_HAS_FLASHINFER ON PARENT_SCOPE)
  elseif(HEADAWARE_FLASHINFER_ROOT)
    message(FATAL_ERROR "headaware: HEADAWARE_FLASHINFER_ROOT: ${failure}")
  else()
    message(STATUS "FlashInfer: none, so its example, tests and counts are left out: ${failure}")
  endif()
endfunction()
