#pragma once

// Tables and steps of pages of single heads in device memory.

#include "support/device_cache.cuh"

#include <headaware/cache/paged_heads.cuh>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace headaware_test {

namespace ha = headaware;

/// A step's arrays on the device.
struct DeviceStep {
  DeviceVector<std::int32_t> lengths;
  DeviceVector<std::int32_t> high_water;
  DeviceVector<std::int32_t> counts;
  DeviceVector<ha::PageCopy> copies;
  DeviceVector<std::int32_t> status{std::vector<std::int32_t>{0}};
  ha::DevicePageStep view;

  explicit DeviceStep(ha::PageStep const& step)
      : lengths(step.lengths), high_water(step.high_water), counts(step.counts), copies(step.copies) {
    view = {
        lengths.data(), high_water.data(), counts.data(),  copies.data(), static_cast<std::int32_t>(step.copies.size()),
        step.max_count, status.data(),     step.generation};
  }
};

/// Tables on the device, as they are now.
struct DeviceTables {
  DeviceVector<std::byte> heads;
  DeviceVector<std::int32_t> table;
  ha::PagedHeadsView view;

  explicit DeviceTables(ha::PagedHeads const& pages)
      : heads(std::vector<std::byte>(pages.head_bytes().begin(), pages.head_bytes().end())),
        table(std::vector<std::int32_t>(pages.table().begin(), pages.table().end())),
        view(pages.view_at(heads.data(), table.data())) {}
};

}  // namespace headaware_test
