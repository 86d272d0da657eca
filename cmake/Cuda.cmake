# headaware::cuda, and the CUDA language for the project's own programs. Afterwards HEADAWARE_HAS_CUDA says
# whether there are any.

set(HEADAWARE_HAS_CUDA OFF)
if(HEADAWARE_BUILD_TESTS OR HEADAWARE_BUILD_BENCHMARKS OR HEADAWARE_BUILD_EXAMPLES)
  # nvcc is often installed without being on the PATH.
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(HEADAWARE_NVCC nvcc PATH_SUFFIXES bin
      HINTS ${CUDAToolkit_ROOT} ENV CUDAToolkit_ROOT ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda)
    mark_as_advanced(HEADAWARE_NVCC)
    if(HEADAWARE_NVCC)
      set(CMAKE_CUDA_COMPILER "${HEADAWARE_NVCC}")
    endif()
  endif()
  # PTX for one virtual architecture: compiles fast and runs on every later device.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    set(CMAKE_CUDA_ARCHITECTURES 80-virtual CACHE STRING "CUDA architectures")
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(HEADAWARE_HAS_CUDA ON)
  elseif(NOT HEADAWARE_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "HEADAWARE_CUDA is ON, but there is no nvcc: set CMAKE_CUDA_COMPILER or CUDACXX")
  endif()
endif()

headaware_add_cuda(headaware_cuda_found GLOBAL)
if(NOT headaware_cuda_found)
  set(HEADAWARE_HAS_CUDA OFF)
  if(NOT HEADAWARE_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "HEADAWARE_CUDA is ON, but there is no CUDA toolkit: set CUDAToolkit_ROOT")
  endif()
endif()
