#pragma once

/// @file
/// Retention policies, and the maps between a sequence's tokens and the rows that hold the kept ones.
/// A policy is data with one pure function; the maps are derived from it, or closed forms that the
/// policy offers.

#include <headaware/config.hpp>

#include <concepts>
#include <cstdint>
#include <string_view>
#include <type_traits>

HEADAWARE_NAMESPACE_BEGIN

/// @brief A retention policy: a trivially copyable aggregate with a `name` and
/// `bool keeps(int64_t token, int64_t length) const`, which says whether a sequence of `length`
/// tokens keeps token `token` (0 is the oldest).
///
/// Optional members, each marked `HEADAWARE_HOST_DEVICE` as `keeps` is:
/// - `int64_t kept_before(int64_t token, int64_t length) const`: kept tokens in `[0, token)`.
///   With it counting costs O(1) and finding a row's token O(log length), instead of O(length).
/// - `int64_t source_token(int64_t row, int64_t length) const`: the token in row `row`.
/// - `void validate() const` (host): throws `ArgumentError` on fields that make no sense.
template <class P>
concept HeadPolicy = std::is_trivially_copyable_v<P> && std::is_default_constructible_v<P> &&
    std::equality_comparable<P> && requires(P const policy, std::int64_t token, std::int64_t length) {
  { P::name } -> std::convertible_to<std::string_view>;
  { policy.keeps(token, length) } -> std::same_as<bool>;
};

/// @brief Explains in plain sentences why a type is no policy, one compile-time error per mistake.
/// Functions that take a policy call this in a `static_assert` instead of constraining it, because
/// nvcc does not say which clause of a concept failed.
template <class P>
consteval bool check_policy() {
  constexpr bool copyable = std::is_trivially_copyable_v<P>;
  static_assert(copyable, "headaware: a policy must be trivially copyable, because it travels to the device as bytes");
  constexpr bool constructible = std::is_default_constructible_v<P>;
  static_assert(constructible, "headaware: a policy must be default constructible");
  constexpr bool comparable = std::equality_comparable<P>;
  static_assert(comparable, "headaware: a policy needs 'friend bool operator==(P const&, P const&) = default'");
  constexpr bool named = requires {
    { P::name } -> std::convertible_to<std::string_view>;
  };
  static_assert(named, "headaware: a policy needs 'static constexpr std::string_view name', by which files and the "
                       "registry know it");
  constexpr bool keeps = requires(P const policy, std::int64_t i) {
    { policy.keeps(i, i) } -> std::same_as<bool>;
  };
  static_assert(keeps, "headaware: a policy needs 'bool keeps(int64_t token, int64_t length) const', marked "
                       "HEADAWARE_HOST_DEVICE");
  constexpr bool all = copyable && constructible && comparable && named && keeps;
  static_assert(!all || HeadPolicy<P>, "headaware: a clause of HeadPolicy lacks its message");
  // Always true: what is wrong has been said above, and a false would add an error that says nothing.
  return true;
}

namespace detail {

/// Whether a type is meant to be a policy.
template <class P>
concept looks_like_policy = requires {
  std::string_view(P::name);
}
|| requires(P& policy, std::int64_t i) { policy.keeps(i, i); };

template <class P>
inline constexpr bool has_kept_before = requires(P const p, std::int64_t i) {
  { p.kept_before(i, i) } -> std::convertible_to<std::int64_t>;
};
template <class P>
inline constexpr bool has_source_token = requires(P const p, std::int64_t i) {
  { p.source_token(i, i) } -> std::convertible_to<std::int64_t>;
};

}  // namespace detail

/// @brief Number of tokens of `[0, token)` that a sequence of `length` tokens keeps.
/// @pre  0 <= token <= length
/// @par Cost  O(1) where the policy has `kept_before`, else O(token)
template <class P>
HEADAWARE_HOST_DEVICE constexpr std::int64_t kept_before(P const& policy, std::int64_t token, std::int64_t length) {
  if constexpr (detail::has_kept_before<P>) {
    return policy.kept_before(token, length);
  } else {
    std::int64_t count = 0;
    for (std::int64_t t = 0; t < token; ++t) count += policy.keeps(t, length) ? 1 : 0;
    return count;
  }
}

/// @brief Number of tokens that a sequence of `length` tokens keeps.
/// @pre  length >= 0
template <class P>
HEADAWARE_HOST_DEVICE constexpr std::int64_t kept_count(P const& policy, std::int64_t length) {
  return kept_before(policy, length, length);
}

/// @brief The token that row `row` of the compressed sequence holds; rows keep the tokens' order.
/// @pre  0 <= row < kept_count(policy, length)
/// @par Cost  O(1) where the policy has `source_token`, O(log length) where it has `kept_before`,
///            else O(length)
template <class P>
HEADAWARE_HOST_DEVICE constexpr std::int64_t source_token(P const& policy, std::int64_t row, std::int64_t length) {
  if constexpr (detail::has_source_token<P>) {
    return policy.source_token(row, length);
  } else if constexpr (detail::has_kept_before<P>) {
    // The smallest token t with kept_before(t + 1) > row.
    std::int64_t low = 0;
    std::int64_t high = length - 1;
    while (low < high) {
      std::int64_t const middle = low + (high - low) / 2;
      if (policy.kept_before(middle + 1, length) > row) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  } else {
    std::int64_t token = 0;
    for (std::int64_t left = row;; ++token) {
      if (token >= length - 1) return token;
      if (policy.keeps(token, length) && left-- == 0) return token;
    }
  }
}

/// @brief The row that holds `token`, or -1 if the policy drops it.
/// @pre  0 <= token < length
template <class P>
HEADAWARE_HOST_DEVICE constexpr std::int64_t kept_row(P const& policy, std::int64_t token, std::int64_t length) {
  return policy.keeps(token, length) ? kept_before(policy, token, length) : -1;
}

HEADAWARE_NAMESPACE_END
