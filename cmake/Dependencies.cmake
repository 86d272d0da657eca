# Every dependency is found or else fetched at a pinned tag. CMake's own variables steer this:
# FETCHCONTENT_TRY_FIND_PACKAGE_MODE, FETCHCONTENT_FULLY_DISCONNECTED, FETCHCONTENT_SOURCE_DIR_<NAME>.

include(FetchContent)

FetchContent_Declare(nlohmann_json GIT_REPOSITORY https://github.com/nlohmann/json.git GIT_TAG v3.11.3
  GIT_SHALLOW ON SYSTEM FIND_PACKAGE_ARGS 3.10.5 GLOBAL)
FetchContent_Declare(Catch2 GIT_REPOSITORY https://github.com/catchorg/Catch2.git GIT_TAG v3.7.1
  GIT_SHALLOW ON SYSTEM FIND_PACKAGE_ARGS GLOBAL)
FetchContent_Declare(benchmark GIT_REPOSITORY https://github.com/google/benchmark.git GIT_TAG v1.9.1
  GIT_SHALLOW ON SYSTEM FIND_PACKAGE_ARGS 1.7 GLOBAL)
FetchContent_Declare(CLI11 GIT_REPOSITORY https://github.com/CLIUtils/CLI11.git GIT_TAG v2.4.1
  GIT_SHALLOW ON SYSTEM FIND_PACKAGE_ARGS 2.1 GLOBAL)
FetchContent_Declare(Eigen3 GIT_REPOSITORY https://gitlab.com/libeigen/eigen.git GIT_TAG 3.4.0
  GIT_SHALLOW ON SYSTEM FIND_PACKAGE_ARGS 3.3 GLOBAL)

# headaware_require(<nlohmann_json | Catch2 | benchmark | CLI11 | Eigen3>)
function(headaware_require name)
  set(target ${name}::${name})
  if(name STREQUAL "Eigen3")
    set(target Eigen3::Eigen)
  endif()
  if(NOT TARGET ${target})
    set(BUILD_TESTING OFF)
    set(EIGEN_BUILD_DOC OFF)
    set(EIGEN_BUILD_PKGCONFIG OFF)
    set(BENCHMARK_ENABLE_TESTING OFF)
    set(BENCHMARK_ENABLE_INSTALL OFF)
    FetchContent_MakeAvailable(${name})
  endif()
endfunction()
