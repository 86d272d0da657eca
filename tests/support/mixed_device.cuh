#pragma once

// The tensors of a model whose layers differ, in device memory.

#include "support/device_cache.cuh"
#include "support/mixed_model.hpp"

#include <cstddef>
#include <list>
#include <vector>

namespace headaware_test {

struct DeviceMixed {
  std::list<DeviceVector<float>> memory;
  std::vector<ha::LayerKv<float>> layers;

  explicit DeviceMixed(MixedTensors const& host) {
    for (std::size_t l = 0; l < host.keys.size(); ++l) layers.push_back({upload(host.keys[l]), upload(host.values[l])});
  }
  float* upload(std::vector<float> const& data) { return data.empty() ? nullptr : memory.emplace_back(data).data(); }
};

}  // namespace headaware_test
