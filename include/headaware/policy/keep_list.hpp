#pragma once

#include <headaware/error.hpp>
#include <headaware/policy/concept.hpp>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Keeps the tokens that a caller's list names: how score-based selection plugs in.
///
/// The list is borrowed and read by whichever back end compresses: a host pointer for the CPU, a
/// device pointer for CUDA. Sizes need only `count`.
/// @pre  `tokens[0 .. count)` ascends strictly and every entry is below the sequence's length.
///       The CPU back end checks this; the CUDA back end cannot and ignores entries out of range.
struct KeepList {
  static constexpr std::string_view name = "keep_list";

  std::int32_t const* tokens = nullptr;  ///< sorted token indices, [count], host or device
  std::int64_t count = -1;               ///< entries of `tokens`; 0: nothing is kept; -1: no list yet

  HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t) const {
    std::int64_t const at = lower_bound(token);
    return at < count && tokens[at] == token;
  }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t kept_before(std::int64_t token, std::int64_t length) const {
    if (count < 0) return 0;
    return token >= length ? count : lower_bound(token);
  }
  HEADAWARE_HOST_DEVICE constexpr std::int64_t source_token(std::int64_t row, std::int64_t) const {
    return tokens[row];
  }
  friend constexpr bool operator==(KeepList const&, KeepList const&) = default;

  /// @throws ArgumentError if there is no list, or `count` names entries of a null pointer
  void validate() const {
    require(count >= 0, "keep-list count", ">= 0", count, "KeepList");
    require(count == 0 || tokens != nullptr, "keep-list tokens", "a pointer", "nullptr", "KeepList");
  }

  /// @brief Checks the entries of a list in host memory.
  /// @throws ArgumentError if the entries do not ascend strictly within `[0, length)`
  void validate_entries(std::int64_t length) const {
    validate();
    for (std::int64_t i = 0; i < count; ++i) {
      std::int64_t const lowest = i == 0 ? 0 : std::int64_t{tokens[i - 1]} + 1;
      require(tokens[i] >= lowest && tokens[i] < length, "keep-list entry", {"a token in [", lowest, ", ", length, ")"},
              tokens[i], {"KeepList entry ", i});
    }
  }

 private:
  HEADAWARE_HOST_DEVICE constexpr std::int64_t lower_bound(std::int64_t token) const {
    std::int64_t low = 0;
    std::int64_t high = count;
    while (low < high) {
      std::int64_t const middle = low + (high - low) / 2;
      if (tokens[middle] < token) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};
static_assert(HeadPolicy<KeepList>);

HEADAWARE_NAMESPACE_END
