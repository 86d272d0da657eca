# Install rules, all in the component headaware.

include(CMakePackageConfigHelpers)

set(headaware_cmake_dir "${CMAKE_INSTALL_DATADIR}/cmake/headaware")
# Before 1.0 a minor version may break its users.
if(PROJECT_VERSION_MAJOR EQUAL 0)
  set(headaware_compatibility SameMinorVersion)
else()
  set(headaware_compatibility SameMajorVersion)
endif()
configure_package_config_file(cmake/headawareConfig.cmake.in headawareConfig.cmake
  INSTALL_DESTINATION "${headaware_cmake_dir}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/headawareConfigVersion.cmake"
  COMPATIBILITY ${headaware_compatibility} ARCH_INDEPENDENT)

install(TARGETS headaware EXPORT headawareTargets COMPONENT headaware)
install(EXPORT headawareTargets NAMESPACE headaware:: DESTINATION "${headaware_cmake_dir}" COMPONENT headaware)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/headawareConfig.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/headawareConfigVersion.cmake" cmake/headawareInterface.cmake
        DESTINATION "${headaware_cmake_dir}" COMPONENT headaware)
install(DIRECTORY include/headaware DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT headaware
        FILES_MATCHING PATTERN "*.hpp" PATTERN "*.cuh" PATTERN "*.inl")
