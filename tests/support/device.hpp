#pragma once

#include "support/catch.hpp"

#include <cuda_runtime_api.h>

#include <string>

namespace headaware_test {

/// Why device code cannot run here; empty where it can.
inline std::string const& missing_device() {
  static std::string const reason = [] {
    int count = 0;
    cudaError_t const error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count > 0) return std::string();
    (void)cudaGetLastError();
    return std::string("no CUDA device") + (error == cudaSuccess ? "" : std::string(": ") + cudaGetErrorString(error));
  }();
  return reason;
}

}  // namespace headaware_test

/// The first statement of every test case that launches: skips it where there is no device.
#define HEADAWARE_REQUIRE_DEVICE()                                                                   \
  do {                                                                                               \
    if (!headaware_test::missing_device().empty()) HEADAWARE_SKIP(headaware_test::missing_device()); \
  } while (false)
