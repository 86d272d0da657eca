// Errors of scored slots: against attention over the tokens that such a cache keeps, written out.

#include "support/attention_problem.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"

#include <headaware/attention/layer_attention.hpp>
#include <headaware/element.hpp>
#include <headaware/io/retention_statistics.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/score/row_scores.hpp>
#include <headaware/stats/observe_scored.hpp>
#include <headaware/stats/output_metric.hpp>
#include <headaware/stats/retention.hpp>
#include <headaware/stats/scored_slots.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

constexpr std::int32_t heads = 4;
constexpr std::int32_t kv_heads = 2;
constexpr std::int64_t num_tokens = 150;
constexpr std::int64_t dim = 12;
constexpr std::int64_t value_dim = 7;
constexpr std::int64_t hidden = 20;

ha::ScoredGrid const grid{.sink = 3, .windows = {1, 16, 40}, .slots = {2, 9, 30, 120}};

/// A problem whose values have fewer channels than its keys, and scores of which many are equal, so that the order of
/// equal scores counts.
struct Rows : Problem {
  std::vector<float> scores = std::vector<float>(kv_heads * tokens);
  std::vector<float> projection;  ///< [hidden, heads * value_dim]

  explicit Rows(unsigned seed)
      : Problem(heads, kv_heads, num_tokens, dim, seed),
        projection(Problem(1, 1, hidden, heads * value_dim, seed + 100).values) {
    std::mt19937 random(seed);
    std::uniform_int_distribution<int> score(-5, 5);
    for (float& x : scores) x = static_cast<float>(score(random));
  }

  [[nodiscard]] auto layer() const {
    auto result = Problem::layer(true);
    result.value_dim = value_dim;
    // The first channels of each value.
    result.value_layout = {
        {.num_sequences = 1, .num_kv_heads = kv_heads, .tokens = num_tokens, .channels = value_dim},
        {.sequence = kv_heads * num_tokens * dim, .head = num_tokens * dim, .token = dim, .channel = 1}};
    return result;
  }
  [[nodiscard]] ha::RowScores row_scores() { return ha::RowScores::dense(scores.data(), kv_heads, tokens); }

  /// Output of a row of probabilities over some tokens, renormalised; what all of them lack to 1 is a learned sink's.
  [[nodiscard]] std::vector<double> output(std::int32_t head, std::vector<double> const& p,
                                           std::vector<std::int64_t> const& kept) const {
    std::int64_t const kv = head / (heads / kv_heads);
    std::vector<double> result(value_dim);
    double sum = 1;
    for (double const x : p) sum -= x;
    if (!has_sink(head)) sum = 0;
    for (std::int64_t const token : kept) {
      double const weight = p[static_cast<std::size_t>(token)];
      sum += weight;
      for (std::int64_t d = 0; d < value_dim; ++d) {
        result[static_cast<std::size_t>(d)] +=
            weight * static_cast<double>(values[static_cast<std::size_t>((kv * tokens + token) * dim + d)]);
      }
    }
    for (double& x : result) x /= sum;
    return result;
  }

  /// Tokens that a head keeps at a position: of those that have left the window the best, of equal ones the newest.
  [[nodiscard]] std::vector<std::int64_t> kept(std::int32_t head, std::int64_t q, std::int32_t window,
                                               std::int32_t slots) const {
    std::int64_t const kv = head / (heads / kv_heads);
    std::vector<std::int64_t> result;
    std::vector<std::pair<float, std::int64_t>> rest;
    for (std::int64_t token = 0; token <= q; ++token) {
      if (token < grid.sink || token > q - window) {
        result.push_back(token);
      } else {
        rest.emplace_back(scores[static_cast<std::size_t>(kv * tokens + token)], token);
      }
    }
    std::sort(rest.rbegin(), rest.rend());
    for (std::size_t i = 0; i < rest.size() && std::cmp_less(i, slots); ++i) result.push_back(rest[i].second);
    return result;
  }

  /// Squares of what is lost, before and after W_O.
  [[nodiscard]] std::pair<double, double> lost(std::int32_t head, std::int64_t q, std::vector<double> const& p,
                                               std::int32_t window, std::int32_t slots) const {
    std::vector<std::int64_t> all(static_cast<std::size_t>(q + 1));
    std::iota(all.begin(), all.end(), std::int64_t{0});
    auto moved = output(head, p, kept(head, q, window, slots));
    auto const whole = output(head, p, all);
    double before = 0;
    for (std::size_t d = 0; d < moved.size(); ++d) {
      moved[d] -= whole[d];
      before += moved[d] * moved[d];
    }
    return {before, projected_square(projection, Problem(heads, kv_heads, 0, value_dim, 0), head, moved)};
  }
};

std::vector<ha::ScoredSums> empty_sums() { return std::vector<ha::ScoredSums>(heads, ha::ScoredSums(grid)); }

}  // namespace

TEST_CASE("errors of scored slots are those of attention over what a cache would keep", "[stats][scored]") {
  Rows rows(1);
  auto layer = rows.layer();
  ha::OutputMetric const metric(rows.projection.data(), hidden, heads, value_dim);
  layer.output_factors = metric.factors();
  for (bool const learned : {false, true}) {
    if (learned) rows.sinks = {0.5F, -std::numeric_limits<float>::infinity(), 2, -1};
    layer.sinks = learned ? rows.sinks.data() : nullptr;
    auto sums = empty_sums();
    ha::observe_scored(layer, {}, rows.row_scores(), grid, 20, 3, 2, sums);
    for (std::int32_t head = 0; head < heads; ++head) {
      ha::ScoredSums expected(grid);
      // Rows 20, 23, … 149, of which the last and every second before it count.
      for (std::int64_t q = 149; q >= 20; q -= 6) {
        ++expected.rows;
        auto const p = rows.row(head, q, {});
        for (std::size_t w = 0; w < grid.windows.size(); ++w) {
          for (std::size_t s = 0; s < grid.slots.size(); ++s) {
            auto const [before, after] = rows.lost(head, q, p, grid.windows[w], grid.slots[s]);
            expected.error_squared[grid.cell(w, s)] += before;
            expected.metric_error_squared[grid.cell(w, s)] += after;
          }
        }
      }
      auto const& got = sums[static_cast<std::size_t>(head)];
      CHECK(got.rows == expected.rows);
      CHECK(got.metric_rows == expected.rows);
      for (std::size_t i = 0; i < grid.size(); ++i) {
        CAPTURE(learned, head, i);
        CHECK_THAT(got.error_squared[i], Catch::Matchers::WithinRel(expected.error_squared[i], 1e-4) ||
                                             Catch::Matchers::WithinAbs(expected.error_squared[i], 1e-9));
        CHECK_THAT(got.metric_error_squared[i], Catch::Matchers::WithinRel(expected.metric_error_squared[i], 1e-4) ||
                                                    Catch::Matchers::WithinAbs(expected.metric_error_squared[i], 1e-8));
      }
    }
  }
}

TEST_CASE("rows that are not finite do not count in errors of scored slots", "[stats][scored]") {
  Rows rows(2);
  auto sums = empty_sums();
  ha::observe_scored(rows.layer(), {}, rows.row_scores(), grid, 0, 1, 1, sums);
  CHECK(sums[0].rows == num_tokens);
  rows.queries[static_cast<std::size_t>(100 * dim)] = std::numeric_limits<float>::quiet_NaN();
  rows.values[static_cast<std::size_t>((num_tokens + 120) * dim)] = std::numeric_limits<float>::infinity();
  sums = empty_sums();
  ha::observe_scored(rows.layer(), {}, rows.row_scores(), grid, 0, 1, 1, sums);
  CHECK(sums[0].rows == num_tokens - 1);
  CHECK(sums[1].rows == num_tokens);
  CHECK(sums[2].rows == 120);
  // Scores that are not numbers are below all others.
  for (float& score : rows.scores) score = std::numeric_limits<float>::quiet_NaN();
  sums = empty_sums();
  ha::observe_scored(rows.layer(), {}, rows.row_scores(), grid, 0, 1, 1, sums);
  CHECK(std::isfinite(sums[0].error_squared[0]));
}

TEST_CASE("observe_scored refuses what it cannot measure", "[stats][scored]") {
  Rows rows(3);
  auto const refuse = [&](auto const& change, ha::ErrorDetail const& parts) {
    auto layer = rows.layer();
    auto sums = empty_sums();
    auto of = grid;
    auto scores = rows.row_scores();
    change(layer, of, scores, sums);
    check_error<ha::ArgumentError>([&] { ha::observe_scored(layer, {}, scores, of, 0, 1, 1, sums); }, parts);
  };
  refuse([](auto& layer, auto&, auto&, auto&) { layer.window = 32; },
         {"window of the layer", "none", "32", "observe_scored"});
  refuse([](auto& layer, auto&, auto&, auto&) { layer.values = nullptr; },
         {"values", "a pointer", "nullptr", "observe_scored"});
  refuse([](auto&, auto& of, auto&, auto&) { of.slots = {8, 8}; }, {"slots", ">= 9", "8", "observe_scored"});
  refuse([](auto&, auto& of, auto&, auto&) { of.slots = {8}; }, {"grid of the sums", "3", "12", "observe_scored"});
  refuse([](auto&, auto&, auto& scores, auto&) { scores.data = nullptr; }, {"scores", "", "nullptr", "observe_scored"});
  refuse([](auto&, auto&, auto&, auto& sums) { sums.pop_back(); }, {"sums", "4", "3", "observe_scored"});
}

TEST_CASE("grids of scored slots grow with the text", "[stats][scored]") {
  auto const grid_2048 = ha::ScoredGrid::up_to(2048);
  CHECK(grid_2048.windows == std::vector<std::int32_t>{16, 32, 64, 128, 256, 512});
  CHECK(grid_2048.slots == std::vector<std::int32_t>{8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024});
  CHECK(ha::ScoredGrid::up_to(20).windows == std::vector<std::int32_t>{16});
  ha::ScoredGrid::up_to(std::int64_t{1} << 40).validate();
}

TEST_CASE("retention statistics hold errors of scored slots in their file", "[stats][scored][io]") {
  ha::RetentionStatistics statistics;
  statistics.info = {1, heads, kv_heads, 0, 1, true, true, {.sinks = {0}, .windows = {8}}};
  statistics.info.scored = grid;
  statistics.info.scores = "0123456789abcdef";
  Rows rows(4);
  auto layer = rows.layer();
  ha::OutputMetric const metric(rows.projection.data(), hidden, heads, value_dim);
  layer.output_factors = metric.factors();
  auto sums = empty_sums();
  ha::observe_scored(layer, {}, rows.row_scores(), grid, 0, 1, 1, sums);
  for (auto const& of_head : sums) {
    ha::RetentionSums head(statistics.info.grid);
    head.rows = head.value_rows = head.metric_rows = num_tokens;
    head.scored = of_head;
    statistics.heads.push_back(head);
  }
  auto const text = ha::format_retention_statistics(statistics);
  CHECK(ha::parse_retention_statistics(text, "statistics") == statistics);
  // Not without each other, and of one grid.
  auto const broken = [&](std::string const& from, std::string const& to, ha::ErrorDetail const& parts) {
    auto const changed = replaced(text, from, to);
    check_error<ha::FormatError>([&] { (void)ha::parse_retention_statistics(changed, "statistics"); }, parts);
  };
  broken("\"scores\"", "\"other\"", {"missing field", "text", "nothing", "/scored/scores"});
  broken("\"slots\"", "\"slot\"", {"missing field", "an array", "nothing", "/scored/slots"});
  auto two = statistics;
  two.heads[1].scored = {};
  check_error<ha::ArgumentError>([&] { ha::validate_retention_statistics(two); }, {"error_squared", "12", "0", ""});
  // Sums of two texts add up, of other grids do not.
  two = statistics;
  two.heads[0].merge(statistics.heads[0]);
  CHECK(two.heads[0].scored.rows == 2 * num_tokens);
  check_error<ha::ArgumentError>([&] { two.heads[0].scored.merge({}); }, {"grid of scored slots", "12", "0", "merge"});
}
