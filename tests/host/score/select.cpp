// Selection by scores: against sorting, and through `compress`.

#include "support/errors.hpp"
#include "support/selection_problem.hpp"

#include <headaware/cache/compact.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/policy/with_keep_lists.hpp>
#include <headaware/score/select.hpp>
#include <headaware/score/selected_sizes.hpp>

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

using namespace headaware_test;

namespace {

void check_selected(SelectionProblem const& p) {
  auto const expected = p.expected();
  ha::TokenLists const selected = ha::select_tokens(p.shape(), p.host_scores(), p.host_rule());
  REQUIRE(selected.lists().size() == expected.size());
  std::int64_t total = 0;
  for (std::size_t s = 0; s < expected.size(); ++s) {
    INFO("segment " << s);
    auto const tokens = selected.of(static_cast<std::int64_t>(s));
    CHECK(std::vector<std::int32_t>(tokens.begin(), tokens.end()) == expected[s]);
    total += std::ssize(expected[s]);
  }
  CHECK(selected.total() == total);
}

}  // namespace

TEST_CASE("tokens by budgets of heads and by one threshold, as sorting selects them", "[score]") {
  for (DrawnScores const drawn : {DrawnScores::distinct, DrawnScores::few, DrawnScores::special}) {
    INFO("scores " << static_cast<int>(drawn));
    for_each_selection(SelectionProblem({3}, {1}, drawn, 1), check_selected);
    for_each_selection(SelectionProblem({2, 2}, {0, 64, 5}, drawn, 2), check_selected);
    for_each_selection(SelectionProblem({1, 4, 2}, {100, 33}, drawn, 3), check_selected);
  }
  for_each_selection(SelectionProblem({4, 4}, {3000, 2000}, DrawnScores::few, 4), check_selected);  // by all threads
}

TEST_CASE("one threshold keeps exactly as many as it is told, sinks and windows beside them", "[score]") {
  SelectionProblem p({2, 3}, {200, 50}, DrawnScores::few, 5);
  p.rule = {.sink = 4, .window = 6, .shared = 91, .floor = 2};
  ha::TokenLists const selected = ha::select_tokens(p.shape(), p.host_scores(), p.host_rule());
  CHECK(selected.total() == 2 * (5 * 10 + 91));
}

TEST_CASE("ties: the newer token of a head, the earlier of heads; NaN only where nothing else is left", "[score]") {
  SelectionProblem p({2}, {6}, DrawnScores::few, 6);
  std::fill(p.scores.begin(), p.scores.end(), 1.0F);
  p.rule = {.sink = 1, .window = 1, .shared = 5};
  ha::TokenLists const even = ha::select_tokens(p.shape(), p.host_scores(), p.host_rule());
  auto const tokens_of = [](ha::TokenLists const& lists, std::int64_t segment) {
    auto const tokens = lists.of(segment);
    return std::vector<std::int32_t>(tokens.begin(), tokens.end());
  };
  CHECK(tokens_of(even, 0) == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5});
  CHECK(tokens_of(even, 1) == std::vector<std::int32_t>{0, 4, 5});
  p.scores[3] = std::numeric_limits<float>::quiet_NaN();
  p.rule.shared = 0;
  p.budgets = {3, 1};
  ha::TokenLists const without = ha::select_tokens(p.shape(), p.host_scores(), p.host_rule());
  CHECK(tokens_of(without, 0) == std::vector<std::int32_t>{0, 1, 2, 4, 5});
  p.budgets = {4, 0};
  ha::TokenLists const with = ha::select_tokens(p.shape(), p.host_scores(), p.host_rule());
  CHECK(tokens_of(with, 0) == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5});
  CHECK(tokens_of(with, 1) == std::vector<std::int32_t>{0, 5});
}

TEST_CASE("selected tokens are what compress copies", "[score]") {
  SelectionProblem p({2, 2}, {40, 25}, DrawnScores::distinct, 7);
  p.rule = {.sink = 2, .window = 3, .shared = 60, .floor = 1};
  ha::TokenLists const selected = ha::select_tokens(p.shape(), p.host_scores(), p.host_rule());
  ha::PolicyTable const table(2, 2, ha::SinkWindow{});
  ha::Compaction const compaction(ha::WithKeepLists(table.view(), selected.lists().data(), 2), p.lengths);
  REQUIRE(compaction.kept_total() == selected.total());
  constexpr std::int64_t channels = 3;
  std::vector<float> source(2 * 2 * 2 * 40 * channels);
  std::iota(source.begin(), source.end(), 0.0F);
  std::vector<ha::LayerKv<float const>> const layers{{source.data(), source.data()},
                                                     {source.data() + 480, source.data() + 480}};
  std::vector<float> keys(at(compaction.kept_total() * channels));
  std::vector<float> values(keys.size());
  auto const layout = ha::strided_bhsd(2, 2, 40, channels);
  ha::compress(compaction, layers, layout, ha::ragged(compaction, keys.data(), values.data(), channels));
  std::vector<float> expected;
  for (std::int64_t s = 0; s < p.segments(); ++s) {
    ha::Segment const segment = compaction.segment(s);
    for (std::int32_t const token : selected.of(s)) {
      std::int64_t const row = segment.layer * 480 + layout.offset(segment.sequence, segment.kv_head, token, 0);
      for (std::int64_t c = 0; c < channels; ++c) expected.push_back(static_cast<float>(row + c));
    }
  }
  CHECK(keys == expected);
  CHECK(values == expected);
}

TEST_CASE("sizes of a selection before it runs: every head's by budgets, a layer's by one threshold", "[score]") {
  SelectionProblem p({2, 3}, {60, 9, 0}, DrawnScores::few, 9);
  p.rule = {.sink = 2, .window = 5};
  p.budgets = {7, 0, 1000, 1, 30};
  ha::TokenLists const selected = ha::select_tokens(p.shape(), p.host_scores(), p.host_rule());
  std::vector<std::int32_t> tokens(at(p.segments() * 60));
  ha::SelectedTokens const to{tokens.data(), 60, nullptr, nullptr};
  auto const lists = ha::selected_lists(p.shape(), p.host_rule(), to);
  std::vector<std::int32_t> counts;
  for (std::int64_t s = 0; s < p.segments(); ++s) {
    CHECK(lists[at(s)].count == selected.lists()[at(s)].count);
    CHECK(lists[at(s)].tokens == tokens.data() + s * 60);
    counts.push_back(static_cast<std::int32_t>(lists[at(s)].count));
  }
  CHECK(ha::selected_lists(counts, to) == lists);
  counts[1] = 61;
  check_error<ha::ArgumentError>([&] { (void)ha::selected_lists(counts, to); },
                                 {"tokens of a segment", "in [0, 60]", "61", "segment 1"});

  for (std::int64_t const shared : {0, 3, 40, 1000}) {
    SelectionProblem one({4}, {60, 9, 0}, DrawnScores::few, 10);
    one.rule = {.sink = 2, .window = 5, .shared = shared, .floor = 1};
    ha::TokenLists const chosen = ha::select_tokens(one.shape(), one.host_scores(), one.host_rule());
    auto const bounds = ha::selected_lists(one.shape(), one.host_rule(), to);
    for (std::int64_t sequence = 0; sequence < 3; ++sequence) {
      std::int64_t difference = 0;
      for (std::int64_t s = sequence * 4; s < sequence * 4 + 4; ++s) {
        difference += bounds[at(s)].count - chosen.lists()[at(s)].count;
        CHECK(bounds[at(s)].count <= one.lengths[at(sequence)]);
      }
      CHECK(difference == 0);
    }
  }
  p.budgets.clear();
  check_error<ha::ArgumentError>([&] { (void)ha::selected_lists(p.shape(), p.host_rule(), to); },
                                 {"layers that one threshold is over", "one", "2", "selected_lists"});
}

TEST_CASE("selection refuses what makes no sense, before it writes", "[score]") {
  SelectionProblem p({2}, {20}, DrawnScores::distinct, 8);
  p.rule = {.sink = 1, .window = 1, .shared = 10};
  std::vector<std::int32_t> tokens(40, -7);
  auto const run = [&](ha::SelectionShape const& shape, ha::SegmentScores const& scores, ha::SelectionRule const& rule,
                       std::int64_t stride = 20) {
    ha::select_tokens(shape, scores, rule, ha::SelectedTokens{tokens.data(), stride, nullptr, nullptr});
  };
  auto const refused = [&](ha::ErrorDetail const& parts, auto const& change, std::int64_t stride = 20) {
    auto shape = p.shape();
    auto scores = p.host_scores();
    auto rule = p.host_rule();
    change(shape, scores, rule);
    check_error<ha::ArgumentError>([&] { run(shape, scores, rule, stride); }, parts);
  };
  refused({"sink", ">= 0", "-1", "select_tokens"}, [](auto&, auto&, auto& rule) { rule.sink = -1; });
  refused({"window", ">= 0", "-2", "select_tokens"}, [](auto&, auto&, auto& rule) { rule.window = -2; });
  refused({"shared tokens", ">= 0", "-1", "select_tokens"}, [](auto&, auto&, auto& rule) { rule.shared = -1; });
  refused({"floor", ">= 0", "-1", "select_tokens"}, [](auto&, auto&, auto& rule) { rule.floor = -1; });
  std::vector<std::int32_t> const budgets{3, -4};
  refused({"budgets of heads", "no shared tokens", "10 and 0", "select_tokens"},
          [&](auto&, auto&, auto& rule) { rule.budgets = budgets.data(); });
  refused({"budget", ">= 0", "-4", "head 1"},
          [&](auto&, auto&, auto& rule) { rule.budgets = budgets.data(), rule.shared = 0; });
  refused({"window", ">= 0", "-4", "head 1"}, [&](auto&, auto&, auto& rule) { rule.windows = budgets.data(); });
  refused({"length of a sequence", "in [0, 19]", "20", "sequence 0"},
          [](auto& shape, auto&, auto&) { shape.max_length = 19; });
  refused({"stride of scores", "at least max_length, 20", "19", "select_tokens"},
          [](auto&, auto& scores, auto&) { scores.stride = 19; });
  refused({"scores", "a pointer", "nullptr", "select_tokens"},
          [](auto&, auto& scores, auto&) { scores.data = nullptr; });
  refused({"lengths", "a pointer", "nullptr", "select_tokens"},
          [](auto& shape, auto&, auto&) { shape.lengths = nullptr; });
  refused(
      {"tokens that a head keeps", "at most the stride of tokens, 3", "", "segment "}, [](auto&, auto&, auto&) {}, 3);
  CHECK(tokens == std::vector<std::int32_t>(40, -7));
  ha::SelectionShape none = p.shape();
  none.num_sequences = 0;
  run(none, p.host_scores(), p.rule);
  CHECK(tokens == std::vector<std::int32_t>(40, -7));
}
