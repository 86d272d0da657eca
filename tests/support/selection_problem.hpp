#pragma once

// Scores to select tokens by, and which tokens plain sorting selects.

#include "support/catch.hpp"
#include "support/kept_rows.hpp"

#include <headaware/score/selection.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

namespace headaware_test {

/// How the scores of a problem are drawn.
enum class DrawnScores : std::uint8_t {
  distinct,  ///< hardly two alike
  few,       ///< of five numbers, so that most are ties
  special    ///< NaN, infinities, both zeros, denormals
};

struct SelectionProblem {
  std::vector<std::int32_t> heads;    ///< of each layer
  std::vector<std::int32_t> lengths;  ///< of each sequence
  std::vector<std::int32_t> first_heads{};
  std::vector<float> scores{};
  std::int64_t stride = 0;
  std::vector<std::int32_t> windows{};  ///< of the rule, as `budgets`; empty: none
  std::vector<std::int32_t> budgets{};
  ha::SelectionRule rule{};

  SelectionProblem(std::vector<std::int32_t> heads_of_layers, std::vector<std::int32_t> sequence_lengths,
                   DrawnScores drawn, unsigned seed)
      : heads(std::move(heads_of_layers)), lengths(std::move(sequence_lengths)) {
    first_heads.push_back(0);
    for (std::int32_t const count : heads) first_heads.push_back(first_heads.back() + count);
    stride = max_length() + 3;
    scores.resize(static_cast<std::size_t>(segments() * stride));
    draw(drawn, seed);
  }

  void draw(DrawnScores drawn, unsigned seed) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(-1, 1);
    constexpr float infinity = std::numeric_limits<float>::infinity();
    float const special[] = {
        std::numeric_limits<float>::quiet_NaN(),  -infinity, infinity, 0.0F, -0.0F, 1e-42F, -1e-42F,
        -std::numeric_limits<float>::quiet_NaN(), 2.0F};
    for (float& score : scores) {
      if (drawn == DrawnScores::distinct) score = uniform(random);
      if (drawn == DrawnScores::few) score = static_cast<float>(random() % 5);
      if (drawn == DrawnScores::special) score = special[random() % std::size(special)];
    }
  }

  [[nodiscard]] std::int64_t max_length() const {
    return lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
  }
  [[nodiscard]] std::int64_t segments() const { return std::int64_t{first_heads.back()} * std::ssize(lengths); }
  [[nodiscard]] bool alike() const {
    return std::all_of(heads.begin(), heads.end(), [&](std::int32_t count) { return count == heads.front(); });
  }
  /// @param first, length_of_each  where the back end runs
  [[nodiscard]] ha::SelectionShape shape(std::int32_t const* first, std::int32_t const* length_of_each) const {
    std::int32_t const most = heads.empty() ? 0 : *std::max_element(heads.begin(), heads.end());
    ha::LayerHeads of{static_cast<std::int32_t>(heads.size()), most, nullptr, 0};
    if (!alike()) of.first_heads = first, of.num_heads = first_heads.back();
    return {of, static_cast<std::int32_t>(lengths.size()), length_of_each, max_length()};
  }
  [[nodiscard]] ha::SelectionShape shape() const { return shape(first_heads.data(), lengths.data()); }
  [[nodiscard]] ha::SegmentScores host_scores() const { return {scores.data(), stride}; }
  [[nodiscard]] ha::SelectionRule host_rule() const {
    ha::SelectionRule result = rule;
    if (!windows.empty()) result.windows = windows.data();
    if (!budgets.empty()) result.budgets = budgets.data();
    return result;
  }

  /// Tokens of each segment, by sorting.
  [[nodiscard]] std::vector<std::vector<std::int32_t>> expected() const;
};

inline std::vector<std::vector<std::int32_t>> SelectionProblem::expected() const {
  std::vector<std::vector<std::int32_t>> result(static_cast<std::size_t>(segments()));
  for (std::size_t sequence = 0; sequence < lengths.size(); ++sequence) {
    std::int32_t const length = lengths[sequence];
    // (not NaN, score, earlier head, newer token): the larger the better
    using Candidate = std::tuple<bool, float, std::int64_t, std::int32_t>;
    std::vector<Candidate> shared;
    std::int64_t left = rule.shared;
    for (std::size_t layer = 0; layer < heads.size(); ++layer) {
      for (std::int32_t head = 0; head < heads[layer]; ++head) {
        std::int32_t const number = first_heads[layer] + head;
        std::int64_t const segment = std::int64_t{first_heads[layer]} * std::ssize(lengths) +
                                     static_cast<std::int64_t>(sequence) * heads[layer] + head;
        std::int32_t const window = windows.empty() ? rule.window : windows[at(number)];
        std::vector<Candidate> own;
        for (std::int32_t token = 0; token < length; ++token) {
          if (token < rule.sink || token >= length - window) {
            result[at(segment)].push_back(token);
            continue;
          }
          float const score = scores[at(segment * stride + token)];
          bool const number_at_all = !std::isnan(score);
          own.emplace_back(number_at_all, number_at_all ? score : 0, -segment, token);
        }
        std::sort(own.rbegin(), own.rend());
        std::size_t const count =
            std::min(own.size(), static_cast<std::size_t>(budgets.empty() ? rule.floor : budgets[at(number)]));
        for (std::size_t i = 0; i < count; ++i) result[at(segment)].push_back(std::get<3>(own[i]));
        left -= static_cast<std::int64_t>(count);
        shared.insert(shared.end(), own.begin() + static_cast<std::ptrdiff_t>(count), own.end());
      }
    }
    if (budgets.empty()) {
      std::sort(shared.rbegin(), shared.rend());
      for (std::int64_t i = 0; i < std::min(left, std::ssize(shared)); ++i) {
        result[at(-std::get<2>(shared[at(i)]))].push_back(std::get<3>(shared[at(i)]));
      }
    }
  }
  for (auto& tokens : result) std::sort(tokens.begin(), tokens.end());
  return result;
}

/// Rules that differ in what they are hard on, each given to `check(problem)`.
template <class Check>
void for_each_selection(SelectionProblem problem, Check const& check) {
  std::int64_t const total = problem.first_heads.back();
  auto const with_rule = [&](std::string const& name, ha::SelectionRule const& rule) {
    INFO(name);
    problem.rule = rule;
    check(problem);
  };
  for (std::int64_t const shared : {std::int64_t{0}, std::int64_t{1}, total * 7, total * 30, total * 100000}) {
    INFO("shared " << shared);
    with_rule("no floor", {.sink = 4, .window = 3, .shared = shared});
    with_rule("floor", {.sink = 2, .window = 0, .shared = shared, .floor = 5});
    with_rule("floor above all", {.sink = 0, .window = 1, .shared = shared, .floor = 1000000});
  }
  std::mt19937 random(static_cast<unsigned>(total));
  for (std::int64_t head = 0; head < total; ++head) {
    std::int32_t const budgets[] = {0, 1, 17, 40, 1000000};
    problem.budgets.push_back(budgets[random() % std::size(budgets)]);
  }
  with_rule("budgets", {.sink = 4, .window = 16});
  for (std::int64_t head = 0; head < total; ++head) {
    std::int32_t const windows[] = {0, 1, 33, 2147483647};
    problem.windows.push_back(windows[random() % std::size(windows)]);
  }
  with_rule("budgets and windows", {.sink = 3, .window = 9});
  with_rule("sinks alone", {.sink = 2147483647});
}

}  // namespace headaware_test
