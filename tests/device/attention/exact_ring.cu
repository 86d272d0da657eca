// Attention over encoded rolling rows with an exact ring beside them on the device: both parts, merged, against the
// CPU's.

#include "support/device_attention.cuh"
#include "support/packed_cache.hpp"

#include <headaware/attention/exact_ring.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

using namespace headaware_test;

namespace {

constexpr std::int64_t dim = 64;
constexpr std::int32_t num_heads = 4;

/// A rolling plan on the device.
struct DeviceSlots {
  DeviceVector<std::byte> heads;
  ha::RollingSlotsView view;

  explicit DeviceSlots(ha::RollingSlots const& slots)
      : heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end())), view(slots.view_at(heads.data())) {}
};

}  // namespace

TEST_CASE("device attention over a packed cache with an exact ring is the CPU's", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  ha::PolicyTable table(1, num_heads, ha::SinkWindow{.sink = 3, .window = 20});
  table.set(0, 1, ha::Full{});
  table.set(0, 2, ha::WindowOnly{4});  // less than the ring
  ha::PolicyTable const ring_table(1, num_heads, ha::SinkWindow{.sink = 2, .window = 6});
  ha::FormatTable formats(1, num_heads, {ha::Packed<3>{}, ha::Packed<4>{}});
  formats.set(0, 3, {ha::Int8{}, ha::Packed<5>{}});
  ha::RollingSlots const slots(table, 2, {.max_tokens = 60, .slack = 3});
  ha::RollingSlots const ring_slots(ring_table, 2, {.max_tokens = 60, .slack = 3});
  auto const planned = ha::packed_rolling(slots, slots.view(), formats, dim);
  std::vector<ha::RowUnit> units(at(planned.total_units()));
  auto const packed = planned.with_buffer(units.data());
  std::vector<ha::float16> keys(at(ring_slots.rows_total(0) * dim));
  std::vector<ha::float16> values(keys.size());
  auto const ring = ha::rolling(ring_slots, ring_slots.view(), keys.data(), values.data(), dim);
  ha::RollingState state(2);
  for (unsigned step = 0; step < 9; ++step) {
    auto const layout = ha::strided_bshd(2, 4, num_heads, dim);
    auto const new_keys = random_elements<ha::float16>(layout.required_span_size(), 2 * step + 1);
    auto const new_values = random_elements<ha::float16>(layout.required_span_size(), 2 * step + 2);
    std::vector<ha::LayerKv<ha::float16 const>> const layers{{new_keys.data(), new_values.data()}};
    std::array<std::int32_t, 2> const counts{4, static_cast<std::int32_t>(step % 4)};
    ha::append(slots.view(), state, layers, layout, counts, packed, ring_slots.view(), ring);
  }
  DeviceSlots const d_slots(slots);
  DeviceSlots const d_ring_slots(ring_slots);
  DeviceVector<ha::RowUnit> const d_units(units);
  DeviceVector<ha::PackedSegment<>> const d_segments(packed.segments);
  DeviceVector<ha::float16> const d_keys(keys);
  DeviceVector<ha::float16> const d_values(values);
  DeviceVector<std::int32_t> const d_lengths(std::vector<std::int32_t>(state.lengths().begin(), state.lengths().end()));
  for (std::int64_t const tokens : {1, 4}) {
    HeldProblem<float> held({2, 2 * num_heads, num_heads, tokens, dim}, {}, 31);
    held.queries = random_elements<float>(2 * 2 * num_heads * tokens * dim, 41);
    held.sinks.assign(at(held.shape.num_query_heads), 0.25F);
    for (std::size_t b = 0; b < 2 && tokens > 1; ++b) {
      held.first_positions.push_back(state.lengths()[b] - static_cast<std::int32_t>(tokens));
    }
    ha::AttentionOptions options;
    options.first_positions = tokens > 1 ? held.first_positions.data() : nullptr;
    options.sinks = held.sinks.data();
    auto const rows = at(2 * held.shape.num_query_heads * tokens);
    std::vector<float> expected(rows * at(dim));
    std::vector<float> expected_lse(rows);
    auto const view = [&](ha::RollingSlotsView const& of, std::int32_t const* lengths) {
      return ha::RollingView::of_chunk(of, 0, lengths, tokens);
    };
    auto const* const lengths = state.lengths().data();
    ha::RingedCache<ha::DefaultFormats, ha::float16> const cache{
        {packed.layers[0], packed.layer(0).data(), view(slots.view(), lengths)},
        {keys.data(), values.data(), view(ring_slots.view(), lengths)}};
    ha::attend(held.shape, ha::AttentionQueries{held.queries.data(), held.query_layout()}, cache,
               ha::AttentionOutput{expected.data(), held.output_layout(), expected_lse.data()}, options);

    ha::RingedCache<ha::DefaultFormats, ha::float16> const on_device{
        {d_units.data(), d_segments.data(), view(d_slots.view, d_lengths.data())},
        {d_keys.data(), d_values.data(), view(d_ring_slots.view, d_lengths.data())}};
    DeviceUpload const upload;
    options.first_positions = tokens > 1 ? upload(held.first_positions) : nullptr;
    options.sinks = nullptr;  // the merge has them
    DeviceVector<float> const d_queries(held.queries);
    ha::AttentionQueries const queries{d_queries.data(), held.query_layout()};
    DeviceVector<float> const whole(std::vector<float>(expected.size(), 77));
    DeviceVector<float> const whole_lse(std::vector<float>(rows, 77));
    DeviceVector<float> const newest(std::vector<float>(expected.size(), 77));
    DeviceVector<float> const newest_lse(std::vector<float>(rows, 77));
    ha::AttentionOutput const into{whole.data(), held.output_layout(), whole_lse.data()};
    ha::AttentionOutput const other{newest.data(), held.output_layout(), newest_lse.data()};
    run_attend(held.shape, queries, on_device.beside(), into, {slots.rows_total(), nullptr}, options);
    run_attend(held.shape, queries, on_device.of_ring(), other, {ring_slots.rows_total(), nullptr}, options);
    REQUIRE_CUDA(ha::device::merge_attention(held.shape, into, other, upload(held.sinks), nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    auto const output = whole.host();
    auto const lse = whole_lse.host();
    double worst = 0;
    for (std::size_t i = 0; i < output.size(); ++i) {
      double const error = std::abs(output[i] - expected[i]) / (1 + std::abs(expected[i]));
      worst = error == error ? std::max(worst, error) : 77;
    }
    // The CPU multiplies codes by numbers of 16 bits.
    CHECK(worst < 1e-3);
    for (std::size_t i = 0; i < lse.size(); ++i) CHECK(std::abs(lse[i] - expected_lse[i]) < 1e-3F);
  }
}
