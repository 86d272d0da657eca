#pragma once

// A rolling cache on the device.

#include "support/device_arena.cuh"
#include "support/device_tokens.cuh"
#include "support/rolling_walk.hpp"

#include <headaware/cache/rolling.cuh>

#include <cstdint>
#include <vector>

namespace headaware_test {

/// A rolling cache on the device with its counters.
template <class T>
struct DeviceRolling {
  ha::RollingSlots slots;
  std::int64_t key_dim;
  std::int64_t value_dim;
  DeviceVector<std::byte> heads;
  DeviceVector<T> keys;
  DeviceVector<T> values;
  DeviceVector<std::int32_t> counters;

  DeviceRolling(ha::RollingSlots const& rolling_slots, std::int64_t k, std::int64_t v)
      : slots(rolling_slots),
        key_dim(k),
        value_dim(v),
        heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end())),
        keys(std::vector<T>(static_cast<std::size_t>(slots.rows_total() * k))),
        values(std::vector<T>(static_cast<std::size_t>(slots.rows_total() * v))),
        counters(std::vector<std::int32_t>(ha::RollingStateView::bytes(slots.num_sequences()) / 4, 0)) {}
  [[nodiscard]] ha::RollingSlotsView view() const { return slots.view_at(heads.data()); }
  [[nodiscard]] ha::RollingStateView state() const {
    return ha::RollingStateView::at(counters.data(), slots.num_sequences());
  }
  [[nodiscard]] auto cache() const {
    return ha::rolling(slots, view(), keys.data(), values.data(), key_dim, value_dim);
  }
  [[nodiscard]] bool good() const { return counters.host().back() == 0; }
  [[nodiscard]] std::int32_t length(std::int32_t b) const { return counters.host()[static_cast<std::size_t>(b)]; }
};

}  // namespace headaware_test
