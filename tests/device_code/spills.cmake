# Compiles the device code of SOURCE for all ARCHITECTURES and fails if any kernel spills registers on one of them.
#   cmake -DNVCC=... -DSOURCE=... -DINCLUDE=... -DARCHITECTURES=80,90 -DOUTPUT=... -P spills.cmake
string(REPLACE "," ";" architectures "${ARCHITECTURES}")
# One PTX for all, which takes most of the time: the kernels' code is the same from the first on.
list(GET architectures 0 oldest)
list(TRANSFORM architectures PREPEND "sm_" OUTPUT_VARIABLE codes)
list(JOIN codes "," codes)
# Device code alone: the host's part is the same for all and of no interest.
execute_process(COMMAND ${NVCC} -std=c++20 -O3 -I${INCLUDE} "-gencode=arch=compute_${oldest},code=[${codes}]" -Xptxas -v -fatbin ${SOURCE} -o ${OUTPUT}
                RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${output}")
endif()
foreach(architecture IN LISTS architectures)
  string(REGEX MATCHALL "for 'sm_${architecture}'" kernels "${output}")
  list(LENGTH kernels count)
  if(count EQUAL 0)
    message(FATAL_ERROR "no kernel was compiled for sm_${architecture}:\n${output}")
  endif()
  message(STATUS "sm_${architecture}: ${count} kernels")
endforeach()
string(REGEX MATCHALL "Used [0-9]+ registers" used "${output}")
list(SORT used COMPARE NATURAL)
list(GET used -1 most)
string(REGEX MATCHALL "[1-9][0-9]* bytes spill (stores|loads)" spills "${output}")
message(STATUS "${most} at most; spills: ${spills}")
if(spills)
  message(FATAL_ERROR "a kernel spills registers:\n${output}")
endif()
