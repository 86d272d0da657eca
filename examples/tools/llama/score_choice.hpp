#pragma once

// Choosing the best rows of a text by their scores, over all layers and heads at once.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace llama_adapter {

/// Indices of scores, the best first; of equal ones the first.
[[nodiscard]] std::vector<std::uint32_t> best_first(std::span<float const> scores);

/// Rows that a share of all stands for.
[[nodiscard]] inline std::size_t rows_of(double share, std::size_t rows) {
  return static_cast<std::size_t>(std::llround(share * static_cast<double>(rows)));
}

/// True for the `count` best. @param order  of `best_first`
[[nodiscard]] std::vector<bool> chosen(std::span<std::uint32_t const> order, std::size_t count);

/// True for each head's best, as many as it is given. @param scores  [heads, tokens] @param counts  [heads]
[[nodiscard]] std::vector<bool> chosen_by_head(std::span<float const> scores, std::span<std::int64_t const> counts);

/// Rows per head of those chosen. @param rows  [heads, tokens]
[[nodiscard]] std::vector<std::int64_t> count_by_head(std::vector<bool> const& rows, std::size_t heads);

/// Counts of rows that one choice has, and of those that another has too.
struct Overlap {
  std::int64_t wanted = 0;
  std::int64_t both = 0;

  /// Share of those wanted; 1 where none is.
  [[nodiscard]] double share() const {
    return wanted == 0 ? 1 : static_cast<double>(both) / static_cast<double>(wanted);
  }
  void add(std::vector<bool> const& wanted_rows, std::vector<bool> const& got, std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      wanted += wanted_rows[i] ? 1 : 0;
      both += wanted_rows[i] && got[i] ? 1 : 0;
    }
  }
};

}  // namespace llama_adapter
