// Appends into encoded rolling rows and the exact ring beside them on the device: one call fills both with the CPU's
// bits, or neither.

#include "support/device_ring.cuh"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

using namespace headaware_test;

TEST_CASE("one append on the device fills a packed cache and its ring as the CPU's does", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  Ringed p;
  p.append({4, 1}, 1);
  p.check();
  for (unsigned step = 1; step < 7; ++step) p.append({4, static_cast<std::int32_t>(step % 4)}, 2 * step + 1);
  p.check();
  // No more tokens come back than the ring has.
  auto const both = ha::with_ring(p.slots.view(), p.ring_slots.view());
  p.state.rollback(both, 0, 3);
  p.state.rollback(both, 1, 2);
  DeviceVector<std::int32_t> const d_back(std::vector<std::int32_t>{3, 2});
  REQUIRE_CUDA(
      ha::device::rollback(ha::with_ring(p.d_slots.view, p.d_ring_slots.view), p.d_state(), d_back.data(), nullptr));
  p.append({2, 3}, 77);
  p.check();
}

TEST_CASE("an append that one of the two cannot take writes neither on the device", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  Ringed p;
  p.append({4, 2}, 1);
  auto const layout = ha::strided_bshd(2, 1, Ringed::num_heads, Ringed::dim);
  DeviceVector<ha::float16> const tokens(random_elements<ha::float16>(layout.required_span_size(), 9));
  std::vector<ha::LayerKv<ha::float16 const>> const layers{{tokens.data(), tokens.data()}};
  auto const refused = [&](auto const& packed, ha::PackedSegment<> const* segments,
                           ha::RollingSlotsView const& ring_slots, auto const& ring, char const* why) {
    CHECK(ha::device::append(p.d_slots.view, p.d_state(), layers, layout, nullptr, 1, packed, segments, ring_slots,
                             ring, {}, nullptr) == cudaErrorInvalidValue);
    INFO(ha::last_error_message());
    CHECK(std::string(ha::last_error_message()).find(why) != std::string::npos);
  };
  refused(p.d_packed, nullptr, p.d_ring_slots.view, p.d_ring, "segments");
  refused(p.packed, p.d_segments.data(), p.d_ring_slots.view, p.d_ring, "cache");
  refused(p.d_packed, p.d_segments.data(), p.d_ring_slots.view, p.ring, "cache");
  ha::RollingSlots const other(p.ring_table, 2, {.max_tokens = 80, .slack = 4});
  refused(p.d_packed, p.d_segments.data(), other.view(), p.d_ring, "slack of the ring");
  // Beyond the limit of the cache, which the ring alone would not notice: both leave the sequence alone.
  for (unsigned step = 1; step < 15; ++step) p.append({4, 0}, 2 * step + 1);
  REQUIRE(p.state.length(0) == 60);
  std::vector<std::int32_t> const one{1, 0};
  DeviceVector<std::int32_t> const d_one(one);
  REQUIRE_CUDA(ha::device::append(p.d_slots.view, p.d_state(), layers, layout, d_one.data(), 1, p.d_packed,
                                  p.d_segments.data(), p.d_ring_slots.view, p.d_ring, {}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  CHECK(p.d_counters.host().back() == 1);
  REQUIRE_CUDA(cudaMemset(p.d_state().status, 0, sizeof(std::int32_t)));
  p.check();
}
