#include "tools/llama/score_choice.hpp"

#include <algorithm>
#include <numeric>

namespace llama_adapter {

std::vector<std::uint32_t> best_first(std::span<float const> scores) {
  std::vector<std::uint32_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::uint32_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) { return scores[a] > scores[b]; });
  return order;
}

std::vector<bool> chosen(std::span<std::uint32_t const> order, std::size_t count) {
  std::vector<bool> result(order.size());
  for (std::uint32_t const i : order.first(std::min(count, order.size()))) result[i] = true;
  return result;
}

std::vector<bool> chosen_by_head(std::span<float const> scores, std::span<std::int64_t const> counts) {
  std::vector<bool> result;
  std::size_t const tokens = scores.size() / std::max<std::size_t>(counts.size(), 1);
  for (std::size_t head = 0; head < counts.size(); ++head) {
    auto const of_head =
        chosen(best_first(scores.subspan(head * tokens, tokens)), static_cast<std::size_t>(counts[head]));
    result.insert(result.end(), of_head.begin(), of_head.end());
  }
  return result;
}

std::vector<std::int64_t> count_by_head(std::vector<bool> const& rows, std::size_t heads) {
  std::vector<std::int64_t> result(heads);
  std::size_t const tokens = rows.size() / std::max<std::size_t>(heads, 1);
  for (std::size_t i = 0; i < rows.size(); ++i) result[i / tokens] += rows[i] ? 1 : 0;
  return result;
}

}  // namespace llama_adapter
