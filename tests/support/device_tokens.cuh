#pragma once

// What is appended to a device cache.

#include "support/device_cache.cuh"
#include "support/token_model.hpp"

#include <cstddef>
#include <vector>

namespace headaware_test {

/// New tokens' tensors on the device.
template <class T>
struct DeviceTokens {
  std::vector<DeviceVector<T>> tensors;
  std::vector<ha::LayerKv<T>> layers;
  explicit DeviceTokens(NewTokens<T> const& tokens) {
    for (std::size_t l = 0; l < tokens.keys.size(); ++l) {
      tensors.emplace_back(tokens.keys[l]);
      tensors.emplace_back(tokens.values[l]);
      layers.push_back({tensors[2 * l].data(), tensors[2 * l + 1].data()});
    }
  }
};

}  // namespace headaware_test
