# Compiles SOURCE once, for all ARCHITECTURES, and fails if any kernel spills registers on one of them.
#   cmake -DNVCC=... -DSOURCE=... -DINCLUDE=... -DARCHITECTURES=80,90 -DOUTPUT=... -P spills.cmake
string(REPLACE "," ";" architectures "${ARCHITECTURES}")
list(GET architectures 0 virtual)
list(TRANSFORM architectures PREPEND sm_ OUTPUT_VARIABLE codes)
list(JOIN codes "," codes)
# No host code, and what all share, from the source to PTX, is made once.
execute_process(COMMAND ${NVCC} -std=c++20 -O3 -I${INCLUDE} -gencode "arch=compute_${virtual},code=[${codes}]" -Xptxas -v
                        -fatbin ${SOURCE} -o ${OUTPUT}
                RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${output}")
endif()
string(REGEX MATCHALL "Used [0-9]+ registers" used "${output}")
list(SORT used COMPARE NATURAL)
list(GET used -1 most)
string(REGEX MATCHALL "[1-9][0-9]* bytes spill (stores|loads)" spills "${output}")
foreach(architecture IN LISTS architectures)
  string(REGEX MATCHALL "for 'sm_${architecture}'" kernels "${output}")
  list(LENGTH kernels count)
  if(count EQUAL 0)
    message(FATAL_ERROR "no kernel was compiled for sm_${architecture}:\n${output}")
  endif()
  message(STATUS "sm_${architecture}: ${count} kernels")
endforeach()
message(STATUS "${most} at most; spills: ${spills}")
if(spills)
  message(FATAL_ERROR "a kernel spills registers:\n${output}")
endif()
