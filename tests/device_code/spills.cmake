# Compiles SOURCE for ARCH and fails if any kernel spills registers.
#   cmake -DNVCC=... -DSOURCE=... -DINCLUDE=... -DARCH=90 -P spills.cmake
execute_process(COMMAND ${NVCC} -std=c++20 -O3 -I${INCLUDE} -arch=sm_${ARCH} -Xptxas -v -c ${SOURCE} -o ${OUTPUT}
                RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${output}")
endif()
string(REGEX MATCHALL "Used [0-9]+ registers" used "${output}")
list(LENGTH used kernels)
list(SORT used COMPARE NATURAL)
list(GET used -1 most)
string(REGEX MATCHALL "[1-9][0-9]* bytes spill (stores|loads)" spills "${output}")
if(kernels EQUAL 0)
  message(FATAL_ERROR "no kernel was compiled:\n${output}")
endif()
message(STATUS "sm_${ARCH}: ${kernels} kernels; ${most} at most; spills: ${spills}")
if(spills)
  message(FATAL_ERROR "a kernel spills registers on sm_${ARCH}")
endif()
