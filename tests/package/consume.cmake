# Configures, builds and runs the project SOURCE.

execute_process(
  COMMAND "${CMAKE_COMMAND}" --fresh -S "${SOURCE}" -B "${BINARY}" -G "${GENERATOR}" ${ARGS}
  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
message("${output}")
if(NOT result EQUAL 0)
  message(FATAL_ERROR "The configuration fails")
endif()
execute_process(COMMAND "${CMAKE_COMMAND}" --build "${BINARY}" --config Release COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${CMAKE_CTEST_COMMAND}" --output-on-failure -C Release --no-tests=error
  WORKING_DIRECTORY "${BINARY}" COMMAND_ERROR_IS_FATAL ANY)
