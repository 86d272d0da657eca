# Configures, builds and runs the project SOURCE, or, where FAILS is given, expects the configuration to fail
# with a message that matches.

execute_process(
  COMMAND "${CMAKE_COMMAND}" --fresh -S "${SOURCE}" -B "${BINARY}" -G "${GENERATOR}" ${ARGS}
  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
message("${output}")
if(FAILS)
  if(result EQUAL 0 OR NOT output MATCHES "${FAILS}")
    message(FATAL_ERROR "The configuration has to fail, and to say '${FAILS}'")
  endif()
  return()
elseif(NOT result EQUAL 0)
  message(FATAL_ERROR "The configuration fails")
endif()
execute_process(COMMAND "${CMAKE_COMMAND}" --build "${BINARY}" --config Release COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${CMAKE_CTEST_COMMAND}" --output-on-failure -C Release --no-tests=error
  WORKING_DIRECTORY "${BINARY}" COMMAND_ERROR_IS_FATAL ANY)
