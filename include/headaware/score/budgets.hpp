#pragma once

/// @file
/// How many tokens each KV head deserves, by what a second reading of a text looks at.

#include <headaware/config.hpp>
#include <headaware/detail/finite.hpp>
#include <headaware/error.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Shares of a text's tokens that each KV head has among the best of all layers and heads, at several mean
/// shares. Between these they are interpolated; at 0 and 1 all heads are alike.
/// @par Source  head budgets of KVzip, arXiv:2505.23416, averaged over texts
struct ReconstructionBudgets {
  std::vector<double> shares;              ///< means over the heads, ascending in (0, 1)
  std::vector<std::vector<double>> heads;  ///< [shares][KV heads, layer by layer], each in [0, 1]

  /// @throws ArgumentError unless the shares ascend and each has as many numbers in [0, 1]
  void validate(Text const& where = "ReconstructionBudgets") const {
    require(heads.size() == shares.size(), "budgets", {"one list for each of ", shares.size(), " shares"}, heads.size(),
            where);
    double before = 0;
    for (std::size_t i = 0; i < shares.size(); ++i) {
      require(shares[i] > before && shares[i] < 1, "share", "ascending in (0, 1)", shares[i], where);
      before = shares[i];
      require(heads[i].size() == heads.front().size() && !heads[i].empty(), "KV heads of a budget",
              {"as many as of the first, ", heads.front().size(), ", and not none"}, heads[i].size(), where);
      for (double const share : heads[i]) {
        require(share >= 0 && share <= 1, "share of a KV head", "in [0, 1]", share, where);
      }
    }
  }

  [[nodiscard]] std::size_t num_kv_heads() const { return heads.empty() ? 0 : heads.front().size(); }

  /// @brief The share of a text's tokens that one KV head has at a mean share in [0, 1]. @pre valid, not empty
  /// @param head  of all layers
  [[nodiscard]] double share_of(std::size_t head, double mean_share) const {
    std::size_t above = 0;
    while (above < shares.size() && shares[above] < mean_share) ++above;
    double const begin = above == 0 ? 0 : shares[above - 1];
    double const end = above == shares.size() ? 1 : shares[above];
    double const low = above == 0 ? 0 : heads[above - 1][head];
    double const high = above == shares.size() ? 1 : heads[above][head];
    return low + (mean_share - begin) / (end - begin) * (high - low);
  }

  /// @brief The tokens that each KV head keeps of a text.
  /// @param mean_tokens  on average per KV head @param length  tokens of the text
  /// @param least        of any head
  /// @return [KV heads]; their sum is the mean times the heads, rounded down
  /// @throws ArgumentError on budgets that are not valid, or none, and unless 0 <= least <= mean <= length
  [[nodiscard]] std::vector<std::int64_t> tokens(double mean_tokens, std::int64_t length,
                                                 std::int64_t least = 8) const {
    constexpr auto where = "ReconstructionBudgets::tokens";
    validate(where);
    require(!shares.empty(), "budgets", "at least one share", "none", where);
    require(least >= 0, "least tokens of a KV head", ">= 0", least, where);
    bool const fits = mean_tokens >= static_cast<double>(least) && mean_tokens <= static_cast<double>(length);
    require(fits, "mean tokens per KV head", {"in [", least, ", ", length, "]"}, mean_tokens, where);
    std::vector<double> wanted(num_kv_heads());
    double const mean_share = mean_tokens / static_cast<double>(std::max<std::int64_t>(length, 1));
    for (std::size_t head = 0; head < wanted.size(); ++head) wanted[head] = share_of(head, mean_share);
    auto const low = static_cast<double>(least);
    auto const high = static_cast<double>(length);
    double const target = mean_tokens * static_cast<double>(wanted.size());
    auto const sized = [&](double scale, std::size_t head) { return std::clamp(wanted[head] * scale, low, high); };
    auto const sum = [&](double scale) {
      double result = 0;
      for (std::size_t head = 0; head < wanted.size(); ++head) result += sized(scale, head);
      return result;
    };
    // Floors and ceilings change the sum, which ascends with the scale.
    double small = 0;
    double large = high;
    while (sum(large) < target && large < 1e18) large *= 2;
    for (int step = 0; step < 100; ++step) {
      double const middle = (small + large) / 2;
      (sum(middle) <= target ? small : large) = middle;
    }
    std::vector<std::int64_t> result(wanted.size());
    std::vector<double> rest(wanted.size());
    for (std::size_t head = 0; head < wanted.size(); ++head) {
      double const size = sized(small, head);
      result[head] = static_cast<std::int64_t>(size);
      rest[head] = size - static_cast<double>(result[head]);
    }
    // Largest remainders first; then, where heads without a share were left at the floor, from the first head on.
    std::vector<std::size_t> order(wanted.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return rest[a] > rest[b]; });
    auto left =
        static_cast<std::int64_t>(target + 1e-6) - std::accumulate(result.begin(), result.end(), std::int64_t{});
    while (left > 0) {
      for (std::size_t const head : order) {
        if (left == 0) break;
        if (result[head] == length) continue;
        ++result[head];
        --left;
      }
    }
    return result;
  }

  friend bool operator==(ReconstructionBudgets const&, ReconstructionBudgets const&) = default;
};

HEADAWARE_NAMESPACE_END
