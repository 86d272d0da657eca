# The port of vcpkg repeats the version, as JSON; the changelog has an entry for it.

file(READ "${SOURCE}/cmake/vcpkg-port/vcpkg.json" port)
string(JSON port_version GET "${port}" version)
if(NOT port_version VERSION_EQUAL VERSION)
  message(FATAL_ERROR "cmake/vcpkg-port/vcpkg.json says ${port_version}, version.hpp ${VERSION}")
endif()
file(STRINGS "${SOURCE}/CHANGELOG.md" entries REGEX "^## ${VERSION}( |$)")
if(NOT entries)
  message(FATAL_ERROR "CHANGELOG.md has no entry for ${VERSION}")
endif()
