// Attention under policies against the formula, row by row.

#include "support/attention_problem.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"

#include <headaware/attention/masked.hpp>
#include <headaware/attention/merge.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/policy/with_keep_lists.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// Keeps every third token and the last two.
struct Dilated {
  static constexpr std::string_view name = "dilated";
  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t length) const {
    return token % 3 == 0 || token >= length - 2;
  }
  friend constexpr bool operator==(Dilated const&, Dilated const&) = default;
};

/// Keeps the sinks that a window has passed.
struct PassedSinks {
  static constexpr std::string_view name = "passed_sinks";
  std::int32_t sink = 0;
  std::int32_t window = 0;
  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t length) const {
    return token < sink && token < length - window;
  }
  friend constexpr bool operator==(PassedSinks const&, PassedSinks const&) = default;
};

template <class Table>
void compare(Problem const& problem, ha::AttentionScore const& score, Table const& table) {
  std::vector<float> output(static_cast<std::size_t>(problem.num_query_heads * problem.tokens * problem.head_dim),
                            7.0F);
  auto const layout = ha::strided_bshd(1, problem.tokens, problem.num_query_heads, problem.head_dim);
  ha::attend_masked(problem.layer(true), score, table, 0, output.data(), layout);
  double worst = 0;
  for (std::int32_t head = 0; head < problem.num_query_heads; ++head) {
    std::int32_t const kv = head / (problem.num_query_heads / problem.num_kv_heads);
    for (std::int64_t q = 0; q < problem.tokens; ++q) {
      auto const p = problem.row(head, q, score);
      std::vector<double> expected(static_cast<std::size_t>(problem.head_dim));
      double kept = 0;
      table.visit(0, kv, [&](auto const& policy) {
        for (std::int64_t k = 0; k <= q; ++k) {
          if (!policy.keeps(k, q + 1)) continue;
          double const weight = p[static_cast<std::size_t>(k)];
          kept += weight;
          for (std::int64_t d = 0; d < problem.head_dim; ++d) {
            auto const at = static_cast<std::size_t>((kv * problem.tokens + k) * problem.head_dim + d);
            expected[static_cast<std::size_t>(d)] += weight * static_cast<double>(problem.values[at]);
          }
        }
      });
      for (std::int64_t d = 0; d < problem.head_dim; ++d) {
        double const value = kept > 0 ? expected[static_cast<std::size_t>(d)] / kept : 0;
        worst = std::max(
            worst,
            std::abs(value - static_cast<double>(output[static_cast<std::size_t>(layout.offset(0, head, q, d))])));
      }
    }
  }
  INFO("largest difference " << worst << ", " << problem.tokens << " tokens");
  REQUIRE(worst < 2e-5);
}

}  // namespace

TEST_CASE("attention under every policy equals attention over what it keeps", "[attention]") {
  for (std::int64_t const tokens : {1, 7, 63, 64, 65, 200, 500}) {
    Problem const problem(8, 4, tokens, 20, static_cast<unsigned>(tokens));
    ha::PolicyTable table(1, 4, ha::Full{});
    table.set(0, 1, ha::SinkWindow{.sink = 4, .window = 30});
    table.set(0, 2, ha::WindowOnly{.window = 17});
    table.set(0, 3, ha::Prune{});
    compare(problem, {.scale = 0.25F}, table);
    table.set(0, 0, ha::SinkWindow{.sink = 70, .window = 3});
    table.set(0, 1, ha::SinkWindow{.sink = 0, .window = 1});
    table.set(0, 2, ha::SinkWindow{.sink = 5, .window = 0});
    table.set(0, 3, ha::SinkWindow{.sink = 100, .window = 400});
    compare(problem, {.scale = 0.25F}, table);
  }
}

TEST_CASE("attention under policies over two parts of the keys merges into attention over both", "[attention]") {
  constexpr std::int64_t tokens = 130;
  Problem const problem(4, 2, tokens, 16, 5);
  ha::AttentionScore const score{.scale = 0.25F};
  auto const layout = ha::strided_bshd(1, tokens, problem.num_query_heads, problem.head_dim);
  std::vector<float> const none(static_cast<std::size_t>(tokens * problem.num_query_heads * problem.head_dim));
  struct Part {
    std::vector<float> output;
    std::vector<float> lse;
  };
  auto const attend = [&](auto const& table) {
    Part part{none, std::vector<float>(static_cast<std::size_t>(problem.num_query_heads * tokens))};
    ha::attend_masked(problem.layer(true), score, table, 0, part.output.data(), layout, part.lse.data());
    return part;
  };
  Part const whole = attend(ha::UniformTable(ha::SinkWindow{.sink = 4, .window = 20}, 1, 2));
  Part sinks = attend(ha::UniformTable(PassedSinks{.sink = 4, .window = 20}, 1, 2));
  Part newest = attend(ha::UniformTable(ha::WindowOnly{.window = 20}, 1, 2));
  ha::AttentionShape const shape{1, problem.num_query_heads, problem.num_kv_heads, tokens, problem.head_dim};
  ha::merge_attention(shape, ha::AttentionOutput{newest.output.data(), layout, newest.lse.data()},
                      ha::AttentionOutput{sinks.output.data(), layout, sinks.lse.data()});
  for (std::size_t i = 0; i < whole.output.size(); ++i) REQUIRE(std::abs(whole.output[i] - newest.output[i]) < 1e-5F);
  for (std::size_t i = 0; i < whole.lse.size(); ++i) REQUIRE(std::abs(whole.lse[i] - newest.lse[i]) < 1e-5F);
  // The first token's query sees nothing that is older than its window.
  CHECK(sinks.lse[0] == -std::numeric_limits<float>::infinity());
}

TEST_CASE("attention under policies with a soft cap, a sliding window and a user's policy", "[attention]") {
  Problem const problem(4, 2, 150, 16, 3);
  compare(problem, {.scale = 0.25F, .soft_cap = 2}, ha::UniformTable(ha::SinkWindow{.sink = 3, .window = 40}, 1, 2));
  compare(problem, {.scale = 0.25F, .sliding_window = 60}, ha::UniformTable(ha::WindowOnly{.window = 100}, 1, 2));
  compare(problem, {.scale = 0.25F, .sliding_window = 60},
          ha::UniformTable(ha::SinkWindow{.sink = 4, .window = 20}, 1, 2));
  compare(problem, {.scale = 0.25F}, ha::UniformTable(Dilated{}, 1, 2));
}

TEST_CASE("attention under policies: rows with a score that is no number are NaN, others stay", "[attention]") {
  constexpr std::int64_t tokens = 150;
  constexpr std::int32_t heads = 2;
  constexpr std::int64_t query = 100;
  constexpr std::int64_t key = 20;
  ha::UniformTable const table(ha::SinkWindow{.sink = 4, .window = 30}, 1, heads);
  auto const layout = ha::strided_bhsd(1, heads, tokens, 16);
  auto const attend = [&](Problem const& problem) {
    std::vector<float> output(static_cast<std::size_t>(layout.required_span_size()));
    ha::attend_masked(problem.layer(true), {.scale = 0.25F}, table, 0, output.data(), layout);
    return output;
  };
  Problem problem(heads, heads, tokens, 16, 5);
  std::vector<float> const expected = attend(problem);
  for (float const bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    problem.queries[static_cast<std::size_t>(layout.offset(0, 0, query, 3))] = bad;
    problem.keys[static_cast<std::size_t>(layout.offset(0, 1, key, 3))] = bad;
    std::vector<float> const output = attend(problem);
    for (std::int32_t head = 0; head < heads; ++head) {
      for (std::int64_t q = 0; q < tokens; ++q) {
        bool const sees_bad = head == 0 ? q == query : q >= key && q < key + 30;
        for (std::int64_t d = 0; d < 16; ++d) {
          auto const at = static_cast<std::size_t>(layout.offset(0, head, q, d));
          INFO(bad << ", head " << head << ", query " << q << ", channel " << d);
          REQUIRE((sees_bad ? std::isnan(output[at]) : output[at] == expected[at]));
        }
      }
    }
  }
}

TEST_CASE("what attention under policies refuses", "[attention]") {
  Problem const problem(4, 2, 10, 16, 3);
  std::vector<float> output(4 * 10 * 16);
  auto const layout = ha::strided_bhsd(1, 4, 10, 16);
  auto const call = [&](auto const& layer, auto const& table, std::int32_t table_layer, float* to) {
    ha::attend_masked(layer, {.scale = 1}, table, table_layer, to, layout);
  };
  ha::UniformTable const table(ha::Full{}, 1, 2);
  check_error<ha::ArgumentError>([&] { call(problem.layer(false), table, 0, output.data()); },
                                 {"values", "a pointer", "nullptr", "attend_masked"});
  check_error<ha::ArgumentError>([&] { call(problem.layer(true), table, 0, nullptr); },
                                 {"output", "a pointer", "nullptr", "attend_masked"});
  check_error<ha::ArgumentError>([&] { call(problem.layer(true), table, 1, output.data()); },
                                 {"layer", "in [0, 1)", "1", "attend_masked"});
  check_error<ha::ArgumentError>(
      [&] { call(problem.layer(true), ha::UniformTable(ha::Full{}, 1, 4), 0, output.data()); },
      {"table's KV heads", "2", "4", "attend_masked"});
  std::int32_t const unordered[] = {9, 3, 5};
  ha::PolicyTable lists(1, 2, ha::Full{});
  lists.set(0, 1, ha::KeepList{unordered, 3});
  check_error<ha::ArgumentError>([&] { call(problem.layer(true), lists, 0, output.data()); },
                                 {"keep-list entry", "[10, ", "3", "KeepList entry 1"});
  ha::KeepList const unlisted[] = {{nullptr, 3}, {}};
  check_error<ha::ArgumentError>(
      [&] { call(problem.layer(true), ha::WithKeepLists(table, unlisted, 1), 0, output.data()); },
      {"keep-list tokens", "a pointer", "nullptr", "KeepList"});
  check_error<ha::ArgumentError>(
      [&] { call(problem.layer(true), ha::WithKeepLists(table, unlisted, 0), 0, output.data()); },
      {"table's sequences", "> 0", "0", "attend_masked"});
}
