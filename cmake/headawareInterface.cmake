# What the targets bring along on the machine that uses them. The build tree and the installed package
# share this file.

# Links OpenMP to the INTERFACE library <target>, where the C++ compiler has it.
function(headaware_link_openmp target)
  find_package(OpenMP QUIET COMPONENTS CXX)
  if(NOT TARGET OpenMP::OpenMP_CXX)
    return()
  endif()
  # Inline functions are the same in .cpp and .cu files only if nvcc's host compiler has OpenMP, too.
  string(REPLACE " " "," flags "${OpenMP_CXX_FLAGS}")
  target_compile_options(${target} INTERFACE
    "$<BUILD_INTERFACE:$<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:-Xcompiler=${flags}>>")
  target_link_libraries(${target} INTERFACE $<BUILD_INTERFACE:OpenMP::OpenMP_CXX>)
endfunction()

# headaware_add_cuda(<found> [GLOBAL]): makes headaware::cuda, the library with what its .cuh headers need.
# Which CUDA runtime a program links stays its own choice (CUDA_RUNTIME_LIBRARY).
function(headaware_add_cuda found)
  find_package(CUDAToolkit QUIET)
  set(${found} ${CUDAToolkit_FOUND} PARENT_SCOPE)
  if(NOT CUDAToolkit_FOUND OR TARGET headaware::cuda)
    return()
  endif()
  add_library(headaware::cuda INTERFACE IMPORTED ${ARGN})
  target_link_libraries(headaware::cuda INTERFACE headaware::headaware CUDA::toolkit)

  # CUB and libcu++: a checkout of CCCL where one is found, else the toolkit's.
  set(CMAKE_MESSAGE_LOG_LEVEL WARNING)
  find_package(CCCL QUIET COMPONENTS libcudacxx CUB
    HINTS "${CUDAToolkit_LIBRARY_DIR}" "${CUDAToolkit_TARGET_DIR}" "${CUDAToolkit_BIN_DIR}/..")
  if(TARGET CCCL::CUB)
    target_link_libraries(headaware::cuda INTERFACE CCCL::CUB CCCL::libcudacxx)
  endif()

  # CMake before 3.25.2 does not know how to ask nvcc 12 and later for C++20.
  if(CMAKE_VERSION VERSION_GREATER_EQUAL 3.25.2 AND "cuda_std_20" IN_LIST CMAKE_CUDA_COMPILE_FEATURES)
    target_compile_features(headaware::cuda INTERFACE cuda_std_20)
  else()
    target_compile_options(headaware::cuda INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
  endif()
endfunction()
