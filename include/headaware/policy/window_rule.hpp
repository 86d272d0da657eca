#pragma once

/// @file
/// The tokens that sinks and a window keep of a sequence: policies, caches, views and masks all ask here.

#include <headaware/config.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Tokens kept of a sequence of `length` tokens, oldest first: `[0, sinks)` and `[begin, length)`.
///
/// 0 <= sinks <= begin <= length.
template <class Int>
struct BasicWindowRange {
  Int sinks = 0;
  Int begin = 0;  ///< first token of the window
  Int length = 0;

  /// Makes a range of any `sinks`, `begin` >= 0 by cutting them to the sequence.
  [[nodiscard]] HEADAWARE_HOST_DEVICE static constexpr BasicWindowRange clamped(std::int64_t sinks, std::int64_t begin,
                                                                                std::int64_t length) {
    std::int64_t const first = sinks < length ? sinks : length;
    std::int64_t const start = begin < first ? first : begin;
    return {static_cast<Int>(first), static_cast<Int>(start < length ? start : length), static_cast<Int>(length)};
  }
  /// Number of tokens kept.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t count() const {
    return std::int64_t{sinks} + (length - begin);
  }
  /// The `i`-th token kept. @pre 0 <= i < count()
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t token(std::int64_t i) const {
    return i < sinks ? i : begin + (i - sinks);
  }
  /// Number of tokens kept of `[0, token)`. @pre 0 <= token <= length
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t kept_before(std::int64_t token) const {
    if (token <= begin) return token < sinks ? token : std::int64_t{sinks};
    return sinks + (token - begin);
  }
  /// The same in 32 bits, for kernels. @pre length < 2^31
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr BasicWindowRange<std::int32_t> narrow() const {
    return {static_cast<std::int32_t>(sinks), static_cast<std::int32_t>(begin), static_cast<std::int32_t>(length)};
  }
  /// Whether every token is kept.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr bool is_whole() const { return begin == sinks; }
};

using WindowRange = BasicWindowRange<std::int64_t>;

/// @brief Keeps the first `sink` and the last `window` tokens of a sequence of any length.
struct WindowRule {
  std::int32_t sink = 0;
  std::int32_t window = 0;

  /// Whether a sequence of `length` tokens keeps `token`.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr bool keeps(std::int64_t token, std::int64_t length) const {
    return token < sink || token >= length - window;
  }
  /// The tokens that a sequence of `length` tokens keeps.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr WindowRange range(std::int64_t length) const {
    return WindowRange::clamped(sink, length - window, length);
  }
  /// @brief The tokens held of a sequence that is `length` tokens long and has been `high_water`, where `slack` tokens
  /// stay after they have left the window.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr WindowRange held(std::int64_t length, std::int64_t high_water,
                                                                 std::int64_t slack) const {
    return WindowRange::clamped(sink, window == 0 ? length : high_water - window - slack, length);
  }
  /// The longest that a sequence may have been while `token`, after the sinks, is still held. @pre window > 0
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr std::int64_t high_water_holding(std::int64_t token,
                                                                                std::int64_t slack) const {
    return token + window + slack;
  }
  /// The tokens that the last `queries` tokens of a sequence see together, each its own sinks and window.
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr WindowRange range_of_queries(std::int64_t length,
                                                                             std::int64_t queries) const {
    return held(length, length, queries - 1);
  }
  /// Whether a query sees `token` of a sequence of `length` tokens; a query after the newest token sees what that sees.
  /// @pre token < length
  [[nodiscard]] HEADAWARE_HOST_DEVICE constexpr bool sees(std::int64_t token, std::int64_t query,
                                                          std::int64_t length) const {
    return keeps(token, query < length - 1 ? query + 1 : length);
  }
  friend constexpr bool operator==(WindowRule const&, WindowRule const&) = default;
};

HEADAWARE_NAMESPACE_END
