#pragma once

// Attention on the device: tables where kernels read them, and both calls.

#include "support/device_cache.cuh"
#include "support/kept_rows.hpp"

#include <headaware/attention/attend.cuh>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace headaware_test {

/// Runs both calls on a stream of its own and waits.
template <class Q, class QLayout, class Cache, class O, class OLayout>
void run_attend(ha::AttentionShape const& shape, ha::AttentionQueries<Q, QLayout> const& queries, Cache const& cache,
                ha::AttentionOutput<O, OLayout> const& output, ha::AttentionBounds const& bounds,
                ha::AttentionOptions const& options) {
  Stream const stream;
  std::size_t bytes = 0;
  REQUIRE_CUDA(ha::device::attend(nullptr, bytes, shape, queries, cache, output, bounds, options, stream));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{0xEE}));
  REQUIRE_CUDA(ha::device::attend(temp.data(), bytes, shape, queries, cache, output, bounds, options, stream));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
}

/// Checks that all are numbers, which differ by less than `most`.
inline void check_near(std::vector<float> const& got, std::vector<float> const& expected, float most) {
  float worst = 0;
  bool numbers = true;
  for (std::size_t i = 0; i < got.size(); ++i) {
    numbers = numbers && std::isfinite(expected[i]) && std::isfinite(got[i]);
    worst = std::max(worst, std::abs(got[i] - expected[i]));
  }
  CHECK(numbers);
  CHECK(worst < most);
}

}  // namespace headaware_test
