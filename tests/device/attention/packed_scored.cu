// Scored slots of encoded rows on the device: appends and forks leave the CPU's bits, and attention over them, by every
// kernel of encoded rows, gives what the CPU's gives.

#include "support/device_attention.cuh"
#include "support/device_scored.cuh"
#include "support/format_rows.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/scored_view.hpp>
#include <headaware/cache/packed_scored.cuh>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

using namespace headaware_test;

namespace {

constexpr std::int32_t batch = 2;

/// One layer with a head of each format.
template <class T>
struct PackedScored {
  std::vector<ha::AnyFormat<>> all = all_formats();
  std::int32_t heads = static_cast<std::int32_t>(all.size());
  std::int64_t dim;
  ha::FormatTable formats{1, heads};
  ha::RollingSlots slots;
  ha::RollingScores scores;
  ha::RollingState state{batch};
  std::vector<ha::RowUnit> rows;
  ha::PackedDestination<ha::RollingSlotsView> cache;
  DeviceVector<std::byte> d_heads, d_scores;
  DeviceVector<ha::RowUnit> d_rows;
  DeviceVector<ha::PackedSegment<>> d_segments;
  DeviceVector<std::int32_t> d_counters;
  ha::PackedDestination<ha::RollingSlotsView> d_cache;
  unsigned seed = 70;

  [[nodiscard]] ha::PolicyTable table() {
    ha::PolicyTable result(1, heads, ha::SinkWindowScored{.sink = 2, .window = 11, .scored = 20});
    result.set(0, 1, ha::SinkWindow{.sink = 2, .window = 9});
    result.set(0, 2, ha::SinkWindowScored{.sink = 0, .window = 1, .scored = 70});
    for (std::int32_t h = 0; h < heads; ++h) formats.set(0, h, {all[at(h)], all[at((h + 3) % heads)]});
    return result;
  }
  PackedScored(std::int32_t slack, std::int64_t channels)
      : dim(channels),
        slots(table(), batch, {.max_tokens = 0, .slack = slack}),
        scores(slots),
        rows(at(ha::packed_rolling(slots, slots.view(), formats, dim).total_units()),
             ha::RowUnit{{~0U, ~0U, ~0U, ~0U}}),
        cache(ha::packed_rolling(slots, slots.view(), formats, dim).with_buffer(rows.data())),
        d_heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end())),
        d_scores(std::vector<std::byte>(scores.bytes().begin(), scores.bytes().end())),
        d_rows(rows),
        d_segments(cache.segments),
        d_counters(std::vector<std::int32_t>(ha::RollingStateView::bytes(batch) / 4, 0)),
        d_cache(ha::packed_rolling(slots, view(), formats, dim).with_buffer(d_rows.data())) {}

  [[nodiscard]] ha::RollingSlotsView view() const { return slots.view_at(d_heads.data()); }
  [[nodiscard]] ha::RollingStateView d_state() const { return ha::RollingStateView::at(d_counters.data(), batch); }
  [[nodiscard]] ha::RollingScoresView d_records() const { return scores.view_at(d_scores.data()); }

  void append(std::array<std::int32_t, batch> const& of) {
    std::vector<std::int32_t> const counts(of.begin(), of.end());
    std::int32_t const most = *std::max_element(counts.begin(), counts.end());
    auto const layout = ha::strided_bshd(batch, most, heads, dim);
    auto const keys = random_elements<T>(layout.required_span_size(), ++seed);
    auto const values = random_elements<T>(layout.required_span_size(), ++seed);
    auto const of_tokens = random_scores(at(std::int64_t{batch} * heads * most), ++seed);
    DeviceVector<T> const d_keys(keys), d_values(values);
    DeviceVector<float> const d_of_tokens(of_tokens);
    DeviceVector<std::int32_t> const d_counts(counts);
    std::vector<ha::LayerKv<T const>> const tokens{{keys.data(), values.data()}};
    std::vector<ha::LayerKv<T const>> const d_tokens{{d_keys.data(), d_values.data()}};
    ha::append(slots.view(), state, tokens, layout, counts, cache, scores.view(),
               ha::TokenScores::contiguous(of_tokens.data(), batch, heads, most));
    REQUIRE_CUDA(ha::device::append(view(), d_state(), d_tokens, layout, d_counts.data(), most, d_cache,
                                    d_segments.data(), d_records(),
                                    ha::TokenScores::contiguous(d_of_tokens.data(), batch, heads, most), {}, nullptr));
    check();
  }
  void check() const {
    REQUIRE_CUDA(cudaDeviceSynchronize());
    auto const bytes = d_scores.host();
    CHECK(std::equal(bytes.begin(), bytes.end(), scores.bytes().begin()));
    CHECK(d_rows.host() == rows);
    auto const counters = d_counters.host();
    CHECK(counters.back() == 0);
    for (std::int32_t b = 0; b < batch; ++b) CHECK(counters[at(b)] == state.length(b));
  }
  void copy(std::int32_t from, std::int32_t to) {
    std::vector<ha::SequenceCopy> const copies{{from, to}};
    ha::copy_sequences(slots.view(), state, copies, cache, scores.view());
    REQUIRE_CUDA(
        ha::device::copy_sequences(view(), d_state(), copies, d_cache, d_segments.data(), d_records(), nullptr));
    check();
  }

  void check_attention(std::array<std::int32_t, batch> const& counts, std::int32_t group, bool masked) {
    std::int32_t const tokens = *std::max_element(counts.begin(), counts.end());
    ha::AttentionShape const shape{batch, heads * group, heads, tokens, dim, 0};
    auto const layout = ha::strided_bshd(batch, tokens, heads * group, dim);
    auto const queries = random_elements<T>(layout.required_span_size(), 5);
    std::vector<float> expected(at(layout.required_span_size()), 77);
    std::vector<std::int32_t> lengths, before;
    for (std::int32_t b = 0; b < batch; ++b) {
      lengths.push_back(static_cast<std::int32_t>(state.length(b)));
      before.push_back(lengths.back() - counts[at(b)]);
    }
    DeviceVector<std::int32_t> const d_lengths(lengths), d_before(before);
    DeviceVector<T> const d_queries(queries);
    DeviceVector<float> const d_output(expected);
    auto const host_view = ha::ScoredView::of_chunk(slots.view(), scores.view(), 0, lengths.data(), tokens);
    ha::attend(shape, ha::AttentionQueries{queries.data(), layout},
               ha::PackedCache<ha::DefaultFormats, ha::ScoredView>{cache.layers[0], cache.layer(0).data(), host_view},
               ha::AttentionOutput{expected.data(), layout}, {.first_positions = masked ? before.data() : nullptr});
    auto const d_view = ha::ScoredView::of_chunk(view(), d_records(), 0, d_lengths.data(), tokens);
    run_attend(shape, ha::AttentionQueries{d_queries.data(), layout},
               ha::PackedCache<ha::DefaultFormats, ha::ScoredView>{d_rows.data(), d_segments.data(), d_view},
               ha::AttentionOutput{d_output.data(), layout}, {slots.rows_total()},
               {.first_positions = masked ? d_before.data() : nullptr});
    auto const got = d_output.host();
    float worst = 0;
    bool numbers = true;
    for (std::int32_t b = 0; b < batch; ++b) {
      for (std::int32_t h = 0; h < heads * group; ++h) {
        for (std::int64_t i = 0; i < counts[at(b)] * dim; ++i) {
          auto const place = at(layout.offset(b, h, i / dim, i % dim));
          numbers = numbers && std::isfinite(expected[place]) && std::isfinite(got[place]);
          worst = std::max(worst, std::abs(got[place] - expected[place]));
        }
      }
    }
    INFO("group " << group << ", " << tokens << " tokens, masked " << masked);
    CHECK(numbers);
    CHECK(worst < 1e-2F);
  }
};

}  // namespace

TEST_CASE("scored slots of encoded rows on the device are the CPU's, appended to, forked and attended to",
          "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int32_t const slack : {0, 5}) {
    INFO("slack " << slack);
    PackedScored<ha::float16> p(slack, 64);
    p.append({120, 3});
    p.append({1, 1});
    p.check_attention({1, 1}, 1, true);
    p.check_attention({1, 1}, 4, true);
    if (slack == 0) p.check_attention({1, 1}, 4, false);
    p.append({slack + 1, slack + 1});
    p.append({slack + 1, 1});
    p.check_attention({slack + 1, 1}, 2, true);
    p.append({1, 40});
    p.copy(1, 0);
    p.append({slack + 1, slack + 1});
    p.check_attention({slack + 1, slack + 1}, 3, true);
  }
}
