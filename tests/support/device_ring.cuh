#pragma once

// A packed rolling cache with an exact ring beside it on both sides, appended to in step.

#include "support/device_cache.cuh"
#include "support/packed_cache.hpp"

#include <headaware/attention/exact_ring.cuh>
#include <headaware/attention/exact_ring.hpp>
#include <headaware/cache/packed_rolling.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/rolling_state.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace headaware_test {

/// A rolling plan on the device.
struct DeviceSlots {
  DeviceVector<std::byte> heads;
  ha::RollingSlotsView view;

  explicit DeviceSlots(ha::RollingSlots const& slots)
      : heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end())), view(slots.view_at(heads.data())) {}
};

/// The same cache and ring on both sides, appended to in step.
struct Ringed {
  static constexpr std::int64_t dim = 64;
  static constexpr std::int32_t num_heads = 4;
  ha::PolicyTable table{1, num_heads, ha::SinkWindow{.sink = 3, .window = 20}};
  ha::PolicyTable ring_table{1, num_heads, ha::SinkWindow{.sink = 2, .window = 6}};
  ha::FormatTable formats{1, num_heads, {ha::Packed<3>{}, ha::Packed<4>{}}};
  ha::RollingSlots slots{policies(), 2, {.max_tokens = 60, .slack = 3}};
  ha::RollingSlots ring_slots{ring_table, 2, {.max_tokens = 80, .slack = 3}};
  ha::PackedDestination<ha::RollingSlotsView> planned{ha::packed_rolling(slots, slots.view(), some_formats(), dim)};
  std::vector<ha::RowUnit> units = std::vector<ha::RowUnit>(at(planned.total_units()));
  ha::PackedDestination<ha::RollingSlotsView> packed{planned.with_buffer(units.data())};
  std::vector<ha::float16> keys = std::vector<ha::float16>(at(ring_slots.rows_total(0) * dim));
  std::vector<ha::float16> values = keys;
  ha::Destination<ha::float16, ha::RollingSlotsView> ring{
      ha::rolling(ring_slots, ring_slots.view(), keys.data(), values.data(), dim)};
  ha::RollingState state{2};

  DeviceSlots d_slots{slots};
  DeviceSlots d_ring_slots{ring_slots};
  DeviceVector<ha::RowUnit> d_units{units};
  DeviceVector<ha::PackedSegment<>> d_segments{packed.segments};
  DeviceVector<ha::float16> d_keys{keys};
  DeviceVector<ha::float16> d_values{values};
  DeviceVector<std::int32_t> d_counters{std::vector<std::int32_t>(ha::RollingStateView::bytes(2) / 4, 0)};
  ha::PackedDestination<ha::RollingSlotsView> d_packed{
      ha::packed_rolling(slots, d_slots.view, formats, dim).with_buffer(d_units.data())};
  ha::Destination<ha::float16, ha::RollingSlotsView> d_ring{
      ha::rolling(ring_slots, d_ring_slots.view, d_keys.data(), d_values.data(), dim)};

  ha::PolicyTable const& policies() {
    table.set(0, 1, ha::Full{});
    table.set(0, 2, ha::WindowOnly{4});  // less than the ring
    return table;
  }
  ha::FormatTable const& some_formats() {
    formats.set(0, 3, {ha::Int8{}, ha::Packed<5>{}});
    return formats;
  }
  [[nodiscard]] ha::RollingStateView d_state() const { return ha::RollingStateView::at(d_counters.data(), 2); }

  void append(std::array<std::int32_t, 2> const& counts, unsigned seed) {
    auto const layout = ha::strided_bshd(2, 4, num_heads, dim);
    auto const new_keys = random_elements<ha::float16>(layout.required_span_size(), seed);
    auto const new_values = random_elements<ha::float16>(layout.required_span_size(), seed + 1);
    std::vector<ha::LayerKv<ha::float16 const>> const layers{{new_keys.data(), new_values.data()}};
    ha::append(slots.view(), state, layers, layout, counts, packed, ring_slots.view(), ring);
    DeviceVector<ha::float16> const d_new_keys(new_keys);
    DeviceVector<ha::float16> const d_new_values(new_values);
    DeviceVector<std::int32_t> const d_counts(std::vector<std::int32_t>(counts.begin(), counts.end()));
    std::vector<ha::LayerKv<ha::float16 const>> const d_layers{{d_new_keys.data(), d_new_values.data()}};
    cudaError_t const error = ha::device::append(d_slots.view, d_state(), d_layers, layout, d_counts.data(), 4,
                                                 d_packed, d_segments.data(), d_ring_slots.view, d_ring, {}, nullptr);
    REQUIRE_CUDA(error);
    REQUIRE_CUDA(cudaDeviceSynchronize());
  }
  /// Whether both sides hold the same bits.
  void check() const {
    CHECK(d_units.host() == units);
    auto const same = [](std::vector<ha::float16> const& a, std::vector<ha::float16> const& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(ha::float16)) == 0;
    };
    CHECK(same(d_keys.host(), keys));
    CHECK(same(d_values.host(), values));
    auto const counters = d_counters.host();
    CHECK(counters.back() == 0);
    for (std::int32_t b = 0; b < 2; ++b) {
      CHECK(counters[at(b)] == state.length(b));
      CHECK(counters[at(2 + b)] == state.high_water(b));
    }
  }
};

}  // namespace headaware_test
