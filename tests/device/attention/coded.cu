// Attention over encoded rows on the device, heads of every format side by side in one launch, against plain
// double-precision loops over the rows decoded one by one, and against the CPU's over those.

#include "support/device_attention.cuh"
#include "support/packed_cache.hpp"

#include <headaware/attention/dense_views.hpp>
#include <headaware/cache/packed_rolling.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>
#include <utility>
#include <vector>

using namespace headaware_test;

namespace coded_formats {

/// A format of a user's own: numbers as they are, in blocks that are no power of two.
struct SixFloats {
  static constexpr std::string_view name = "six_floats";
  static constexpr std::int32_t group = 6;
  static constexpr std::int32_t block_words = 6;
  static constexpr bool rotated = false;

  HEADAWARE_HOST_DEVICE void encode(float const* x, std::uint32_t* words) const {
    for (int i = 0; i < group; ++i) words[i] = headaware::detail::bits_as<std::uint32_t>(x[i]);
  }
  HEADAWARE_HOST_DEVICE void decode(std::uint32_t const* words, float* x) const {
    for (int i = 0; i < group; ++i) x[i] = headaware::detail::bits_as<float>(words[i]);
  }
  friend constexpr bool operator==(SixFloats const&, SixFloats const&) = default;
};

}  // namespace coded_formats

namespace {

/// Heads of grouped caches wherever they are.
struct PlacedView {
  std::int64_t const* firsts = nullptr;  ///< [segments]
  std::int32_t const* lengths = nullptr;
  std::int32_t num_kv_heads = 0;

  [[nodiscard]] HEADAWARE_HOST_DEVICE ha::AdjacentRows head(std::int64_t sequence, std::int64_t kv_head) const {
    std::int64_t const s = sequence * num_kv_heads + kv_head;
    return {firsts[s], lengths[s]};
  }
};

/// A packed cache on the device.
template <class Form>
struct DeviceRows {
  DeviceVector<ha::RowUnit> rows;
  DeviceVector<ha::PackedSegment<>> segments;
  ha::PackedDestination<Form> cache;

  DeviceRows(ha::PackedDestination<Form> const& planned, std::vector<ha::RowUnit> const& host)
      : rows(host), segments(planned.segments), cache(planned.with_buffer(rows.data())) {}
  template <class View>
  [[nodiscard]] ha::PackedCache<ha::DefaultFormats, View> layer(std::int32_t layer, View const& view) const {
    return {cache.layers[at(layer)], segments.data() + cache.first_segments[at(layer)], view};
  }
};

template <class O, class Cache>
std::vector<O> attend_on_device(HeldProblem<float> const& p, Cache const& cache, std::int64_t max_rows,
                                std::vector<float>* lse = nullptr) {
  DeviceUpload const upload;
  auto options = p.options;
  if (!p.first_positions.empty()) options.first_positions = upload(p.first_positions);
  if (!p.sinks.empty()) options.sinks = upload(p.sinks);
  DeviceVector<float> const d_queries(p.queries);
  DeviceVector<O> const d_output(std::vector<O>(at(p.output_layout().required_span_size()), ha::from_float<O>(77)));
  DeviceVector<float> const d_lse(
      std::vector<float>(at(p.shape.num_sequences * p.shape.num_query_heads * p.shape.query_tokens), 77));
  DeviceVector<std::int32_t> const d_status(std::vector<std::int32_t>{-7});
  run_attend(p.shape, ha::AttentionQueries{d_queries.data(), p.query_layout()}, cache,
             ha::AttentionOutput{d_output.data(), p.output_layout(), d_lse.data()}, {max_rows, d_status.data()},
             options);
  REQUIRE(d_status.host()[0] == 0);
  if (lse != nullptr) *lse = d_lse.host();
  return d_output.host();
}

template <class O, class Cache>
void check_coded(HeldProblem<float> const& p, Cache const& cache, Attended const& expected) {
  std::vector<float> lse;
  auto const output = attend_on_device<O>(p, cache, p.total_rows() + 40, &lse);
  check_attended(output, lse, expected);
}

}  // namespace

TEST_CASE("device attention over encoded rows is that over the decoded ones", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (auto const& [keys, values] : {std::pair{64, 64}, std::pair{128, 128}, std::pair{80, 40}, std::pair{7, 192},
                                     std::pair{80, 112}, std::pair{192, 256}}) {
    PackedProblem<ha::float16> const p(keys, values, {700, 7, 0});
    ha::Compaction const compaction(p.table, p.lengths);
    auto const planned = ha::packed_ragged(compaction, p.formats, keys, values);
    std::vector<ha::RowUnit> rows(at(planned.total_units()));
    ha::compress(compaction, p.layers, p.source(), planned.with_buffer(rows.data()));
    DeviceRows const device(planned, rows);
    for (auto const& [group, tokens] :
         {std::pair{1, 1}, std::pair{3, 1}, std::pair{7, 1}, std::pair{12, 1}, std::pair{2, 9}}) {
      std::int32_t const layer = group % 2;
      INFO(keys << " and " << values << " channels, group " << group << ", " << tokens << " tokens");
      HeldProblem<float> const held = p.varied(layer, group, tokens);
      DeviceUpload const upload;
      ha::RaggedView<std::int64_t> const view{upload(held.row_offsets()), p.num_kv_heads};
      Attended const expected = naive_attention(held);
      check_coded<float>(held, device.layer(layer, view), expected);
      if (group == 7) check_coded<ha::float16>(held, device.layer(layer, view), expected);
    }
  }
}

TEST_CASE("the caller may rotate queries and outputs on the device", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (std::int64_t const values : {64, 320}) {  // the latter not on tensor cores
    PackedProblem<ha::float16> const p(64, values, {90, 7, 0});
    ha::Compaction const compaction(p.table, p.lengths);
    auto const planned = ha::packed_ragged(compaction, p.formats, 64, values);
    std::vector<ha::RowUnit> rows(at(planned.total_units()));
    ha::compress(compaction, p.layers, p.source(), planned.with_buffer(rows.data()));
    DeviceRows const device(planned, rows);
    HeldProblem<float> held = p.varied(0, 3, 1);
    DeviceUpload const upload;
    ha::RaggedView<std::int64_t> const view{upload(held.row_offsets()), p.num_kv_heads};
    auto cache = device.layer(0, view);
    std::vector<float> const expected = attend_on_device<float>(held, cache, held.total_rows());
    rotate_rows(held.queries, held.query_layout(), held.shape, p.formats, true);
    cache.rotated_by_caller = true;
    std::vector<float> output = attend_on_device<float>(held, cache, held.total_rows());
    CHECK(output != expected);
    rotate_rows(output, held.output_layout(), held.shape, p.formats, false);
    float worst = 0;
    for (std::size_t i = 0; i < output.size(); ++i) worst = std::max(worst, std::abs(output[i] - expected[i]));
    CHECK(worst < 2e-5F);
  }
}

TEST_CASE("device attention over encoded rows: padded and grouped caches", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  constexpr std::int64_t dim = 64;
  PackedProblem<ha::bfloat16> const p(dim, dim, {90, 7, 0});
  ha::Compaction const compaction(p.table, p.lengths);
  constexpr std::int32_t layer = 1;
  HeldProblem<float> const held = p.held(layer, {3, 2 * p.num_kv_heads, p.num_kv_heads, 1, dim});
  Attended const expected = naive_attention(held);
  std::vector<std::int32_t> lengths;
  for (std::size_t s = 0; s < held.segments.size(); ++s) lengths.push_back(static_cast<std::int32_t>(held.rows(s)));
  DeviceUpload const upload;
  auto const filled = [&](auto const& planned) {
    std::vector<ha::RowUnit> rows(at(planned.total_units()), ha::RowUnit{{~0U, ~0U, ~0U, ~0U}});
    ha::compress(compaction, p.layers, p.source(), planned.with_buffer(rows.data()));
    return DeviceRows(planned, rows);
  };
  for (auto const alignment : {ha::Alignment::left, ha::Alignment::right}) {
    auto const padded = filled(ha::packed_padded(compaction, p.formats, dim, alignment));
    ha::PaddedView const view{upload(lengths), p.num_kv_heads, compaction.max_kept(layer), alignment};
    check_coded<float>(held, padded.layer(layer, view), expected);
  }
  auto const grouped = filled(ha::packed_grouped(compaction, p.formats, dim));
  std::vector<std::int64_t> firsts;
  for (std::int64_t s = compaction.first_segment(layer); s < compaction.first_segment(layer + 1); ++s) {
    firsts.push_back(grouped.cache.form.rows(compaction.segment(s), grouped.cache.capacities[layer]).first);
  }
  check_coded<float>(held, grouped.layer(layer, PlacedView{upload(firsts), upload(lengths), p.num_kv_heads}), expected);
}

TEST_CASE("device attention over encoded rows: wide rows, and heads of several KV splits", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (auto const& [keys, values, group] : {std::array{512, 512, 16}, std::array{256, 320, 2}, std::array{64, 64, 5}}) {
    INFO(keys << " and " << values << " channels, group " << group);
    std::int32_t const length = keys == 64 ? 2100 : 70;
    PackedProblem<ha::float16> const p(keys, values, {length});
    ha::Compaction const compaction(p.table, p.lengths);
    auto const planned = ha::packed_ragged(compaction, p.formats, keys, values);
    std::vector<ha::RowUnit> rows(at(planned.total_units()));
    ha::compress(compaction, p.layers, p.source(), planned.with_buffer(rows.data()));
    DeviceRows const device(planned, rows);
    HeldProblem<float> const held = p.held(0, {1, group * p.num_kv_heads, p.num_kv_heads, 1, keys, values});
    DeviceUpload const upload;
    ha::RaggedView<std::int64_t> const view{upload(held.row_offsets()), p.num_kv_heads};
    check_coded<float>(held, device.layer(0, view), naive_attention(held));
  }
}

TEST_CASE("device attention over a rolling cache of encoded rows is the CPU's over the decoded ones", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  std::vector<ha::AnyFormat<>> const all = all_formats();
  auto const heads = static_cast<std::int32_t>(all.size());
  constexpr std::int64_t dim = 64;
  ha::PolicyTable table(1, heads, ha::SinkWindow{.sink = 2, .window = 11});
  table.set(0, 3, ha::Full{});
  table.set(0, 5, ha::Prune{});
  ha::FormatTable formats(1, heads);
  for (std::int32_t h = 0; h < heads; ++h) formats.set(0, h, {all[at(h)], all[at((h + 3) % heads)]});
  ha::RollingSlots const slots(table, 3, {.max_tokens = 60, .slack = 4});
  auto const planned = ha::packed_rolling(slots, slots.view(), formats, dim);
  // Slots that are never written are no numbers in most formats.
  std::vector<ha::RowUnit> buffer(at(planned.total_units()), ha::RowUnit{{0x7fff7fff, 0x7fff7fff, 0x7fff7fff, ~0U}});
  auto const cache = planned.with_buffer(buffer.data());
  ha::RollingState state(3);
  unsigned seed = 50;
  for (auto const& counts : {std::array{30, 9, 0}, std::array{3, 3, 3}}) {
    std::vector<std::int32_t> const news(counts.begin(), counts.end());
    auto const layout = ha::strided_bshd(3, 30, heads, dim);
    auto const new_keys = random_elements<ha::float16>(layout.required_span_size(), ++seed);
    auto const new_values = random_elements<ha::float16>(layout.required_span_size(), ++seed);
    std::vector<ha::LayerKv<ha::float16 const>> const layers{{new_keys.data(), new_values.data()}};
    ha::append(slots.view(), state, layers, layout, news, cache);
  }
  // The same slots with floats.
  std::vector<float> keys(at(slots.rows_total() * dim));
  std::vector<float> values(keys.size());
  for (std::int32_t b = 0; b < 3; ++b) {
    for (std::int32_t h = 0; h < heads; ++h) {
      ha::PackedSegment<> const& packed = cache.layer(0)[at(b * heads + h)];
      for (std::int64_t slot = 0; slot < slots.head(0, h).slots(); ++slot) {
        std::int64_t const row = slots.head(0, h).row(b, slot);
        auto const* const words = buffer[at(row * packed.units + packed.shift)].words;
        packed.formats.key.visit([&](auto const& f) { ha::decode_row(f, words, dim, &keys[at(row * dim)]); });
        auto const* const after = words + packed.formats.key_words(dim);
        packed.formats.value.visit([&](auto const& f) { ha::decode_row(f, after, dim, &values[at(row * dim)]); });
      }
    }
  }
  DeviceRows const device(planned, buffer);
  DeviceVector<std::byte> const d_heads(std::vector<std::byte>(slots.bytes().begin(), slots.bytes().end()));
  DeviceVector<std::int32_t> const d_lengths(std::vector<std::int32_t>(state.lengths().begin(), state.lengths().end()));
  for (std::int64_t const tokens : {1, 3}) {
    HeldProblem<float> held({3, 2 * heads, heads, tokens, dim}, {}, 31);
    held.queries = random_elements<float>(3 * 2 * heads * tokens * dim, 41);
    if (tokens > 1) held.first_positions = {30, 9, 0};
    auto options = held.options;
    options.first_positions = tokens > 1 ? held.first_positions.data() : nullptr;
    std::vector<float> expected(at(held.output_layout().required_span_size()));
    auto const view = [&](ha::RollingSlotsView const& of, std::int32_t const* lengths) {
      return ha::RollingView::of_chunk(of, 0, lengths, tokens);
    };
    ha::attend(held.shape, ha::AttentionQueries{held.queries.data(), held.query_layout()},
               ha::KeptCache{keys.data(), values.data(), view(slots.view(), state.lengths().data())},
               ha::AttentionOutput{expected.data(), held.output_layout()}, options);
    auto const output = attend_on_device<float>(
        held, device.layer(0, view(slots.view_at(d_heads.data()), d_lengths.data())), slots.rows_total());
    float worst = 0;
    for (std::size_t i = 0; i < output.size(); ++i) {
      float const error = std::abs(output[i] - expected[i]) / (1 + std::abs(expected[i]));
      worst = error == error ? std::max(worst, error) : 77;
    }
    CHECK(worst < 3e-6F);
  }
}

TEST_CASE("device attention over encoded rows: values that a query does not see may be no numbers", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  std::vector<ha::AnyFormat<>> const all = all_formats();
  auto const heads = static_cast<std::int32_t>(all.size());
  constexpr std::int64_t dim = 64;
  constexpr std::int64_t rows_held = 37;
  constexpr std::int64_t tokens = 3;
  constexpr std::int64_t bad_row = rows_held - 2;  // seen by the last two of the tokens
  HeldProblem<float> const problem({1, heads, heads, tokens, dim}, std::vector<std::int64_t>(at(heads), rows_held), 9);
  auto const attended = [&](bool bad) {
    HeldProblem<float> held = problem;
    held.first_positions = {rows_held - tokens};
    std::vector<ha::RowUnit> rows;
    std::vector<ha::PackedSegment<>> segments;
    for (std::int32_t h = 0; h < heads; ++h) {
      HeldRows<float>& own = held.segments[at(h)];
      if (bad) own.values[at(bad_row * dim + 21)] = std::numeric_limits<float>::quiet_NaN();
      ha::HeadFormats const of{all[at((h + 4) % heads)], all[at(h)]};
      auto const units = static_cast<std::int32_t>(of.row_units(dim, dim));
      segments.push_back({of, units, std::ssize(rows) - h * rows_held * units});
      for (std::int64_t i = 0; i < rows_held; ++i) {
        rows.resize(rows.size() + at(units));
        std::uint32_t* const words = rows[rows.size() - at(units)].words;
        of.key.visit([&](auto const& f) { ha::encode_row(f, &own.keys[at(i * dim)], dim, words); });
        of.value.visit(
            [&](auto const& f) { ha::encode_row(f, &own.values[at(i * dim)], dim, words + of.key_words(dim)); });
      }
    }
    DeviceUpload const upload;
    ha::PackedCache<ha::DefaultFormats, ha::RaggedView<std::int64_t>> const cache{
        upload(rows), upload(segments), {upload(held.row_offsets()), heads}};
    return attend_on_device<float>(held, cache, heads * rows_held);
  };
  std::vector<float> const good = attended(false);
  std::vector<float> const bad = attended(true);
  for (std::int32_t h = 0; h < heads; ++h) {
    INFO(all[at(h)].name());
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::int64_t different = 0;
      std::int64_t no_numbers = 0;
      for (std::int64_t c = 0; c < dim; ++c) {
        std::size_t const i = at(problem.output_layout().offset(0, h, t, c));
        if (std::isnan(bad[i])) {
          ++no_numbers;
        } else {
          different += std::abs(bad[i] - good[i]) > 1e-6F * (1 + std::abs(good[i])) ? 1 : 0;
        }
      }
      CHECK((no_numbers > 0) == (t > 0));
      CHECK((different == 0 || no_numbers == dim));
    }
  }
}

TEST_CASE("device attention over rows in a format of the caller's own", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  using Formats = ha::FormatRegistry<coded_formats::SixFloats, ha::Packed<5>>;
  constexpr std::int64_t keys = 20;
  constexpr std::int64_t values = 33;
  HeldProblem<float> held({1, 4, 2, 1, keys, values}, {70, 40}, 71);
  std::vector<ha::RowUnit> rows;
  std::vector<ha::PackedSegment<Formats>> segments;
  std::vector<std::int32_t> const offsets{0, 70, 110};
  for (std::size_t s = 0; s < 2; ++s) {
    ha::BasicHeadFormats<Formats> of;
    (s == 0 ? of.value : of.key) = ha::Packed<5>{};
    auto const units = static_cast<std::int32_t>(of.row_units(keys, values));
    segments.push_back({of, units, std::ssize(rows) - std::int64_t{offsets[s]} * units});
    for (std::int64_t i = 0; i < held.rows(s); ++i) {
      rows.resize(rows.size() + at(units));
      std::uint32_t* const words = rows[rows.size() - at(units)].words;
      auto const code = [&](ha::AnyFormat<Formats> const& any, float* row, std::int64_t channels, std::uint32_t* to) {
        any.visit([&](auto const& format) {
          ha::encode_row(format, row, channels, to);
          ha::decode_row(format, to, channels, row);
        });
      };
      code(of.key, &held.segments[s].keys[at(i * keys)], keys, words);
      code(of.value, &held.segments[s].values[at(i * values)], values, words + of.key_words(keys));
    }
  }
  DeviceVector<ha::RowUnit> const d_rows(rows);
  DeviceVector<ha::PackedSegment<Formats>> const d_segments(segments);
  DeviceVector<std::int32_t> const d_offsets(offsets);
  ha::PackedCache<Formats, ha::RaggedView<std::int32_t>> const cache{
      d_rows.data(), d_segments.data(), {d_offsets.data(), 2}};
  check_coded<float>(held, cache, naive_attention(held));
}

TEST_CASE("device attention over encoded rows refuses what the CPU's does, and sums too wide", "[attention]") {
  HEADAWARE_REQUIRE_DEVICE();
  DeviceVector<float> const data(std::vector<float>(600));
  DeviceVector<std::int64_t> const offsets(std::vector<std::int64_t>{0, 1});
  DeviceVector<ha::PackedSegment<>> const segments(std::vector<ha::PackedSegment<>>(1));
  auto const attend = [&](ha::PackedSegment<> const* of, std::int64_t value_dim) {
    std::size_t bytes = 4096;
    ha::AttentionShape const shape{1, 1, 1, 1, 64, value_dim};
    return ha::device::attend(
        data.data(), bytes, shape, ha::AttentionQueries{data.data(), ha::strided_bhd(1, 1, 64)},
        ha::PackedCache<ha::DefaultFormats, ha::RaggedView<std::int64_t>>{nullptr, of, {offsets.data(), 1}},
        ha::AttentionOutput{data.data(), ha::strided_bhd(1, 1, value_dim)}, {}, {}, nullptr);
  };
  CHECK(attend(nullptr, 64) == cudaErrorInvalidValue);
  CHECK(attend(segments.data(), 513) == cudaErrorInvalidValue);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
}
