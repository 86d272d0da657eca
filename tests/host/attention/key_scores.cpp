// Scores of rows by the attention that they get: against plain loops, in every form; merged over calls.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/key_score_reference.hpp"
#include "support/packed_cache.hpp"

#include <headaware/attention/key_scores.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

using namespace headaware_test;

namespace {

using Reduction = ha::KeyScoreReduction;

template <class T>
ha::AttentionOptions options_of(HeldProblem<T> const& p) {
  ha::AttentionOptions options = p.options;
  if (!p.first_positions.empty()) options.first_positions = p.first_positions.data();
  if (!p.sinks.empty()) options.sinks = p.sinks.data();
  return options;
}

template <class T, class View>
void add_scores(HeldProblem<T> const& p, PlacedRows<T> const& placed, View const& view, Reduction reduction,
                std::vector<float>& scores, std::int64_t stride) {
  ha::score_keys(p.shape, ha::AttentionQueries{p.queries.data(), p.query_layout()},
                 ha::KeptCache{placed.keys.data(), static_cast<T const*>(nullptr), view}, options_of(p), reduction,
                 ha::KeyScores{scores.data(), stride});
}

template <class T>
void check_views(HeldProblem<T> const& p, bool rows_are_tokens = true) {
  std::int64_t stride = 2;
  for (std::size_t s = 0; s < p.segments.size(); ++s) stride = std::max(stride, p.rows(s) + 2);
  for (Reduction const reduction : {Reduction::max, Reduction::sum}) {
    std::vector<double> const expected = naive_key_scores(p, reduction, stride);
    for_each_view(p, rows_are_tokens, [&](std::string const& name, PlacedRows<T> const& placed, auto const& make) {
      INFO(name);
      HostUpload const upload;
      std::vector<float> scores(at(p.shape.segments() * stride));
      add_scores(p, placed, make(upload), reduction, scores, stride);
      check_key_scores(p, scores, expected, stride, 0);
    });
  }
}

template <class T>
std::vector<float> ragged_scores(HeldProblem<T> const& p, Reduction reduction, std::int64_t stride,
                                 std::vector<float> scores) {
  for_each_view(p, false, [&](std::string const& name, PlacedRows<T> const& placed, auto const& make) {
    HostUpload const upload;
    if (name == "ragged") add_scores(p, placed, make(upload), reduction, scores, stride);
  });
  return scores;
}

}  // namespace

TEMPLATE_TEST_CASE("key scores over every form, group and element", "[attention]", float, ha::float16, ha::bfloat16) {
  for (std::int32_t const group : {1, 3, 8}) {
    INFO("group " << group);
    HeldProblem<TestType> p({2, 2 * group, 2, 1, 20}, {0, 700, 65, 3}, 5 * static_cast<unsigned>(group));
    check_views(p);
    p.options = {.scale = 0.3F, .soft_cap = 2};
    p.sinks = std::vector<float>(at(2 * group), 1.5F);
    check_views(p);
  }
}

TEST_CASE("key scores of a chunk: causal, by positions of rows, in a window, and not causal", "[attention]") {
  for (std::int64_t const tokens : {2, 40}) {
    HeldProblem<float> p({3, 4, 2, tokens, 32}, {tokens, tokens, 100, 530, 150, 0}, 11);
    p.first_positions = {0, 100 - static_cast<std::int32_t>(tokens), 120};
    check_views(p);
    p.options.window = 30;
    check_views(p);
    p.options.window = 0;
    for (HeldRows<float>& held : p.segments) {
      std::int32_t last = 3;
      for (std::int32_t& position : held.positions) position = last += 1 + last % 3;
    }
    check_views(p, false);
    p.first_positions.clear();
    check_views(p, false);
  }
}

TEST_CASE("key scores merge over calls: chunks of queries, and what was there before", "[attention]") {
  constexpr std::int64_t tokens = 50;
  constexpr std::int64_t stride = 300;
  HeldProblem<float> whole({1, 4, 2, tokens, 16}, {300, 77}, 3);
  whole.first_positions = {250};
  for (Reduction const reduction : {Reduction::max, Reduction::sum}) {
    std::vector<float> scores(2 * stride);
    for (std::int64_t const first : {0, 7, 40}) {
      std::int64_t const count = first == 0 ? 7 : first == 7 ? 33 : 10;
      HeldProblem<float> part({1, 4, 2, count, 16}, {}, 3);
      part.segments = whole.segments;
      part.first_positions = {250 + static_cast<std::int32_t>(first)};
      for (std::int64_t h = 0; h < 4; ++h) {
        std::copy_n(&whole.queries[at((h * tokens + first) * 16)], count * 16, &part.queries[at(h * count * 16)]);
      }
      scores = ragged_scores(part, reduction, stride, scores);
    }
    check_key_scores(whole, scores, naive_key_scores(whole, reduction, stride), stride, 0);
    // A large score stays, or is added to.
    std::vector<float> const before(2 * stride, 2);
    std::vector<float> const after = ragged_scores(whole, reduction, stride, before);
    for (std::size_t i = 0; i < 300; ++i)
      CHECK(std::abs(after[i] - (reduction == Reduction::max ? 2 : 2 + scores[i])) < 1e-5F);
  }
}

TEST_CASE("key scores: sums of a query's probabilities are 1, and queries without any count for nothing",
          "[attention]") {
  HeldProblem<float> p({1, 6, 2, 9, 24}, {200, 200}, 8);
  auto const total = [&](std::size_t segment) {
    std::vector<float> const scores = ragged_scores(p, Reduction::sum, 200, std::vector<float>(400));
    double sum = 0;
    for (std::size_t i = 0; i < 200; ++i) sum += double(scores[segment * 200 + i]);
    return sum;
  };
  CHECK(std::abs(total(0) - 27) < 1e-4);
  p.queries[5] = std::numeric_limits<float>::quiet_NaN();
  p.queries[24 + 5] = std::numeric_limits<float>::infinity();
  CHECK(std::abs(total(0) - 25) < 1e-4);
  CHECK(std::abs(total(1) - 27) < 1e-4);
  p.first_positions = {-4};  // four queries of each head see nothing
  CHECK(std::abs(total(1) - 15) < 1e-4);
}

TEST_CASE("key scores of a latent", "[attention]") {
  auto const p = latent_problem<float>({1, 5, 1, 3, 40, 24}, {333}, 2);
  std::vector<std::int32_t> const offsets{0, 333};
  ha::RaggedView const view{offsets.data(), 1};
  std::vector<float> scores(333);
  ha::score_keys(p.shape, ha::AttentionQueries{p.queries.data(), p.query_layout()},
                 ha::LatentCache{p.segments[0].keys.data(), view}, p.options, Reduction::max,
                 ha::KeyScores{scores.data(), 333});
  check_key_scores(p, scores, naive_key_scores(p, Reduction::max, 333), 333, 0);
}

TEST_CASE("key scores of encoded rows are those of the rows that they decode to", "[attention]") {
  PackedProblem<ha::float16> const p(64, 64, {200, 7, 0});
  ha::Compaction const compaction(p.table, p.lengths);
  auto const planned = ha::packed_ragged(compaction, p.formats, 64, 64);
  std::vector<ha::RowUnit> rows(at(planned.total_units()));
  auto const packed = planned.with_buffer(rows.data());
  ha::compress(compaction, p.layers, p.source(), packed);
  for (std::int64_t const tokens : {1, 12}) {
    HeldProblem<float> const held = p.varied(0, 4, tokens);
    std::vector<std::int64_t> const offsets = held.row_offsets();
    using View = ha::RaggedView<std::int64_t>;
    ha::PackedCache<ha::DefaultFormats, View> const cache{
        packed.layers[0], packed.layer(0).data(), {offsets.data(), p.num_kv_heads}};
    std::vector<float> scores(at(held.shape.segments() * 200));
    ha::score_keys(held.shape, ha::AttentionQueries{held.queries.data(), held.query_layout()}, cache, options_of(held),
                   Reduction::max, ha::KeyScores{scores.data(), 200});
    // Where codes are integers, queries are numbers of 16 bits.
    check_key_scores(held, scores, naive_key_scores(held, Reduction::max, 200), 200, 0, 2e-3);
  }
}

TEST_CASE("key scores: refusals", "[attention]") {
  HeldProblem<float> const p({1, 2, 1, 1, 8}, {10}, 1);
  std::vector<std::int32_t> const offsets{0, 10};
  std::vector<float> scores(16);
  auto const call = [&](ha::KeyScores const& to, float const* keys) {
    ha::score_keys(p.shape, ha::AttentionQueries{p.queries.data(), p.query_layout()},
                   ha::KeptCache{keys, keys, ha::RaggedView{offsets.data(), 1}}, p.options, Reduction::max, to);
  };
  float const* const keys = p.segments[0].keys.data();
  check_error<ha::ArgumentError>(
      [&] {
        call({scores.data(), 9}, keys);
      },
      {"rows held", "at most the scores' stride of 9", "10", "KV head 0"});
  check_error<ha::ArgumentError>([&] { call({nullptr, 10}, keys); }, {"scores", "a pointer", "nullptr", "score_keys"});
  check_error<ha::ArgumentError>([&] { call({scores.data(), -1}, keys); }, {"stride", ">= 0", "-1", "score_keys"});
  check_error<ha::ArgumentError>([&] { call({scores.data(), 10}, nullptr); }, {"keys", "a pointer", "nullptr", ""});
  auto* const odd = reinterpret_cast<float*>(reinterpret_cast<char*>(scores.data()) + 1);
  check_error<ha::ArgumentError>([&] { call({odd, 10}, keys); }, {"scores", "aligned", "", "score_keys"});
}
