// Attention over encoded rolling rows with an exact ring beside them on the device: both parts, merged, against the
// CPU's. Rows are appended there.

#include "support/device_attention.cuh"
#include "support/device_ring.cuh"

#include <headaware/attention/exact_ring.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

using namespace headaware_test;

namespace {

constexpr std::int64_t dim = Ringed::dim;
constexpr std::int32_t num_heads = Ringed::num_heads;

}  // namespace

TEST_CASE("device attention over a packed cache with an exact ring is the CPU's", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  Ringed p;
  for (unsigned step = 0; step < 9; ++step) p.append({4, static_cast<std::int32_t>(step % 4)}, 2 * step + 1);
  p.check();
  auto const& state = p.state;
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
        {p.packed.layers[0], p.packed.layer(0).data(), view(p.slots.view(), lengths)},
        {p.keys.data(), p.values.data(), view(p.ring_slots.view(), lengths)}};
    ha::attend(held.shape, ha::AttentionQueries{held.queries.data(), held.query_layout()}, cache,
               ha::AttentionOutput{expected.data(), held.output_layout(), expected_lse.data()}, options);

    ha::RingedCache<ha::DefaultFormats, ha::float16> const on_device{
        {p.d_units.data(), p.d_segments.data(), view(p.d_slots.view, p.d_state().lengths)},
        {p.d_keys.data(), p.d_values.data(), view(p.d_ring_slots.view, p.d_state().lengths)}};
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
    run_attend(held.shape, queries, on_device.beside(), into, {p.slots.rows_total(), nullptr}, options);
    run_attend(held.shape, queries, on_device.of_ring(), other, {p.ring_slots.rows_total(), nullptr}, options);
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
