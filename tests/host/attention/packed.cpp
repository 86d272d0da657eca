// Attention over encoded rows on the CPU, heads of every format side by side, against plain double-precision loops over
// the rows decoded one by one.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/packed_cache.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/dense_views.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

using namespace headaware_test;

namespace {

template <class View>
void check_packed(HeldProblem<float> const& p, ha::PackedCache<ha::DefaultFormats, View> const& cache) {
  Attended const expected = naive_attention(p);
  auto options = p.options;
  if (!p.first_positions.empty()) options.first_positions = p.first_positions.data();
  if (!p.sinks.empty()) options.sinks = p.sinks.data();
  std::vector<float> output(expected.output.size(), 77);
  std::vector<float> lse(expected.lse.size(), 77);
  ha::attend(p.shape, ha::AttentionQueries{p.queries.data(), p.query_layout()}, cache,
             ha::AttentionOutput{output.data(), p.output_layout(), lse.data()}, options);
  check_attended(output, lse, expected);
}

}  // namespace

TEST_CASE("attention over encoded rows is that over the decoded ones", "[attention]") {
  for (auto const& [keys, values] : {std::pair{64, 64}, std::pair{128, 128}, std::pair{80, 40}, std::pair{20, 192}}) {
    PackedProblem<ha::float16> const p(keys, values, {700, 7, 0});
    ha::Compaction const compaction(p.table, p.lengths);
    auto const ragged = ha::packed_ragged(compaction, p.formats, keys, values);
    auto const padded = ha::packed_padded(compaction, p.formats, keys, ha::Alignment::right, values);
    std::vector<ha::RowUnit> ragged_rows(at(ragged.total_units()));
    std::vector<ha::RowUnit> padded_rows(at(padded.total_units()));
    auto const of_ragged = ragged.with_buffer(ragged_rows.data());
    auto const of_padded = padded.with_buffer(padded_rows.data());
    ha::compress(compaction, p.layers, p.source(), of_ragged);
    ha::compress(compaction, p.layers, p.source(), of_padded);
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      for (auto const& [group, tokens] : {std::pair{1, 1}, std::pair{3, 1}, std::pair{12, 1}, std::pair{2, 9}}) {
        INFO(keys << " and " << values << " channels, layer " << layer << ", group " << group << ", " << tokens
                  << " tokens");
        HeldProblem<float> held = p.held(layer, {3, group * p.num_kv_heads, p.num_kv_heads, tokens, keys, values});
        held.options.soft_cap = group == 3 ? 20.0F : 0.0F;
        if (group == 12) held.sinks.assign(at(held.shape.num_query_heads), 1.5F);
        if (tokens > 1) {
          held.first_positions = {600, 3, 0};
          held.options.window = 50;
        }
        std::vector<std::int64_t> offsets{0};
        std::vector<std::int32_t> lengths;
        for (std::size_t s = 0; s < held.segments.size(); ++s) {
          offsets.push_back(offsets.back() + held.rows(s));
          lengths.push_back(static_cast<std::int32_t>(held.rows(s)));
        }
        check_packed(held,
                     ha::PackedCache<ha::DefaultFormats, ha::RaggedView<std::int64_t>>{
                         of_ragged.layers[at(layer)], of_ragged.layer(layer).data(), {offsets.data(), p.num_kv_heads}});
        check_packed(held, ha::PackedCache<ha::DefaultFormats, ha::PaddedView>{
                               of_padded.layers[at(layer)],
                               of_padded.layer(layer).data(),
                               {lengths.data(), p.num_kv_heads, compaction.max_kept(layer), ha::Alignment::right}});
      }
    }
  }
}

TEST_CASE("a packed cache without rows or segments is refused", "[attention]") {
  std::vector<float> const queries(64, 1);
  std::vector<float> output(64);
  auto const layout = ha::strided_bhd(1, 1, 64);
  std::vector<std::int32_t> const offsets{0, 1};
  using View = ha::RaggedView<std::int32_t>;
  std::vector<ha::PackedSegment<>> const segments(1);
  auto const attend = [&](ha::RowUnit const* rows, ha::PackedSegment<> const* of) {
    ha::attend({1, 1, 1, 1, 64}, ha::AttentionQueries{queries.data(), layout},
               ha::PackedCache<ha::DefaultFormats, View>{rows, of, {offsets.data(), 1}},
               ha::AttentionOutput{output.data(), layout});
  };
  check_error<ha::ArgumentError>([&] { attend(nullptr, segments.data()); }, {"rows", "a pointer", "nullptr", "attend"});
  std::vector<ha::RowUnit> const rows(20);
  check_error<ha::ArgumentError>([&] { attend(rows.data(), nullptr); }, {"segments", "a pointer", "nullptr", ""});
}
