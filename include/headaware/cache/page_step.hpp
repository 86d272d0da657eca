#pragma once

#include <headaware/config.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// Generation "not known": a step or view with it is not compared with the tables.
inline constexpr std::uint64_t generation_not_known = 0;

/// @brief A copy on write: the first tokens of a page that several sequences own move to a page of one of them.
struct PageCopy {
  std::int32_t layer = 0;
  std::int32_t from = 0;
  std::int32_t to = 0;
  std::int32_t tokens = 0;
  std::int32_t kv_head = 0;
};

/// @brief Step prepared by `PagedHeads::append`, to be written by `headaware::append`. Stale after any later change of
/// the tables.
struct PageStep {
  std::vector<std::int32_t> lengths{};     ///< [num_sequences] before
  std::vector<std::int32_t> high_water{};  ///< [num_sequences] before, see `RollingState::high_water`
  std::vector<std::int32_t> counts{};      ///< [num_sequences] new tokens
  std::vector<PageCopy> copies{};          ///< copies on write
  std::int32_t max_count = 0;
  /// Generation of the tables: unique in the process, but for copies of them.
  std::uint64_t generation = generation_not_known;
};

namespace detail {

/// Sorts copies by layer. @param result  [layers, max_copies], filled up with copies of no tokens
template <class = void>
void pad_copies(std::span<PageCopy const> copies, std::size_t max_copies, std::span<PageCopy> result) {
  for (std::int32_t layer = 0; !result.empty(); ++layer, result = result.subspan(max_copies)) {
    auto const of_layer = [layer](PageCopy const& copy) { return copy.layer == layer; };
    auto const end = std::copy_if(copies.begin(), copies.end(), result.begin(), of_layer);
    std::fill(end, result.begin() + static_cast<std::ptrdiff_t>(max_copies), PageCopy{});
  }
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
