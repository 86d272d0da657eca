// The device's sums against those of the CPU's pass, over types, layouts, lengths and parameters.

#include "support/device_observation.cuh"

#include <headaware/layout/engines.hpp>
#include <headaware/layout/paged.hpp>
#include <headaware/layout/strided.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <numeric>
#include <optional>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

ha::ObserverParameters with_retention(ha::ObserverParameters parameters = {}) {
  parameters.retention = ha::RetentionGrid{};
  return parameters;
}

}  // namespace

TEST_CASE("sums of any length agree with the CPU's", "[stats]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int64_t const tokens : {1, 9, 10, 11, 15, 16, 17, 63, 64, 65, 300}) {
    Attention<ha::float16> const a({.query_heads = 2, .kv_heads = 1, .tokens = tokens, .head_dim = 32});
    ha::ObserverParameters parameters;
    parameters.min_chunk = 1;
    compare_bhsd<__half>(a, Mode::mass, {.scale = 0.2F}, parameters);
    compare_bhsd<__half>(a, Mode::mass, {.scale = 0.2F}, with_retention(parameters));
    compare_bhsd<__half>(a, Mode::values, {.scale = 0.2F}, with_retention(parameters));
  }
}
